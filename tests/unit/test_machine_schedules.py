"""Schedules as the machine sees them: what is started, queued, skipped and missed."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.schedule_rig import BEGIN, HOUR, MINUTE, RECORD, ScheduleRig, at, hourly, specified, trigger

from treadle.controlplane.machine import children
from treadle.controlplane.machine.requests import FireTimer, StartRun
from treadle.controlplane.machine.schedule_requests import (
    BackfillSchedule,
    CreateSchedule,
    DeleteSchedule,
)
from treadle.controlplane.store.port import Outcome
from treadle.protocol.ids import RunKey
from treadle.v1.common_pb2 import Payload
from treadle.v1.schedule_pb2 import (
    OCCURRENCE_CAUSE_TIME,
    OCCURRENCE_FATE_EXISTED,
    OCCURRENCE_FATE_SKIPPED,
    OCCURRENCE_FATE_STARTED,
    OVERLAP_POLICY_ALLOW,
    OVERLAP_POLICY_CANCEL,
    OVERLAP_POLICY_QUEUE_ALL,
    OVERLAP_POLICY_QUEUE_ONE,
    OVERLAP_POLICY_SKIP,
    OVERLAP_POLICY_TERMINATE,
    OverlapPolicy,
    ScheduleSpec,
)
from treadle.v1.state_pb2 import RUN_STATE_RECORD

POLICIES = [policy for policy in OverlapPolicy.values() if policy]


# --- an occurrence ---------------------------------------------------------------------------------------------------
def test_one_commit_starts_the_run_and_says_when_the_next_one_is_due() -> None:
    rig = ScheduleRig(ScheduleSpec(cron="0 6 * * *", timezone="Europe/Berlin"))
    six = rig.timer
    assert rig.head.state == RUN_STATE_RECORD and rig.indexes() == {"o:ns"} and not rig.posted
    rig.now = six
    rig.ask(FireTimer(""))
    (letter,) = rig.outbox()
    assert rig.decision.letters == [letter]
    run, request = children.request_of(letter)
    local = datetime.fromtimestamp(six / 1000, UTC).strftime("%Y-%m-%dT")
    assert run == RunKey("ns", f"s-{local}06:00:00+01:00") and isinstance(request, StartRun)
    assert (request.workflow, request.pool, request.trigger, request.input.data) == ("w", "p", "schedule", b"in")
    assert request.request_id == letter.letter_id and request.parent is not None and request.occurrence is not None
    assert (request.parent.run_id, request.parent.command_id) == (RECORD.run_id, run.run_id)
    assert (request.occurrence.schedule_id, request.occurrence.scheduled_ms) == ("s", six)
    assert (request.occurrence.timezone, request.occurrence.cause) == ("Europe/Berlin", OCCURRENCE_CAUSE_TIME)
    assert rig.timer == rig.record.next_ms == six + 24 * HOUR
    rig.ask(FireTimer(""))
    assert len(rig.outbox()) == 1, "fired twice, it starts one"


def test_it_never_starts_early() -> None:
    rig = ScheduleRig(hourly())
    rig.now += HOUR - 1
    rig.ask(FireTimer(""))
    assert not rig.posted and rig.timer == BEGIN + HOUR
    rig.now += 1
    decision = rig.decide(FireTimer(""))
    rig.now -= 1  # the store's clock is behind what the replica believes
    assert rig.commit(decision) is Outcome.EARLY and not rig.posted


def test_two_replicas_that_fire_at_once_start_one() -> None:
    rig = ScheduleRig(hourly())
    rig.now += HOUR
    mine, others = rig.decide(FireTimer("")), rig.decide(FireTimer(""))
    assert mine.letters and others.letters
    assert [rig.commit(mine), rig.commit(others)] == [Outcome.OK, Outcome.CONFLICT]
    rig.fire()
    assert rig.started() == [at(1)]


def test_jitter_delays_the_start_and_not_the_name() -> None:
    rig = ScheduleRig(hourly(jitter_ms=10 * MINUTE))
    rig.sleep(HOUR)
    assert rig.started() == [] and BEGIN + HOUR < rig.timer <= BEGIN + HOUR + 10 * MINUTE
    rig.sleep(10 * MINUTE)
    assert rig.started() == [at(1)]


def test_what_fell_due_while_nobody_was_there_is_missed_beyond_the_window() -> None:
    rig = ScheduleRig(hourly(OVERLAP_POLICY_ALLOW))
    rig.now += 5 * HOUR + 30_000
    rig.fire()
    assert rig.started() == [at(5)]
    assert rig.counted("treadle.schedule.missed") == 4
    assert list(rig.record.missed) == [BEGIN + n * HOUR for n in (1, 2, 3, 4)] and rig.record.missed_count == 4


def test_a_wider_window_catches_up_a_few_in_each_commit() -> None:
    rig = ScheduleRig(ScheduleSpec(every_ms=MINUTE, overlap=OVERLAP_POLICY_ALLOW, catch_up_ms=HOUR))
    rig.now += 2 * HOUR
    rig.ask(FireTimer(""))
    assert len(rig.decision.letters) == 20 and rig.timer <= rig.now
    rig.fire()
    assert rig.started() == sorted(at(n / 60) for n in range(60, 121)) and rig.record.missed_count == 59
    assert rig.timer == rig.now + MINUTE


# --- overlap ---------------------------------------------------------------------------------------------------------
def test_skip() -> None:
    rig = ScheduleRig(hourly(OVERLAP_POLICY_SKIP))
    rig.sleep(3 * HOUR)
    assert rig.started() == [at(1)] and rig.record.skipped_count == 2
    assert [one.fate for one in rig.record.recent] == [OCCURRENCE_FATE_STARTED, *[OCCURRENCE_FATE_SKIPPED] * 2]
    rig.end(at(1))
    assert rig.started() == [at(1)], "what was skipped stays so"
    rig.sleep(HOUR)
    assert rig.started() == [at(1), at(4)]


def test_skip_is_what_is_done_where_nothing_is_said() -> None:
    rig = ScheduleRig(ScheduleSpec(every_ms=HOUR))
    assert rig.record.spec.overlap == OVERLAP_POLICY_SKIP


def test_queue_one() -> None:
    rig = ScheduleRig(hourly(OVERLAP_POLICY_QUEUE_ONE))
    rig.sleep(4 * HOUR)
    assert rig.started() == [at(1)] and rig.names(rig.record.queue) == [at(2)] and rig.record.skipped_count == 2
    rig.end(at(1))
    assert rig.started() == [at(1), at(2)] and not rig.record.queue
    rig.end(at(2))
    assert rig.started() == [at(1), at(2)] and not rig.record.open


def test_queue_all() -> None:
    rig = ScheduleRig(hourly(OVERLAP_POLICY_QUEUE_ALL))
    rig.sleep(4 * HOUR)
    assert rig.names(rig.record.queue) == [at(2), at(3), at(4)]
    for n in (1, 2, 3, 4):
        assert rig.started() == [at(k) for k in range(1, n + 1)]
        rig.end(at(n))
    assert len(rig.started()) == 4 and rig.record.skipped_count == 0


def test_the_queue_has_an_end() -> None:
    rig = ScheduleRig(ScheduleSpec(every_ms=1_000, overlap=OVERLAP_POLICY_QUEUE_ALL, catch_up_ms=2 * HOUR))
    rig.now += 1_100 * 1_000
    rig.fire()
    assert len(rig.record.queue) == 1_000 and rig.record.skipped_count == 99


def test_a_terminate_overrides_a_cancel_that_came_before_and_not_the_other_way_round() -> None:
    rig = ScheduleRig(hourly(OVERLAP_POLICY_CANCEL))
    rig.sleep(2 * HOUR)
    assert rig.stopped() == [(at(1), False)]
    for number, overlap in enumerate((OVERLAP_POLICY_TERMINATE, OVERLAP_POLICY_TERMINATE, OVERLAP_POLICY_CANCEL)):
        rig.told(trigger(f"t{number}", overlap))
    rig.sleep(2 * HOUR)
    assert rig.stopped() == [(at(1), False), (at(1), True)], "each is said once"


@pytest.mark.parametrize(("policy", "terminate"), [(OVERLAP_POLICY_CANCEL, False), (OVERLAP_POLICY_TERMINATE, True)])
def test_cancel_and_terminate_stop_the_open_run_and_start_the_latest(
    policy: OverlapPolicy.ValueType, terminate: bool
) -> None:
    rig = ScheduleRig(hourly(policy))
    rig.sleep(2 * HOUR)
    assert rig.started() == [at(1)] and rig.stopped() == [(at(1), terminate)]
    rig.sleep(HOUR)
    assert rig.stopped() == [(at(1), terminate)], "it is asked once"
    assert rig.names(rig.record.queue) == [at(3)] and rig.record.skipped_count == 1
    letter = next(letter for letter in rig.posted if letter.HasField("stop_child"))
    started = next(letter for letter in rig.posted if letter.HasField("start_scheduled"))
    assert letter.stop_child.parent == started.start_scheduled.parent, "so that the run knows who asks"
    rig.end(at(1))
    assert rig.started() == [at(1), at(3)]


def test_after_a_pause_of_all_servers_only_the_latest_is_started_if_it_would_stop_the_others() -> None:
    rig = ScheduleRig(hourly(OVERLAP_POLICY_CANCEL, catch_up_ms=24 * HOUR))
    rig.now += 5 * HOUR
    rig.fire()
    assert rig.started() == [at(5)] and not rig.stopped() and rig.record.skipped_count == 4


def test_allow() -> None:
    rig = ScheduleRig(hourly(OVERLAP_POLICY_ALLOW))
    rig.sleep(3 * HOUR)
    assert rig.started() == [at(1), at(2), at(3)] == rig.names(rig.record.open)
    rig.end(at(2))
    assert rig.names(rig.record.open) == [at(1), at(3)]


def test_of_runs_that_hold_nobody_up_the_latest_hundred_are_known() -> None:
    rig = ScheduleRig(ScheduleSpec(every_ms=MINUTE, overlap=OVERLAP_POLICY_ALLOW))
    rig.sleep(120 * MINUTE)
    assert len(rig.record.open) == 100 and rig.record.started_count == 120
    rig.end(at(1 / 60))
    assert len(rig.record.open) == 100


def test_a_run_of_that_name_counts_as_started_by_somebody_else() -> None:
    rig = ScheduleRig(hourly(OVERLAP_POLICY_QUEUE_ALL))
    rig.sleep(2 * HOUR)
    rig.taken(at(1))
    assert rig.started() == [at(1), at(2)] and rig.record.started_count == 1
    assert [one.fate for one in rig.record.recent] == [OCCURRENCE_FATE_EXISTED, OCCURRENCE_FATE_STARTED]


def test_the_end_of_what_an_earlier_schedule_of_the_name_started_is_nothing() -> None:
    rig = ScheduleRig(hourly())
    rig.sleep(HOUR)
    rig.told(DeleteSchedule("d"))
    rig.told(CreateSchedule("again", specified(hourly()), Payload()))
    rig.sleep(HOUR)
    assert rig.names(rig.record.open) == [at(2)]
    rig.end(at(1))
    assert rig.names(rig.record.open) == [at(2)]


@settings(deadline=None)
@given(
    policy=st.sampled_from(POLICIES),
    jitter=st.sampled_from([0, 40 * MINUTE, 3 * HOUR]),
    window=st.sampled_from([1_000, HOUR, 5 * HOUR]),
    moves=st.lists(
        st.one_of(
            st.tuples(st.just("wait"), st.integers(1, 4 * HOUR)),
            st.tuples(st.just("end"), st.integers(0, 5)),
            st.tuples(st.just("lose"), st.just(0)),
            st.tuples(st.just("trigger"), st.integers(0, 3)),
            st.tuples(st.just("backfill"), st.integers(1, 6)),
        ),
        max_size=40,
    ),
)
def test_each_occurrence_once_in_order_and_none_invented(
    policy: OverlapPolicy.ValueType, jitter: int, window: int, moves: list[tuple[str, int]]
) -> None:
    """Whatever comes between: an occurrence that is due has one fate, and a policy that allows one open run has one."""
    rig = ScheduleRig(hourly(policy, jitter_ms=jitter, catch_up_ms=window))
    first = rig.record.next_ms
    ended = 0
    for number, (move, value) in enumerate(moves):
        if move == "wait":
            rig.now += value
            rig.fire()
        elif move == "end" and rig.record.open:
            rig.end(rig.names(rig.record.open)[value % len(rig.record.open)])
            ended += 1
        elif move == "lose":
            won, lost = rig.decide(FireTimer("")), rig.decide(FireTimer(""))
            assert [rig.commit(won), rig.commit(lost)] == [Outcome.OK, Outcome.CONFLICT], "another replica comes second"
        elif move == "trigger":
            rig.ask(trigger(f"t{value}"))
        elif move == "backfill":
            rig.ask(BackfillSchedule(f"b{number}", rig.now - value * HOUR, 0, allow=False))
        holders = [one for one in rig.record.open if not one.beside]
        assert len(holders) <= 1, "one run holds others up at most"
        assert len(rig.names(rig.record.open)) == len(set(rig.names(rig.record.open)))
    starts = [letter.start_scheduled.occurrence for letter in rig.posted if letter.HasField("start_scheduled")]
    by_time = [one.scheduled_ms for one in starts if one.cause == OCCURRENCE_CAUSE_TIME]
    assert by_time == sorted(set(by_time)) and all(one % HOUR == 0 for one in by_time)
    triggers = [name for name in rig.started() if name.startswith("triggered")]
    assert len(triggers) == len(set(triggers))
    record = rig.record
    queued = [one for one in record.queue if one.cause == OCCURRENCE_CAUSE_TIME]
    passed = (record.next_ms - first) // HOUR
    assert passed == len(by_time) + len(queued) + record.skipped_count + record.missed_count
    assert record.started_count == len(starts) == ended + len(record.open)
    assert rig.timer, "it always has a next time"
