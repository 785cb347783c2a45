"""How long a step or a run may take: limits that are times in Redis, so they hold whatever dies.

A step has one limit for all its tries together and one for how long a try waits for a worker (that of an attempt is its
holder's to keep; see leases). What nobody holds is settled at its limit; a holder is told what is left, and is settled
without its report 5 s later, never before lease set + 5 s (A11). A run's limit is raised in its code as a cancel is, once;
code that does not end is closed a minute later.
"""

from __future__ import annotations

from treadle.protocol.durations import in_words
from treadle.v1.common_pb2 import (
    FAILURE_KIND_QUEUE_TIMED_OUT,
    FAILURE_KIND_RUN_TIMED_OUT,
    FAILURE_KIND_STEP_TIMED_OUT,
    Failure,
)
from treadle.v1.history_pb2 import RunFailed, RunTimedOut, StepScheduled
from treadle.v1.state_pb2 import (
    COMMAND_STATE_BACKOFF,
    COMMAND_STATE_DEFERRED,
    COMMAND_STATE_QUARANTINED,
    COMMAND_STATE_QUEUED,
    COMMAND_STATE_WAITING,
    RUN_OUTCOME_FAILED,
    RUN_STATE_CLOSED,
    RUN_STATE_CONTINUING,
    RUN_STATE_RECORD,
    CommandRow,
    RunHead,
)
from treadle.v1.worker_service_pb2 import CancelledRun, ScheduleStep

from . import failures, runs
from .env import Settings
from .view import RunView

__all__ = (
    "announced",
    "begin_again",
    "bound",
    "end_run",
    "expired",
    "fire_run",
    "left_ms",
    "limit",
    "overdue_at",
    "queued",
    "row_is_due",
    "run_closes",
    "run_is_due",
    "total_timed_out",
)

_QUEUES = (COMMAND_STATE_QUEUED, COMMAND_STATE_WAITING)
_OVER = (RUN_STATE_CLOSED, RUN_STATE_CONTINUING, RUN_STATE_RECORD)
_UNHELD = (*_QUEUES, COMMAND_STATE_BACKOFF, COMMAND_STATE_QUARANTINED, COMMAND_STATE_DEFERRED)


# --- steps ---------------------------------------------------------------------------------------------------------------
def limit(view: RunView, row: CommandRow, spec: ScheduleStep, event: StepScheduled) -> None:
    """Take a new step's limits, and what happens to it when its caller is cancelled."""
    row.on_cancel = event.on_cancel = spec.on_cancel
    row.queue_timeout_ms = event.queue_timeout_ms = spec.queue_timeout_ms
    row.total_timeout_ms = event.total_timeout_ms = spec.total_timeout_ms
    row.deadline_ms = view.now + spec.total_timeout_ms if spec.total_timeout_ms else 0


def queued(row: CommandRow, now_ms: int) -> None:
    """A try is about to be dispatched. Dispatched again while it waits, it does not wait anew."""
    if row.queue_timeout_ms and row.state not in _QUEUES:
        row.queue_due_ms = now_ms + row.queue_timeout_ms


def bound(row: CommandRow) -> None:
    """Let a row that nobody holds be looked at when its limit is due, if that comes first."""
    if row.deadline_ms:
        row.due_ms = min(row.due_ms, row.deadline_ms)
    if row.queue_due_ms and row.state in _QUEUES:
        row.due_ms = min(row.due_ms, row.queue_due_ms)


def row_is_due(row: CommandRow, now_ms: int) -> bool:
    """Whether a row that nobody holds has come to a limit, whatever else it waits for."""
    return _due(row, now_ms) != 0


def _due(row: CommandRow, now_ms: int) -> int:
    if row.state not in _UNHELD:
        return 0
    if 0 < row.deadline_ms <= now_ms:
        return row.deadline_ms
    return row.queue_due_ms if row.state in _QUEUES and 0 < row.queue_due_ms <= now_ms else 0


def expired(view: RunView, row: CommandRow) -> Failure | None:
    """Return why a step that nobody holds fails now; None while it may wait."""
    due = _due(row, view.now)
    if not due:
        return None
    view.not_before_ms = max(view.not_before_ms, due)
    if due == row.deadline_ms:
        return total_timed_out(row)
    failure = Failure(
        kind=FAILURE_KIND_QUEUE_TIMED_OUT,
        type="QueueTimedOut",
        message=f"no worker of pool {row.pool!r} took it within {in_words(row.queue_timeout_ms)}",
    )
    return _after(failure, row.last_failure if row.HasField("last_failure") else None)


