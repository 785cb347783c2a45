"""Credits, pushed grants and the session itself (Words: credit; A10, hazard 24)."""

from __future__ import annotations

import pytest
from tests.unit.core_rig import Rig, completed, opened_rig, run_job, step_job

from treadle.v1.worker_service_pb2 import (
    ANSWER_LEASE_LOST,
    LANE_SESSION,
    REPORT_KIND_RELEASED,
    VERDICT_STALE,
    CreditStatement,
    OwnerAnswer,
    RunGrant,
)
from treadle.worker.core.port import ReopenSession, Report, StartAttempt
from treadle.worker.core.slots import Slots


def statements(rig: Rig) -> list[CreditStatement]:
    return [frame.credits for frame in rig.frames() if frame.HasField("credits")]


def test_session_lane_states_free_slots_at_once() -> None:
    rig = Rig(lane=LANE_SESSION).open()
    (said,) = statements(rig)
    assert (said.run_jobs, said.step_jobs, said.read, said.sent_ms) == (2, 2, 0, rig.now)
    assert statements(rig) == []


@pytest.mark.parametrize(("step_credits", "step_jobs"), [(True, 2), (False, 0)])
def test_amqp_lane_states_slots_that_were_free_for_50_ms_with_a_consumer(step_credits: bool, step_jobs: int) -> None:
    """Without step credits pool steps come by the broker alone."""
    rig = Rig(step_credits=step_credits).open()
    (said,) = statements(rig)
    assert (said.run_jobs, said.step_jobs) == (0, 0)
    assert rig.core.next_due() == rig.now + 50
    rig.now += 50
    (said,) = statements(rig)
    assert (said.run_jobs, said.step_jobs) == (2, step_jobs)


@pytest.mark.parametrize(("step_credits", "said"), [(True, [0, 2]), (False, [0])])
def test_a_step_slot_that_ripens_wakes_the_core_only_where_it_is_a_credit(step_credits: bool, said: list[int]) -> None:
    rig = Rig(workflows=frozenset(), step_credits=step_credits).open()
    rig.frames()
    rig.pass_ms(900)  # `next_due` alone says when
    assert [0, *(frame.credits.step_jobs for frame in rig.sent)] == said
    assert rig.core.next_due() == rig.now - 900 + (50 if step_credits else 0) + 1000


def test_a_worker_without_pool_steps_states_none() -> None:
    rig = Rig(steps=frozenset()).open()
    rig.frames()
    rig.pass_ms(50)
    assert [(frame.credits.run_jobs, frame.credits.step_jobs) for frame in rig.sent] == [(2, 0)]


def test_deliveries_come_first() -> None:
    rig = Rig().open()
    rig.now += 50
    assert statements(rig)[0].run_jobs == 2
    rig.deliver(run_job("r1"))
    (frame,) = rig.frames()
    assert len(frame.claims) == 1 and frame.credits.run_jobs == 1  # said with the claim that took the slot
    rig.verdict(frame.claims[0], VERDICT_STALE)
    assert statements(rig)[0].run_jobs == 2  # the other was free all the time


def test_stated_every_second_under_a_new_id() -> None:
    rig = opened_rig(lane=LANE_SESSION)
    rig.now += 999
    assert statements(rig) == []
    rig.now += 1
    (one,) = statements(rig)
    rig.now += 1000
    (two,) = statements(rig)
    assert one.credit_id != two.credit_id


def test_read_names_the_last_push_of_this_session() -> None:
    rig = opened_rig(lane=LANE_SESSION)
    rig.push(step_job(1), b"t")
    assert statements(rig) == []  # the server has counted it down by itself
    rig.now += 1000
    (said,) = statements(rig)
    assert (said.step_jobs, said.read) == (1, 1)
    rig.reconnect()
    (said,) = statements(rig)
    assert (said.step_jobs, said.read) == (1, 0)


