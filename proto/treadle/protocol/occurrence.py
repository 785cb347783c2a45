"""Which occurrence of a schedule a run is, as its code sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final, Literal

from treadle.protocol.signature import Signature
from treadle.v1 import schedule_pb2 as wire

__all__ = ("Occurrence", "given")

Cause = Literal["time", "trigger", "backfill"]

_CAUSES: Final[dict[int, Cause]] = {
    wire.OCCURRENCE_CAUSE_TRIGGER: "trigger",
    wire.OCCURRENCE_CAUSE_BACKFILL: "backfill",
}


@dataclass(frozen=True, slots=True)
class Occurrence:
    """Which occurrence of a schedule a run is. A workflow gets it by a parameter of this type.

        @workflow(cron="0 6 * * *", tz="Europe/Berlin")
        async def nightly(occurrence: Occurrence) -> None: ...

    Attributes:
        schedule: Name of the schedule.
        scheduled_at: When it was due, without jitter, with the offset that its zone has then. Of a trigger: when it came.
        cause: Its time came, somebody triggered it, or it was made up for later.
        timezone: IANA name of the schedule's zone.
    """

    schedule: str
    scheduled_at: datetime
    cause: Cause = "time"
    timezone: str = "UTC"


def given(signature: Signature, message: wire.Occurrence) -> Mapping[str, Any]:
    """Return what a scheduled run gives to parameters that its input leaves out."""
    names = signature.taking(Occurrence)
    return dict.fromkeys(names, _of(message)) if names else {}


def _of(message: wire.Occurrence) -> Occurrence:
    """The offset comes from the history: what a replay sees does not depend on the zones that a machine knows."""
    zone = timezone(timedelta(seconds=message.utc_offset_s)) if message.utc_offset_s else UTC
    at = datetime.fromtimestamp(message.scheduled_ms / 1000, zone)
    return Occurrence(message.schedule_id, at, _CAUSES.get(message.cause, "time"), message.timezone or "UTC")