def total_timed_out(row: CommandRow, last: Failure | None = None) -> Failure:
    """Return why a step fails whose tries together have taken too long, or would: `last` is how the latest one failed."""
    failure = Failure(
        kind=FAILURE_KIND_STEP_TIMED_OUT,
        type="StepTimedOut",
        message=f"all its tries together may take {in_words(row.total_timeout_ms)}",
    )
    return _after(failure, last or (row.last_failure if row.HasField("last_failure") else None))


def _after(failure: Failure, last: Failure | None) -> Failure:
    if last is not None and last.kind != FAILURE_KIND_STEP_TIMED_OUT:
        failure.cause.CopyFrom(last)
    return failure


def left_ms(row: CommandRow, now_ms: int) -> int:
    """Return what a holder that begins now may take, at least 1; 0: there is no limit."""
    return max(1, row.deadline_ms - now_ms) if row.deadline_ms else 0


def overdue_at(row: CommandRow, settings: Settings) -> int:
    """Return when a holder that has not reported is settled without it, if it may be by then; 0: never."""
    due = row.started_ms + row.timeout_ms if row.timeout_ms else 0
    if row.deadline_ms:
        due = min(due, row.deadline_ms) if due else row.deadline_ms
    return due + settings.silence_ms if due else 0


# --- runs ----------------------------------------------------------------------------------------------------------------
def announced(head: RunHead, timeout_ms: int) -> None:
    """The first owner says what the code asks for. Later ones are not asked: other code does not move the limit."""
    head.timeout_known = True
    if timeout_ms:
        head.timeout_ms = timeout_ms
        head.deadline_ms = (head.retried_ms or head.created_ms) + timeout_ms


def begin_again(head: RunHead, now_ms: int, *, interrupted: bool) -> None:
    """A closed run goes on: its limit counts from now. `interrupted`: by what interrupted its code before."""
    head.deadline_ms = now_ms + head.timeout_ms if head.timeout_ms else 0
    head.close_at_ms, head.timed_out = 0, head.timed_out and interrupted


def run_is_due(head: RunHead, now_ms: int) -> bool:
    """Whether an open run has come to its limit, or to the end of the time it has for cleaning up."""
    if not head.deadline_ms or head.state in _OVER:
        return False
    return (head.close_at_ms or head.deadline_ms) <= now_ms


def run_closes(head: RunHead, now_ms: int) -> bool:
    """Whether an open run is to be closed, and its first event is wanted for that."""
    return head.close_at_ms > 0 and head.HasField("on_failure") and run_is_due(head, now_ms)


def fire_run(view: RunView) -> bool:
    """Do what a run's limit asks for, if it is due. False: it is not, and something else is."""
    head = view.head
    if not run_is_due(head, view.now):
        return False
    view.not_before_ms = max(view.not_before_ms, head.close_at_ms or head.deadline_ms)
    if head.close_at_ms:
        if head.HasField("on_failure") and not view.has_first_event:
            return True  # the timer is still due, and comes with it
        grace = in_words(view.env.settings.cleanup_ms)
        failures.closed_unasked(view, _failure(head, f"; its code had not ended {grace} later"))
        return True
    head.close_at_ms = view.now + view.env.settings.cleanup_ms
    head.timed_out = (
        not head.cancel_requested
    )  # a cancel that came before was raised: the code is not interrupted twice
    view.event(
        run_timed_out=RunTimedOut(timeout_ms=head.timeout_ms, close_at_ms=head.close_at_ms, raised=head.timed_out)
    )
    return True


def end_run(view: RunView, unread: list[str], said: CancelledRun) -> None:
    """The code ended by the cancellation that its limit raised."""
    hook_run_id = failures.start_hook(view, said.hook) if said.HasField("hook") else ""
    failed = RunFailed(failure=_failure(view.head), unread=unread, undone=said.undone, hook_run_id=hook_run_id)
    view.event(run_failed=failed)
    failures.undone(view, said.undone)
    runs.close(view, RUN_OUTCOME_FAILED)


def _failure(head: RunHead, more: str = "") -> Failure:
    return Failure(
        kind=FAILURE_KIND_RUN_TIMED_OUT,
        type="RunTimedOut",
        message=f"it ran longer than its timeout of {in_words(head.timeout_ms)}{more}",
        final=True,
    )
