"""What the projection of a run remembers between two pages of its history: what is open, and what was counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import msgspec

from treadle.controlplane.tracing import attributes as a
from treadle.controlplane.tracing.span_data import Attributes
from treadle.v1 import history_pb2 as h

__all__ = (
    "OpenChild",
    "OpenQuestion",
    "OpenStep",
    "OpenTimer",
    "ProjectionState",
    "Summary",
)


class OpenStep(msgspec.Struct, frozen=True, gc=False):
    """A step without an outcome.

    Attributes:
        name, pool, local: As in its events.
        summed: It is one too many of its name: its attempts are counted in a summary.
        dispatched_ms: When its present try was published; 0: none is (backoff, quarantine, local steps).
        running: Number of the attempt that was started; 0: none is.
        started_ms, worker_id: Of that attempt.
        closed: Number of the last attempt that has its span; 0: none has.
    """

    name: str
    pool: str
    local: bool
    summed: bool
    dispatched_ms: int = 0
    running: int = 0
    started_ms: int = 0
    worker_id: str = ""
    closed: int = 0


@dataclass(frozen=True, slots=True)
class OpenTimer:
    """A timer that was started and has not fired, or a wait for an event (its name). Milliseconds since 1970."""

    started_ms: int
    fire_at_ms: int
    event: str = ""

    ends: ClassVar[dict[type, str]] = {
        h.TimerFired: "fired",
        h.TimerCancelled: "cancelled",
        h.EventMatched: "event",
        h.EventWaitTimedOut: "timeout",
        h.EventWaitCancelled: "cancelled",
        h.EventWaitRefused: "refused",
    }
    """What ends it -> how it ended."""
    ended_by: ClassVar = (
        *("timer_fired", "timer_cancelled"),
        *("event_matched", "event_wait_timed_out", "event_wait_cancelled", "event_wait_refused"),
    )

    def told(self, command_id: str, outcome: str) -> tuple[str, Attributes]:
        """Return name and attributes of its span."""
        values: Attributes = {
            a.STEP_ID: command_id,
            a.STEP_KIND: "event" if self.event else "sleep",
            a.TIMER_FIRE_AT: self.fire_at_ms,
            a.WAIT_OUTCOME: outcome,
        }
        return f"wait {self.event}" if self.event else "sleep", values


@dataclass(frozen=True, slots=True)
class OpenChild:
    """A child run that has not closed. Milliseconds since 1970."""

    workflow: str
    run_id: str
    started_ms: int


@dataclass(frozen=True, slots=True)
class OpenQuestion:
    """A question without an answer. Milliseconds since 1970."""

    name: str
    asked_ms: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Attempts of the steps of one name that are too many for spans of their own: when, and how many of which outcome."""

    start_ms: int
    end_ms: int
    outcomes: Mapping[str, int]


@dataclass(slots=True)
class ProjectionState:
    """After `position` events, the last of which was written by `revision`.

    Attributes:
        workflow: Name of the workflow.
        started_ms, begun_ms: When the run was started; when it was, or was last continued.
        retries: How often it was continued.
        closed: It has its outcome.
        spans, dropped: Spans made so far, and left out by the budget.
        steps, timers: Open ones, by command id.
        children: Open ones, by command id.
        questions: Open ones, by signal id.
        names: Name of a step -> how many steps of it there were.
        summaries: Name of a step -> its summary.
    """

    position: int = 0
    revision: int = 0
    workflow: str = ""
    started_ms: int = 0
    closed: bool = False
    spans: int = 0
    dropped: int = 0
    steps: dict[str, OpenStep] = field(default_factory=dict)
    timers: dict[str, OpenTimer] = field(default_factory=dict)
    children: dict[str, OpenChild] = field(default_factory=dict)
    questions: dict[str, OpenQuestion] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    summaries: dict[str, Summary] = field(default_factory=dict)
    begun_ms: int = 0
    retries: int = 0

    def copy(self) -> ProjectionState:
        """Return a copy; values are shared, they never change."""
        return ProjectionState(
            self.position,
            self.revision,
            self.workflow,
            self.started_ms,
            self.closed,
            self.spans,
            self.dropped,
            dict(self.steps),
            dict(self.timers),
            dict(self.children),
            dict(self.questions),
            dict(self.names),
            dict(self.summaries),
            self.begun_ms,
            self.retries,
        )
