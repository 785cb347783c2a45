"""Between an AMQP connection's socket and its library: what is about hot channels goes past the library.

The library connects, answers heartbeats, opens and closes channels and declares; it hears of nothing else. It takes a
connection to be dead on which it sees no frame for a while, so hot traffic is told to it as a heartbeat now and then.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any, Final, Protocol, cast

from treadle.protocol.amqp_frames import HEARTBEAT, FrameError, FrameStream, HotChannel

__all__ = ("FrameFilter", "HotOwner", "open_filtered")

_TELL_EVERY: Final = 2.0
"""Seconds between two heartbeats that stand for hot traffic."""


class HotOwner(Protocol):
    """Whose channel it is. Called on the event loop; must not block."""

    def arrived(self) -> None:
        """There may be something in the channel's lists; called once for all that one read brought."""
        ...

    def writable(self) -> None:
        """`FrameFilter.writable` may have become true."""
        ...


class FrameFilter(asyncio.Protocol):
    """The protocol of the transport. `inner` is the library's.

    Args:
        inner: Gets everything that is not about hot channels.
        loop: The event loop.
    """

    def __init__(self, inner: asyncio.StreamReaderProtocol, loop: asyncio.AbstractEventLoop) -> None:
        self._inner = inner
        self._loop = loop
        self._stream = FrameStream()
        self._owners: dict[HotChannel, HotOwner] = {}
        self._transport: asyncio.Transport | None = None
        self._told = loop.time()
        self._error: FrameError | None = None
        self._paused = False

    @property
    def frame_max(self) -> int:
        """Largest frame that may be sent."""
        return self._stream.frame_max

    @property
    def blocked(self) -> bool:
        """Whether the broker said that it does not read from who publishes."""
        return self._stream.blocked

    @property
    def paused(self) -> bool:
        """Whether what was written waits for the socket."""
        return self._paused

    @property
    def writable(self) -> bool:
        """Whether a publisher may write: the broker reads, and the socket takes."""
        return not (self._paused or self._stream.blocked or self._transport is None)

    def open(self, number: int, owner: HotOwner) -> HotChannel:
        """Take over what is about a channel that the library has opened."""
        channel = HotChannel(number)
        self._stream.hot[number] = channel
        self._owners[channel] = owner
        if self._transport is None:
            channel.closed = True
        return channel

    def release(self, channel: HotChannel) -> None:
        """Write nothing to a channel any more, and drop what still comes. Call it before the library closes it. Idempotent."""
        channel.closed = True
        self._owners.pop(channel, None)

    def write(self, frames: bytes) -> None:
        """Write whole frames at once. They go between the library's, which it writes whole, too."""
        if self._transport is not None:
            self._transport.write(frames)

    def hang_up(self) -> None:
        """End the connection at once, also while the event loop is blocked. For any thread.

        Raises:
            OSError: It is not connected.
        """
        transport = self._transport
        if transport is not None:
            transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    # --- asyncio.Protocol ------------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        was_blocked = self._stream.blocked
        try:
            cold = self._stream.feed(data)
        except FrameError as error:
            self._error = error
            if self._transport is not None:
                self._transport.abort()
            return
        if self._stream.touched:
            self._tell_owners()
        if cold:
            self._told = self._loop.time()
            self._inner.data_received(cold)
        elif self._owners and (now := self._loop.time()) - self._told > _TELL_EVERY:
            self._told = now
            self._inner.data_received(HEARTBEAT)
        if was_blocked and not self._stream.blocked:
            self._tell_writable()

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for channel in self._owners:
            channel.closed = True
        self._inner.connection_lost(exc or self._error)

    def pause_writing(self) -> None:
        self._paused = True
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._paused = False
        self._inner.resume_writing()
        self._tell_writable()

    def _tell_owners(self) -> None:
        touched, self._stream.touched = self._stream.touched, set()
        for channel in touched:
            owner = self._owners.get(channel)
            if owner is not None:
                self._guarded(owner.arrived)

    def _tell_writable(self) -> None:
        for owner in tuple(self._owners.values()):
            self._guarded(owner.writable)

    def _guarded(self, call: Any) -> None:
        """An owner's error is the event loop's to report; raised here it would end the connection."""
        try:
            call()
        except Exception as error:
            self._loop.call_exception_handler(
                {"message": "what arrived over AMQP could not be handled", "exception": error, "protocol": self}
            )


async def open_filtered(
    host: str, port: int, context: ssl.SSLContext | None, **options: Any
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, FrameFilter]:
    """Connect, as `asyncio.open_connection` does, with a filter in between.

    Args:
        host, port: Where.
        context: For TLS; None: none.
        options: For `loop.create_connection`.

    Raises:
        OSError: Nobody answers there, or the certificate is not good.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    inner = asyncio.StreamReaderProtocol(reader, loop=loop)
    between = FrameFilter(inner, loop)
    transport, _ = await loop.create_connection(lambda: between, host, port, ssl=context, **options)
    return reader, asyncio.StreamWriter(transport, inner, reader, loop), between
