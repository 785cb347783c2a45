"""What happens when a timer comes up. Firing twice, or late, is harmless: each looks at what is due by its own row.

Leases are not decided here: the duty reads the worker's record first and asks with `CheckLease`.
"""

from __future__ import annotations

from treadle.protocol.tags import code_name
from treadle.v1.history_pb2 import TimerFired
from treadle.v1.state_pb2 import (
    COMMAND_STATE_BACKOFF,
    COMMAND_STATE_DEFERRED,
    COMMAND_STATE_EVENT,
    COMMAND_STATE_HELD,
    COMMAND_STATE_QUARANTINED,
    COMMAND_STATE_QUEUED,
    COMMAND_STATE_TIMER,
    COMMAND_STATE_WAITING,
    RUN_STATE_CLOSED,
    RUN_STATE_CONTINUING,
    RUN_STATE_NEEDS_ATTENTION,
    RUN_STATE_OPEN,
    RUN_STATE_QUEUED,
    RUN_STATE_RECORD,
    RUN_STATE_WAITING,
    CommandRow,
)

from . import attempts, continuation, deadlines, deferral, event_waits, events, runs
from .requests import FireTimer, Registered
from .view import HOUR_MS, RunView

__all__ = ("fire", "registered")

_SOON_MS = 16_000
"""A queue that is still empty, or was emptied again, so long after it was seen empty has gone past older jobs."""


def fire(view: RunView, request: FireTimer) -> None:
    """A timer of the run, or of one of its commands, came up."""
    if not view.exists:
        view.decision.orphans.append(request.command_id)
    elif request.command_id:
        _fire_row(view, request)
    else:
        _fire_head(view, request)


def _fire_row(view: RunView, request: FireTimer) -> None:
    row = view.row(request.command_id)
    if row is None:
        view.timer_gone(request.command_id)
        return
    if view.over:
        return  # the sweep takes it
    if attempts.expire(view, row):
        return
    if row.due_ms == 0 or row.due_ms > view.now:
        view.put(row)  # moves the entry to where it belongs
        return
    if row.state == COMMAND_STATE_TIMER:
        view.not_before_ms = max(view.not_before_ms, row.due_ms)
        view.event(timer_fired=TimerFired(command_id=row.command_id))
        view.drop(row)
    elif row.state == COMMAND_STATE_EVENT:
        event_waits.time_out(view, row)
    elif row.state == COMMAND_STATE_BACKOFF:
        attempts.retry_due(view, row)
    elif row.state == COMMAND_STATE_WAITING:
        attempts.dispatch(view, row)
    elif row.state == COMMAND_STATE_DEFERRED:
        deferral.time_out(view, row)
    elif row.state == COMMAND_STATE_QUEUED:
        _watch_row(view, row, request)
    elif row.state == COMMAND_STATE_QUARANTINED:
        row.due_ms = view.now + HOUR_MS
        deadlines.bound(row)
        view.put(row)
    elif row.state == COMMAND_STATE_HELD and row.local:
        row.due_ms = 0
        view.put(row)
    # held pool steps: CheckLease


def _watch_row(view: RunView, row: CommandRow, request: FireTimer) -> None:
    if request.soon:
        row.due_ms = view.now + _SOON_MS
    elif request.gone:
        step = row.watch_step_ms
        attempts.dispatch(view, row)
        if row.state != COMMAND_STATE_QUEUED:
            return
        row.watch_step_ms = min(step * 2, view.env.settings.watch_cap_ms)
        row.due_ms = view.now + row.watch_step_ms
    else:
        row.watch_step_ms = min(row.watch_step_ms * 2, view.env.settings.watch_cap_ms)
        row.due_ms = view.now + row.watch_step_ms
    deadlines.bound(row)
    view.put(row)


def _fire_head(view: RunView, request: FireTimer) -> None:
    head, settings = view.head, view.env.settings
    view.dirty = True  # moves the entry to where it belongs
    if deadlines.fire_run(view) or view.head_due() > view.now:
        return
    if head.state == RUN_STATE_CLOSED:
        if head.sweeping:
            runs.sweep(view)
        elif view.may_sweep:  # what comes in the same commit would go with it; the timer is still due
            runs.delete(view)
    elif head.state == RUN_STATE_CONTINUING:
        continuation.go_on(view)
    elif head.state == RUN_STATE_RECORD:
        events.fire(view)
    elif head.state == RUN_STATE_WAITING:
        view.name_found(head.pool, code_name(head.workflow, head.version), "")
        runs.wake(view)
    elif head.state == RUN_STATE_QUEUED and request.soon:
        head.watch_due_ms = view.now + _SOON_MS
    elif head.state == RUN_STATE_QUEUED:
        view.moves = True
        if request.gone:
            step = head.watch_step_ms
            runs.wake(view)
            head.watch_step_ms = step
        head.watch_step_ms = min(head.watch_step_ms * 2, settings.watch_cap_ms)
        head.watch_due_ms = view.now + head.watch_step_ms if head.state == RUN_STATE_QUEUED else head.watch_due_ms
    elif head.state == RUN_STATE_OPEN:
        if head.watch_due_ms and head.watch_due_ms <= view.now:
            unseen = head.seen < head.length
            view.decision.resend = unseen
            head.watch_due_ms = view.now + settings.unseen_ms if unseen else 0
    elif head.state == RUN_STATE_NEEDS_ATTENTION:
        head.watch_due_ms = view.now + settings.look_ms
        if not _halted(view):
            runs.wake(view)
    else:
        head.watch_due_ms = view.now + settings.look_ms  # parked: its commands have their own timers


def _halted(view: RunView) -> bool:
    """Whether only a person may let the run go on (a divergence also ends when fitting code comes)."""
    return not view.head.attention.startswith("the code diverged")


def registered(view: RunView, request: Registered) -> None:
    """A worker with the name came: what waited for it is asked for again."""
    head = view.head
    if not view.exists or view.over:
        return
    if request.command_id:
        row = view.row(request.command_id)
        if row is not None and row.state == COMMAND_STATE_WAITING:
            row.step_ms = view.env.settings.waiting_ms  # the job may still meet an older worker without the name
            attempts.dispatch(view, row)
    elif head.state == RUN_STATE_WAITING:
        head.retry_step_ms = view.env.settings.waiting_ms
        view.name_found(head.pool, code_name(head.workflow, head.version), "")
        runs.wake(view)
    elif head.state == RUN_STATE_NEEDS_ATTENTION and not _halted(view):
        runs.wake(view)
