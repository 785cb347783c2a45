"""Steps that killed too many workers: set aside with their input, listed in an index, until a person lets them go on."""

from __future__ import annotations

from treadle.protocol.errors import RequestError, WrongState
from treadle.v1.history_pb2 import StepQuarantined, StepUnquarantined
from treadle.v1.state_pb2 import COMMAND_STATE_QUARANTINED, CommandRow

from . import attempts, deadlines, deferral, runs
from .requests import ReleaseSteps, RunReply
from .view import HOUR_MS, RunView

__all__ = ("release", "set_aside")


def set_aside(view: RunView, row: CommandRow) -> None:
    """The step has killed too many workers: nobody gets it any more."""
    row.state = COMMAND_STATE_QUARANTINED
    deferral.unhold(row)
    row.due_ms = view.now + HOUR_MS
    deadlines.bound(row)
    view.put(row)
    view.set_quarantined(row.command_id, True)
    view.event(step_quarantined=StepQuarantined(command_id=row.command_id, losses=row.lost_count))


def release(view: RunView, request: ReleaseSteps) -> RunReply | RequestError:
    """A person lets steps go on: the same try, as if no worker had died of it."""
    if view.exists and request.request_id in view.head.request_ids:
        return RunReply(view.head)
    refusal = runs.refuse(view)
    if refusal is not None:
        return refusal
    found = [view.row(command_id) for command_id in request.command_ids]
    rows = [row for row in found if row is not None and row.state == COMMAND_STATE_QUARANTINED]
    if not rows:
        what = f"step {request.step!r}" if request.step else "no step"
        return WrongState(
            f"{what} of run {view.run.run_id!r} is {'not ' if request.step else ''}quarantined",
            reason="NOT_QUARANTINED",
            remedy="see `treadle steps quarantined`",
        )
    runs.note_request(view, request.request_id)
    for row in rows:
        view.set_quarantined(row.command_id, False)
        row.lost_count = 0
        view.event(step_unquarantined=StepUnquarantined(command_id=row.command_id, reason=request.reason))
        attempts.dispatch(view, row)
    return RunReply(view.head)
