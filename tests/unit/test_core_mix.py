"""Pool steps on both ways at once: deliveries of the broker, and GOs pushed to credits (A3, A4; Words: credit)."""

from __future__ import annotations

from typing import Any

from tests.unit.core_rig import Rig, opened_rig, step_job

from treadle.v1.job_pb2 import JOB_KIND_STEP
from treadle.v1.worker_service_pb2 import (
    ANSWER_OK,
    LANE_AMQP,
    LANE_SESSION,
    REPORT_KIND_RELEASED,
    VERDICT_STALE,
    CreditStatement,
)
from treadle.worker.core.port import Ack, Attempt, Consume, Drained, GiveBack, Report, StartAttempt


def steps_only(**changes: Any) -> Rig:
    """A rig with a consumer on the steps' queue and slots that are ripe, all of them stated."""
    rig = opened_rig(workflows=frozenset(), **changes)
    rig.pass_ms(50)
    assert rig.sent[-1].credits.step_jobs == rig.settings.step_slots
    rig.sent.clear()
    return rig


def statements(rig: Rig) -> list[CreditStatement]:
    return [frame.credits for frame in rig.frames() if frame.HasField("credits")]


def end(rig: Rig, token: bytes) -> None:
    """The body of an attempt runs, and its report is answered."""
    assert rig.core.may_start(token, rig.now)
    rig.core.attempt_ended(token, Report("completed"), rig.now)
    rig.frames()
    rig.report_answer(token, ANSWER_OK)


def started(rig: Rig) -> list[Attempt]:
    return [action.attempt for action in rig.of(StartAttempt)]


def test_a_pushed_and_a_claimed_attempt_share_the_slots_and_know_how_they_came() -> None:
    rig = steps_only()
    rig.push(step_job(1), b"pushed")
    tag = rig.deliver(step_job(2))
    rig.go(rig.claims()[0], b"claimed")
    assert rig.of(Ack) == [Ack(tag)]  # what was pushed has no delivery
    assert [(attempt.token, attempt.pushed) for attempt in started(rig)] == [(b"pushed", True), (b"claimed", False)]
    assert rig.held() == {b"pushed", b"claimed"} and rig.core.counts() == (2, 0)


def test_a_delivery_shrinks_the_statement_in_the_frame_of_its_claim() -> None:
    rig = steps_only()
    rig.deliver(step_job(1))
    (frame,) = rig.frames()
    assert len(frame.claims) == 1 and frame.credits.step_jobs == 1
    rig.verdict(frame.claims[0], VERDICT_STALE)
    assert [said.step_jobs for said in statements(rig)] == [2]  # one was free all the time, so nothing more waits


def test_once_all_slots_were_taken_they_wait_for_deliveries_again() -> None:
    rig = steps_only()
    for n in (1, 2):
        rig.deliver(step_job(n))
    (frame,) = rig.frames()
    assert len(frame.claims) == 2 and frame.credits.step_jobs == 0
    for claim in frame.claims:
        rig.verdict(claim, VERDICT_STALE)
    assert statements(rig) == []
    rig.pass_ms(50)
    assert [frame.credits.step_jobs for frame in rig.sent] == [2]


def test_a_push_that_finds_its_slot_taken_by_a_delivery_is_listed_and_released_at_once() -> None:
    """The credit was stated, the push was on its way, and a delivery was there first."""
    rig = steps_only(step_slots=1)
    rig.deliver(step_job(1))
    (frame,) = rig.frames()
    rig.push(step_job(2), b"late")
    assert rig.of(StartAttempt) == [] and rig.held() == {b"late"} and rig.core.counts() == (0, 0)
    (answer,) = rig.frames()
    (report,) = answer.reports
    assert (report.token, report.kind, report.reason) == (b"late", REPORT_KIND_RELEASED, "no slot")
    assert (answer.credits.step_jobs, answer.credits.read) == (0, 1)  # so that it is not offered here again
    rig.report_answer(b"late")
    rig.go(frame.claims[0], b"first")
    assert [attempt.token for attempt in started(rig)] == [b"first"] and rig.held() == {b"first"}


def test_two_for_one_slot_in_any_order_are_one_start_and_one_release() -> None:
    for push_first in (True, False):
        rig = steps_only(step_slots=1)
        if push_first:
            rig.push(step_job(2), b"p")
        tag = rig.deliver(step_job(1))
        claims = rig.claims()
        if not push_first:
            rig.push(step_job(2), b"p")
        assert (len(claims), rig.core.counts()) == ((0, (1, 0)) if push_first else (1, (0, 0)))
        assert [attempt.token for attempt in started(rig)] == ([b"p"] if push_first else [])
        rig.pass_ms(250)
        assert rig.of(GiveBack) == ([GiveBack(tag)] if push_first else [])  # nobody waits behind a full worker


def test_no_step_credits_while_deliveries_wait_for_a_slot() -> None:
    rig = steps_only(step_slots=2)
    rig.push(step_job(1), b"a")
    rig.push(step_job(2), b"b")
    for n in range(3, 7):  # prefetched beyond the slots
        rig.deliver(step_job(n))
    rig.pass_ms(200)
    end(rig, b"a")  # its slot goes to the delivery that has waited longest, and is no credit for an instant
    frames = [*rig.sent, *rig.frames()]
    assert not any(frame.credits.step_jobs for frame in frames)
    assert rig.core.counts() == (1, 0)
    rig.pass_ms(1000)
    assert rig.sent and not any(frame.credits.step_jobs for frame in rig.sent)