def test_a_push_without_a_free_slot_is_listed_and_released_at_once() -> None:
    rig = opened_rig(lane=LANE_SESSION, step_slots=1, run_slots=1)
    rig.push(step_job(1), b"t")
    rig.push(step_job(2), b"u")
    rig.granted_run(b"r")
    rig.push(run_job("other"), b"s", run=RunGrant(length=1, from_start=True))
    assert len(rig.of(StartAttempt)) == 1
    assert rig.held() == {b"t", b"u", b"r", b"s"} and rig.core.counts() == (1, 1)
    (frame,) = rig.frames()
    (report,) = frame.reports
    assert (report.token, report.kind, report.reason) == (b"u", REPORT_KIND_RELEASED, "no slot")
    released = [r for r in frame.requests if r.HasField("release")]
    assert [(r.token, r.release.reason, r.seq) for r in released] == [(b"s", "no slot", 1)]
    assert frame.credits.read == 4  # what was refused was read all the same
    rig.answer(released[0])
    rig.report_answer(b"u")
    assert rig.held() == {b"t", b"r"} and rig.core.counts() == (1, 1)


def test_a_push_of_an_unknown_name_is_released() -> None:
    rig = opened_rig(lane=LANE_SESSION)
    rig.push(step_job(name="elsewhere"), b"t")
    rig.push(run_job(name="elsewhere"), b"r")
    (frame,) = rig.frames()
    assert [r.reason for r in frame.reports] == ["not registered"]
    assert [r.release.reason for r in frame.requests] == ["not registered"]
    assert rig.core.counts() == (0, 0)


def test_a_freed_slot_is_offered_again() -> None:
    rig = opened_rig(lane=LANE_SESSION)
    rig.push(step_job(), b"t")
    assert statements(rig) == []
    rig.core.may_start(b"t", rig.now)
    rig.core.attempt_ended(b"t", Report("completed"), rig.now)
    (frame,) = rig.frames()
    assert len(frame.reports) == 1 and frame.credits.step_jobs == 2


def test_a_change_has_a_frame_of_its_own_only_if_it_matters() -> None:
    rig = opened_rig(lane=LANE_SESSION, run_slots=8)

    def lose(*tokens: bytes) -> None:
        rig.receive(owner_answers=[OwnerAnswer(token=token, answer=ANSWER_LEASE_LOST) for token in tokens])

    for n in range(4):
        rig.granted_run(bytes([n]), f"r{n}")
    assert rig.core.frame(rig.now) is None  # the server counts down to 4 by itself, and 4 it is
    lose(b"\0", b"\1")
    assert rig.core.frame(rig.now) is None  # 6 are free, and the server knows of 4
    lose(b"\2", b"\3")
    assert [said.run_jobs for said in statements(rig)] == [8]


def test_less_than_the_server_believes_is_said_at_once() -> None:
    rig = Rig(run_slots=8).open()
    rig.now += 50
    assert statements(rig)[0].run_jobs == 8
    rig.deliver(run_job("r1"))
    (frame,) = rig.frames()
    assert len(frame.claims) == 1 and frame.credits.run_jobs == 7
    for n in range(7):
        rig.granted_run(bytes([n]), f"p{n}")
    assert rig.core.frame(rig.now) is None
    rig.verdict(frame.claims[0], VERDICT_STALE)
    assert rig.core.frame(rig.now) is None  # not free for long enough
    rig.now += 50
    assert [said.run_jobs for said in statements(rig)] == [1]  # the server believes that there are none


def test_run_waiting_is_said_while_a_run_job_waits_for_a_slot() -> None:
    rig = opened_rig(run_slots=1)
    rig.deliver(run_job("r1"))
    (claim,) = rig.claims()
    assert not any(frame.credits.run_waiting for frame in rig.frames())
    rig.deliver(run_job("r2"))
    assert statements(rig)[-1].run_waiting
    rig.verdict(claim, VERDICT_STALE)
    rig.frames()
    assert rig.core.frame(rig.now) is None


