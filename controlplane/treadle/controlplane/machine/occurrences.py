"""When a schedule is due: cron lines and intervals, time zones, jitter, and what was missed. Pure: no clock is read.

All times are milliseconds since 1970. An occurrence is named by when it was due without jitter.

Clocks that are put forward or back, as cron of Debian has it: a fixed time that the day does not have (02:30 in spring)
comes at the first instant behind the gap; one that the day has twice comes once, the first time. Lines whose minute or
hour begins with `*` follow real time: nothing is made up for in spring, and the hour that comes twice counts twice.

cronsim is imported where a cron line is read: the machine also runs in tests of users, who need no server for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from hashlib import blake2b
from typing import Final
from zoneinfo import ZoneInfo

from treadle.protocol.errors import FieldInvalid
from treadle.protocol.ids import RunKey
from treadle.protocol.tags import tags_of
from treadle.v1.schedule_pb2 import OverlapPolicy, ScheduleSpec

__all__ = (
    "CATCH_UP_MS",
    "MISSED_KEPT",
    "Due",
    "after",
    "check",
    "come_due",
    "offset_s",
    "run_id_of",
    "starts_at",
    "upcoming",
)

CATCH_UP_MS: Final = 60_000
"""How late an occurrence may start, unless its schedule says otherwise."""
MISSED_KEPT: Final = 100
DAY_MS: Final = 86_400_000

_EVERY_MS = (1_000, 366 * DAY_MS)
_CATCH_UP_MS = (1_000, 366 * DAY_MS)
_JITTER_MS = (0, 7 * DAY_MS)
_TIMEOUT_MS = (0, 3_650 * DAY_MS)
_CRON_LIMIT = 200
_LATEST_MS = 250_000_000_000_000
"""In the year 9892: what comes later can be reckoned by no calendar here."""
_BOUND_MS = (0, _LATEST_MS - 1)
_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_FIELDS = 5


@dataclass(slots=True)
class Due:
    """What has come due.

    Attributes:
        live: Occurrences to be started, oldest first.
        missed: Of those that nobody can start any more the last 100, oldest first.
        missed_count: How many those are in all.
        next_ms: The occurrence behind them; 0: there is none. It may be due as well: only so many are looked at.
    """

    live: list[int] = field(default_factory=list)
    missed: list[int] = field(default_factory=list)
    missed_count: int = 0
    next_ms: int = 0


# --- checking ----------------------------------------------------------------------------------------------------------
def check(spec: ScheduleSpec) -> None:
    """Refuse timing that cannot be kept.

    Raises:
        FieldInvalid: Names the value, and of a cron line the field.
    """
    if bool(spec.cron) == bool(spec.every_ms):
        raise FieldInvalid("a schedule needs either cron or every, and not both", field="spec")
    _zone(spec.timezone)
    if spec.cron:
        _check_cron(spec.cron)
    else:
        _in_range("every_ms", spec.every_ms, _EVERY_MS)
    if spec.catch_up_ms:
        _in_range("catch_up_ms", spec.catch_up_ms, _CATCH_UP_MS)
    _in_range("jitter_ms", spec.jitter_ms, _JITTER_MS)
    _in_range("timeout_ms", spec.timeout_ms, _TIMEOUT_MS)
    _check_bounds(spec)
    tags_of(spec.tags)
    if spec.overlap not in OverlapPolicy.values():
        raise FieldInvalid(f"overlap {spec.overlap}: unknown to this server", field="overlap")


def _check_bounds(spec: ScheduleSpec) -> None:
    _in_range("start_ms", spec.start_ms, _BOUND_MS)
    _in_range("until_ms", spec.until_ms, _BOUND_MS)
    if spec.until_ms and not after(spec, 0):
        raise FieldInvalid(
            f"until_ms {spec.until_ms}: there is no occurrence between its start and its end",
            field="until_ms",
            remedy="both are included; end it later, or pause or delete it",
        )


def _in_range(name: str, value: int, bounds: tuple[int, int]) -> None:
    low, high = bounds
    if not low <= value <= high:
        raise FieldInvalid(f"{name} {value:,}: give {low:,} to {high:,} milliseconds", field=name)


@lru_cache(256)
def _zone(name: str) -> tzinfo:
    if not name or name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (
        KeyError,
        OSError,
        ValueError,
    ) as error:  # not found is a KeyError; names may also be of folders, or of no file
        raise FieldInvalid(
            f"timezone {name[:60]!r} is not known",
            field="timezone",
            remedy="give a name of the IANA database, like 'Europe/Berlin'",
        ) from error


def _plain(cron: str) -> str:
    """Return the line with five fields that a nickname stands for."""
    return _NICKNAMES.get(cron.strip().lower(), cron)


def _check_cron(cron: str) -> None:
    line = _plain(cron)
    words = line.split()
    if len(cron) > _CRON_LIMIT or len(words) != _FIELDS:
        raise FieldInvalid(
            f"cron {cron[:80]!r}: give {_FIELDS} fields (minute, hour, day of month, month, day of week) in at most "
            f"{_CRON_LIMIT} characters, or one of {', '.join(_NICKNAMES)}; this has {len(words)}",
            field="cron",
            remedy="for seconds use every",
        )
    from cronsim import CronSim, CronSimError
    from cronsim.cronsim import FIELD_NAMES

    try:
        CronSim(line, datetime(2026, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        wrong = FIELD_NAMES.index(str(error).removeprefix("Bad "))  # 0 is the second, which is not written here
        raise FieldInvalid(
            f"cron {cron!r}: field {wrong} ({FIELD_NAMES[wrong]}) is {words[wrong - 1]!r}, which cannot be",
            field="cron",
            remedy="see `man 5 crontab` for what a field may be",
        ) from error
    if not after(ScheduleSpec(cron=cron), 0):
        raise FieldInvalid(f"cron {cron!r}: there is no such day", field="cron")


# --- reckoning -----------------------------------------------------------------------------------------------------------
def after(spec: ScheduleSpec, ms: int) -> int:
    """Return the first occurrence behind this instant, between start and end of the schedule; 0: there is none."""
    at = _after(spec, max(ms, spec.start_ms - 1))
    return 0 if spec.until_ms and at > spec.until_ms else at


def _after(spec: ScheduleSpec, ms: int) -> int:
    if spec.every_ms:
        return (ms // spec.every_ms + 1) * spec.every_ms
    if not 0 <= ms < _LATEST_MS:
        return 0
    from cronsim import CronSim

    zone = _zone(spec.timezone)
    try:
        for found in CronSim(_plain(spec.cron), datetime.fromtimestamp(ms / 1000, zone)):
            at = int(found.timestamp()) * 1000
            if at > ms:  # in an hour that comes twice, the wall clock leads back to the first pass
                return at
    except (OverflowError, ValueError):  # behind the end of the calendar
        pass
    return 0


def upcoming(spec: ScheduleSpec, ms: int, count: int) -> Iterator[int]:
    """Yield the first occurrences behind an instant, at most `count`."""
    for _ in range(count):
        ms = after(spec, ms)
        if not ms:
            return
        yield ms


def starts_at(record: RunKey, spec: ScheduleSpec, scheduled_ms: int) -> int:
    """Return when an occurrence starts: its time, and its share of the jitter, the same whoever computes it.

    Always before the next one is due: they are looked at in order, and none may wait for another until it is missed.
    """
    if not spec.jitter_ms:
        return scheduled_ms
    following = _after(spec, scheduled_ms)
    span_ms = min(spec.jitter_ms, following - scheduled_ms - 1) if following else spec.jitter_ms
    key = f"{record.namespace}\x1f{record.run_id}\x1f{scheduled_ms}"
    share = int.from_bytes(blake2b(key.encode(), digest_size=8, person=b"treadle-jitter").digest(), "big")
    return scheduled_ms + share % (span_ms + 1)


def come_due(record: RunKey, spec: ScheduleSpec, next_ms: int, now_ms: int, *, looks: int, starts: int) -> Due:
    """Return what has come due since the last look.

    Args:
        record: Whose schedule.
        spec: Its timing.
        next_ms: The first occurrence that was not looked at yet; 0: there is none.
        now_ms: The time.
        looks: Look at so many at most. Those of an interval that are missed beyond doubt are counted unseen.
        starts: Find so many at most that are to be started.
    """
    window_ms = spec.catch_up_ms or CATCH_UP_MS
    due = Due(next_ms=next_ms)
    if spec.every_ms and next_ms:
        _leap(due, spec, now_ms - window_ms - min(spec.jitter_ms, spec.every_ms))
    for _ in range(looks):
        at = due.next_ms
        if not at or len(due.live) == starts:
            break
        starts_ms = starts_at(record, spec, at)
        if starts_ms > now_ms:
            break
        if now_ms - starts_ms > window_ms:
            due.missed_count += 1
            due.missed.append(at)
        else:
            due.live.append(at)
        due.next_ms = after(spec, at)
    del due.missed[:-MISSED_KEPT]
    return due


def _leap(due: Due, spec: ScheduleSpec, before_ms: int) -> None:
    """Count the occurrences of an interval that lie before an instant, and keep the last ones."""
    count = max(0, -((due.next_ms - before_ms) // spec.every_ms))
    if spec.until_ms:
        count = min(count, (spec.until_ms - due.next_ms) // spec.every_ms + 1)
    if count > 0:
        last = due.next_ms + (count - 1) * spec.every_ms
        kept = min(count, MISSED_KEPT)
        due.missed = [last - i * spec.every_ms for i in range(kept - 1, -1, -1)]
        due.missed_count = count
        due.next_ms = after(spec, last)


def offset_s(spec: ScheduleSpec, ms: int) -> int:
    """Return how far the schedule's zone is from UTC at an instant, in seconds; east is positive."""
    offset = datetime.fromtimestamp(ms / 1000, _zone(spec.timezone)).utcoffset()
    return int(offset.total_seconds()) if offset is not None else 0


# --- names -----------------------------------------------------------------------------------------------------------------
def run_id_of(schedule_id: str, spec: ScheduleSpec, scheduled_ms: int) -> str:
    """Return the id of an occurrence's run, like "nightly-2026-11-23T06:00:00+01:00": in the schedule's zone."""
    when = datetime.fromtimestamp(scheduled_ms / 1000, _zone(spec.timezone))
    return f"{schedule_id}-{when.isoformat(timespec='milliseconds' if scheduled_ms % 1000 else 'seconds')}"
