"""What the record of a schedule is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from treadle.v1.common_pb2 import Payload
from treadle.v1.schedule_pb2 import OverlapPolicy, ScheduleSpec
from treadle.v1.state_pb2 import RunHead

__all__ = (
    "BackfillSchedule",
    "ChangeSchedule",
    "CreateSchedule",
    "DeclareSchedule",
    "DeleteSchedule",
    "PauseSchedule",
    "ResumeSchedule",
    "ScheduleReply",
    "ScheduleRequest",
    "TriggerSchedule",
    "UndeclareSchedule",
)


@dataclass(slots=True)
class CreateSchedule:
    """A client creates the schedule. Reply: ScheduleReply."""

    request_id: str
    spec: ScheduleSpec
    input: Payload
    paused: bool = False


@dataclass(slots=True)
class DeclareSchedule:
    """A worker registers a workflow that declares this schedule. Reply: ScheduleReply."""

    spec: ScheduleSpec


@dataclass(slots=True)
class UndeclareSchedule:
    """A worker registers the workflow of that name, which declares no schedule (any more). Reply: None."""


@dataclass(slots=True)
class ChangeSchedule:
    """A client changes what is started, or when. Reply: ScheduleReply.

    Attributes:
        fields: Those of `spec` that are taken, and "input".
    """

    request_id: str
    fields: Sequence[str]
    spec: ScheduleSpec
    input: Payload


@dataclass(slots=True)
class PauseSchedule:
    """Nothing is started by itself from now on. Reply: ScheduleReply."""

    reason: str


@dataclass(slots=True)
class ResumeSchedule:
    """It goes on with the next occurrence. Reply: ScheduleReply."""


@dataclass(slots=True)
class TriggerSchedule:
    """Somebody wants a run now. Reply: ScheduleReply.

    Attributes:
        overlap: Instead of the schedule's own policy; unspecified: that one.
    """

    request_id: str
    overlap: OverlapPolicy.ValueType


@dataclass(slots=True)
class BackfillSchedule:
    """Somebody wants the occurrences of a past span that have no run. Reply: ScheduleReply.

    Attributes:
        since_ms, until_ms: The span, both included; 0 as its end means now.
        allow: True: all at once; otherwise one after another.
    """

    request_id: str
    since_ms: int
    until_ms: int
    allow: bool


@dataclass(slots=True)
class DeleteSchedule:
    """The schedule goes; its open runs go on. Reply: ScheduleReply."""

    request_id: str


ScheduleRequest = (
    CreateSchedule
    | DeclareSchedule
    | UndeclareSchedule
    | ChangeSchedule
    | PauseSchedule
    | ResumeSchedule
    | TriggerSchedule
    | BackfillSchedule
    | DeleteSchedule
)


@dataclass(slots=True)
class ScheduleReply:
    """How the schedule stands after the request.

    Attributes:
        head: The head of its record.
        run_id: Trigger: the run.
        queued: Trigger: it waits for the open run.
        occurrences: Backfill: how many are in the span.
    """

    head: RunHead
    run_id: str = ""
    queued: bool = False
    occurrences: int = 0