def unanswered(rig: Rig, ms: int) -> list[ReopenSession]:
    """Let time go by without any answer from the server."""
    end = rig.now + ms
    while rig.now < end:
        due = rig.core.next_due()
        rig.now = end if due is None else min(max(due, rig.now), end)
        rig.core.tick(rig.now)
        while rig.core.frame(rig.now) is not None:
            pass
        if due is None or due > end:
            break
    return rig.of(ReopenSession)


def test_a10_two_seconds_without_an_answer_ask_for_another_session_once() -> None:
    rig = Rig().open()
    rig.core.frame(rig.now)
    assert unanswered(rig, 1999) == []
    assert len(unanswered(rig, 1)) == 1
    assert unanswered(rig, 5000) == []
    rig.reconnect()
    assert len(unanswered(rig, 2100)) == 1


def test_a10_a_claim_without_an_answer_counts_even_if_credits_are_answered() -> None:
    rig = opened_rig()
    rig.deliver(step_job())
    assert len(rig.claims()) == 1
    rig.pass_ms(1999)
    assert rig.of(ReopenSession) == []
    rig.pass_ms(1)
    assert len(rig.of(ReopenSession)) == 1


def test_a10_a_resent_claim_counts_from_when_this_session_sent_it() -> None:
    rig = opened_rig()
    rig.deliver(step_job())
    rig.claims()
    rig.pass_ms(1500)
    rig.reconnect()
    rig.claims()
    rig.pass_ms(1999)
    assert rig.of(ReopenSession) == []


def test_a10_a_blocked_loop_reads_its_answers_before_it_complains() -> None:
    rig = opened_rig()
    rig.deliver(step_job())
    rig.claims()
    rig.now += 10_000  # nothing ran meanwhile
    rig.core.tick(rig.now)
    assert rig.of(ReopenSession) == []


def test_goaway_asks_for_another_session_once() -> None:
    rig = opened_rig()
    rig.receive(goaway=True)
    rig.receive(goaway=True)
    assert len(rig.of(ReopenSession)) == 1


def test_nothing_is_read_or_sent_without_a_session() -> None:
    rig = opened_rig()
    rig.cut()
    rig.push(step_job(), b"t")
    assert rig.held() == set() and rig.core.frame(rig.now) is None
    rig.core.tick(rig.now)
    assert rig.drained() == []


def test_the_session_brings_back_reports_then_requests_in_order() -> None:
    rig = opened_rig(step_slots=10, run_slots=10)
    for n in range(3):
        rig.push(step_job(n), bytes([n]))
        rig.core.may_start(bytes([n]), rig.now)
    for n in (2, 0):
        rig.core.attempt_ended(bytes([n]), Report("completed"), rig.now)
    rig.frames()
    rig.core.attempt_ended(bytes([1]), Report("completed"), rig.now)
    rig.reconnect()
    assert [r.token for frame in rig.frames() for r in frame.reports] == [b"\2", b"\0", b"\1"]


def test_news_of_an_unknown_owner_is_nothing() -> None:
    rig = opened_rig()
    rig.news(b"gone", completed(5))
    assert rig.drained() == []


def test_the_slot_that_was_freed_last_is_taken_first() -> None:
    """So the oldest tells since when there has always been a free one; those that are free are ripe with it."""
    slots = Slots(2, 50)
    assert slots.take(100)
    slots.give(200)
    assert (slots.ripe(210), slots.next_ripe(210)) == (2, None)
    assert slots.take(210)
    assert (slots.ripe(210), slots.next_ripe(210)) == (1, None)
    assert slots.take(220) and not slots.take(230)
    assert (slots.free, slots.full_since) == (0, 220)
    slots.give(230)
    slots.give(270)
    assert (slots.ripe(279), slots.next_ripe(279)) == (0, 280)
    assert slots.ripe(280) == 2
