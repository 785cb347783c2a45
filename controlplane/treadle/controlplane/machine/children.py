"""Runs that start runs. A parent and its child may live in different shards: what one tells the other is a letter.

A letter is an entry of the writer's outbox, written in the commit that decides it, and delivered at least once. The
receiver applies it once: a start is known by its request id, an outcome finds the parent's row or nothing, and a child is
stopped once.
"""

from __future__ import annotations

from treadle.protocol.errors import RequestError, RunClosed, RunIdConflict
from treadle.protocol.ids import RECORD_MARK, RunKey, retried_path
from treadle.v1.common_pb2 import (
    FAILURE_KIND_CANCELLED,
    FAILURE_KIND_ID_TAKEN,
    FAILURE_KIND_TERMINATED,
    ON_PARENT_CLOSE_LEAVE,
    ON_PARENT_CLOSE_TERMINATE,
    Failure,
    ParentRun,
)
from treadle.v1.history_pb2 import ChildCancelRequested, ChildCompleted, ChildFailed, ChildScheduled, HistoryEvent
from treadle.v1.run_service_pb2 import CONFLICT_POLICY_REJECT, CONFLICT_POLICY_USE_EXISTING
from treadle.v1.state_pb2 import (
    COMMAND_STATE_CHILD,
    RUN_OUTCOME_CANCELLED,
    RUN_OUTCOME_COMPLETED,
    RUN_OUTCOME_TERMINATED,
    ChildClosed,
    CommandRow,
    Letter,
    RunOutcome,
    StartChild,
    StopChild,
)
from treadle.v1.worker_service_pb2 import Command

from . import events, schedule_runs
from .requests import ChildEnded, Reply, Request, StartRun, StopRun
from .view import RunView

__all__ = (
    "applied",
    "cancel",
    "closed",
    "ended",
    "is_child_of",
    "is_same_call",
    "leave",
    "refusal_of",
    "request_of",
    "run_in",
    "schedule",
)


# --- the parent ----------------------------------------------------------------------------------------------------------
def schedule(view: RunView, command: Command) -> None:
    """The code starts a child: its row, its event, and the letter that starts it."""
    spec = command.schedule_child
    parent = _parent(view, command.command_id, view.head.retries)
    view.put(
        CommandRow(
            command_id=command.command_id,
            state=COMMAND_STATE_CHILD,
            name=spec.workflow,
            digest=command.digest,
            pool=spec.pool,
            child_run_id=spec.run_id,
            on_parent_close=spec.on_parent_close,
            retry_number=view.head.retries,
        )
    )
    view.event(
        child_scheduled=ChildScheduled(
            command_id=command.command_id,
            digest=command.digest,
            run_id=spec.run_id,
            workflow=spec.workflow,
            pool=spec.pool,
            input=spec.input,
            on_parent_close=spec.on_parent_close,
        )
    )
    view.post(
        spec.run_id,
        start_child=StartChild(
            workflow=spec.workflow,
            pool=spec.pool,
            input=spec.input,
            parent=parent,
            caller=view.trace(retried_path(f"child/{command.command_id}", view.head.retries)),
            sampled=view.head.sampled,
            timeout_ms=spec.timeout_ms,
            over=spec.over,
        ),
    )


def cancel(view: RunView, row: CommandRow) -> None:
    """The code needs the child no longer. Its outcome is still to come: it may take its time to clean up."""
    if row.cancel_requested:
        return
    row.cancel_requested = True
    view.put(row)
    view.event(child_cancel_requested=ChildCancelRequested(command_id=row.command_id))
    _stop(view, row, terminate=False, reason="its parent needs it no longer")


def ended(view: RunView, request: ChildEnded) -> None:
    """A child has closed. What finds no row is known already, or wanted no longer."""
    told = request.letter
    if not view.exists or view.over or view.head.incarnation != told.parent.incarnation:
        return
    row = view.row(told.parent.command_id)
    if row is None or row.state != COMMAND_STATE_CHILD or row.retry_number != told.parent.retry:
        return
    if told.outcome == RUN_OUTCOME_COMPLETED:
        view.event(child_completed=ChildCompleted(command_id=row.command_id, result=told.result))
    else:
        view.event(child_failed=ChildFailed(command_id=row.command_id, failure=told.failure))
    view.drop(row)


def leave(view: RunView, row: CommandRow) -> None:
    """The parent has closed: what becomes of the child is its policy."""
    if row.on_parent_close != ON_PARENT_CLOSE_LEAVE:
        terminate = row.on_parent_close == ON_PARENT_CLOSE_TERMINATE
        _stop(view, row, terminate=terminate, reason=f"its parent {view.run.run_id!r} has closed")


