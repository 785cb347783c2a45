"""What code gets for what it asked: the outcome of a step or a child, as a fresh value or a fresh error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from treadle.protocol.errors import PayloadError, PayloadUnreadable, RunCancelled, RunIdConflict, RunTerminated
from treadle.protocol.failures import run_error, step_error
from treadle.v1 import history_pb2 as history
from treadle.v1.common_pb2 import (
    FAILURE_KIND_CANCELLED,
    FAILURE_KIND_ID_TAKEN,
    FAILURE_KIND_TERMINATED,
    Failure,
)
from treadle.worker.loop.blame import mark

if TYPE_CHECKING:
    from treadle.worker.loop.ledger import Ask, Ledger
    from treadle.worker.loop.waiting import StepFuture
    from treadle.worker.workflows import Workflow

__all__ = ("deliver",)


def deliver(ask: Ask, outcome: Any, ledger: Ledger) -> None:
    """Give the code the outcome of a step, as a fresh value or a fresh error. One that is sealed is for another worker."""
    try:
        _deliver(ask, outcome)
    except PayloadUnreadable as error:
        ledger.unreadable(f"result of {ask.command_id}", error)


def is_sealed(signal: history.SignalReceived, ledger: Ledger) -> bool:
    """Whether only another worker can read a signal: nothing more may be fed here."""
    if not signal.data.encoding:
        return False
    error = PayloadUnreadable(f"its encoding {signal.data.encoding!r} is not known here; configure the codec")
    ledger.unreadable(f"signal {signal.name!r}", error)
    return True


def _deliver(ask: Ask, outcome: Any) -> None:
    future, step = ask.future, ask.step
    ask.future = None  # they refer to each other
    if future is None or future.done() or future.ended():
        return
    if ask.workflow is not None:
        _deliver_child(ask, ask.workflow, future, outcome)
        return
    if isinstance(outcome, history.EventMatched | history.EventWaitTimedOut | history.EventWaitRefused):
        future.set_result(outcome)
        return
    if step is None:
        return
    if isinstance(outcome, history.StepCompleted):
        try:
            future.set_result(step.signature.decode_result(outcome.result))
        except PayloadUnreadable:
            ask.future = future
            raise
        except PayloadError as error:
            future.set_exception(error)
    elif isinstance(outcome, history.StepFailed):
        _fail(future, ask, step_error(step.name, outcome.failure))
    else:
        cancelled = Failure(kind=FAILURE_KIND_CANCELLED, attempts=outcome.attempt)
        _fail(future, ask, step_error(step.name, cancelled))


def _fail(future: StepFuture, ask: Ask, error: Exception) -> None:
    mark(error, ask.command_id)
    future.set_exception(error)


def _deliver_child(ask: Ask, workflow: Workflow[..., Any], future: StepFuture, outcome: Any) -> None:
    assert ask.prepared is not None
    run_id = ask.prepared.schedule_child.run_id
    if isinstance(outcome, history.ChildCompleted):
        try:
            future.set_result(workflow.signature.decode_result(outcome.result))
        except PayloadUnreadable:
            ask.future = future
            raise
        except PayloadError as error:
            future.set_exception(error)
        return
    failure = outcome.failure
    if failure.kind == FAILURE_KIND_ID_TAKEN:
        _fail(future, ask, RunIdConflict(failure.message))
    elif failure.kind == FAILURE_KIND_CANCELLED:
        _fail(future, ask, RunCancelled(f"child {run_id} was cancelled: {failure.message}", run_id=run_id))
    elif failure.kind == FAILURE_KIND_TERMINATED:
        _fail(future, ask, RunTerminated(f"child {run_id} was terminated: {failure.message}", run_id=run_id))
    else:
        _fail(future, ask, run_error(run_id, failure))
