"""A step of a run and its attempts, as a timeline tells them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from treadle.v1.common_pb2 import Failure

__all__ = ("AttemptOutcome", "AttemptView", "StepKind", "StepState", "StepView")

AttemptOutcome = Literal["running", "completed", "failed", "lost", "released", "cancelled", "deferred"]
StepState = Literal[
    "queued",
    "running",
    "retrying",
    "waiting",
    "quarantined",
    "deferred",
    "sleeping",
    "completed",
    "failed",
    "cancelled",
    "abandoned",
]
StepKind = Literal["pool", "local", "timer", "signal", "question", "child", "event"]

_OVER: Final = frozenset({"completed", "failed", "cancelled", "abandoned"})


@dataclass(slots=True)
class AttemptView:
    """One holder of a step.

    Attributes:
        number: Over the life of the step, from 1.
        start_ms: When it got GO; for local steps, the end less what user code took.
        outcome: How it ended; "lost": its worker died or was fenced; "released": given back by a draining worker.
        end_ms: When that was recorded; None while it runs.
        worker: Worker process; "" when the history does not tell.
        error: What it raised.
        reason: Why it was lost or released: "closed", "silent", "denied", "drain" …
        alone: In a child process of its own, because workers died of the step.
    """

    number: int
    start_ms: int
    outcome: AttemptOutcome = "running"
    end_ms: int | None = None
    worker: str = ""
    error: Failure | None = None
    reason: str = ""
    alone: bool = False

    @property
    def duration_ms(self) -> int | None:
        """From start to end; None while it runs."""
        return None if self.end_ms is None else self.end_ms - self.start_ms


@dataclass(slots=True)
class StepView:
    """A step or timer of a run, or what somebody sent it.

    Attributes:
        command_id: "0/validate#1"; "signal " or "question " and its id for what was sent.
        name: Name of the step, signal or question; "sleep" for a timer.
        kind: Where it runs: on a pool, in the worker of the run, as a run of its own (a child), or nowhere (a timer, a
            signal; a question is open until it has its answer).
        pool: Pool of a pool step.
        start_ms: When it was asked for, or first seen.
        state: How it stands. "retrying": waits for its next try; "waiting": no worker has the step; "quarantined": it
            killed too many workers; "deferred": somebody outside finishes it; "abandoned": the run was closed before.
        end_ms: When it had its outcome.
        due_ms: "retrying": when the next try is due; "sleeping": when it is over; "deferred": when the try fails.
        attempts: In order.
        reason: Why it waits, in words.
        error: What the workflow sees of a failed step, or what the last attempt raised.
        cancelling: The workflow asked for its end.
        run_id: Of a child: its run.
    """

    command_id: str
    name: str
    kind: StepKind
    start_ms: int
    pool: str = ""
    state: StepState = "queued"
    end_ms: int | None = None
    due_ms: int | None = None
    attempts: list[AttemptView] = field(default_factory=list)
    reason: str = ""
    error: Failure | None = None
    cancelling: bool = False
    run_id: str = ""

    @property
    def over(self) -> bool:
        """Whether it has its outcome."""
        return self.state in _OVER

    @property
    def duration_ms(self) -> int | None:
        """From when it was asked for to its outcome; None while open."""
        return None if self.end_ms is None else self.end_ms - self.start_ms

    def count(self, outcome: AttemptOutcome) -> int:
        """How many attempts ended so."""
        return sum(attempt.outcome == outcome for attempt in self.attempts)
