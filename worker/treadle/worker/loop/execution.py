"""The live coroutine of one run: fed with the events of its history, one by one, it asks for steps and timers.

Live and replay are the same function. An event is fed, the loop runs until nothing is ready, and the ledger knows what the
code asked for that the history does not have. Nothing that user code does makes `feed` raise.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from inspect import CORO_CREATED, getcoroutinestate
from random import Random
from typing import TYPE_CHECKING, Any, Final

from treadle.protocol.durations import in_words
from treadle.protocol.errors import PayloadError, PayloadUnreadable
from treadle.protocol.failures import failure_of
from treadle.protocol.ids import child_id
from treadle.protocol.occurrence import given
from treadle.protocol.past import past_of
from treadle.v1 import history_pb2 as history
from treadle.v1.common_pb2 import Failure, OnParentClose, Payload
from treadle.v1.worker_service_pb2 import Command, ScheduleChild
from treadle.worker.hooks import handed_over
from treadle.worker.loop.blame import Undone
from treadle.worker.loop.continuation import ContinueAsNew
from treadle.worker.loop.delivery import deliver, is_sealed
from treadle.worker.loop.durable_loop import DurableLoop, TimerCall
from treadle.worker.loop.endings import ENDLESS, STUCK, ended, with_hook
from treadle.worker.loop.events_had import EventsHad
from treadle.worker.loop.future import DurableTask
from treadle.worker.loop.ledger import Ask, Kind, Ledger
from treadle.worker.loop.mail import Mail
from treadle.worker.loop.marks import Marks
from treadle.worker.loop.outside import Outside
from treadle.worker.loop.port import Divergence, ExecutionFactory, Outcome, RunContext, Turn, Waits
from treadle.worker.loop.waiting import StepFuture

if TYPE_CHECKING:
    from treadle.worker.app import Registry
    from treadle.worker.steps import Step
    from treadle.worker.workflows import Workflow

__all__ = ("WorkflowExecution", "execution_factory")


def execution_factory(registry: Registry) -> ExecutionFactory:
    """Return the function that makes executions of the workflows in `registry`; it raises KeyError for another name."""

    def make(context: RunContext) -> WorkflowExecution:
        return WorkflowExecution(context, registry.workflows[context.workflow])

    return make


class WorkflowExecution(Outside):
    """Implements `treadle.worker.loop.port.Execution` over the durable event loop.

    Args:
        context: Which run.
        workflow: Its code.

    Attributes:
        interrupted: A cancel of the run, or its timeout, has come.
        undone: What sagas undid because they were cancelled.
        at: Position of the event that the code goes on by; behind `fed` while it is led through what counts of a past.
    """

    def __init__(self, context: RunContext, workflow: Workflow[..., Any]) -> None:
        self.context = context
        self._workflow, self._limit = workflow, context.payload_limit
        self._ledger = Ledger(context)
        self._loop = DurableLoop(self)  # type: ignore[abstract]  # the rest refuses
        self._variables = contextvars.Context()
        self.mail, self.had = Mail(), EventsHad()
        self.marks = Marks(context, self._ledger, self._loop)
        self._main: DurableTask | None = None
        self.fed = self.at = 0
        self.outcome: Outcome | None = None
        self.interrupted = self.unheard = False
        self._ended = False
        self._closed = False
        self._before: list[history.HistoryEvent] | None = [] if context.retried_at else None
        self._input, self._timeout = Payload(), ""
        self.undone = Undone()
        self._calls: list[Coroutine[Any, Any, Any]] = []
        self._calls_limit = 64

    # the port

    @property
    def divergence(self) -> Divergence | None:
        return self._ledger.divergence

    def waits(self) -> Waits:
        waits = self._ledger.waits()
        return replace(waits, signals=self.mail.waiting) if self.mail.waiting else waits

    def awaits_only(self, command_id: str) -> bool:
        return not self.mail.waiting and self._ledger.awaits_only(command_id)

    @property
    def untold(self) -> int:
        return self._ledger.untold

    def unread(self) -> list[history.SignalReceived]:
        return self.mail.unread

    def known_signals(self) -> list[str]:
        return self.mail.known

    @property
    def undoing(self) -> bool:
        return self.undone.by_run

    def passed(self, until: int, marks: Iterable[str]) -> None:
        self.marks.learn(until, marks)

    def take(self) -> Turn:
        ended = self.outcome is not None or self._ledger.divergence is not None
        return self._ledger.take(ended=ended)

    def failing(self, failure: Failure) -> Outcome:
        return with_hook(Outcome(failure=failure), self._workflow, self.context, self._input, "")

    def feed(self, event: history.HistoryEvent) -> None:
        position = event.position
        if position != self.fed + 1:
            raise ValueError(f"position {position} was fed where {self.fed + 1} is next")
        if self._closed or self._ledger.divergence is not None:
            raise ValueError("nothing may be fed to an execution that is closed or has diverged")
        self.fed = position
        if self._before is None:
            self._apply(event)
        else:
            self._hold_back(event, self._before)

    def _hold_back(self, event: history.HistoryEvent, before: list[history.HistoryEvent]) -> None:
        """The run was continued: what counts of its past is known when all of it was read."""
        before.append(event)
        if event.position >= self.context.retried_at:
            self._before = None
            past = past_of(before)
            self._ledger.begin_again(past)
            for counts in past.events:
                if self._ledger.divergence is None:
                    self._apply(counts)
            self.at = self.fed
            self._ledger.asked_now(round(self._loop.time() * 1000))

    def _apply(self, event: history.HistoryEvent) -> None:
        self.at = position = event.position
        kind = event.WhichOneof("kind") or ""
        self._loop.advance((event.step_completed.ended_ms if kind == "step_completed" else 0) or event.time_ms)
        if kind in _QUIET:
            _QUIET[kind](self, getattr(event, kind), position)
        elif kind in _HANDLERS:
            self._loop.failing = getattr(event, kind).command_id if kind in _FAILURES else ""
            self._variables.run(self._turn, _HANDLERS[kind], getattr(event, kind), position)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.drop()
            for call in self._calls:
                call.close()  # one that was never awaited would be warned of by the garbage collector
            self._calls.clear()
            self._main = None
            self._loop.forget()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()

    # one turn

    def _turn(self, handler: Callable[[WorkflowExecution, Any, int], None], message: Any, position: int) -> None:
        loop = self._loop
        loop.enter()
        try:
            handler(self, message, position)
            idle = loop.run_until_idle()
            if not self._ended:
                self._look_at_main(idle)
        finally:
            loop.leave()
        if self.outcome is not None:
            self.outcome = with_hook(self.outcome, self._workflow, self.context, self._input, self._timeout)

    def _look_at_main(self, idle: bool) -> None:
        main = self._main
        if main is not None and main.done():
            self._ended = True
            self.outcome = ended(main, self._workflow, self._limit, self.undone, interrupted=self.interrupted)
            self._loop.finish()
        elif not idle:
            self.outcome = ENDLESS
        elif main is not None:
            waits = any(self._ledger.open) or self.mail.waiting
            self.outcome = None if waits else STUCK

    # what events do

    def _run_started(self, event: history.RunStarted, _position: int) -> None:
        self.had.started(event, round(self._loop.time() * 1000))
        self.mail.known.extend(event.known_signals)
        try:
            signature = self._workflow.signature
            arguments = handed_over(self._workflow, event) if event.HasField("failed_run") else event.input
            if self._workflow.on_failure is not None:
                self._input = arguments
            occurrence = given(signature, event.occurrence) if event.HasField("occurrence") else None
            args, kwargs = signature.decode_call(arguments, occurrence)
        except PayloadUnreadable as error:  # by this worker: another one, or this one with the key, can read it
            return self._ledger.unreadable("input of the run", error)
        except PayloadError as error:
            self._ended = True
            self.outcome = Outcome(failure=failure_of(error))
            return
        self.marks.tags = {tag.key: tag.value for tag in event.tags}
        self._main = self._loop.create_task(self._workflow.function(*args, **kwargs))
        self._loop.root = self._main

    def _cancel(self, event: history.CancelRequested, _position: int) -> None:
        if self.interrupted:
            return
        self.interrupted = True
        self._interrupt(event.reason or None)

    def _timed_out(self, event: history.RunTimedOut, _position: int) -> None:
        """As a cancel; one that came before was raised, and code is not interrupted twice."""
        if self.interrupted:
            return
        self.interrupted, self._timeout = True, in_words(event.timeout_ms)
        self._interrupt(f"the run's timeout of {self._timeout} is over")

    def _interrupt(self, why: str | None) -> None:
        if self._main is not None and not self._main.done():
            self._main.cancel(why)
        else:
            self.unheard = True

    def _step_scheduled(self, event: history.StepScheduled, position: int) -> None:
        ask = self._ledger.recorded(event.command_id, event.digest, position, event.input)
        if ask is None or ask.kind is Kind.LOCAL_STEP:
            self._ledger.ran_in_pool(event.command_id, ask)
        else:
            ask.on_cancel = event.on_cancel  # as it was asked for, whatever the code says today

    def _attempt_started(self, event: history.AttemptStarted, position: int) -> None:
        if not event.local:
            return
        ask = self._ledger.recorded(event.command_id, event.digest, position, None)
        if ask is not None and ask.step is not None and ask.step.at_most_once:
            ask.call_wanted = False  # it has started: its outcome, or that it is lost, comes from the history

    def _attempt_failed(self, event: history.AttemptFailed, position: int) -> None:
        if not event.local:
            return
        ask = self._ledger.recorded(event.command_id, event.digest, position, None)
        if ask is not None:
            self._ledger.try_failed(ask)
            ask.progress = event.progress if event.HasField("progress") else ask.progress

    def _step_retried(self, event: history.StepRetried, _position: int) -> None:
        ask = self._ledger.find(event.command_id)
        if ask is not None and ask.kind is Kind.LOCAL_STEP:
            self._ledger.call_again(ask, event.try_number)

    def _step_ended(self, event: history.StepCompleted | history.StepFailed, position: int) -> None:
        if event.local:
            self._ledger.recorded(event.command_id, event.digest, position, None)
        ask = self._ledger.settle(event.command_id, event)
        if ask is not None:
            deliver(ask, event, self._ledger)

    def _step_cancelled(self, event: history.StepCancelled, position: int) -> None:
        if event.local:
            self._ledger.recorded(event.command_id, event.digest, position, None)
        if not self._ledger.was_cancelled(event.command_id, position):
            return
        ask = self._ledger.settle(event.command_id, event)
        if ask is not None:
            deliver(ask, event, self._ledger)

    def _cancel_known(self, event: history.StepCancelRequested | history.ChildCancelRequested, _position: int) -> None:
        ask = self._ledger.find(event.command_id)
        if ask is not None:
            ask.cancel_known = True

    def _timer_started(self, event: history.TimerStarted, position: int) -> None:
        ask = self._ledger.recorded(event.command_id, event.digest, position, None, kind=Kind.TIMER)
        if ask is not None:
            ask.fire_at_ms = event.fire_at_ms

    def _timer_fired(self, event: history.TimerFired, _position: int) -> None:
        ask = self._ledger.settle(event.command_id, event)
        if ask is not None and ask.call is not None:
            call, ask.call = ask.call, None
            self._loop.fire(call)

    def _timer_cancelled(self, event: history.TimerCancelled, _position: int) -> None:
        self._ledger.settle(event.command_id, None)

    def _child_scheduled(self, event: history.ChildScheduled, position: int) -> None:
        self._ledger.recorded(event.command_id, event.digest, position, event.input, kind=Kind.CHILD)

    def _child_ended(self, event: history.ChildCompleted | history.ChildFailed, _position: int) -> None:
        ask = self._ledger.settle(event.command_id, event)
        if ask is not None:
            deliver(ask, event, self._ledger)

    def _signal_received(self, event: history.SignalReceived, _position: int) -> None:
        if not is_sealed(event, self._ledger):
            self.mail.deliver(event)

    def _noted(self, event: history.SignalAnswered | history.StatePublished | history.TagsSet, position: int) -> None:
        self._ledger.noted(event.command_id, event.digest, position)

    def _change_marked(self, event: history.ChangeMarked, position: int) -> None:
        self.marks.recorded(event, position)

    def _event_wait_started(self, event: history.EventWaitStarted, position: int) -> None:
        self._ledger.recorded(event.command_id, event.digest, position, None, kind=Kind.EVENT)

    # what code asks for

    def call_step(
        self, step: Step[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """The durable call of a step; asked for when it is first awaited.

        Raises:
            TypeError: Wrong arguments, as in an ordinary call.
            PayloadError: The arguments cannot be encoded.
        """
        if self._loop.closing:
            raise GeneratorExit
        call = self._await_step(step, step.signature.encode_arguments(args, kwargs, limit=self._limit))
        self._calls.append(call)
        if len(self._calls) > self._calls_limit:
            self._calls = [c for c in self._calls if getcoroutinestate(c) == CORO_CREATED]
            self._calls_limit = 64 + 2 * len(self._calls)
        return call

    async def _await_step(self, step: Step[..., Any], data: bytes) -> Any:
        loop = self._loop
        if loop.closing:
            raise GeneratorExit
        if loop.finishing:
            await loop.create_future()  # the main task has ended: nothing more is recorded, nothing will come
        future = StepFuture(loop)
        kind = Kind.LOCAL_STEP if step.pool is None else Kind.POOL_STEP
        ask = self._ledger.ask(loop.current_path(), step.name, kind, data)
        ask.step = step
        ask.on_cancel = step.on_cancel
        if step.total_timeout_ms:
            ask.asked_ms = round(loop.time() * 1000)
        ask.future = future
        future.ask = ask
        future.ledger = self._ledger
        early = self._ledger.early_outcome(ask)
        if early is not None:
            self._settle_early(ask, early)
        return await future

    def start_child(
        self,
        workflow: Workflow[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        id: str | None,
        on_parent_close: OnParentClose.ValueType,
    ) -> tuple[str, asyncio.Future[Any]]:
        """Start a run of `workflow` as a child. Returns its id and what has its result.

        Raises:
            TypeError: Wrong arguments, as in an ordinary call.
            PayloadError: The arguments cannot be encoded.
        """
        loop = self._loop
        if loop.closing:
            raise GeneratorExit
        payload = workflow.signature.encode_call(args, kwargs, limit=self._limit)
        future = StepFuture(loop)
        path, context = loop.current_path(), self.context
        command_id = self._ledger.next_id(path, workflow.name)
        run_id = id or child_id(context.namespace, context.run_id, context.incarnation, command_id)
        if loop.finishing:
            return run_id, future  # the main task has ended: nothing more is recorded, nothing will come
        ask = self._ledger.ask(path, workflow.name, Kind.CHILD, b"%b\x1f%b" % (run_id.encode(), payload.data))
        ask.workflow = workflow
        ask.prepared = Command(
            schedule_child=ScheduleChild(
                run_id=run_id,
                workflow=workflow.code,
                pool=workflow.pool,
                input=payload,
                on_parent_close=on_parent_close,
                timeout_ms=workflow.timeout_ms,
            )
        )
        ask.future, future.ask, future.ledger = future, ask, self._ledger
        early = self._ledger.early_outcome(ask)
        if early is not None:
            self._settle_early(ask, early)
        return run_id, future

    def _settle_early(self, ask: Ask, outcome: Any) -> None:
        if self._ledger.settle(ask.command_id, outcome) is not None:
            if isinstance(outcome, history.StepFailed | history.ChildFailed):
                self._loop.failing = ask.command_id
            self._loop.call_soon(deliver, ask, outcome, self._ledger)

    def start_timer(self, call: TimerCall, delay_ms: int, path: str, name: str) -> None:
        """The code starts a timer."""
        if self._loop.finishing:
            return
        ask = self._ledger.ask(path, name, Kind.TIMER, b"%d" % delay_ms)
        ask.asked_ms = round(self._loop.time() * 1000)
        ask.call = call
        call.ask = ask
        if self._ledger.early_outcome(ask) is not None:
            self._ledger.settle(ask.command_id, None)
            ask.call = None
            self._loop.fire(call)

    def cancel_timer(self, call: TimerCall) -> None:
        """The code needs a timer no longer."""
        self._ledger.drop(call.ask)

    def continue_as_new(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ContinueAsNew:
        """What the code must raise to go on as a new part of the run with these arguments.

        Raises:
            TypeError: Wrong arguments, as in an ordinary call.
            PayloadError: The arguments cannot be encoded.
        """
        return ContinueAsNew(self._workflow.signature.encode_call(args, kwargs, limit=self._limit))

    def random(self) -> Random:
        """The random numbers of the task that runs: the same in each replay."""
        task = asyncio.current_task(self._loop)
        owner = task if isinstance(task, DurableTask) else self._main
        assert owner is not None, "code runs only once there is a main task"
        if owner.random is None:
            context = self.context
            owner.random = Random(f"{context.namespace}\x1f{context.run_id}\x1f{context.incarnation}\x1f{owner.path}")
        return owner.random

    def now(self) -> float:
        """The time of the last fed event, in seconds since 1970."""
        return self._loop.time()


_Handlers = dict[str, Callable[[WorkflowExecution, Any, int], None]]

_QUIET: Final[_Handlers] = {
    "step_scheduled": WorkflowExecution._step_scheduled,
    "attempt_started": WorkflowExecution._attempt_started,
    "attempt_failed": WorkflowExecution._attempt_failed,
    "step_retried": WorkflowExecution._step_retried,
    "step_cancel_requested": WorkflowExecution._cancel_known,
    "timer_started": WorkflowExecution._timer_started,
    "signal_answered": WorkflowExecution._noted,
    "state_published": WorkflowExecution._noted,
    "change_marked": WorkflowExecution._change_marked,
    "tags_set": WorkflowExecution._noted,
    "event_sent": WorkflowExecution._noted,
    "event_wait_started": WorkflowExecution._event_wait_started,
    "child_scheduled": WorkflowExecution._child_scheduled,
    "child_cancel_requested": WorkflowExecution._cancel_known,
}
"""Events that only the ledger hears of: nothing gets ready to run by them."""

_FAILURES: Final = ("step_failed", "child_failed")

_HANDLERS: Final[_Handlers] = {
    "run_started": WorkflowExecution._run_started,
    "cancel_requested": WorkflowExecution._cancel,
    "run_timed_out": WorkflowExecution._timed_out,
    "step_completed": WorkflowExecution._step_ended,
    "step_failed": WorkflowExecution._step_ended,
    "step_cancelled": WorkflowExecution._step_cancelled,
    "timer_fired": WorkflowExecution._timer_fired,
    "timer_cancelled": WorkflowExecution._timer_cancelled,
    "signal_received": WorkflowExecution._signal_received,
    "event_matched": WorkflowExecution._child_ended,
    "event_wait_timed_out": WorkflowExecution._child_ended,
    "event_wait_refused": WorkflowExecution._child_ended,
    "event_wait_cancelled": WorkflowExecution._timer_cancelled,
    "child_completed": WorkflowExecution._child_ended,
    "child_failed": WorkflowExecution._child_ended,
}
