"""Timers: fired early, late or twice they do no harm; watches double; no open run is without one."""

from __future__ import annotations

import pytest
from tests.unit.machine_rig import Rig, schedule, sleep

from treadle.controlplane.machine.requests import FireTimer
from treadle.controlplane.store.port import Outcome
from treadle.v1.job_pb2 import JOB_KIND_RUN, JOB_KIND_STEP
from treadle.v1.state_pb2 import (
    COMMAND_STATE_HELD,
    COMMAND_STATE_QUEUED,
    RUN_STATE_NEEDS_ATTENTION,
    RUN_STATE_OPEN,
    RUN_STATE_PARKED,
    RUN_STATE_QUEUED,
)

STEP, SLEEP = "0/s#1", "0/sleep#1"
HOUR = 3_600_000


def test_a_timer_fires_once_and_never_early() -> None:
    rig = Rig()
    owner = rig.with_step(sleep())
    rig.wait(9_999)
    assert SLEEP not in rig.due()
    rig.fire(SLEEP)
    assert "timer_fired" not in rig.kinds() and rig.timers()[SLEEP] == rig.now + 1
    rig.wait(1)
    assert rig.due()[-1] == SLEEP
    rig.fire(SLEEP)
    rig.fire(SLEEP)
    assert rig.kinds().count("timer_fired") == 1 and rig.row(SLEEP) is None and SLEEP not in rig.timers()
    assert owner.say().answer


def test_the_store_refuses_what_a_replica_with_a_fast_clock_fires() -> None:
    """Hazard 19."""
    rig = Rig()
    rig.with_step(sleep())
    rig.wait(7_000)
    decided_at = rig.now
    rig.now += 3_000
    decision = rig.decide(FireTimer(SLEEP))
    rig.now = decided_at
    assert rig.commit(decision) is Outcome.EARLY and "timer_fired" not in rig.kinds()
    rig.now += 3_000
    assert rig.commit(decision) is Outcome.OK and rig.kinds()[-1] == "timer_fired"


def test_a_timer_that_fires_wakes_a_parked_run() -> None:
    rig = Rig()
    rig.with_step(sleep()).say(park={})
    rig.wait(10_000)
    rig.fire(SLEEP)
    assert rig.head.state == RUN_STATE_QUEUED and rig.decision.jobs[0].kind == JOB_KIND_RUN


def test_timers_of_what_is_no_more_are_removed() -> None:
    rig = Rig()
    rig.fire(SLEEP)
    assert rig.decision.orphans == [SLEEP] and rig.decision.change is None
    rig.start()
    change = rig.fire("0/nothing#1").change
    assert change is not None and change.timers_del == ["0/nothing#1"]


# --- the watch of a queued try -------------------------------------------------------------------------------------------
def test_the_watch_of_a_queued_step_doubles_up_to_an_hour() -> None:
    rig = Rig()
    rig.with_step()
    dispatch_id, steps = rig.the_row().dispatch_id, []
    for _ in range(9):
        before = rig.now
        rig.now = rig.timers()[STEP]
        steps.append(rig.now - before)
        assert STEP in rig.due()
        rig.fire(STEP)
    assert steps == [60_000 * 2**n for n in range(6)] + [HOUR] * 3
    assert rig.the_row().dispatch_id == dispatch_id, "the queue has not gone past it"


def test_a_step_whose_queue_has_gone_past_it_is_dispatched_again() -> None:
    rig = Rig()
    rig.with_step()
    old = rig.the_row()
    rig.now = old.due_ms
    length = rig.head.length
    rig.fire(STEP, gone=True)
    row = rig.the_row()
    assert row.state == COMMAND_STATE_QUEUED and row.dispatch_id not in ("", old.dispatch_id)
    assert rig.decision.jobs[0].try_number == 1 and row.dispatch_id in rig.outbox()
    assert row.due_ms == rig.now + 120_000 == rig.timers()[STEP] and rig.head.length == length
    rig.now = row.due_ms
    rig.fire(STEP, soon=True)
    assert rig.the_row().due_ms == rig.now + 16_000 and rig.the_row().dispatch_id == row.dispatch_id
    rig.now = rig.the_row().due_ms
    rig.credit(JOB_KIND_STEP, "B")
    rig.fire(STEP, gone=True)
    assert rig.the_row().state == COMMAND_STATE_HELD and rig.the_row().due_ms == rig.now + 2_000


def test_the_watch_of_a_queued_run_doubles_up_to_an_hour() -> None:
    rig = Rig()
    rig.start()
    dispatch_id, steps = rig.head.wake_dispatch_id, []
    for _ in range(9):
        before = rig.now
        rig.now = rig.timers()[""]
        steps.append(rig.now - before)
        rig.fire()
    assert steps == [60_000 * 2**n for n in range(6)] + [HOUR] * 3
    assert rig.head.wake_dispatch_id == dispatch_id


