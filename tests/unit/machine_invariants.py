"""What must hold of a run in the store after every commit, whatever was asked before."""

from __future__ import annotations

from collections.abc import Collection

from tests.unit.machine_rig import RUN, Rig

from treadle.controlplane.machine.indexes import run_waits, status_of
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.run_service_pb2 import RunStatus
from treadle.v1.state_pb2 import (
    COMMAND_STATE_BACKOFF,
    COMMAND_STATE_DEFERRED,
    COMMAND_STATE_HELD,
    COMMAND_STATE_QUARANTINED,
    COMMAND_STATE_QUEUED,
    COMMAND_STATE_TIMER,
    COMMAND_STATE_WAITING,
    RUN_STATE_CLOSED,
    RUN_STATE_NEEDS_ATTENTION,
    RUN_STATE_OPEN,
    RUN_STATE_PARKED,
    RUN_STATE_QUEUED,
    RUN_STATE_WAITING,
    CommandRow,
    Holder,
    RunHead,
)

__all__ = ("check",)

_HOUR = 3_600_000
_OUTCOMES = {"run_completed", "run_failed", "run_cancelled", "run_terminated"}
_LIMITED = (COMMAND_STATE_BACKOFF, COMMAND_STATE_QUARANTINED, COMMAND_STATE_QUEUED, COMMAND_STATE_WAITING)
_SETTLES = {"step_completed", "step_failed", "step_cancelled", "timer_fired", "timer_cancelled"}
_NEWS = (_SETTLES - {"timer_cancelled"}) | {"cancel_requested", "step_retried", "run_timed_out"}


def check(rig: Rig, confirmed: Collection[str], *, left_over: bool) -> None:
    """Raise AssertionError where an invariant does not hold.

    Args:
        confirmed: Dispatch ids that were removed from the outbox because the broker has them.
        left_over: The id was started again before everything of the incarnation before was swept: its timers and waits
            may still be there.
    """
    head = rig.head
    if not head.state:
        assert not rig.fields() and not rig.history() and not rig.indexes(), "a deleted run leaves a tombstone only"
        return
    fields = rig.fields()
    rows = {name[2:]: CommandRow.FromString(data) for name, data in fields.items() if name.startswith("c:")}
    inputs = {name[2:] for name in fields if name.startswith("i:")}
    events = rig.history()
    dispatched = {*rig.outbox(), *confirmed}
    _history(head, events)
    _settled_once(events, rows)
    _rows(head, rows, inputs, dispatched)
    _head(head, rows, dispatched)
    _timers(rig, head, rows, left_over=left_over)
    _indexes(rig, head, rows, left_over=left_over)
    if head.state != RUN_STATE_CLOSED:
        _news(head, events)


def _kind(event: HistoryEvent) -> str:
    return str(event.WhichOneof("kind"))


def _history(head: RunHead, events: list[HistoryEvent]) -> None:
    assert [event.position for event in events] == list(range(1, head.length + 1)), "gapless"
    times = [event.time_ms for event in events]
    assert times == sorted(times) and times[-1] == head.last_time_ms, "times never decrease"
    assert events[-1].revision == head.last_revision
    kinds = [_kind(event) for event in events]
    assert kinds[0] == "run_started" and kinds.count("run_started") == 1
    ends = [index for index, kind in enumerate(kinds) if kind in _OUTCOMES]
    went_on = [index for index, kind in enumerate(kinds) if kind == "run_retried"]
    last = [len(kinds) - 1] if head.state == RUN_STATE_CLOSED else []
    assert ends == [index - 1 for index in went_on] + last, "one outcome, nothing after it but that it goes on"
    assert (head.retries, head.retried_at) == (len(went_on), went_on[-1] + 1 if went_on else 0)
    assert bool(head.outcome) == (head.state == RUN_STATE_CLOSED)


