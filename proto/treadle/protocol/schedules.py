"""What people write where a schedule is meant, as it goes over the wire."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from treadle.protocol.durations import Duration, to_ms
from treadle.protocol.errors import ConfigError, FieldInvalid
from treadle.protocol.tags import tags_of
from treadle.v1.schedule_pb2 import (
    OVERLAP_POLICY_ALLOW,
    OVERLAP_POLICY_CANCEL,
    OVERLAP_POLICY_QUEUE_ALL,
    OVERLAP_POLICY_QUEUE_ONE,
    OVERLAP_POLICY_SKIP,
    OVERLAP_POLICY_TERMINATE,
    OverlapPolicy,
    ScheduleSpec,
)

__all__ = ("CRON_FIELDS", "Overlap", "overlap_name", "overlap_of", "timing")

Overlap = Literal["skip", "queue-one", "queue-all", "cancel", "terminate", "allow"]
"""What happens to an occurrence while a run of its schedule is open: it is left out; waits (one at most, or up to 1,000);
has the open run cancelled or terminated and starts then; or starts beside it."""

CRON_FIELDS: Final = 5
MIN_EVERY_MS: Final = 1_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

_OVERLAPS: Final[dict[str, OverlapPolicy.ValueType]] = {
    "skip": OVERLAP_POLICY_SKIP,
    "queue-one": OVERLAP_POLICY_QUEUE_ONE,
    "queue-all": OVERLAP_POLICY_QUEUE_ALL,
    "cancel": OVERLAP_POLICY_CANCEL,
    "terminate": OVERLAP_POLICY_TERMINATE,
    "allow": OVERLAP_POLICY_ALLOW,
}
_NAMES: Final = {policy: name for name, policy in _OVERLAPS.items()}


def overlap_of(name: str, *, what: str = "overlap") -> OverlapPolicy.ValueType:
    """Return the policy of that name.

    Raises:
        ConfigError: There is none.
    """
    policy = _OVERLAPS.get(name.replace("_", "-"))
    if policy is None:
        raise ConfigError(f"{what} {name!r}: use one of {', '.join(_OVERLAPS)}")
    return policy


def overlap_name(policy: OverlapPolicy.ValueType) -> str:
    """Return the name of a policy; one that this build does not know by its number."""
    return _NAMES.get(policy, str(policy))


def timing(
    what: str,
    *,
    cron: str | None,
    tz: str | None,
    every: Duration | None,
    overlap: str | None,
    catch_up: Duration | None,
    jitter: Duration | None,
    start: datetime | Literal[0] | None = None,
    until: datetime | Literal[0] | None = None,
    tags: Mapping[str, str | int] | None = None,
) -> ScheduleSpec:
    """Return these as they go over the wire. Of a cron line the number of fields is checked here, the rest by the server.

    Raises:
        ConfigError: A value is not understood, or is too small; `what` stands before it.
    """
    spec = ScheduleSpec(cron=cron or "", timezone=tz or "")
    if cron and not cron.strip().startswith("@") and len(cron.split()) != CRON_FIELDS:
        raise ConfigError(
            f"{what}: cron {cron!r}: give {CRON_FIELDS} fields (minute, hour, day of month, month, day of week) or a name "
            "like @daily; for seconds use every"
        )
    if every is not None:
        spec.every_ms = to_ms(every, name=f"{what}: every")
        if spec.every_ms < MIN_EVERY_MS:
            raise ConfigError(f"{what}: every {every!r}: give a second at least")
    if overlap is not None:
        spec.overlap = overlap_of(overlap, what=f"{what}: overlap")
    if catch_up is not None:
        spec.catch_up_ms = to_ms(catch_up, name=f"{what}: catch_up")
    if jitter is not None:
        spec.jitter_ms = to_ms(jitter, name=f"{what}: jitter")
    spec.start_ms, spec.until_ms = _instant(f"{what}: start", start), _instant(f"{what}: until", until)
    if spec.start_ms and 0 < spec.until_ms < spec.start_ms:
        raise ConfigError(f"{what}: until {until} lies before start {start}")
    try:
        spec.tags.extend(tags_of(tags or {}))
    except FieldInvalid as error:
        raise ConfigError(f"{what}: {error}") from None
    return spec


def _instant(what: str, when: Any) -> int:
    if not when:
        return 0
    if not isinstance(when, datetime) or when.tzinfo is None:
        raise ConfigError(f"{what} {when!r}: give a datetime with a zone, as in datetime(2027, 1, 1, tzinfo=UTC)")
    since: int = (when - _EPOCH) // timedelta(milliseconds=1)
    if since <= 0:
        raise ConfigError(f"{what} {when}: give a time after 1970")
    return since
