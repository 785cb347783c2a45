"""Deliveries: claims, verdicts, acks and giving back (A1, A3, A5, hazards 6, 10, 13, 22, 25)."""

from __future__ import annotations

import pytest
from tests.unit.core_rig import Rig, opened_rig, run_job, step_job

from treadle.v1.common_pb2 import Payload
from treadle.v1.job_pb2 import JOB_KIND_RUN, JOB_KIND_STEP
from treadle.v1.worker_service_pb2 import (
    ANSWER_LEASE_LOST,
    LANE_SESSION,
    REPORT_KIND_RELEASED,
    VERDICT_GO,
    VERDICT_HELD,
    VERDICT_STALE,
    VERDICT_UNKNOWN,
    VERDICT_WAITING,
    CancelAttempt,
    Grant,
    Verdict,
)
from treadle.worker.core.port import Ack, Consume, GiveBack, ReopenSession, Report, StartAttempt


def test_a1_a_delivery_is_asked_about_without_its_input() -> None:
    rig = opened_rig()
    rig.deliver(step_job())
    (claim,) = rig.claims()
    assert claim.job.command_id == "0/work#1" and not claim.job.HasField("input")
    assert (claim.sent_ms, claim.unregistered) == (rig.now, False)
    assert rig.drained() == []  # A1, A3: nothing starts, nothing is acked


@pytest.mark.parametrize("verdict", [VERDICT_HELD, VERDICT_STALE, VERDICT_UNKNOWN, VERDICT_WAITING])
def test_a3_acked_on_any_verdict(verdict: Verdict.ValueType) -> None:
    rig = opened_rig()
    tag = rig.deliver(step_job())
    rig.verdict(rig.claims()[0], verdict)
    assert rig.drained() == [Ack(tag)]
    assert rig.held() == set() and rig.core.counts() == (0, 0)


def test_a3_go_is_acked_then_started() -> None:
    rig = opened_rig()
    tag = rig.deliver(step_job())
    rig.go(rig.claims()[0], b"t")
    ack, start = rig.drained()
    assert ack == Ack(tag)
    assert isinstance(start, StartAttempt)
    assert (start.attempt.token, start.attempt.number, start.attempt.job.input.data) == (b"t", 1, b"{}")
    assert rig.held() == {b"t"} and rig.core.counts() == (1, 0)
    assert [held.incarnation for held in rig.core.held()[1]] == [start.attempt.job.incarnation]


def test_go_brings_an_input_that_the_delivery_left_out() -> None:
    rig = opened_rig()
    job = step_job(input_omitted=True)
    job.ClearField("input")
    rig.deliver(job)
    big = step_job()
    big.input.CopyFrom(Payload(data=b"big"))
    rig.go(rig.claims()[0], b"t", job=big, alone=True)
    (start,) = rig.of(StartAttempt)
    assert start.attempt.job.input.data == b"big" and not start.attempt.job.input_omitted and start.attempt.alone


def test_a5_a_claim_keeps_its_id_and_first_send_time() -> None:
    rig = opened_rig()
    rig.deliver(step_job())
    (first,) = rig.claims()
    rig.now += 1500
    rig.reconnect()
    (again,) = rig.claims()
    assert again == first
    assert rig.claims() == []  # once per session


def test_a3_a_claim_needs_a_free_slot_and_a_session() -> None:
    rig = opened_rig(step_slots=1)
    rig.cut()
    rig.deliver(step_job(1))
    rig.deliver(step_job(2))
    assert rig.frames() == []
    rig.open()
    (claim,) = rig.claims()
    assert claim.job.run_id == "run-1"
    rig.verdict(claim, VERDICT_STALE)
    assert [c.job.run_id for c in rig.claims()] == ["run-2"]


def test_a3_run_slots_are_separate_from_step_slots() -> None:
    rig = opened_rig(step_slots=1, run_slots=1)
    for job in (step_job(1), step_job(2), run_job("r1"), run_job("r2")):
        rig.deliver(job)
    assert sorted(c.job.run_id for c in rig.claims()) == ["r1", "run-1"]
    rig.pass_ms(250)
    assert sorted(rig.drained(), key=str) == [
        Consume(JOB_KIND_STEP, False),
        Consume(JOB_KIND_RUN, False),
        GiveBack(2),
        GiveBack(4),
    ]


def test_a3_given_back_after_250_ms_without_a_slot_and_no_consumer_until_there_is_one() -> None:
    rig = opened_rig(step_slots=1)
    rig.deliver(step_job(1))
    (claim,) = rig.claims()
    tag = rig.deliver(step_job(2))
    rig.pass_ms(249)
    assert rig.drained() == []
    rig.pass_ms(1)
    assert rig.drained() == [GiveBack(tag), Consume(JOB_KIND_STEP, False)]
    late = rig.deliver(step_job(3))
    assert rig.drained() == [GiveBack(late)]  # it arrived after the cancel
    rig.verdict(claim, VERDICT_STALE)
    assert rig.drained() == [Ack(1), Consume(JOB_KIND_STEP, True)]