def test_a_wake_whose_queue_has_gone_past_it_is_dispatched_again() -> None:
    rig = Rig()
    rig.start()
    old = rig.head.wake_dispatch_id
    rig.wait(60_000)
    rig.fire(soon=True)
    assert rig.timers()[""] == rig.now + 16_000 and rig.head.wake_dispatch_id == old
    rig.wait(16_000)
    rig.fire(gone=True)
    head = rig.head
    assert head.wake_dispatch_id != old and head.wake_dispatch_id in rig.outbox()
    assert head.watch_due_ms == rig.now + 120_000 == rig.timers()[""]
    rig.now = head.watch_due_ms
    rig.credit(JOB_KIND_RUN, "B")
    rig.fire(gone=True)
    assert rig.head.state == RUN_STATE_OPEN and rig.timers()[""] == rig.now + 2_000


@pytest.mark.parametrize("gone", [False, True])
def test_a_watch_that_comes_up_early_changes_nothing(gone: bool) -> None:
    rig = Rig()
    rig.with_step()
    row, head = rig.the_row(), rig.head
    rig.wait(1_000)
    rig.fire(STEP, gone=gone)
    rig.fire(gone=gone)
    assert rig.the_row() == row and rig.head.wake_dispatch_id == head.wake_dispatch_id and not rig.decision.jobs


# --- the watch of an open run --------------------------------------------------------------------------------------------
def test_news_that_an_owner_does_not_confirm_is_hinted_every_2_s() -> None:
    rig = Rig()
    owner = rig.with_step()
    rig.report(rig.hold().token)
    for _ in range(4):
        rig.wait(2_000)
        assert "" in rig.due()
        change = rig.fire().change
        assert rig.decision.resend and change is not None and change.hint is not None
        assert change.hint.replica_id == "R" and rig.head.watch_due_ms == rig.now + 2_000
    owner.say()
    rig.wait(2_000)
    rig.fire()
    assert not rig.decision.resend and rig.head.watch_due_ms == 0


def test_the_entry_of_a_lease_moves_only_when_it_fires() -> None:
    rig = Rig()
    owner = rig.with_step()
    before = rig.timers()[""]
    rig.wait(1_000)
    owner.say()
    assert rig.timers()[""] == before and rig.head.owner.lease_set_ms == rig.now


@pytest.mark.parametrize("state", ["parked", "stopped"])
def test_a_run_that_stands_still_is_looked_at_each_hour(state: str) -> None:
    rig = Rig()
    rig.start()
    if state == "parked":
        rig.open().say(park={})
    else:
        for n in range(5):
            rig.open(f"W{n}")
            rig.kill("")
    kept = RUN_STATE_PARKED if state == "parked" else RUN_STATE_NEEDS_ATTENTION
    for _ in range(5):
        assert rig.now <= rig.timers()[""] <= rig.now + HOUR
        rig.now = rig.timers()[""]
        rig.fire()
        assert rig.head.state == kept and rig.timers()[""] > rig.now


def test_timers_that_fire_late_fire_in_the_order_of_their_times() -> None:
    rig = Rig()
    rig.with_step(*(sleep(f"0/sleep#{n}", 1_000 * n) for n in (3, 1, 2)))
    rig.wait(10_000)
    for command_id in rig.due():
        rig.fire(command_id)
    fired = [e for e in rig.history() if e.WhichOneof("kind") == "timer_fired"]
    assert [e.timer_fired.command_id for e in fired] == [f"0/sleep#{n}" for n in (1, 2, 3)]
    assert {e.time_ms for e in fired} == {rig.now}


def test_a_register_wakes_only_what_waits() -> None:
    rig = Rig()
    rig.register()
    assert rig.decision.change is None
    rig.with_step(schedule())
    for command_id in ("", STEP, "0/nothing#1"):
        rig.register(command_id)
        assert rig.decision.change is None
    rig.terminate()
    rig.register(STEP)
    assert rig.decision.change is None


@pytest.mark.parametrize(
    ("since", "counts"), [(0, True), (400, True), (5_000, True), (5_001, False), (-300, True), (-5_001, False)]
)
def test_a_sleep_counts_from_when_its_code_asked(since: int, counts: bool) -> None:
    rig = Rig()
    rig.start()
    owner = rig.open().catch_up()
    command = sleep()
    command.start_timer.from_ms = rig.now - since
    owner.send(owner.request(command))
    (fire_at,) = [e.timer_started.fire_at_ms for e in rig.history() if e.HasField("timer_started")]
    assert fire_at == (rig.now - since if counts else rig.now) + command.start_timer.delay_ms


def test_a_worker_that_names_no_time_sleeps_from_the_commit() -> None:
    rig = Rig()
    rig.start()
    owner = rig.open().catch_up()
    owner.send(owner.request(sleep()))
    (fire_at,) = [e.timer_started.fire_at_ms for e in rig.history() if e.HasField("timer_started")]
    assert fire_at == rig.now + sleep().start_timer.delay_ms
