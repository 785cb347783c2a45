"""The frames of AMQP 0-9-1 in which jobs travel: made from values, and taken out of a stream that comes in any pieces.

A connection's library keeps connecting, heartbeats, channels and declarations; what comes per message (publish, deliver,
return, ack, nack, and their content) is written and read here, because that is where its time goes. Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from struct import Struct
from typing import Final

__all__ = (
    "CUT_BYTES",
    "HEARTBEAT",
    "LARGEST_BODY",
    "FrameError",
    "FrameStream",
    "HotChannel",
    "ack_frame",
    "message_frames",
    "message_properties",
    "nack_frame",
    "publish_frame",
)

HEARTBEAT: Final = b"\x08\x00\x00\x00\x00\x00\x00\xce"

LARGEST_BODY: Final = 16 << 20
"""Bytes of a message that are kept. Of a larger one only the first `CUT_BYTES` are, so it is no job for its receiver."""

CUT_BYTES: Final = 64 * 1024

_DEFAULT_FRAME_MAX = 128 * 1024
_FRAME_OVERHEAD = 8
_END = 0xCE
_END_BYTE = b"\xce"
_METHOD, _HEADER, _BODY, _BEAT = 1, 2, 3, 8
_KINDS = frozenset((_METHOD, _HEADER, _BODY, _BEAT))

_TUNE = 10 << 16 | 30
_BLOCKED = 10 << 16 | 60
_UNBLOCKED = 10 << 16 | 61
_CLOSE = 20 << 16 | 40
_CLOSE_OK = 20 << 16 | 41
_PUBLISH = 60 << 16 | 40
_RETURN = 60 << 16 | 50
_DELIVER = 60 << 16 | 60
_ACK = 60 << 16 | 80
_NACK = 60 << 16 | 120

_frame_head = Struct(">BHI")
_u32 = Struct(">I")
_u64 = Struct(">Q")
_verdict = Struct(">BHIIQBB")
_settled = Struct(">QB")
_content_head = Struct(">BHIIQ")

# Which properties a message of ours has: content_type, headers, delivery_mode, correlation_id, message_id, timestamp,
# type and app_id. They are written in the order of their bits.
_OUR_PROPERTIES = (1 << 15 | 1 << 13 | 1 << 12 | 1 << 10 | 1 << 7 | 1 << 6 | 1 << 5 | 1 << 3).to_bytes(2, "big")
_PERSISTENT = b"\x02"

_octets = tuple(bytes((size,)) for size in range(256))


class FrameError(ConnectionError):
    """The peer speaks something else, or breaks a limit: nothing more can be read from this connection."""


def _short(text: str) -> bytes:
    """A short string.

    Raises:
        ValueError: It is longer than 255 bytes.
    """
    data = text.encode()
    if len(data) > 255:
        raise ValueError(f"{text[:40]!r}… has {len(data)} bytes: an AMQP short string holds 255")
    return _octets[len(data)] + data


_same_short = lru_cache(maxsize=1024)(_short)
"""For strings of which there are few."""


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return _frame_head.pack(kind, channel, len(payload)) + payload + _END_BYTE


def publish_frame(channel: int, exchange: str, routing_key: str) -> bytes:
    """The frame that begins a mandatory publish; the same for every message of a queue."""
    return _frame(_METHOD, channel, _u32.pack(_PUBLISH) + b"\0\0" + _short(exchange) + _short(routing_key) + b"\x01")


def message_properties(
    *,
    content_type: str,
    headers: Mapping[str, str],
    correlation_id: str,
    message_id: str,
    timestamp: int,
    type: str,
    app_id: str,
) -> bytes:
    """The property list of a persistent message, flags included. `timestamp`: Unix seconds.

    Raises:
        ValueError: A string other than a header's value is longer than 255 bytes.
    """
    table = b""
    for name, value in headers.items():
        data = value.encode()
        table += _same_short(name) + b"S" + _u32.pack(len(data)) + data
    return b"".join(
        (
            _OUR_PROPERTIES,
            _same_short(content_type),
            _u32.pack(len(table)),
            table,
            _PERSISTENT,
            _short(correlation_id),
            _short(message_id),
            _u64.pack(timestamp),
            _same_short(type),
            _same_short(app_id),
        )
    )


def message_frames(publish: bytes, channel: int, properties: bytes, body: bytes, frame_max: int) -> bytes:
    """A whole message: `publish` (see `publish_frame`), the content header, and the body in frames of `frame_max`."""
    size = len(body)
    most = frame_max - _FRAME_OVERHEAD
    parts = [publish, _content_head.pack(_HEADER, channel, 12 + len(properties), 60 << 16, size), properties, _END_BYTE]
    if 0 < size <= most:
        parts += (_frame_head.pack(_BODY, channel, size), body, _END_BYTE)
    else:
        for at in range(0, size, most):
            piece = body[at : at + most]
            parts += (_frame_head.pack(_BODY, channel, len(piece)), piece, _END_BYTE)
    return b"".join(parts)


def ack_frame(channel: int, tag: int, *, multiple: bool = False) -> bytes:
    """Ack `tag`, and with `multiple` everything before it."""
    return _verdict.pack(_METHOD, channel, 13, _ACK, tag, multiple, _END)


def nack_frame(channel: int, tag: int) -> bytes:
    """Give `tag` back into its queue."""
    return _verdict.pack(_METHOD, channel, 13, _NACK, tag, 2, _END)


class HotChannel:
    """What came on one channel and was not taken yet. The owner takes (and empties) the lists.

    Attributes:
        deliveries: (delivery tag, body) in the order of delivery.
        confirms: (delivery tag, multiple, acked): the broker's word on what was published here.
        returned: Message ids of what found no queue. Each comes before its confirm.
        closed: The broker has closed the channel, or this side does so: nothing may be written, nothing is taken any more.
        gone: Both sides have closed it; what comes under its number is about another channel.
    """

    __slots__ = (
        "_cut",
        "_kept",
        "_left",
        "_parts",
        "_tag",
        "closed",
        "confirms",
        "deliveries",
        "gone",
        "number",
        "returned",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.deliveries: list[tuple[int, bytes]] = []
        self.confirms: list[tuple[int, bool, bool]] = []
        self.returned: list[str] = []
        self.closed = self.gone = False
        self._tag = 0  # of the delivery whose content comes now; 0: a returned message's
        self._left: int | None = None  # bytes of the content that are still to come; -1: its header is
        self._parts: list[bytes] = []
        self._kept = 0
        self._cut = LARGEST_BODY

    def method(self, data: bytes, at: int, stop: int) -> bool:
        """Take a method; False when it is none of those that are taken here."""
        code: int = _u32.unpack_from(data, at)[0]
        if code in (_ACK, _NACK):
            self._whole(stop - at, 13)
            tag, bits = _settled.unpack_from(data, at + 4)
            if not self.closed:
                self.confirms.append((tag, bool(bits & 1), code == _ACK))
        elif code == _DELIVER:
            begin = at + 5 + data[at + 4]  # after the consumer's tag
            self._whole(stop - begin, 11)
            self._begin(_u64.unpack_from(data, begin)[0])
        elif code == _RETURN:
            self._begin(0)
        else:
            if code in (_CLOSE, _CLOSE_OK):
                self.closed = self.gone = True
            return False
        return True

    def header(self, data: bytes, at: int, stop: int) -> bool:
        """Take a content header; False when no content of ours is expected."""
        if self._left is None:
            return False
        self._whole(stop - at, 14)
        if self._left != -1:
            raise FrameError(f"channel {self.number}: a content header inside of a body")
        self._left = size = _u64.unpack_from(data, at + 4)[0]
        if self.closed:
            self._cut = 0
        elif self._tag:
            self._cut = CUT_BYTES if size > LARGEST_BODY else size
        else:
            self._cut = 0
            self.returned.append(_message_id(data, at + 12, stop))
        if size == 0:
            self._complete()
        return True

    def body(self, data: bytes, at: int, stop: int) -> bool:
        """Take a piece of a body; False when no content of ours is expected."""
        if self._left is None:
            return False
        if self._left == stop - at and self._tag and not self._kept and self._cut == self._left:  # all of it
            self._left = None
            if not self.closed:
                self.deliveries.append((self._tag, data[at:stop]))
            return True
        self._left -= stop - at
        if self._left < 0:
            raise FrameError(f"channel {self.number}: more of a body than its header said")
        if self._kept < self._cut:
            part = data[at : min(stop, at + self._cut - self._kept)]
            if part:
                self._kept += len(part)
                self._parts.append(part)
        if self._left == 0:
            self._complete()
        return True

    def _begin(self, tag: int) -> None:
        if self._left is not None:
            raise FrameError(f"channel {self.number}: a message inside of another one")
        self._tag, self._left = tag, -1

    def _complete(self) -> None:
        if self._tag and not self.closed:
            parts = self._parts
            self.deliveries.append((self._tag, parts[0] if len(parts) == 1 else b"".join(parts)))
        self._left, self._parts, self._kept = None, [], 0

    def _whole(self, size: int, least: int) -> None:
        if size < least:
            raise FrameError(f"channel {self.number}: a frame that ends too early")


class FrameStream:
    """Takes what the hot channels are about out of a byte stream, and hands everything else on.

    Memory: one unfinished frame (at most the negotiated frame_max), and one unfinished body for each hot channel.

    Attributes:
        hot: By number. Put a channel here once it is open; it leaves when both sides have closed it.
        touched: Hot channels that were given something since this set was last emptied.
        blocked: Whether the broker said that it does not read from who publishes.
        frame_max: Largest frame that may be sent, in bytes with its 8 of overhead.
    """

    __slots__ = ("_limit", "_need", "_rest", "blocked", "frame_max", "hot", "touched")

    def __init__(self) -> None:
        self.hot: dict[int, HotChannel] = {}
        self.touched: set[HotChannel] = set()
        self.blocked = False
        self.frame_max = _DEFAULT_FRAME_MAX
        self._limit = _DEFAULT_FRAME_MAX
        self._rest = bytearray()
        self._need = 0

    def feed(self, data: bytes) -> bytes:
        """Read the next piece; return the frames, whole ones, that are not about hot channels.

        Raises:
            FrameError: This is no AMQP 0-9-1, or a frame is larger than was negotiated. The connection is lost.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < self._need:
                return b""
            data = bytes(self._rest)
            self._rest.clear()
        hot, touched = self.hot, self.touched
        at, end, cold = 0, len(data), []
        while end - at >= _FRAME_OVERHEAD:
            kind, number, size = _frame_head.unpack_from(data, at)
            stop = at + _FRAME_OVERHEAD + size
            if stop > end or stop - at > self._limit:
                break
            if data[stop - 1] != _END:
                raise FrameError(f"a frame without its end: {data[at : at + 8]!r}")
            channel = hot.get(number)
            if channel is not None and self._take(channel, kind, data, at + 7, stop - 1):
                touched.add(channel)
            else:
                if kind not in _KINDS:
                    break
                cold.append(data[at:stop])
                if number == 0 and kind == _METHOD:
                    self._connection(data, at + 7, stop - 1)
            at = stop
        if at < end:
            self._keep(data, at)
        return b"".join(cold)

    def _keep(self, data: bytes, at: int) -> None:
        """Keep the beginning of a frame until the rest of it is there; refuse what cannot become one."""
        self._rest += data[at:]
        self._need = _FRAME_OVERHEAD
        if data[at] not in _KINDS:
            raise FrameError(f"no frame of AMQP 0-9-1: {data[at : at + 8]!r}")
        if len(data) - at >= 7:
            size: int = _frame_head.unpack_from(data, at)[2]
            self._need += size
            if self._need > self._limit:
                raise FrameError(f"a frame of {self._need} bytes, and {self._limit} were negotiated")

    def _take(self, channel: HotChannel, kind: int, data: bytes, at: int, stop: int) -> bool:
        if kind == _BODY:
            taken = channel.body(data, at, stop)
        elif kind == _HEADER:
            taken = channel.header(data, at, stop)
        else:
            if kind != _METHOD or stop - at < 4:
                raise FrameError(f"channel {channel.number}: a frame of kind {kind} with {stop - at} bytes")
            taken = channel.method(data, at, stop)
            if channel.gone:
                del self.hot[channel.number]
        return taken

    def _connection(self, data: bytes, at: int, stop: int) -> None:
        """Hear what is said about the connection as a whole."""
        if stop - at < 4:
            raise FrameError("a method without its number")
        code: int = _u32.unpack_from(data, at)[0]
        if code in (_BLOCKED, _UNBLOCKED):
            self.blocked = code == _BLOCKED
        elif code == _TUNE and stop - at >= 12:
            negotiated: int = _u32.unpack_from(data, at + 6)[0]
            self.frame_max = negotiated or _DEFAULT_FRAME_MAX
            self._limit = negotiated or LARGEST_BODY + _FRAME_OVERHEAD


def _message_id(data: bytes, at: int, stop: int) -> str:
    """Return the message id of a property list; "" when it has none."""
    flags = int.from_bytes(data[at : at + 2], "big")
    at += 2
    for bit in (15, 14, 13, 12, 11, 10, 9, 8):
        if not flags >> bit & 1 or at >= stop:
            continue
        if bit == 13:
            at += 4 + int.from_bytes(data[at : at + 4], "big")
        elif bit in (12, 11):
            at += 1
        else:
            at += 1 + data[at]
    if not flags >> 7 & 1 or at >= stop or at + 1 + data[at] > stop:
        return ""
    return data[at + 1 : at + 1 + data[at]].decode(errors="replace")