def _settled_once(events: list[HistoryEvent], rows: dict[str, CommandRow]) -> None:
    """S1, and an at-most-once step starts at most once."""
    settled: set[str] = set()
    attempts: dict[str, int] = {}
    tries: dict[str, int] = {}
    may_run: set[str] = set()
    for event in events:
        kind = _kind(event)
        of = getattr(event, kind)
        if kind == "run_retried":  # rows are gone: what is asked for again is new
            settled.clear()
            may_run.clear()
        command_id = getattr(of, "command_id", "")
        if not command_id:
            continue
        assert command_id not in settled, f"{kind} of {command_id} after its outcome"
        if kind in _SETTLES:
            settled.add(command_id)
        elif kind == "attempt_started":
            assert of.attempt > attempts.get(command_id, 0) and of.try_number >= tries.get(command_id, 1)
            attempts[command_id], tries[command_id] = of.attempt, of.try_number
            if "once" in command_id:
                assert command_id not in may_run, f"{command_id} may have started twice"
                may_run.add(command_id)
        elif kind == "attempt_released" or (kind == "attempt_lost" and of.reason == "denied"):
            may_run.discard(command_id)
    assert settled.isdisjoint(rows), "what is settled has no row"


def _lease(holder: Holder) -> None:
    assert len(holder.token) == 16 and holder.worker_id and holder.lease_set_ms
    assert holder.lease_due_ms, "no holder without a lease"


def _rows(head: RunHead, rows: dict[str, CommandRow], inputs: set[str], dispatched: set[str]) -> None:
    pool_steps = {cid for cid, row in rows.items() if not row.local and row.state != COMMAND_STATE_TIMER}
    assert inputs == pool_steps, "an input for each open pool step, and no other"
    for command_id, row in rows.items():
        assert row.command_id == command_id and row.state
        if row.state == COMMAND_STATE_HELD and not row.local:
            _lease(row.holder)
        else:
            assert not row.HasField("holder")
        if row.state in _LIMITED and row.deadline_ms:
            assert row.due_ms <= row.deadline_ms, "a limit is looked at when it is due"
        if row.state in (COMMAND_STATE_QUEUED, COMMAND_STATE_WAITING) and row.queue_timeout_ms:
            assert row.due_ms <= row.queue_due_ms
        if row.state == COMMAND_STATE_QUEUED:
            assert row.dispatch_id in dispatched, "a queued try is in the outbox or with the broker"

        progressed = command_id in head.progressing
        assert progressed == bool(row.progress_number) or len(head.progressing) == 16, "what is shown, and no other"
    assert set(head.progressing) <= rows.keys()


def _head(head: RunHead, rows: dict[str, CommandRow], dispatched: set[str]) -> None:
    assert head.open_commands == len(rows), "open_commands"
    assert head.retrying == sum(row.try_number > 1 for row in rows.values()), "retrying"
    assert head.HasField("owner") == (head.state == RUN_STATE_OPEN)
    assert len(head.request_ids) <= 16 and head.seen <= head.length
    if head.state == RUN_STATE_OPEN:
        _lease(head.owner)
    if head.state == RUN_STATE_QUEUED:
        assert head.wake_dispatch_id in dispatched, "a queued wake is in the outbox or with the broker"
    if head.state == RUN_STATE_CLOSED:
        assert head.sweeping or not rows
    for started in head.started_locals:
        assert head.state != RUN_STATE_NEEDS_ATTENTION and started.at_most_once


def _due(head: RunHead, now: int) -> int:
    """Return when the run must be looked at, at the latest."""
    if head.state == RUN_STATE_OPEN:
        return min(head.owner.lease_due_ms, head.watch_due_ms or 2**62)
    if head.state == RUN_STATE_QUEUED:
        return head.watch_due_ms
    if head.state == RUN_STATE_WAITING:
        return head.retry_due_ms
    if head.state == RUN_STATE_CLOSED:
        return now if head.sweeping else head.delete_at_ms
    return head.watch_due_ms if head.state == RUN_STATE_NEEDS_ATTENTION else now + _HOUR


