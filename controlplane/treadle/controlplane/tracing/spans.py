"""Committed history in, finished spans out. Pure: the same events give the same spans, in whatever pages they come.

    run {workflow}        path "anchor", root of the trace, an instant: written at the start so that nothing is an orphan
    execute {workflow}    path "run", from start to close; "run~1" when it was continued after that
    step {name}           path "step/<command id>/<attempt>", one an attempt, from publication to what ended it
    sleep                 path "timer/<command id>"
    signal {name}         path "signal/<signal id>", an instant
    question {name}       path "signal/<signal id>", until its answer
    child {workflow}      path "child/<command id>", until it has closed; the child's trace links to it

All but the first hang under the anchor: attempts of a step are siblings joined by links, because a span around them could
only be written at the end, and until then they would be orphans. What no event tells makes no span: a run that closes ends
what is published or running as cancelled, and leaves out a retry that was only planned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from msgspec.structs import replace

from treadle.controlplane.tracing import attributes as a
from treadle.controlplane.tracing.span_data import (
    NOTHING,
    Attributes,
    HeadFacts,
    Kind,
    Shared,
    SpanData,
    SpanLink,
    Status,
    attempt_values,
    caller_link,
    description_of,
    exception_event,
)
from treadle.controlplane.tracing.state import OpenChild, OpenQuestion, OpenStep, OpenTimer, ProjectionState, Summary
from treadle.protocol.ids import retried_path
from treadle.v1.common_pb2 import (
    FAILURE_KIND_CANCELLED,
    FAILURE_KIND_HEARTBEAT_MISSED,
    FAILURE_KIND_LOST,
    FAILURE_KIND_QUEUE_TIMED_OUT,
    FAILURE_KIND_RUN_TIMED_OUT,
    FAILURE_KIND_STEP_TIMED_OUT,
    FAILURE_KIND_TERMINATED,
    FAILURE_KIND_TIMED_OUT,
    Failure,
)
from treadle.v1.history_pb2 import HistoryEvent

__all__ = ("SPANS_A_NAME", "SPANS_A_RUN", "project")

SPANS_A_RUN: Final = 5_000
"""Spans of one run at most; UIs of trace stores give up not far beyond."""
SPANS_A_NAME: Final = 200
"""Steps of one name that have spans of their own; the attempts of further ones are counted in one summary."""

_KEPT_BACK: Final = 100
"""Of the budget: for the summaries and the span of the whole run, which come last."""
_NS_A_MS: Final = 1_000_000

_OUTCOMES: Final = {
    FAILURE_KIND_TIMED_OUT: "timeout",
    FAILURE_KIND_HEARTBEAT_MISSED: "timeout",
    FAILURE_KIND_STEP_TIMED_OUT: "timeout",
    FAILURE_KIND_QUEUE_TIMED_OUT: "timeout",
    FAILURE_KIND_LOST: "lost",
    FAILURE_KIND_CANCELLED: "cancelled",
    FAILURE_KIND_TERMINATED: "cancelled",
}
_ERRORS: Final = frozenset(("failure", "timeout", "lost"))


def project(
    facts: HeadFacts, events: Iterable[HistoryEvent], state: ProjectionState
) -> tuple[list[SpanData], ProjectionState]:
    """Turn the next events of a run into the spans that they finish.

    Args:
        facts: Which run.
        events: In order; those at or before `state.position` are passed over.
        state: What the call before returned; `ProjectionState()` at the start. It is not changed.

    Raises:
        ValueError: There is a gap between `state.position` and the events.
    """
    fold = _Fold(facts, state.copy())
    for event in events:
        fold.take(event)
    return fold.made, fold.state


class _Fold:
    def __init__(self, facts: HeadFacts, state: ProjectionState) -> None:
        self.facts, self.state = facts, state
        self.made: list[SpanData] = []
        self._now = 0

    def take(self, event: HistoryEvent) -> None:
        state, position = self.state, event.position
        if position <= state.position:
            return
        if position != state.position + 1:
            raise ValueError(
                f"event {position} of run {self.facts.run_id!r} follows {state.position}: give all events, in order"
            )
        state.position, state.revision = position, event.revision
        self._now = event.time_ms
        kind = event.WhichOneof("kind") or ""
        rule = _RULES.get(kind)
        if rule is not None and (not state.closed or kind == "run_retried"):
            rule(self, getattr(event, kind))

    # --- the run -----------------------------------------------------------------------------------------------------
    def _run_started(self, body: Any) -> None:
        self.state.workflow, self.state.started_ms, self.state.begun_ms = body.workflow, self._now, self._now
        link = caller_link(body.caller, {a.LINK_TYPE: "continues" if body.part else "started_by"})
        told: dict[str, str | int | bool] = {a.INCARNATION: f"{self.facts.incarnation:016x}", a.TRIGGER: body.trigger}
        if body.HasField("occurrence"):
            told |= {a.SCHEDULE: body.occurrence.schedule_id, a.SCHEDULED_AT: body.occurrence.scheduled_ms}
        if body.version:
            told[a.VERSION] = body.version
        for tag in body.tags:
            told[f"{a.TAG}.{tag.key}"] = tag.value
        self._span(
            "anchor",
            f"run {body.workflow}",
            self._now,
            told,
            links=(link,) if link else (),
        )

    def _run_failed(self, body: Any) -> None:
        timed_out = body.failure.kind in (FAILURE_KIND_RUN_TIMED_OUT, FAILURE_KIND_TIMED_OUT)
        self._close("timeout" if timed_out else "failure", body.failure)

    def _close(self, outcome: str, failure: Failure | None = None) -> None:
        state = self.state
        for command_id, step in list(state.steps.items()):
            if step.running or step.dispatched_ms:
                self._end_attempt(command_id, step, "cancelled", final=True)
        for command_id in list(state.timers):
            self._end_timer(command_id, "cancelled")
        for command_id in list(state.children):
            self._end_child(command_id, "cancelled")
        for signal_id in list(state.questions):
            self._end_question(signal_id, "cancelled")
        for name, summary in state.summaries.items():
            self._summary(name, summary)
        values: dict[str, str | int | bool] = {
            a.INCARNATION: f"{self.facts.incarnation:016x}",
            a.RUN_OUTCOME: outcome,
        }
        if failure is not None:
            values[a.ERROR_TYPE] = failure.type or a.OTHER_ERROR
        if state.dropped:
            values[a.DROPPED] = state.dropped
        status: Status = "ok" if outcome in ("success", "continued") else "error" if failure is not None else "unset"
        name = f"execute {state.workflow}"
        self._span(self._path("run"), name, state.begun_ms, values, failure=failure, status=status, reserved=0)
        state.steps, state.timers = {}, {}
        state.closed = True

    def _run_retried(self, body: Any) -> None:
        """The run goes on: what it opens again has spans of its own."""
        state = self.state
        state.closed, state.retries, state.begun_ms = False, body.number, self._now
        state.summaries = {}
        state.names = {name: count for name, count in state.names.items() if count <= SPANS_A_NAME}

    def _path(self, path: str) -> str:
        return retried_path(path, self.state.retries)

    # --- steps -------------------------------------------------------------------------------------------------------
    def _step_scheduled(self, body: Any) -> None:
        self._open(body.command_id, body.name, body.pool, dispatched_ms=self._now)

    def _open(self, command_id: str, name: str, pool: str = "", *, dispatched_ms: int = 0) -> OpenStep:
        names = self.state.names
        names[name] = names.get(name, 0) + 1
        step = OpenStep(name, pool, not pool, names[name] > SPANS_A_NAME, dispatched_ms)
        self.state.steps[command_id] = step
        return step

    def _known(self, body: Any) -> OpenStep | None:
        """Return the step of an event; a local one may appear with any of its events."""
        step = self.state.steps.get(body.command_id)
        if step is None and body.local:
            return self._open(body.command_id, body.name)
        return step

    def _attempt_started(self, body: Any) -> None:
        step = self._known(body)
        if step is None:
            return
        if step.running:  # its owner gave the run back in the middle of a local step
            step = self._end_attempt(body.command_id, step, "released")
        self.state.steps[body.command_id] = replace(
            step, running=body.attempt, started_ms=self._now, worker_id=body.worker_id
        )

    def _attempt_failed(self, body: Any) -> None:
        step = self._known(body)
        if step is not None:
            values = {a.RETRY_DELAY_MS: max(0, body.retry_at_ms - self._now)}
            outcome = _OUTCOMES.get(body.failure.kind, "failure")
            self._end_attempt(
                body.command_id, step, outcome, body.failure, values, number=body.attempt, ran_ms=body.duration_ms
            )

    def _attempt_lost(self, body: Any) -> None:
        step = self.state.steps.get(body.command_id)
        if step is not None:
            failure = Failure(kind=FAILURE_KIND_LOST, type="Lost", message=f"the worker was lost: {body.reason}")
            step = self._end_attempt(body.command_id, step, "lost", failure, number=body.attempt)
            self._published_again(body.command_id, step)

    def _attempt_released(self, body: Any) -> None:
        step = self.state.steps.get(body.command_id)
        if step is not None:
            step = self._end_attempt(body.command_id, step, "released", number=body.attempt)
            self._published_again(body.command_id, step)

    def _published_again(self, command_id: str, step: OpenStep) -> None:
        self.state.steps[command_id] = replace(step, dispatched_ms=self._now)

    def _step_retried(self, body: Any) -> None:
        step = self.state.steps.get(body.command_id)
        if step is not None:
            self._published_again(body.command_id, step)

    def _step_quarantined(self, body: Any) -> None:
        step = self.state.steps.get(body.command_id)
        if step is not None:
            self.state.steps[body.command_id] = replace(step, dispatched_ms=0)

    def _step_completed(self, body: Any) -> None:
        if body.local and body.command_id not in self.state.steps and self._completed_at_once(body):
            return
        step = self._known(body)
        if step is not None:
            self._end_attempt(
                body.command_id, step, "success", number=body.attempt, ran_ms=body.duration_ms, final=True
            )

    def _completed_at_once(self, body: Any) -> bool:
        """A local step whose only event is that it is done: nothing is opened, to be closed again."""
        name, command_id, number, names = body.name, body.command_id, body.attempt or 1, self.state.names
        if names.get(name, 0) >= SPANS_A_NAME:
            return False
        names[name] = names.get(name, 0) + 1
        self._span(
            f"step/{command_id}/{number}",
            f"step {name}",
            max(self.state.started_ms, self._now - body.duration_ms),
            {a.STEP_ID: command_id},
            shared=attempt_values(name, "", "", number, "success", "", True),
        )
        return True

    def _step_failed(self, body: Any) -> None:
        step = self._known(body)
        if step is not None:
            outcome = _OUTCOMES.get(body.failure.kind, "failure")
            self._end_attempt(
                body.command_id,
                step,
                outcome,
                body.failure,
                number=body.attempt,
                ran_ms=body.duration_ms,
                final=True,
            )

    def _step_cancelled(self, body: Any) -> None:
        step = self._known(body)
        if step is None:
            return
        if step.running or step.dispatched_ms or step.local:
            self._end_attempt(body.command_id, step, "cancelled", number=body.attempt, final=True)
        else:
            del self.state.steps[body.command_id]

    def _end_attempt(
        self,
        command_id: str,
        step: OpenStep,
        outcome: str,
        failure: Failure | None = None,
        more: Attributes | None = None,
        *,
        number: int = 0,
        ran_ms: int = 0,
        final: bool = False,
    ) -> OpenStep:
        """Write the span of an attempt; returns the step without it, if it goes on.

        A number that has its span already is that of the attempt before: the try that ends now never got a holder.
        """
        number = step.running or (number if number > step.closed else step.closed + 1)
        start_ms = self._attempt_start(step, ran_ms)
        if step.summed:
            self._sum(step.name, start_ms, outcome)
        else:
            values: dict[str, str | int | bool] = {a.STEP_ID: command_id}
            if step.started_ms and step.dispatched_ms:
                values[a.QUEUE_MS] = step.started_ms - step.dispatched_ms
            if more:
                values.update(more)
            error_type = "" if failure is None else failure.type or a.OTHER_ERROR
            self._span(
                f"step/{command_id}/{number}",
                f"step {step.name}",
                start_ms,
                values,
                shared=attempt_values(step.name, step.pool, step.worker_id, number, outcome, error_type, final),
                kind="internal" if step.local else "producer",
                links=self._retry_of(command_id, step),
                failure=failure,
                status="error" if outcome in _ERRORS else "unset",
            )
        if final:
            del self.state.steps[command_id]
            return step
        after = replace(step, dispatched_ms=0, running=0, started_ms=0, worker_id="", closed=number)
        self.state.steps[command_id] = after
        return after

    def _attempt_start(self, step: OpenStep, ran_ms: int) -> int:
        """A pool step's begins with its publication; a local one's when it ran, as far as events tell."""
        if not step.local:
            return step.dispatched_ms or step.started_ms or self._now
        return step.started_ms or max(self.state.started_ms, step.dispatched_ms, self._now - ran_ms)

    def _retry_of(self, command_id: str, step: OpenStep) -> tuple[SpanLink, ...]:
        if not step.closed:
            return ()
        before = self.facts.span_id(f"step/{command_id}/{step.closed}").hex()
        return (SpanLink(self.facts.trace_id, before, {a.LINK_TYPE: "retry_of"}),)

    # --- too many ----------------------------------------------------------------------------------------------------
    def _sum(self, name: str, start_ms: int, outcome: str) -> None:
        old = self.state.summaries.get(name, Summary(start_ms, self._now, {}))
        outcomes = {**old.outcomes, outcome: old.outcomes.get(outcome, 0) + 1}
        self.state.summaries[name] = Summary(min(old.start_ms, start_ms), self._now, outcomes)

    def _summary(self, name: str, summary: Summary) -> None:
        values: dict[str, str | int | bool] = {
            a.STEP_NAME: name,
            a.STEP_KIND: "task",
            a.FANOUT_STEPS: self.state.names[name] - SPANS_A_NAME,
        }
        for outcome, count in sorted(summary.outcomes.items()):
            values[f"{a.FANOUT_ATTEMPTS}.{outcome}"] = count
        path = self._path(f"summary/{name}")
        self._span(path, f"step {name}", summary.start_ms, values, end_ms=summary.end_ms, reserved=1)

    # --- timers ------------------------------------------------------------------------------------------------------
    def _timer_started(self, body: Any) -> None:
        self.state.timers[body.command_id] = OpenTimer(self._now, body.fire_at_ms)

    def _end_timer(self, command_id: str, outcome: str) -> None:
        timer = self.state.timers.pop(command_id, None)
        if timer is not None:
            name, values = timer.told(command_id, outcome)
            self._span(self._path(f"timer/{command_id}"), name, timer.started_ms, values)

    def _timer_over(self, body: Any) -> None:
        self._end_timer(body.command_id, OpenTimer.ends[type(body)])

    def _wait_started(self, body: Any) -> None:
        self.state.timers[body.command_id] = OpenTimer(self._now, body.until_ms, body.name)

    # --- children ----------------------------------------------------------------------------------------------------
    def _child_scheduled(self, body: Any) -> None:
        self.state.children[body.command_id] = OpenChild(body.workflow, body.run_id, self._now)

    def _end_child(self, command_id: str, outcome: str, failure: Failure | None = None) -> None:
        child = self.state.children.pop(command_id, None)
        if child is not None:
            values: Attributes = {
                a.STEP_ID: command_id,
                a.STEP_KIND: "child",
                a.CHILD_RUN_ID: child.run_id,
                a.WAIT_OUTCOME: outcome,
            }
            self._span(
                self._path(f"child/{command_id}"),
                f"child {child.workflow}",
                child.started_ms,
                values,
                failure=failure,
                status="error" if outcome in _ERRORS else "unset",
            )

    def _child_failed(self, body: Any) -> None:
        self._end_child(body.command_id, _OUTCOMES.get(body.failure.kind, "failure"), body.failure)

    # --- signals -----------------------------------------------------------------------------------------------------
    def _signal_received(self, body: Any) -> None:
        if body.asks:
            self.state.questions[body.signal_id] = OpenQuestion(body.name, self._now)
        else:
            values: Attributes = {a.SIGNAL_NAME: body.name, a.SIGNAL_ID: body.signal_id, a.STEP_KIND: "signal"}
            self._span(f"signal/{body.signal_id}", f"signal {body.name}", self._now, values)

    def _end_question(self, signal_id: str, outcome: str) -> None:
        question = self.state.questions.pop(signal_id, None)
        if question is not None:
            values: Attributes = {
                a.SIGNAL_NAME: question.name,
                a.SIGNAL_ID: signal_id,
                a.STEP_KIND: "question",
                a.WAIT_OUTCOME: outcome,
            }
            self._span(f"signal/{signal_id}", f"question {question.name}", question.asked_ms, values)

    # --- spans -------------------------------------------------------------------------------------------------------
    def _span(
        self,
        path: str,
        name: str,
        start_ms: int,
        values: Attributes,
        *,
        shared: Shared = NOTHING,
        kind: Kind = "internal",
        links: tuple[SpanLink, ...] = (),
        failure: Failure | None = None,
        status: Status = "unset",
        end_ms: int = 0,
        reserved: int = _KEPT_BACK,
    ) -> None:
        """Make a span that ends now, unless less than `reserved` of the budget would be left."""
        facts, state = self.facts, self.state
        if state.spans >= SPANS_A_RUN - reserved:
            state.dropped += 1
            return
        state.spans += 1
        end = end_ms or self._now
        events = () if failure is None else (exception_event(failure, end),)
        description = description_of(failure) if failure is not None and status == "error" else ""
        self.made.append(
            SpanData(
                facts,
                state.workflow,
                state.position,
                path,
                name,
                kind,
                facts.span_id(path),
                start_ms * _NS_A_MS,
                end * _NS_A_MS,
                values,
                shared,
                links,
                events,
                status,
                description,
            )
        )


_RULES: Final[dict[str, Callable[[_Fold, Any], None]]] = {
    "run_started": _Fold._run_started,
    "run_completed": lambda fold, body: fold._close("success"),
    "run_failed": _Fold._run_failed,
    "run_cancelled": lambda fold, body: fold._close("cancellation"),
    "run_retried": _Fold._run_retried,
    "run_terminated": lambda fold, body: fold._close("cancellation"),
    "run_continued": lambda fold, body: fold._close("continued"),
    "step_scheduled": _Fold._step_scheduled,
    "attempt_started": _Fold._attempt_started,
    "attempt_failed": _Fold._attempt_failed,
    "attempt_lost": _Fold._attempt_lost,
    "attempt_released": _Fold._attempt_released,
    "step_retried": _Fold._step_retried,
    "step_quarantined": _Fold._step_quarantined,
    "step_unquarantined": _Fold._step_retried,
    "step_completed": _Fold._step_completed,
    "step_failed": _Fold._step_failed,
    "step_cancelled": _Fold._step_cancelled,
    "timer_started": _Fold._timer_started,
    "child_scheduled": _Fold._child_scheduled,
    "child_completed": lambda fold, body: fold._end_child(body.command_id, "success"),
    "child_failed": _Fold._child_failed,
    "signal_received": _Fold._signal_received,
    "signal_answered": lambda fold, body: fold._end_question(
        body.signal_id, "refused" if body.HasField("failure") else "answered"
    ),
    "event_wait_started": _Fold._wait_started,
} | dict.fromkeys(OpenTimer.ended_by, _Fold._timer_over)
"""Kind of an event -> what it does; all others are no concern of traces."""
