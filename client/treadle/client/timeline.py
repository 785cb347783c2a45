"""A history told as steps: what ran when, how often, where, and how it ended.

Pure: events in, values out, in the order of the history. `Timeline.feed` takes one event at a time, so that the same
code draws a finished run and follows a live one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from treadle.client.step_view import AttemptOutcome, AttemptView, StepKind, StepState, StepView
from treadle.client.timeline_events import EventLines
from treadle.client.views import RunStatus
from treadle.v1.common_pb2 import (
    FAILURE_KIND_CANCELLED,
    FAILURE_KIND_LOST,
    FAILURE_KIND_TERMINATED,
    Failure,
    Payload,
)
from treadle.v1.history_pb2 import (
    AttemptFailed,
    AttemptLost,
    AttemptReleased,
    AttemptStarted,
    ChangeMarked,
    ChildCancelRequested,
    ChildCompleted,
    ChildFailed,
    ChildScheduled,
    HistoryEvent,
    RunCompleted,
    RunContinued,
    RunDiverged,
    RunFailed,
    RunHalted,
    RunOpened,
    RunOwnerLost,
    RunRetried,
    RunStarted,
    RunTimedOut,
    RunWaiting,
    SignalAnswered,
    SignalReceived,
    StatePublished,
    StepCancelled,
    StepCancelRequested,
    StepCompleted,
    StepDeferred,
    StepFailed,
    StepQuarantined,
    StepRetried,
    StepScheduled,
    StepUnquarantined,
    StepWaiting,
    TagsSet,
)

__all__ = ("AttemptView", "StepView", "Timeline", "name_of", "timeline_of")


@dataclass(slots=True)
class Timeline(EventLines):
    """One run, as its history tells it so far.

    Attributes:
        workflow, pool, trigger: What was started, where, and by what.
        version: Version of the workflow that the run is pinned to; "" for none.
        tags: What it is found by.
        changes: Marked changes whose new way its code took.
        started_ms, closed_ms: When; closed_ms is None while it is open.
        now_ms: Time of the last event.
        position: Position of the last event.
        status: In one word.
        reason: Why it waits, needs attention, or was stopped.
        owner: Worker that holds it open; "" when nobody does.
        owners_lost: How many owners died or were fenced.
        failure: What a failed run raised.
        completed: The event that closed a completed run, with its result.
        cancel_requested: Whether a cancel was asked for.
        timed_out: Whether its timeout is over.
        state: What the code showed last; None: nothing.
        unread: Ids of signals and questions that a closed run had not received, at most 100.
        part: Which part of a run that continues as new, from 1.
        retries: How often the run was continued after it had closed.
        hook_run_id: Of a failed run: the run that handles the failure; "": none does.
        steps: By command id, in the order they appeared.
    """

    workflow: str = ""
    pool: str = ""
    trigger: str = ""
    version: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)
    started_ms: int = 0
    closed_ms: int | None = None
    now_ms: int = 0
    position: int = 0
    status: RunStatus = RunStatus.RUNNING
    reason: str = ""
    owner: str = ""
    owners_lost: int = 0
    failure: Failure | None = None
    completed: RunCompleted | None = None
    cancel_requested: bool = False
    timed_out: bool = False
    state: Payload | None = None
    unread: tuple[str, ...] = ()
    part: int = 1
    retries: int = 0
    hook_run_id: str = ""
    steps: dict[str, StepView] = field(default_factory=dict)

    @property
    def duration_ms(self) -> int:
        """From the start to the close, or to the last event."""
        return (self.closed_ms or self.now_ms) - self.started_ms

    def feed(self, event: HistoryEvent) -> StepView | None:
        """Take the next event; return the step or timer it is about, None when it is about the run.

        Kinds of events that a newer control plane added change nothing but the time.
        """
        self.now_ms, self.position = event.time_ms, event.position
        kind = event.WhichOneof("kind")
        handler = _HANDLERS.get(kind or "")
        if handler is None:
            return None
        body = getattr(event, kind or "")
        handler(self, body)
        return self.steps.get(_entry_of(body))

    # --- the run

    def _run_started(self, body: RunStarted) -> None:
        if body.part and self.workflow:  # followed from its part before
            fresh = Timeline(now_ms=self.now_ms, position=self.position, state=self.state)
            for name in self.__slots__:
                setattr(self, name, getattr(fresh, name))
        self.workflow, self.pool, self.trigger = body.workflow, body.pool, body.trigger
        self.started_ms, self.part = self.now_ms, max(body.part, 1)
        self.version, self.tags = body.version, {tag.key: tag.value for tag in body.tags}

    def _run_opened(self, body: RunOpened) -> None:
        self.owner, self.status, self.reason = body.worker_id, RunStatus.RUNNING, ""

    def _run_parked(self, body: Any) -> None:
        self.owner = ""

    def _run_released(self, body: Any) -> None:
        self.owner = ""
        self._end_local("released", body.reason)

    def _run_owner_lost(self, body: RunOwnerLost) -> None:
        self.owner = ""
        self.owners_lost += 1
        self._end_local("lost", body.reason)

    def _end_local(self, outcome: AttemptOutcome, reason: str) -> None:
        for step in self._open():
            if step.kind == "local" and step.state == "running":
                self._end(step, outcome, reason=reason)
                step.state = "queued"

    def _run_waiting(self, body: RunWaiting) -> None:
        self.status = RunStatus.WAITING
        self.reason = f"no worker has the workflow {body.workflow!r}"

    def _run_diverged(self, body: RunDiverged) -> None:
        self.owner, self.status = "", RunStatus.NEEDS_ATTENTION
        self.reason = f"code and history disagree: expected {body.expected}, found {body.found}"

    def _run_halted(self, body: RunHalted) -> None:
        self.owner, self.status, self.reason = "", RunStatus.NEEDS_ATTENTION, body.reason

    def _run_accepted(self, body: Any) -> None:
        self.status, self.reason = RunStatus.RUNNING, ""

    def _cancel_requested(self, body: Any) -> None:
        self.cancel_requested = True

    def _run_timed_out(self, body: RunTimedOut) -> None:
        self.timed_out = True

    def _run_completed(self, body: RunCompleted) -> None:
        self.completed = body
        self._close(RunStatus.COMPLETED, unread=body.unread)

    def _run_failed(self, body: RunFailed) -> None:
        self.failure, self.hook_run_id = body.failure, body.hook_run_id
        self._close(RunStatus.FAILED, unread=body.unread)

    def _run_cancelled(self, body: Any) -> None:
        self._close(RunStatus.CANCELLED, body.reason, body.unread)

    def _run_terminated(self, body: Any) -> None:
        self._close(RunStatus.TERMINATED, body.reason)

    def _run_continued(self, body: RunContinued) -> None:
        self.owner = ""
        self._abandon()

    def _run_retried(self, body: RunRetried) -> None:
        self.status, self.reason, self.closed_ms, self.failure, self.completed = RunStatus.RUNNING, "", None, None, None
        self.cancel_requested, self.unread, self.hook_run_id, self.retries = False, (), "", body.number

    def _close(self, status: RunStatus, reason: str = "", unread: Iterable[str] = ()) -> None:
        self.status, self.reason, self.owner, self.closed_ms = status, reason, "", self.now_ms
        self.unread = tuple(unread)
        self._abandon()

    def _abandon(self) -> None:
        for step in self._open():
            self._end(step, "cancelled", reason="run closed")
            step.state, step.end_ms = "abandoned", self.now_ms

    # --- steps

    def _step_scheduled(self, body: StepScheduled) -> None:
        self._again(
            StepView(body.command_id, body.name or name_of(body.command_id), "pool", self.now_ms, pool=body.pool)
        )

    def _again(self, step: StepView) -> None:
        """It is asked for, maybe once more after the run was continued: then it has a past."""
        before = self.steps.pop(step.command_id, None)
        if before is not None:
            step.attempts = before.attempts
        self.steps[step.command_id] = step

    def _attempt_started(self, body: AttemptStarted) -> None:
        step = self._step(body, self.now_ms)
        started = AttemptView(body.attempt, self.now_ms, worker=body.worker_id, alone=body.alone)
        step.attempts.append(started)
        step.state, step.reason, step.due_ms, step.end_ms = "running", "", None, None

    def _attempt_failed(self, body: AttemptFailed) -> None:
        step = self._attempt_over(body, "failed", body.failure)
        step.state, step.due_ms = "retrying", body.retry_at_ms

    def _attempt_lost(self, body: AttemptLost) -> None:
        step = self._step(body, self.now_ms)
        self._end(step, "lost", reason=body.reason)
        step.state = "queued"

    def _attempt_released(self, body: AttemptReleased) -> None:
        step = self._step(body, self.now_ms)
        self._end(step, "released", reason=body.reason)
        step.state = "queued"

    def _step_retried(self, body: StepRetried) -> None:
        step = self._step(body, self.now_ms)
        step.state, step.due_ms = "queued", None

    def _step_waiting(self, body: StepWaiting) -> None:
        step = self._step(body, self.now_ms)
        where = f" of pool {step.pool!r}" if step.pool else ""
        step.state, step.reason = "waiting", f"no worker{where} has the step {body.name or step.name!r}"

    def _step_quarantined(self, body: StepQuarantined) -> None:
        step = self._step(body, self.now_ms)
        step.state, step.reason = "quarantined", f"{body.losses} workers died of it"

    def _step_unquarantined(self, body: StepUnquarantined) -> None:
        step = self._step(body, self.now_ms)
        step.state, step.reason = "queued", ""

    def _step_deferred(self, body: StepDeferred) -> None:
        step = self._step(body, self.now_ms)
        self._end(step, "deferred")
        step.state, step.due_ms = "deferred", body.due_ms or None

    def _step_cancel_requested(self, body: StepCancelRequested) -> None:
        self._step(body, self.now_ms).cancelling = True

    def _step_completed(self, body: StepCompleted) -> None:
        step = self._attempt_over(body, "completed", None)
        step.error = None
        self._settle(step, "completed")

    def _step_failed(self, body: StepFailed) -> None:
        if body.attempt:
            lost = body.failure.kind == FAILURE_KIND_LOST
            step = self._attempt_over(body, "lost" if lost else "failed", body.failure)
        else:
            step = self._step(body, self.now_ms)
        step.error = body.failure
        self._settle(step, "failed")

    def _step_cancelled(self, body: StepCancelled) -> None:
        step = self._step(body, self.now_ms)
        self._end(step, "cancelled")
        self._settle(step, "cancelled")

    # --- children

    def _child_scheduled(self, body: ChildScheduled) -> None:
        child = StepView(body.command_id, body.workflow, "child", self.now_ms, pool=body.pool, state="running")
        child.run_id = body.run_id
        self.steps[body.command_id] = child

    def _child_cancel_requested(self, body: ChildCancelRequested) -> None:
        self._step(body, self.now_ms).cancelling = True

    def _child_completed(self, body: ChildCompleted) -> None:
        self._settle(self._step(body, self.now_ms), "completed")

    def _child_failed(self, body: ChildFailed) -> None:
        child = self._step(body, self.now_ms)
        child.error = body.failure
        ended = body.failure.kind in (FAILURE_KIND_CANCELLED, FAILURE_KIND_TERMINATED)
        self._settle(child, "cancelled" if ended else "failed")

    # --- what was sent, and what the code says

    def _signal_received(self, body: SignalReceived) -> None:
        key = _entry_of(body)
        entry = StepView(key, body.name, "question" if body.asks else "signal", self.now_ms)
        if not body.asks:
            self._settle(entry, "completed")
        self.steps[key] = entry

    def _signal_answered(self, body: SignalAnswered) -> None:
        entry = self.steps.get(_entry_of(body))
        if entry is not None:
            refused = body.HasField("failure")
            entry.error = body.failure if refused else None
            self._settle(entry, "failed" if refused else "completed")

    def _change_marked(self, body: ChangeMarked) -> None:
        self.changes.append(body.name)

    def _tags_set(self, body: TagsSet) -> None:
        self.tags |= {tag.key: tag.value for tag in body.tags}
        self.tags = {key: self.tags[key] for key in sorted(self.tags) if self.tags[key]}

    def _state_published(self, body: StatePublished) -> None:
        self.state = body.state

    # --- helpers

    def _enter(self, command_id: str, name: str, kind: StepKind, state: StepState) -> StepView:
        step = self.steps[command_id] = StepView(command_id, name, kind, self.now_ms, state=state)
        return step

    def _step(self, body: Any, start_ms: int) -> StepView:
        """The step of an event; a local one appears with its first event."""
        step = self.steps.get(body.command_id)
        if step is None:
            name = getattr(body, "name", "") or name_of(body.command_id)
            step = self.steps[body.command_id] = StepView(body.command_id, name, "local", start_ms)
        return step

    def _attempt_over(
        self,
        body: AttemptFailed | StepCompleted | StepFailed,
        outcome: AttemptOutcome,
        error: Failure | None,
    ) -> StepView:
        """End the attempt that the event names; local ones were often not announced."""
        began = self.now_ms - body.duration_ms
        step = self._step(body, began)
        step.end_ms = None
        last = step.attempts[-1] if step.attempts else None
        if last is None or (last.outcome != "running" and last.number < body.attempt):
            step.attempts.append(AttemptView(body.attempt, began))
            last = step.attempts[-1]
        if last.outcome == "running":
            last.outcome, last.end_ms, last.error = outcome, self.now_ms, error
        if error is not None:
            step.error = error
        return step

    def _end(self, step: StepView, outcome: AttemptOutcome, *, reason: str = "") -> None:
        if step.attempts and step.attempts[-1].outcome == "running":
            last = step.attempts[-1]
            last.outcome, last.end_ms, last.reason = outcome, self.now_ms, reason

    def _settle(self, step: StepView, state: StepState) -> None:
        step.state, step.end_ms, step.due_ms, step.reason = state, self.now_ms, None, ""

    def _open(self) -> Iterator[StepView]:
        return (step for step in self.steps.values() if not step.over)


_HANDLERS: Final[dict[str, Callable[[Timeline, Any], None]]] = {
    kind.name: getattr(Timeline, f"_{kind.name}") for kind in HistoryEvent.DESCRIPTOR.oneofs_by_name["kind"].fields
}
"""One method for each kind of event; a kind without one fails at import."""


def _entry_of(body: Any) -> str:
    """The key, in `Timeline.steps`, of what an event is about."""
    if isinstance(body, SignalReceived):
        return f"{'question' if body.asks else 'signal'} {body.signal_id}"
    if isinstance(body, SignalAnswered):
        return f"question {body.signal_id}"
    return getattr(body, "command_id", "")


def name_of(command_id: str) -> str:
    """Return the name in a command id: "0/validate#1" -> "validate"."""
    return command_id.rpartition("/")[2].partition("#")[0]


def timeline_of(events: Iterable[HistoryEvent]) -> Timeline:
    """Return the timeline of a history."""
    timeline = Timeline()
    for event in events:
        timeline.feed(event)
    return timeline
