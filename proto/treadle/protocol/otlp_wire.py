"""Spans of OTLP as bytes, without protobuf messages: what all spans of a process or a run share is encoded once.

A message object costs more than the bytes it becomes. Fields stand in the order of their numbers, as protobuf writes them:
the same values give the same bytes, those that protobuf would give.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from struct import Struct
from typing import Final

__all__ = (
    "LOCAL",
    "REMOTE",
    "attribute",
    "attributes",
    "event",
    "ids",
    "link",
    "link_attributes",
    "message",
    "name_and_kind",
    "request",
    "resource",
    "scope",
    "span",
    "status",
)

LOCAL: Final = 0x100
"""Flags: it is known whether the context came from another process, and it did not."""
REMOTE: Final = 0x300
"""Flags: it did."""

_CONTINUED: Final = 0x80
_SMALL: Final = tuple(bytes((n,)) for n in range(_CONTINUED))
_TWO: Final = 1 << 14
_INT64: Final = (1 << 64) - 1
_CACHED_CHARS: Final = 64
_TIMES: Final = Struct("<cQcQ").pack
_FIXED64: Final = Struct("<Q").pack
_FIXED32: Final = Struct("<I").pack
_START, _END = b"\x39", b"\x41"


def _varint(number: int) -> bytes:
    if number < _CONTINUED:
        return _SMALL[number]
    if number < _TWO:
        return bytes((number & 0x7F | _CONTINUED, number >> 7))
    out = bytearray()
    while number >= _CONTINUED:
        out.append(number & 0x7F | _CONTINUED)
        number >>= 7
    out.append(number)
    return bytes(out)


def message(tag: bytes, data: bytes) -> bytes:
    """Return a field that holds bytes, a text or a message; `tag` is its number and wire type, encoded."""
    return b"%b%b%b" % (tag, _varint(len(data)), data)


def _key_value(key: str, value: str | int | bool) -> bytes:
    if isinstance(value, bool):
        held = b"\x10\x01" if value else b"\x10\x00"
    elif isinstance(value, int):
        held = b"\x18" + _varint(value & _INT64)
    else:
        held = message(b"\x0a", value.encode())
    return message(b"\x0a", key.encode()) + message(b"\x12", held)


def _span_attribute(key: str, value: str | int | bool) -> bytes:
    return message(b"\x4a", _key_value(key, value))


_known = lru_cache(maxsize=4096, typed=True)(_span_attribute)  # typed: True is no 1


def attribute(key: str, value: str | int | bool) -> bytes:
    """Return an attribute of a span. Most are those of many spans: these are encoded once."""
    if isinstance(value, str) and len(value) > _CACHED_CHARS:
        return _span_attribute(key, value)
    return _known(key, value)


def attributes(values: Mapping[str, str | int | bool]) -> bytes:
    """Return the attributes of a span."""
    return b"".join([attribute(key, value) for key, value in values.items()])


def _pairs(tag: bytes, values: Mapping[str, str | int | bool]) -> bytes:
    return b"".join([message(tag, _key_value(key, value)) for key, value in values.items()])


def ids(trace_id: bytes, parent_id: bytes) -> tuple[bytes, bytes]:
    """Return what stands before and behind the id of a span; b"" as parent: it is the root of its trace."""
    return message(b"\x0a", trace_id) + b"\x12\x08", message(b"\x22", parent_id) if parent_id else b""


@lru_cache(maxsize=1024)
def name_and_kind(name: str, kind: int) -> bytes:
    """Return name and kind of a span; `kind` as OTLP numbers it, not 0."""
    return (message(b"\x2a", name.encode()) if name else b"") + b"\x30" + _SMALL[kind]


def event(name: str, time_ns: int, values: Mapping[str, str | int | bool]) -> bytes:
    """Return an event of a span."""
    return message(b"\x5a", b"\x09" + _FIXED64(time_ns) + message(b"\x12", name.encode()) + _pairs(b"\x1a", values))


def link_attributes(values: Mapping[str, str | int | bool]) -> bytes:
    """Return the attributes of a link."""
    return _pairs(b"\x22", values)


def link(trace_id: bytes, span_id: bytes, said: bytes, flags: int) -> bytes:
    """Return a link of a span; `said`: its attributes."""
    to = message(b"\x0a", trace_id) + message(b"\x12", span_id)
    return message(b"\x6a", b"%b%b\x35%b" % (to, said, _FIXED32(flags)))


def status(code: int, text: str = "", flags: int = LOCAL) -> bytes:
    """Return status (as OTLP numbers it) and flags, which end a span."""
    said = message(b"\x12", text.encode()) if text else b""
    if code:
        said += b"\x18" + _SMALL[code]
    return message(b"\x7a", said) + b"\x85\x01" + _FIXED32(flags)


def span(front: Iterable[bytes], start_ns: int, end_ns: int, back: Iterable[bytes]) -> bytes:
    """Return a span, as an entry of its scope.

    Args:
        front: The parts before its times: ids, name and kind.
        start_ns, end_ns: Nanoseconds since 1970; not 0.
        back: The parts behind: attributes, events, links, status.
    """
    body = b"".join((*front, _TIMES(_START, start_ns, _END, end_ns), *back))
    return message(b"\x12", body)


def resource(values: Mapping[str, str]) -> bytes:
    """Return a resource, for `request`."""
    return message(b"\x0a", _pairs(b"\x0a", values))


def scope(name: str, version: str = "") -> bytes:
    """Return an instrumentation scope, for `request`."""
    said = message(b"\x0a", name.encode())
    return message(b"\x0a", said + message(b"\x12", version.encode()) if version else said)


def request(groups: Iterable[tuple[bytes, bytes, Iterable[bytes]]]) -> bytes:
    """Return the request that exports spans: for each resource its scope and its spans.

    Resource and scope may have their `schema_url` behind them: they are the fields of ResourceSpans and of ScopeSpans.
    """
    return b"".join([message(b"\x0a", of + message(b"\x12", b"".join((by, *spans)))) for of, by, spans in groups])
