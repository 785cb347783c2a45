"""Workflows that are started by themselves: what `@workflow(cron=…)` declares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from treadle.protocol.durations import Duration
from treadle.protocol.errors import ConfigError
from treadle.protocol.occurrence import Occurrence
from treadle.protocol.schedules import Overlap, timing
from treadle.protocol.signature import Signature
from treadle.v1 import schedule_pb2 as wire

__all__ = ("Timing", "declared")

_KNOWN_ZONE: Final = "Europe/Berlin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When a decorator wants its workflow to be started by itself: see `workflow`. None: not said."""

    cron: str | None = None
    tz: str | None = None
    every: Duration | None = None
    overlap: Overlap | None = None
    catch_up: Duration | None = None
    jitter: Duration | None = None
    start: datetime | None = None
    until: datetime | None = None
    tags: Mapping[str, str | int] | None = None


def declared(what: str, signature: Signature, wanted: Timing) -> wire.ScheduleSpec | None:
    """Return the schedule that a decorator declares; None: none.

    Raises:
        ConfigError: It cannot be kept, as far as that is seen without a server; `what` and the value are named.
    """
    if wanted == Timing():
        return None
    if wanted.cron is None and wanted.every is None:
        given = [item.name for item in fields(wanted) if getattr(wanted, item.name) is not None]
        raise ConfigError(f"{what}: {', '.join(given)}: this belongs to a schedule; give cron or every too")
    if wanted.cron is not None and wanted.every is not None:
        raise ConfigError(f"{what}: give cron or every, not both")
    spec = timing(what, **{item.name: getattr(wanted, item.name) for item in fields(wanted)})
    _check_zone(what, spec.timezone)
    missing = [name for name in signature.required if name not in signature.taking(Occurrence)]
    if missing:
        raise ConfigError(
            f"{what}: its schedule has no value for parameter {missing[0]!r}: give it a default (an `Occurrence` is given), "
            "or create the schedule with a client, which may pass arguments"
        )
    return spec


def _check_zone(what: str, name: str) -> None:
    """Where this machine knows zones at all, a name that it does not know is a mistake."""
    if not name:
        return
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, OSError, ValueError):
        if _knows_zones():
            raise ConfigError(f"{what}: tz {name!r} is not known; give a name like {_KNOWN_ZONE!r}") from None


def _knows_zones() -> bool:
    try:
        ZoneInfo(_KNOWN_ZONE)
    except ZoneInfoNotFoundError:
        return False
    return True
