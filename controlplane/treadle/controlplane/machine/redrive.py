"""A closed run goes on: the same run, with the same id and the same history, or, with another input, a new start of the id.

The machine decides that it goes on and from where; what of its past counts is read off the history by whoever replays it
(`treadle.protocol.past`). Rows were swept when the run closed, so what the code asks for again is new here. Numbers of
tries and attempts go on from where they were (`tries_before`), so that old copies of jobs stay STALE.
"""

from __future__ import annotations

from treadle.protocol.errors import Refused, RequestError, Unavailable, WrongState
from treadle.protocol.tags import code_name
from treadle.v1.common_pb2 import Payload
from treadle.v1.history_pb2 import RunRetried
from treadle.v1.run_service_pb2 import CONFLICT_POLICY_ALLOW_CLOSED
from treadle.v1.state_pb2 import RUN_OUTCOME_COMPLETED, RUN_OUTCOME_UNSPECIFIED

from . import children, deadlines, policies, runs
from .requests import RetryRun, RunReply, StartRun
from .view import RunView

__all__ = ("retry", "start_child_again")

_RETRIES = 100
"""So often a run may be continued: each time its replay has one more past to look through."""


def retry(view: RunView, request: RetryRun) -> RunReply | RequestError:
    """Let a closed run go on."""
    head = view.head
    if view.exists and request.request_id in head.request_ids:
        return RunReply(head)
    if not view.exists:
        return runs.refuse(view) or RunReply(head)
    refusal = _refuse(view, request)
    if refusal is not None:
        return refusal
    if request.input is not None:
        if not view.has_first_event:  # in a batch with others, which wanted another one
            return Unavailable(f"run {view.run.run_id!r} is busy", remedy="ask again")
        _over(view, request, request.input)
    else:
        runs.note_request(view, request.request_id)
        _go_on(view, RunRetried(reason=request.reason, from_position=request.from_position, from_command=request.step))
    return RunReply(view.head)


def _refuse(view: RunView, request: RetryRun) -> RequestError | None:
    head, what = view.head, f"run {view.run.run_id!r}"
    if not view.closed:
        return WrongState(
            f"{what} is open", reason="RUN_NOT_CLOSED", remedy="wait until it has closed, or terminate it first"
        )
    if request.length not in (0, head.length) or request.incarnation not in (0, head.incarnation):
        return WrongState(f"{what} changed while its step was looked up", reason="RUN_CHANGED", remedy="ask again")
    if head.sweeping or request.input is not None:
        return policies.unswept(view)
    if head.retries >= _RETRIES:
        return Refused(f"{what} has been continued {_RETRIES} times", remedy="start it over with --input, or anew")
    if request.from_position:
        return None
    if head.outcome == RUN_OUTCOME_COMPLETED:
        return WrongState(
            f"{what} has completed: nothing of it has failed",
            reason="RUN_NOT_FAILED",
            remedy="name the step from which it is to run again, or give another input",
        )
    if head.undone:
        return WrongState(
            f"{what} undid its completed steps when it failed, so it cannot go on behind them",
            reason="RUN_UNDONE",
            remedy="name the first step that was undone: it and everything behind it run again",
        )
    return None


def _go_on(view: RunView, event: RunRetried) -> None:
    head = view.head
    head.retries += 1
    head.retried_ms = view.now
    event.number = head.retries
    head.outcome = RUN_OUTCOME_UNSPECIFIED
    head.closed_ms = head.delete_at_ms = 0
    head.open_commands = head.retrying = head.losses = 0
    head.retry_step_ms = head.waiting_steps = head.quarantined = 0
    head.error_type = head.trouble = head.waiting_for = ""
    event.undoing = head.undoing and not event.from_position
    if not event.undoing:
        head.cancel_requested, head.cancel_reason = False, ""
    head.undone = head.undoing = head.sweeping = False
    deadlines.begin_again(head, view.now, interrupted=event.undoing)
    view.event(run_retried=event)
    head.retried_at = head.length
    runs.wake(view)


def _over(view: RunView, request: RetryRun, given: Payload) -> None:
    """Start the id anew: another incarnation, so that nothing of the past, keys of steps included, is mixed up with it.

    What whoever started it said besides the input still holds.
    """
    head, started = view.head, view.first_event().run_started
    again = StartRun(
        workflow=code_name(head.workflow, head.version),
        tags=head.tags,
        pool=head.pool,
        input=given,
        request_id=request.request_id,
        policy=CONFLICT_POLICY_ALLOW_CLOSED,
        caller=head.caller,
        trigger="retry",
        sampled=head.sampled,
        parent=head.parent if head.HasField("parent") else None,
        retry_of=head.incarnation,
        timeout_ms=head.timeout_ms if head.timeout_given else 0,
        occurrence=started.occurrence if started.HasField("occurrence") else None,
    )
    runs.begin(view, again)


def start_child_again(view: RunView, request: StartRun) -> RunReply | RequestError:
    """A parent that was continued asks for a child that it had asked for before: the child goes on, or is just kept.

    Applied once: the child notes by which continuation of its parent it was asked for last.
    """
    head, parent = view.head, request.parent
    if parent is None or not view.exists or not children.is_same_call(head.parent, parent):
        return runs.start(view, request)
    if head.parent.retry >= parent.retry:
        return RunReply(head)
    if not view.closed and (head.cancel_requested or request.over):
        why = "is being cancelled" if head.cancel_requested else "is open with another input"
        return Unavailable(f"run {view.run.run_id!r} {why}", remedy="the letter comes again")
    busy = policies.unswept(view) if view.closed else None
    if busy is not None:
        return busy
    if view.closed and (request.over or head.outcome == RUN_OUTCOME_COMPLETED or head.undone):
        runs.begin(view, request)
        return RunReply(view.head)
    head.parent.CopyFrom(parent)
    runs.note_request(view, request.request_id)
    view.dirty = True
    if view.closed:
        _go_on(view, RunRetried(reason="its parent was continued"))
    return RunReply(head)
