"""Names and ids of events: which are allowed, what of their data is compared, what a workflow is given of them. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

import msgspec

from treadle.protocol.errors import FieldInvalid
from treadle.v1.common_pb2 import EventTrigger, NamedEvent, Payload

__all__ = (
    "EVENT_DATA_BYTES",
    "EVENT_KEPT_MS",
    "EVENTS_A_CALL",
    "canonical_match",
    "check_event",
    "check_event_id",
    "check_event_name",
    "check_trigger",
    "derived_id",
    "input_of",
    "keys_of",
    "pattern_fits",
    "read_data",
    "values_at",
)

EVENTS_A_CALL: Final = 1_000
"""Events that one call may send."""
EVENT_DATA_BYTES: Final = 64 * 1024
"""Largest data of an event: a fact, and the ids of what it is about."""
EVENT_KEPT_MS: Final = 86_400_000
"""How long an event is known by its id, and found by runs that wait for it only later."""
KEYS: Final = 8
"""Paths that one wait may compare."""
PATTERNS: Final = 20
"""Names that start one workflow."""

_ID_LIMIT: Final = 200
_NAME_LIMIT: Final = 200
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]*")
_WHOLE: Final = "*"
_SUFFIX: Final = ".*"
_ENCODER: Final = msgspec.json.Encoder(order="deterministic")
_MISSING: Final = object()


def check_event_name(name: str) -> str:
    """Return `name` if it may name an event.

    Raises:
        FieldInvalid: It is not 1 to 200 letters, digits, and "_.:/-", beginning with a letter, digit or "_".
    """
    if len(name) > _NAME_LIMIT or not _NAME.fullmatch(name):
        raise FieldInvalid(
            f"event name {name[:40]!r}: give 1 to {_NAME_LIMIT} letters, digits and '_.:/-', beginning with a letter, "
            "a digit or '_'",
            field="name",
        )
    return name


def check_event_id(event_id: str) -> str:
    """Return `event_id` if it may be one.

    Raises:
        FieldInvalid: It is not 1 to 200 printable characters.
    """
    if not event_id or len(event_id) > _ID_LIMIT or not event_id.isprintable():
        raise FieldInvalid(f"event_id {event_id[:40]!r}: give 1 to {_ID_LIMIT} printable characters", field="event_id")
    return event_id


def check_event(event: NamedEvent) -> None:
    """Refuse an event that could not be handled.

    Raises:
        FieldInvalid: Name, id or data are not allowed; says why.
    """
    check_event_name(event.name)
    check_event_id(event.event_id)
    size = event.data.ByteSize()
    if size > EVENT_DATA_BYTES:
        raise FieldInvalid(
            f"event {event.event_id!r}: its data has {size:,} bytes, the limit is {EVENT_DATA_BYTES:,}",
            field="data",
            reason="PAYLOAD_TOO_LARGE",
            remedy="store what is large elsewhere, and send its address",
        )


def check_trigger(trigger: EventTrigger) -> None:
    """Refuse names that no event could have, and too many of them.

    Raises:
        FieldInvalid: Says which one.
    """
    if not 1 <= len(trigger.names) <= PATTERNS:
        raise FieldInvalid(f"on: give 1 to {PATTERNS} names of events, not {len(trigger.names)}", field="on")
    for pattern in trigger.names:
        name = pattern.removesuffix(_SUFFIX)
        if pattern != _WHOLE and (len(name) > _NAME_LIMIT or not _NAME.fullmatch(name)):
            raise FieldInvalid(
                f"on={pattern!r}: give the name of an event like 'contacts.uploaded', all that begin with a name like "
                "'contacts.*', or '*'",
                field="on",
            )


def pattern_fits(pattern: str, name: str) -> bool:
    """Whether events of `name` are meant by `pattern`: the name itself, "contacts.*" for all that begin so, or "*"."""
    return pattern in (name, _WHOLE) or (pattern.endswith(_SUFFIX) and name.startswith(pattern[:-1]))


def canonical_match(match: Mapping[str, Any] | None) -> bytes:
    """Return what a wait compares as JSON: paths sorted, equal values written equally; b"" when it compares nothing.

    Raises:
        FieldInvalid: A path is no path, a value is neither text, number, bool nor None, or there are too many.
    """
    if not match:
        return b""
    if len(match) > KEYS:
        raise FieldInvalid(f"match has {len(match)} paths: give {KEYS} at most", field="match")
    plain: dict[str, Any] = {}
    for path in sorted(match):
        if not path or len(path) > _NAME_LIMIT or not path.isprintable():
            raise FieldInvalid(f"match: {path[:40]!r} is no path like 'order.id'", field="match")
        value = _plain(match[path])
        if value is _MISSING:
            raise FieldInvalid(
                f"match[{path!r}] is a {type(match[path]).__name__}: compare text, numbers, bools or None",
                field="match",
            )
        plain[path] = value
    data = _ENCODER.encode(plain)
    if len(data) > 4_096:
        raise FieldInvalid(f"match has {len(data):,} bytes: give 4,096 at most", field="match")
    return data


def keys_of(match: bytes) -> tuple[str, ...]:
    """Return the paths that a wait compares, sorted.

    Raises:
        FieldInvalid: It is not what `canonical_match` writes.
    """
    try:
        found = msgspec.json.decode(match, type=dict[str, Any]) if match else {}
    except msgspec.MsgspecError as error:
        raise FieldInvalid(f"match: no JSON object: {error}", field="match") from error
    if canonical_match(found) != match:
        raise FieldInvalid("match: paths must be sorted, and equal values written equally", field="match")
    return tuple(found)


def read_data(data: Payload) -> Any:
    """Return the data of an event as plain JSON values; None where it cannot be read here (it is encrypted, or damaged)."""
    if data.encoding not in ("", "json"):
        return None
    try:
        return msgspec.json.decode(data.data) if data.data else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def values_at(keys: Sequence[str], data: Any) -> bytes | None:
    """Return what `canonical_match` writes for these paths and their values in an event's data.

    None: one is missing there, or is neither text, number, bool nor null.
    """
    plain: dict[str, Any] = {}
    for path in keys:
        value = data
        for part in path.split("."):
            value = value.get(part, _MISSING) if isinstance(value, dict) else _MISSING
        value = _plain(value)
        if value is _MISSING:
            return None
        plain[path] = value
    return _ENCODER.encode(plain) if plain else b""


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            return _MISSING
        return int(value) if value.is_integer() else value
    return value if value is None or isinstance(value, str | bool | int) else _MISSING


def derived_id(*parts: str) -> str:
    """Return an id, 32 hex digits, made of these parts: the same wherever and whenever it is computed."""
    return blake2b("\x1f".join(parts).encode(), digest_size=16, person=b"treadle-event-v1").hexdigest()


def input_of(event: NamedEvent, parameter: str, *, whole: bool) -> Payload:
    """Return the arguments of a workflow that the event starts, as a start by a client would write them.

    Args:
        event: JSON in its data.
        parameter: Which parameter gets it; "": none.
        whole: It gets id, name, time and data; else the data alone.
    """
    if not parameter:
        return Payload(data=b"{}")
    data = event.data.data or b"null"
    if whole:
        time = datetime.fromtimestamp(event.time_ms / 1000, UTC)
        place = {"id": event.event_id, "name": event.name, "time": time}
        data = _ENCODER.encode(place)[:-1] + b',"data":' + data + b"}"
    return Payload(data=b"{" + _key(parameter) + b":" + data + b"}")


@lru_cache(256)
def _key(name: str) -> bytes:
    return _ENCODER.encode(name)
