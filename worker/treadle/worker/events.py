"""`wait_for_event` and `send_event`: facts that concern more than one run, by name."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar, overload

from treadle.protocol.durations import Duration, to_ms
from treadle.protocol.errors import ConfigError
from treadle.protocol.events import (
    EVENT_DATA_BYTES,
    EVENT_KEPT_MS,
    canonical_match,
    check_event_id,
    check_event_name,
)
from treadle.protocol.payloads import decode, encode_bytes
from treadle.v1.history_pb2 import EventMatched, EventWaitRefused
from treadle.worker.current import current_execution
from treadle.worker.event_types import Event

__all__ = ("send_event", "wait_for_event")

T = TypeVar("T")

_ENVELOPE: Final = 64


@overload
async def wait_for_event(
    name: str, type: type[T], /, *, match: Mapping[str, Any] | None = None, since: Duration = "run_start"
) -> Event[T]: ...
@overload
async def wait_for_event(
    name: str,
    type: type[T],
    /,
    *,
    match: Mapping[str, Any] | None = None,
    timeout: Duration | None,
    since: Duration = "run_start",
) -> Event[T] | None: ...
@overload
async def wait_for_event(
    name: str,
    /,
    *,
    match: Mapping[str, Any] | None = None,
    timeout: Duration | None = None,
    since: Duration = "run_start",
) -> Any: ...
async def wait_for_event(
    name: str,
    type: Any = Any,
    /,
    *,
    match: Mapping[str, Any] | None = None,
    timeout: Duration | None = None,
    since: Duration = "run_start",
) -> Any:
    """Wait for an event. One event ends the waits of all runs that it fits.

    Waits for the same name and values that follow each other in a run get one event after the other, none twice; the parts of a
    run that goes on as new are one row.

    Args:
        name: What senders call it ("order.paid").
        type: What its data is decoded as; default: plain JSON values.
        match: What must be equal in its data: paths and values, {"order.id": 7}; None: nothing. At most 8; text, numbers, bools
            and None can be compared.
        timeout: How long to wait, in seconds or as text ("3d"); None: as long as it takes.
        since: Events that came before this call count too: "run_start" (default) those since the run started, "1h" those of
            the last hour, "now" none. Never those of more than 24 hours ago.

    Returns:
        The event; None when the timeout is over.

    Raises:
        PayloadError: The data does not fit the type. The event counts as received.
        FieldInvalid: The name, or what is to match, is not allowed.
        ConfigError: It is called outside a workflow; runs compare events of this name by too many different keys; or `since`
            is more than a day.
    """
    execution = current_execution()
    if execution is None:
        raise ConfigError("wait_for_event(): call it inside a @workflow that a worker executes")
    check_event_name(name)
    wanted = canonical_match(match)
    place = execution.had.place(name, wanted)
    begun, now_ms = place.count, round(execution.now() * 1000)
    since_ms = _since(since, now_ms, place.since_ms)
    until_ms = None if timeout is None else now_ms + to_ms(timeout, name="timeout")
    while True:
        left_ms = None if until_ms is None else max(0, until_ms - round(execution.now() * 1000))
        outcome = await execution.wait_for_event(name, wanted, left_ms, since_ms, place.seq)
        if isinstance(outcome, EventWaitRefused):
            raise ConfigError(f"wait_for_event({name!r}): {outcome.reason}")
        if not isinstance(outcome, EventMatched):
            return None
        event = outcome.event
        if place.take(event, outcome.seq, begun):
            time = datetime.fromtimestamp(event.time_ms / 1000, UTC)
            return Event(event.event_id, event.name, time, decode(event.data, type, what=f"event {name!r}"))


def send_event(name: str, data: Any = None, *, id: str | None = None) -> str:
    """Send an event and go on: it starts the workflows that say so, and runs that wait for it go on.

    It is sent once, whatever dies: its id is made of the run and this call, the same in each replay.

    Args:
        name: What it is ("order.paid").
        data: Any JSON-like value, dataclass or model, at most 64 KiB.
        id: Its id, unique in the namespace for 24 h; None: one is made.

    Returns:
        Its id.

    Raises:
        FieldInvalid: The name or id is not allowed.
        PayloadError: The data cannot be encoded, or is too large.
        ConfigError: It is called outside a workflow; there, `Client.send` sends events.
    """
    execution = current_execution()
    if execution is None:
        raise ConfigError("send_event(): call it inside a @workflow that a worker executes; elsewhere use Client.send")
    check_event_name(name)
    if id is not None:
        check_event_id(id)
    encoded = encode_bytes(data, what=f"event {name!r}", limit=EVENT_DATA_BYTES - _ENVELOPE)
    return execution.send_event(name, encoded, id)


def _since(since: Duration, now_ms: int, started_ms: int) -> int:
    """Return from when on events count (ms since 1970)."""
    if since == "run_start":
        return started_ms
    if since == "now":
        return now_ms
    back_ms = to_ms(since, name="since")
    if back_ms > EVENT_KEPT_MS:
        longest = timedelta(milliseconds=EVENT_KEPT_MS)
        raise ConfigError(f"since={since!r}: events are kept for {longest.total_seconds() / 3600:g} hours")
    return now_ms - back_ms
