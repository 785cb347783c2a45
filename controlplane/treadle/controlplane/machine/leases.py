"""Is a holder still alive? Liveness is per token, and only what was read in the right order decides.

A check reads the row, *then* the worker's record, and decides only if token and lease set are still those it read (A6).
Silence counts from the latest of last beat, lease set and the time since when the shard's rounds run (A7). Nobody who may
still have a right to start is taken over, unless the holder is closed or denies the token (A4, A11).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from treadle.controlplane.store.port import WorkerView
from treadle.v1.common_pb2 import FAILURE_KIND_LOST, Failure
from treadle.v1.history_pb2 import AttemptLost, RunOwnerLost
from treadle.v1.state_pb2 import (
    COMMAND_STATE_HELD,
    RUN_STATE_OPEN,
    CommandRow,
    Holder,
)

from . import attempts, deadlines, progress, quarantine, runs
from .env import Settings
from .owners import lost_locals
from .requests import CheckLease
from .view import RunView

__all__ = ("Loss", "check", "judge")


class Loss(NamedTuple):
    """Why a holder is lost, and whether that counts as the death of its process."""

    reason: Literal["closed", "silent", "denied"]
    counted: bool


def judge(holder: Holder, seen: WorkerView, settings: Settings) -> Loss | None:
    """Return how the holder is lost; None while it may be alive."""
    record, now = seen.record, seen.time_ms
    if record is not None and record.closed_ms and now >= record.closed_ms + settings.grace_ms:
        return Loss("closed", counted=not record.drained)
    if now - seen.round.last_round_ms <= settings.round_ms:
        since = max(holder.lease_set_ms, seen.round.back_at_ms, record.last_beat_ms if record else 0)
        if now - since >= settings.silence_ms:
            return Loss("silent", counted=False)
    if record is None or record.closed_ms or record.beat_sent_ms < holder.sent_ms + settings.right_ms:
        return None
    return None if seen.lists(holder.token) else Loss("denied", counted=False)


def check(view: RunView, request: CheckLease) -> None:
    """Decide what a look at the holder's record means for the row, or for the run (command id "")."""
    if request.command_id:
        _check_step(view, request)
    else:
        _check_owner(view, request)


def _is_still(holder: Holder, request: CheckLease) -> bool:
    return holder.token == request.token and holder.lease_set_ms == request.lease_set_ms


def _check_step(view: RunView, request: CheckLease) -> None:
    row = view.row(request.command_id)
    if view.over or row is None or row.state != COMMAND_STATE_HELD or row.local:
        return
    if not _is_still(row.holder, request):
        return
    settings = view.env.settings
    loss = judge(row.holder, request.view, settings)
    if loss is not None:
        _lose_step(view, row, loss)
        return
    as_of = min(view.now, request.view.time_ms)  # who has died since is lost: that costs no try
    overdue = deadlines.overdue_at(row, settings)
    if overdue and as_of >= max(overdue, row.holder.lease_set_ms + settings.silence_ms):
        attempts.time_out(view, row)
        return
    if progress.check(view, row, request.view):
        return
    if row.cancel_requested:
        view.cancel_holder(row, "cancelled")  # told again at each check
    _extend(row.holder, request.view, view)
    row.due_ms = min(row.holder.lease_due_ms, overdue) if overdue > as_of else row.holder.lease_due_ms
    row.due_ms = progress.look_at(view, row, row.due_ms, as_of)
    view.put(row)


def _extend(holder: Holder, seen: WorkerView, view: RunView) -> None:
    """Look again later; less and less often only while the holder is known to live."""
    settings = view.env.settings
    if _confirmed(holder, seen, settings):
        holder.lease_step_ms = min(holder.lease_step_ms * 2, settings.lease_cap_ms)
    holder.lease_due_ms = view.now + holder.lease_step_ms


def _confirmed(holder: Holder, seen: WorkerView, settings: Settings) -> bool:
    record = seen.record
    if record is None or record.closed_ms or seen.time_ms - record.last_beat_ms >= settings.lease_ms:
        return False
    return seen.lists(holder.token)


def _lose_step(view: RunView, row: CommandRow, loss: Loss) -> None:
    if row.cancel_requested:
        attempts.settle_cancelled(view, row)
        return
    if row.at_most_once and loss.reason != "denied":  # what a living holder denies was never started
        failure = Failure(
            kind=FAILURE_KIND_LOST,
            type="Lost",
            message=f"the worker of step {row.name!r} was lost ({loss.reason}) and it may run at most once",
        )
        attempts.settle_failed(view, row, failure)
        return
    row.lost_count += loss.counted
    view.event(
        attempt_lost=AttemptLost(
            command_id=row.command_id,
            attempt=row.attempt,
            try_number=row.try_number,
            reason=loss.reason,
            counted=loss.counted,
            worker_id=row.holder.worker_id,
        )
    )
    if row.lost_count >= view.env.settings.max_lost:
        quarantine.set_aside(view, row)
    else:
        attempts.dispatch(view, row)


def _check_owner(view: RunView, request: CheckLease) -> None:
    head = view.head
    if head.state != RUN_STATE_OPEN or not _is_still(head.owner, request):
        return
    loss = judge(head.owner, request.view, view.env.settings)
    if loss is None:
        _extend(head.owner, request.view, view)
        view.dirty = True
        return
    head.losses += loss.counted
    view.event(run_owner_lost=RunOwnerLost(worker_id=head.owner.worker_id, reason=loss.reason, counted=loss.counted))
    lost_locals(view)
    if head.losses >= view.env.settings.max_lost:
        runs.halt(
            view,
            f"{head.losses} workers in a row died while they executed this run; "
            "look at its last local step, then let it go on with `treadle run accept`",
        )
    else:
        runs.wake(view)