def test_a3_a_slot_that_was_free_meanwhile_begins_the_time_anew() -> None:
    rig = opened_rig(step_slots=1)
    rig.deliver(step_job(1))
    (claim,) = rig.claims()
    rig.deliver(step_job(2))
    rig.pass_ms(200)
    rig.verdict(claim, VERDICT_STALE)  # the second delivery takes the slot at once
    rig.deliver(step_job(3))
    rig.drained()
    rig.pass_ms(240)
    assert rig.drained() == []
    rig.pass_ms(10)
    assert rig.drained() == [GiveBack(3), Consume(JOB_KIND_STEP, False)]


def test_a3_given_back_after_5_s_without_a_session_and_late_verdicts_are_dropped() -> None:
    rig = opened_rig()
    asked, unasked = rig.deliver(step_job(1)), 2
    (claim,) = rig.claims()
    rig.cut()
    assert rig.deliver(step_job(2)) == unasked
    rig.pass_ms(4999)
    assert rig.drained() == []
    rig.pass_ms(1)
    acts = rig.drained()
    assert {GiveBack(asked), GiveBack(unasked)} <= set(acts)
    assert {Consume(JOB_KIND_STEP, False), Consume(JOB_KIND_RUN, False)} <= set(acts)
    rig.open()
    assert {Consume(JOB_KIND_STEP, True), Consume(JOB_KIND_RUN, True)} == set(rig.drained())
    assert rig.claims() == []
    rig.go(claim, b"t")  # the answer to a question that was given up
    assert rig.drained() == [] and rig.held() == set()