def test_a_freed_slot_goes_to_the_oldest_delivery_and_never_to_a_push() -> None:
    """As long as deliveries wait here, every slot that becomes free is claimed with: none of them is overtaken."""
    rig = steps_only(step_slots=1, give_back_slot_ms=10_000)
    rig.push(step_job(0), b"\0")
    for n in range(1, 6):
        rig.deliver(step_job(n))
    asked = []
    for n in range(5):
        assert rig.core.may_start(bytes([n]), rig.now)
        rig.core.attempt_ended(bytes([n]), Report("completed"), rig.now)
        (frame,) = rig.frames()
        assert not frame.credits.step_jobs
        rig.report_answer(bytes([n]))
        (claim,) = frame.claims
        asked.append(claim.job.run_id)
        rig.go(claim, bytes([n + 1]))
        rig.pass_ms(60)
        assert not any(sent.credits.step_jobs for sent in rig.sent)
    assert asked == [f"run-{n}" for n in range(1, 6)]


def test_after_a_full_time_a_consumer_comes_first_and_credits_follow_it() -> None:
    """Jobs that were given back, or came meanwhile, wait in the broker: they have the first chance at a freed slot."""
    rig = steps_only(step_slots=1)
    rig.push(step_job(1), b"a")
    rig.drained()
    rig.pass_ms(250)
    assert rig.drained() == [Consume(JOB_KIND_STEP, False)]
    rig.sent.clear()
    end(rig, b"a")
    assert rig.drained() == [Consume(JOB_KIND_STEP, True)]
    rig.pass_ms(49)
    assert not any(frame.credits.step_jobs for frame in rig.sent)
    rig.deliver(step_job(2))
    assert [claim.job.run_id for claim in rig.claims()] == ["run-2"]
    rig.pass_ms(100)
    assert not any(frame.credits.step_jobs for frame in rig.sent)


def test_strict_means_that_pushes_are_never_asked_for() -> None:
    rig = opened_rig(step_credits=False)
    rig.pass_ms(5000)
    assert rig.sent and all(frame.credits.step_jobs == 0 for frame in rig.sent)
    rig.push(step_job(1), b"t")  # a server that pushes all the same is no reason to lose a step
    assert [attempt.token for attempt in started(rig)] == [b"t"]


def test_step_credits_go_on_while_the_broker_is_away() -> None:
    rig = steps_only()
    rig.core.channel_lost(JOB_KIND_STEP, [], rig.now)
    rig.pass_ms(3000)
    assert [frame.credits.step_jobs for frame in rig.sent] == [2, 2, 2]
    rig.push(step_job(1), b"t")
    assert len(started(rig)) == 1


def test_the_session_lane_offers_a_freed_slot_at_once_and_the_mix_after_50_ms() -> None:
    for lane, at_once in ((LANE_SESSION, [2]), (LANE_AMQP, [])):
        rig = opened_rig(workflows=frozenset(), lane=lane)
        rig.pass_ms(50)
        rig.sent.clear()
        rig.push(step_job(1), b"a")
        rig.push(step_job(2), b"b")
        for token in (b"a", b"b"):
            assert rig.core.may_start(token, rig.now)
            rig.core.attempt_ended(token, Report("completed"), rig.now)
        assert [credits.step_jobs for credits in statements(rig) if credits.step_jobs] == at_once
        rig.pass_ms(50)
        assert [frame.credits.step_jobs for frame in rig.sent] == ([] if at_once else [2])


def test_a_drain_states_none_gives_deliveries_back_and_releases_what_is_pushed_all_the_same() -> None:
    rig = steps_only(step_slots=3)
    rig.push(step_job(1), b"a")
    rig.deliver(step_job(2))
    (claim,) = rig.claims()  # one credit is still out
    unclaimed = rig.deliver(step_job(3))
    rig.drained()
    rig.core.drain(rig.now)
    assert rig.of(GiveBack) == [GiveBack(unclaimed)] and rig.of(Consume) == [Consume(JOB_KIND_STEP, False)]
    assert [credits.step_jobs for credits in statements(rig)] == [0]
    rig.push(step_job(4), b"late")  # it was on its way when the statement left
    rig.verdict(claim, VERDICT_STALE)
    (frame,) = rig.frames()
    assert [(report.token, report.reason) for report in frame.reports] == [(b"late", "drain")]
    rig.report_answer(b"late")
    rig.pass_ms(3000)
    assert not any(sent.credits.step_jobs for sent in rig.sent) and rig.of(Drained) == []
    end(rig, b"a")
    assert rig.of(Drained) == [Drained()]


def test_the_end_of_the_session_voids_pushed_and_claimed_rights_and_credits_alike() -> None:
    rig = steps_only(step_slots=3)
    rig.push(step_job(1), b"pushed")
    rig.deliver(step_job(2))
    rig.go(rig.claims()[0], b"claimed")
    rig.reconnect()
    assert not rig.core.may_start(b"pushed", rig.now) and not rig.core.may_start(b"claimed", rig.now)
    for token in (b"pushed", b"claimed"):
        rig.core.attempt_ended(token, Report("released"), rig.now)
    (frame,) = rig.frames()
    assert {(report.token, report.reason) for report in frame.reports} == {
        (b"pushed", "right over"),
        (b"claimed", "right over"),
    }
    assert (frame.credits.read, frame.credits.step_jobs) == (0, 3)  # one slot was free all the time
    assert rig.of(Consume) == []


def test_run_and_step_slots_are_stated_each_for_itself() -> None:
    rig = opened_rig()
    rig.pass_ms(50)
    assert [(sent.credits.run_jobs, sent.credits.step_jobs) for sent in rig.sent] == [(2, 2)]
    rig.deliver(step_job(1))
    (frame,) = rig.frames()
    assert (frame.credits.run_jobs, frame.credits.step_jobs) == (2, 1)