def _stop(view: RunView, row: CommandRow, *, terminate: bool, reason: str) -> None:
    parent = _parent(view, row.command_id, row.retry_number)
    view.post(row.child_run_id, stop_child=StopChild(parent=parent, terminate=terminate, reason=reason))


def _parent(view: RunView, command_id: str, retry: int) -> ParentRun:
    return ParentRun(run_id=view.run.run_id, incarnation=view.head.incarnation, command_id=command_id, retry=retry)


# --- the child -----------------------------------------------------------------------------------------------------------
def closed(view: RunView, outcome: RunOutcome.ValueType) -> None:
    """The run has closed, by the event written last: its parent, if it has one, is told."""
    head = view.head
    if not head.HasField("parent"):
        return
    told = ChildClosed(parent=head.parent, outcome=outcome)
    last = view.events[-1]
    if outcome == RUN_OUTCOME_COMPLETED:
        told.result.CopyFrom(last.run_completed.result)
    else:
        told.failure.CopyFrom(_failure(last, outcome))
    view.post(head.parent.run_id, child_closed=told)


def _failure(event: HistoryEvent, outcome: RunOutcome.ValueType) -> Failure:
    if outcome == RUN_OUTCOME_CANCELLED:
        return Failure(kind=FAILURE_KIND_CANCELLED, type="RunCancelled", message=event.run_cancelled.reason)
    if outcome == RUN_OUTCOME_TERMINATED:
        return Failure(kind=FAILURE_KIND_TERMINATED, type="RunTerminated", message=event.run_terminated.reason)
    return event.run_failed.failure


# --- letters -------------------------------------------------------------------------------------------------------------
def request_of(letter: Letter) -> tuple[RunKey, Request]:
    """Return whom a letter is for, and what it asks of that run.

    Raises:
        ValueError: It says what this build does not know: who wrote it is newer, and another replica delivers it.
    """
    run = RunKey(letter.namespace, letter.run_id)
    kind = letter.WhichOneof("kind")
    if kind in events.KINDS:
        return events.request_of(letter)
    if kind == "start_child":
        return run, _start(letter.letter_id, letter.start_child)
    if kind == "start_scheduled":
        return run, schedule_runs.start_request(letter)
    if kind == "child_closed":
        return run, ChildEnded(letter.child_closed)
    if kind != "stop_child":
        raise ValueError(f"letter {letter.letter_id} of run {letter.from_run_id!r} has no kind that is known here")
    said = letter.stop_child
    return run, StopRun(letter.letter_id, said.parent, said.terminate, said.reason)


def _start(letter_id: str, spec: StartChild) -> StartRun:
    is_child = spec.HasField("parent")
    return StartRun(
        workflow=spec.workflow,
        pool=spec.pool,
        input=spec.input,
        request_id=letter_id,
        policy=CONFLICT_POLICY_REJECT if is_child else CONFLICT_POLICY_USE_EXISTING,
        caller=spec.caller,
        trigger=spec.trigger or "child",
        sampled=spec.sampled,
        parent=spec.parent if is_child else None,
        timeout_ms=spec.timeout_ms,
        over=spec.over,
        failed_run=spec.failed_run if spec.HasField("failed_run") else None,
    )


def refusal_of(letter: Letter, error: RequestError) -> Letter | None:
    """Return what the writer of a letter must be told because it was refused; None: nothing."""
    if not isinstance(error, RunIdConflict):
        return None
    if letter.HasField("start_child"):
        parent = letter.start_child.parent
    elif letter.HasField("start_scheduled"):
        parent = letter.start_scheduled.parent
    else:
        return None
    failure = Failure(kind=FAILURE_KIND_ID_TAKEN, type="RunIdConflict", message=str(error), final=True)
    told = ChildClosed(parent=parent, failure=failure)
    return Letter(
        letter_id=letter.letter_id,
        namespace=letter.namespace,
        from_run_id=letter.from_run_id,
        run_id=parent.run_id,
        child_closed=told,
    )


def applied(reply: Reply | Exception) -> bool:
    """Whether a letter needs no further delivery: it was applied, or there is nothing left that it could change."""
    return not isinstance(reply, Exception) or isinstance(reply, RunClosed)


def is_child_of(view: RunView, parent: ParentRun) -> bool:
    """Whether the run is the child that a letter means, and not another one of its name."""
    return view.exists and view.head.HasField("parent") and view.head.parent == parent


def is_same_call(one: ParentRun, other: ParentRun) -> bool:
    """Whether both mean one command of one start of a run, by whichever continuation it was asked for."""
    return (one.run_id, one.incarnation, one.command_id) == (other.run_id, other.incarnation, other.command_id)


def run_in(parent: ParentRun | None) -> ParentRun | None:
    """Return the run that a reference means; None where it means the record of a schedule, which hears of the end, too."""
    return None if parent is None or parent.run_id.startswith(RECORD_MARK) else parent
