"""Steps that are finished from outside: an attempt ends without an outcome, and whoever has the token brings it.

The key that tokens are made with is the token of the step's first attempt: its holder and the row know it, and nothing more
is drawn or sent for the many steps that never defer. It is kept when that attempt is over, so that later ones make the same
tokens. A token may come while an attempt still runs: that its code began is proved by the token itself. Only where a later
attempt may be about to begin must it wait (A11).
"""

from __future__ import annotations

from hashlib import blake2b
from hmac import compare_digest

from treadle.protocol.deferral import DeferralToken
from treadle.protocol.errors import NotFound, Refused, RequestError, StepSettled, Unavailable
from treadle.v1.common_pb2 import FAILURE_KIND_TIMED_OUT, Failure
from treadle.v1.history_pb2 import StepCompleted, StepDeferred
from treadle.v1.state_pb2 import COMMAND_STATE_DEFERRED, COMMAND_STATE_HELD, COMMAND_STATE_QUARANTINED, CommandRow
from treadle.v1.worker_service_pb2 import AttemptReport

from . import attempts, deadlines
from .requests import RunReply, SettleStep
from .view import RunView

__all__ = ("NOTES", "defer", "fields", "settle", "time_out", "unhold")

NOTES = "d:"
"""Beginning of the names of fields that tell by which call a try was finished."""


def unhold(row: CommandRow) -> None:
    """The holder is one no longer. What its tokens were made with stays."""
    if not row.deferral_key:
        row.deferral_key = row.holder.token
    row.ClearField("holder")


def defer(view: RunView, row: CommandRow, told: AttemptReport) -> None:
    """The attempt ended, and holds nothing any more; the step waits for who has its token."""
    unhold(row)
    row.state = COMMAND_STATE_DEFERRED
    row.deferred_ms = view.now
    row.due_ms = 0
    if told.deferred_for_ms:
        row.due_ms = view.now + told.deferred_for_ms
    elif row.timeout_ms:
        row.due_ms = max(row.started_ms + row.timeout_ms, view.now)
    row.due_ms = row.due_ms or row.deadline_ms
    deadlines.bound(row)
    view.event(step_deferred=StepDeferred(command_id=row.command_id, attempt=row.attempt, due_ms=row.due_ms))
    view.put(row)


def time_out(view: RunView, row: CommandRow) -> None:
    """Nobody finished it in time: the try has failed."""
    view.not_before_ms = max(view.not_before_ms, row.due_ms)
    waited_s = (row.due_ms - row.deferred_ms) / 1000
    failure = Failure(
        kind=FAILURE_KIND_TIMED_OUT,
        type="TimeoutError",
        message=f"step {row.name} was deferred, and nobody finished it within {waited_s:g} s",
    )
    attempts.fail_try(view, row, failure)


# --- from outside --------------------------------------------------------------------------------------------------------
def fields(token: DeferralToken) -> tuple[str, str]:
    """Return the fields of the run that decide about a token."""
    return f"c:{token.command_id}", _note(token)


def _note(token: DeferralToken) -> str:
    return f"{NOTES}{token.try_number}:{token.command_id}"


def settle(view: RunView, request: SettleStep) -> RunReply | RequestError:
    """Somebody outside finishes the step: once. The same call again changes nothing, whatever became of the run."""
    token = request.token
    if not view.exists or view.head.incarnation != token.incarnation:
        return _gone(view, token)
    mark = blake2b(request.request_id.encode(), digest_size=16, key=token.signature).digest()
    known = view.note(_note(token))
    if known is not None:
        if compare_digest(known, mark):
            return RunReply(view.head)
        return _settled(token, "it was finished by another call")
    row = view.row(token.command_id)
    if view.over or row is None or row.local:
        return _settled(token, "it has its outcome, or its run was closed")
    key = row.deferral_key or row.holder.token  # one that was never held has none, and no token
    if token.try_number < row.try_number:
        return _settled(token, f"try {token.try_number} is over, and another one has a token of its own")
    if not key or row.try_number != token.try_number or not token.is_signed(key, view.run.namespace):
        return _forged(token)
    refusal = _may_begin(view, row)
    if refusal is not None:
        return refusal
    if row.state == COMMAND_STATE_HELD:
        view.cancel_holder(row, "settled")
    view.put_note(_note(token), mark)
    _apply(view, row, request)
    return RunReply(view.head)


def _may_begin(view: RunView, row: CommandRow) -> RequestError | None:
    """A later attempt may have a right that it has not used yet: nobody else settles the step before that is over."""
    if row.state != COMMAND_STATE_HELD or not row.deferral_key:
        return None
    if view.now >= row.holder.lease_set_ms + view.env.settings.silence_ms:
        return None
    return Unavailable(
        f"step {row.name!r} of run {view.run.run_id!r} is just being started again after a loss",
        reason="STEP_STARTING",
        remedy="the same call again in 5 s finds it running",
    )


def _apply(view: RunView, row: CommandRow, request: SettleStep) -> None:
    if request.result is not None:
        view.event(
            step_completed=StepCompleted(
                command_id=row.command_id,
                attempt=row.attempt,
                result=request.result,
                duration_ms=max(view.now - row.started_ms, 0),
                from_outside=True,
            )
        )
        view.drop(row)
        return
    if row.cancel_requested:
        attempts.settle_cancelled(view, row)
        return
    if row.state == COMMAND_STATE_QUARANTINED:
        view.set_quarantined(row.command_id, False)
    assert request.failure is not None
    attempts.fail_try(view, row, request.failure)
    last = view.events[-1]
    body = last.step_failed if last.HasField("step_failed") else last.attempt_failed
    body.from_outside = True


def _gone(view: RunView, token: DeferralToken) -> RequestError:
    if view.exists:
        return _settled(token, "its run goes on with a new history, or was started again")
    return NotFound(
        f"no run {token.run_id!r} in namespace {view.run.namespace!r}",
        remedy="check the namespace; closed runs are deleted after their retention",
    )


def _settled(token: DeferralToken, why: str) -> RequestError:
    return StepSettled(
        f"step {token.command_id!r} of run {token.run_id!r} cannot be finished by this token: {why}",
        remedy="nothing to do: the first outcome stands",
    )


def _forged(token: DeferralToken) -> RequestError:
    return Refused(
        f"this is no token of step {token.command_id!r} of run {token.run_id!r}",
        reason="STEP_TOKEN_INVALID",
        remedy="give what defer() returned in the step, in the namespace of its run",
    )