def in_silence(rig: Rig, ms: int) -> None:
    """Let time go by; what is sent reaches nobody, though the session stands."""
    for _ in range(ms // 100):
        rig.now += 100
        rig.core.tick(rig.now)
        while rig.core.frame(rig.now) is not None:
            pass


def test_a3_given_back_after_5_s_of_a_session_that_answers_nothing() -> None:
    rig = opened_rig()
    asked = rig.deliver(step_job(1))
    (claim,) = rig.claims()
    in_silence(rig, 2000)
    (reopen,) = rig.drained()
    assert isinstance(reopen, ReopenSession)
    unasked = rig.deliver(step_job(2))
    assert rig.claims() == []  # nothing more is asked over it
    in_silence(rig, 4900)
    rig.receive(
        cancels=[CancelAttempt(token=b"other", reason="lease lost")]
    )  # comes down a line that carries nothing up
    assert rig.drained() == []
    in_silence(rig, 100)
    acts = rig.drained()
    assert {GiveBack(asked), GiveBack(unasked)} <= set(acts)
    assert {Consume(JOB_KIND_STEP, False), Consume(JOB_KIND_RUN, False)} <= set(acts)
    in_silence(rig, 5000)
    assert rig.drained() == []
    rig.go(claim, b"t")  # after all: it answers again, but the question was given up
    assert {Consume(JOB_KIND_STEP, True), Consume(JOB_KIND_RUN, True)} == set(rig.drained())
    assert rig.held() == set()


def test_a3_an_answer_in_time_keeps_what_was_delivered() -> None:
    rig = opened_rig()
    tag = rig.deliver(step_job())
    (claim,) = rig.claims()
    in_silence(rig, 3000)
    rig.drained()
    rig.go(claim, b"t")
    ack, start = rig.drained()
    assert ack == Ack(tag) and isinstance(start, StartAttempt)
    in_silence(rig, 1000)
    assert not [act for act in rig.drained() if isinstance(act, GiveBack)]


def test_a3_a_short_cut_gives_nothing_back() -> None:
    rig = opened_rig()
    rig.deliver(step_job())
    rig.claims()
    rig.cut()
    rig.pass_ms(4000)
    rig.open()
    assert len(rig.claims()) == 1 and rig.drained() == []


def test_a3_void_deliveries_are_not_acked_but_their_go_is_a_go() -> None:
    rig = opened_rig()
    asked = rig.deliver(step_job(1))
    (claim,) = rig.claims()
    rig.core.channel_lost(JOB_KIND_STEP, [asked, 99], rig.now)
    rig.go(claim, b"t")
    (start,) = rig.drained()
    assert isinstance(start, StartAttempt)


def test_a3_void_deliveries_that_wait_are_forgotten() -> None:
    rig = opened_rig(step_slots=1)
    rig.deliver(step_job(1))
    (claim,) = rig.claims()
    waiting = rig.deliver(step_job(2))
    rig.core.channel_lost(JOB_KIND_STEP, [waiting], rig.now)
    rig.verdict(claim, VERDICT_STALE)
    assert rig.drained() == [Ack(1)] and rig.claims() == []


def test_hazard_6_lease_lost_says_nothing_about_deliveries() -> None:
    rig = opened_rig()
    rig.deliver(step_job())
    rig.go(rig.claims()[0], b"old")
    rig.core.may_start(b"old", rig.now)
    again = rig.deliver(step_job())  # the new job of the same step comes to the same worker
    (claim,) = rig.claims()
    rig.core.attempt_ended(b"old", Report("completed"), rig.now)
    rig.frames()
    rig.drained()
    rig.report_answer(b"old", ANSWER_LEASE_LOST)
    assert rig.drained() == []
    rig.go(claim, b"new")
    ack, start = rig.drained()
    assert ack == Ack(again) and isinstance(start, StartAttempt)
    assert rig.held() == {b"new"}


def test_hazard_22_an_unknown_name_is_unregistered_and_acked_at_waiting_without_a_slot() -> None:
    rig = opened_rig(step_slots=1)
    rig.deliver(step_job(1))
    tag = rig.deliver(step_job(2, name="elsewhere"))
    known, unknown = rig.claims()
    assert (known.unregistered, unknown.unregistered) == (False, True)
    assert rig.drained() == []
    rig.verdict(unknown, VERDICT_WAITING)
    assert rig.drained() == [Ack(tag)]
    assert rig.core.counts() == (0, 0)


def test_a_go_for_an_unknown_name_is_released() -> None:
    rig = opened_rig()
    tag = rig.deliver(step_job(name="elsewhere"))
    rig.go(rig.claims()[0], b"t")
    assert rig.drained() == [Ack(tag)] and rig.held() == {b"t"}
    (frame,) = rig.frames()
    assert (frame.reports[0].kind, frame.reports[0].reason) == (REPORT_KIND_RELEASED, "not registered")


def test_garbage_is_noted_kept_aside_and_acked() -> None:
    rig = opened_rig()
    tag = rig.deliver(None, b"x" * 100_000)
    (claim,) = rig.claims()
    assert len(claim.garbage) == 64 << 10 and not claim.HasField("job")
    rig.verdict(claim, VERDICT_UNKNOWN)
    assert rig.drained() == [Ack(tag)]
    assert [n.event for n in rig.notes if n.level == "error"] == ["garbage_delivered"]


def test_the_same_token_twice_is_one_attempt() -> None:
    rig = opened_rig()
    rig.deliver(step_job())
    rig.deliver(step_job())
    one, two = rig.claims()
    rig.go(one, b"t")
    rig.go(two, b"t")
    assert len(rig.of(StartAttempt)) == 1 and rig.core.counts() == (1, 0)


def test_consumers_begin_with_the_session_and_only_where_there_are_names() -> None:
    rig = Rig(workflows=frozenset())
    assert rig.drained() == []
    rig.open()
    assert rig.drained() == [Consume(JOB_KIND_STEP, True)]
    assert Rig(lane=LANE_SESSION).open().drained() == []


def test_an_unset_verdict_is_no_answer() -> None:
    rig = opened_rig()
    rig.deliver(step_job())
    (claim,) = rig.claims()
    rig.verdict(claim, 0)  # type: ignore[arg-type]
    assert rig.drained() == []
    rig.verdict(claim, VERDICT_GO, Grant(token=b"t"))
    assert len(rig.of(StartAttempt)) == 1


def test_a_frame_holds_200_entries_at_most() -> None:
    rig = opened_rig(step_slots=500)
    for n in range(450):
        rig.deliver(step_job(n))
    assert [len(frame.claims) for frame in rig.frames()] == [200, 200, 50]


def test_r9_run_jobs_have_a_consumer_while_an_idle_run_could_make_room() -> None:
    rig = opened_rig(run_slots=1)
    rig.granted_run()
    rig.drained()
    rig.pass_ms(1000)
    for request in [r for f in rig.sent for r in f.requests]:
        rig.pass_ms(100)  # while it is on its way the run is not idle
        rig.answer(request)
    rig.pass_ms(10_000)
    assert rig.drained() == []
    tag = rig.deliver(run_job("x"))
    rig.pass_ms(249)
    assert rig.of(GiveBack) == []
    rig.pass_ms(1)  # the park is not answered
    assert rig.drained() == [GiveBack(tag), Consume(JOB_KIND_RUN, False)]
    rig.pass_ms(500)
    assert rig.of(Consume) == []