def _timers(rig: Rig, head: RunHead, rows: dict[str, CommandRow], *, left_over: bool) -> None:
    timers = rig.timers()
    assert head.timer_at_ms and timers[""] == head.timer_at_ms, "no run is without a time"
    due = _due(head, rig.now)
    assert due and timers[""] <= due
    if head.deadline_ms and head.state != RUN_STATE_CLOSED:
        assert timers[""] <= (head.close_at_ms or head.deadline_ms)
    for command_id, row in rows.items():
        if row.due_ms:
            assert timers[command_id] == row.timer_at_ms, "its entry"
            assert timers[command_id] <= row.due_ms
        else:
            waits = row.state == COMMAND_STATE_DEFERRED
            assert waits or (row.local and row.state == COMMAND_STATE_HELD), (
                "what its owner holds, or who has its token"
            )
            assert command_id not in timers
    if not left_over:
        assert timers.keys() == {"", *(cid for cid, row in rows.items() if row.due_ms)}


def _indexes(rig: Rig, head: RunHead, rows: dict[str, CommandRow], *, left_over: bool) -> None:
    status = RunStatus.Name(status_of(head)).removeprefix("RUN_STATUS_").lower()
    expected = {f"s:ns:{status}", f"w:ns:wf:{status}"}
    if head.state == RUN_STATE_NEEDS_ATTENTION:
        expected.add("a:ns:wf")
    if any(row.state == COMMAND_STATE_QUARANTINED for row in rows.values()):
        expected.add("q:ns")
    expected |= _troubles(head, rows)
    if head.error_type:
        expected.add(f"e:ns:{head.error_type}")
    found = rig.indexes()
    shown = {name for name in found if not name.startswith("n:") and not (left_over and name == "q:ns")}
    assert shown == expected - ({"q:ns"} if left_over else set()), "under exactly its status"
    members = {
        tuple(member.split("\x1f"))
        for (name, _), kept in rig.store.snapshot().index.items()
        if name.startswith("n:")
        for member in kept
    }
    waits = {(RUN.run_id, cid) for cid, row in rows.items() if row.waiting_noted}
    if head.state == RUN_STATE_WAITING:
        waits.add((RUN.run_id, ""))
    assert members >= waits if left_over else members == waits, "what waits for a name can be found by it"


def _troubles(head: RunHead, rows: dict[str, CommandRow]) -> set[str]:
    """The head counts what its rows say, so that a list needs not read them."""
    if head.state == RUN_STATE_CLOSED:
        return set()
    retrying = sum(row.try_number > 1 + row.tries_before for row in rows.values())
    waiting = sum(
        row.waiting_noted or (row.state == COMMAND_STATE_QUEUED and row.watch_step_ms > 60_000) for row in rows.values()
    )
    quarantined = sum(row.state == COMMAND_STATE_QUARANTINED for row in rows.values())
    assert (head.retrying, head.waiting_steps, head.quarantined) == (retrying, waiting, quarantined)
    assert bool(head.trouble) == bool(head.error_type) == bool(retrying), "what failed last, while it is tried again"
    assert bool(head.waiting_for) == bool(waiting)
    troubles = {
        "retrying": bool(retrying),
        "waiting": bool(waiting) or run_waits(head),
        "attention": bool(quarantined) or head.state == RUN_STATE_NEEDS_ATTENTION,
    }
    return {f"x:ns:{name}" for name, there in troubles.items() if there}


def _news(head: RunHead, events: list[HistoryEvent]) -> None:
    """R3: what an open owner has not confirmed is on the watch; a parked run has heard everything."""
    last = {_kind(event): event.position for event in events}
    news = max((last.get(kind, 0) for kind in _NEWS), default=0)
    if head.state == RUN_STATE_OPEN and news > max(head.seen, last["run_opened"]):
        assert head.watch_due_ms, "news is on the watch"
    if head.state == RUN_STATE_PARKED:
        assert news < last["run_parked"], "news wakes"
