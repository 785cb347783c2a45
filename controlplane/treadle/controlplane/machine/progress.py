"""How far a long step is, and that it goes on: heartbeats of attempts, and the value that the next attempt is given.

What an attempt says is kept in its row: the newest wins, by a number that grows from attempt to attempt, and only its
holder may say it. It is no event: a step may say it each second for days. A worker notices a missed heartbeat first and
reports it; the check here is for one that cannot, and never comes before the lease would allow another holder (A11).
"""

from __future__ import annotations

from treadle.controlplane.store.port import WorkerView
from treadle.protocol.topology import MAX_PROGRESS_BYTES
from treadle.v1.common_pb2 import FAILURE_KIND_HEARTBEAT_MISSED, Failure
from treadle.v1.state_pb2 import COMMAND_STATE_HELD, CommandRow
from treadle.v1.worker_service_pb2 import (
    ANSWER_LEASE_LOST,
    ANSWER_OK,
    ANSWER_SETTLED,
    Answer,
    AttemptProgress,
    AttemptReport,
    Checkpoint,
    Grant,
    ReportAnswer,
)

from . import attempts
from .env import Settings
from .requests import Progressed
from .view import RunView

__all__ = ("began", "check", "hand_on", "look_at", "said", "take")

_SHOWN = 16
"""So many steps of a run are shown with their progress."""
_BYTES = 2 * MAX_PROGRESS_BYTES
"""Workers keep to half of it; what a codec makes of a value may be larger."""


def said(view: RunView, request: Progressed) -> ReportAnswer:
    """The holder of a pool step says how far it is, or that it goes on."""
    told = request.progress
    return ReportAnswer(token=told.token, answer=_said(view, told))


def _said(view: RunView, told: AttemptProgress) -> Answer.ValueType:
    row = view.row(told.command_id)
    if view.over or not view.exists or told.incarnation != view.head.incarnation or row is None:
        return ANSWER_SETTLED
    if row.state != COMMAND_STATE_HELD or row.local or row.holder.token != told.token:
        return ANSWER_LEASE_LOST
    row.heard_ms = view.now
    _keep(view, row, told.number, told)
    view.put(row)
    return ANSWER_OK


def take(view: RunView, row: CommandRow, told: AttemptReport) -> None:
    """The holder's report brings what it said last: the next attempt is given it."""
    _keep(view, row, told.progress_number, told)


def _keep(view: RunView, row: CommandRow, number: int, told: AttemptProgress | AttemptReport) -> None:
    value = told.value if isinstance(told, AttemptProgress) else told.progress
    brought = told.HasField("value") if isinstance(told, AttemptProgress) else told.HasField("progress")
    if not brought or number <= row.progress_number or value.ByteSize() > _BYTES:
        return
    if not row.progress_number:
        shown = view.head.progressing
        shown.append(row.command_id)
        del shown[:-_SHOWN]
    row.progress.CopyFrom(value)
    row.progress_number = number
    row.progress_ms = view.now
    view.shown = True


def hand_on(view: RunView, told: Checkpoint) -> None:
    """A try of a local step has failed: what it said last stands in the event, where whoever executes the run next finds it."""
    last = view.events[-1]
    if last.HasField("attempt_failed") and told.progress.ByteSize() <= _BYTES:
        last.attempt_failed.progress.CopyFrom(told.progress)


def began(view: RunView, row: CommandRow, grant: Grant) -> None:
    """An attempt got GO: its silence counts from now, and it is given what was said before it."""
    if row.heartbeat_ms:
        row.heard_ms = view.now
    if row.progress_number:
        grant.progress.CopyFrom(row.progress)


def _overdue_ms(row: CommandRow, settings: Settings, back_at_ms: int = 0) -> int:
    """When the silence of the holder has been too long even for a worker that could not say so itself; 0: never.

    What it said while the servers were away was not heard: it counts from when they were back (A7).
    """
    if not row.heartbeat_ms:
        return 0
    return max(max(row.heard_ms, back_at_ms) + row.heartbeat_ms, row.holder.lease_set_ms) + settings.silence_ms


def look_at(view: RunView, row: CommandRow, due_ms: int, as_of: int) -> int:
    """Return when the holder must be looked at next, if it were `due_ms` without a heartbeat; it was seen last at `as_of`."""
    overdue = _overdue_ms(row, view.env.settings)
    return min(due_ms, overdue) if overdue > as_of else due_ms


def check(view: RunView, row: CommandRow, seen: WorkerView) -> bool:
    """Settle the attempt if its heartbeat is missing and its worker did not report it; True if so."""
    settings = view.env.settings
    overdue = _overdue_ms(row, settings, seen.round.back_at_ms)
    if (
        not overdue
        or min(view.now, seen.time_ms) < overdue
        or seen.time_ms - seen.round.last_round_ms > settings.round_ms
    ):
        return False
    view.cancel_holder(row, "heartbeat missed")
    if row.cancel_requested:
        attempts.settle_cancelled(view, row)  # nobody wants a further try
        return True
    silent_s = (view.now - row.heard_ms) / 1000
    failure = Failure(
        kind=FAILURE_KIND_HEARTBEAT_MISSED,
        type="HeartbeatMissed",
        message=f"the attempt of step {row.name} said nothing for {silent_s:.1f} s, its heartbeat is "
        f"{row.heartbeat_ms / 1000:g} s, and its worker did not report",
    )
    attempts.fail_try(view, row, failure)
    return True
