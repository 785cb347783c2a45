"""Drain: zero credits, nothing new, finish within the grace, then give back what is left (A9, hazard 25)."""

from __future__ import annotations

import pytest
from tests.unit.core_rig import (
    Rig,
    Script,
    asks_local,
    event,
    local,
    local_started,
    opened,
    opened_rig,
    run_job,
    step_job,
)

from treadle.v1.common_pb2 import Payload
from treadle.v1.job_pb2 import JOB_KIND_RUN, JOB_KIND_STEP
from treadle.v1.worker_service_pb2 import (
    ANSWER_NEWS,
    LANE_SESSION,
    REPORT_KIND_COMPLETED,
    REPORT_KIND_LOST,
    REPORT_KIND_RELEASED,
    VERDICT_STALE,
    RunGrant,
)
from treadle.worker.core.port import (
    Ack,
    CancelAttempt,
    CancelLocal,
    Consume,
    Drained,
    GiveBack,
    Report,
    StartAttempt,
    StartLocal,
)
from treadle.worker.loop.port import Outcome


def draining(rig: Rig) -> Rig:
    rig.core.drain(rig.now)
    return rig


def test_zero_credits_are_stated_and_their_answer_waited_for() -> None:
    rig = draining(opened_rig(lane=LANE_SESSION))
    assert rig.drained() == []
    frame = rig.core.frame(rig.now)
    assert frame is not None and (frame.credits.run_jobs, frame.credits.step_jobs) == (0, 0)
    assert rig.drained() == []
    rig.receive(credits_taken=frame.credits.credit_id)
    assert rig.drained() == [Drained()]
    rig.core.tick(rig.now)
    assert rig.drained() == []  # once


def test_what_is_unclaimed_goes_back_and_nothing_new_is_taken() -> None:
    rig = opened_rig(step_slots=1)
    rig.deliver(step_job(1))
    (claim,) = rig.claims()
    unclaimed = rig.deliver(step_job(2))
    draining(rig)
    assert rig.drained() == [GiveBack(unclaimed), Consume(JOB_KIND_STEP, False), Consume(JOB_KIND_RUN, False)]
    late = rig.deliver(step_job(3))
    garbage = rig.deliver(None, b"x")
    assert rig.drained() == [GiveBack(late), GiveBack(garbage)]
    rig.frames()
    rig.verdict(claim, VERDICT_STALE)
    assert rig.drained() == [Ack(1), Drained()]


def test_a_go_that_was_on_its_way_is_released() -> None:
    rig = opened_rig()
    rig.deliver(step_job(1))
    rig.deliver(run_job())
    step, run = rig.claims()
    draining(rig)
    rig.drained()
    rig.go(step, b"t")
    rig.go(run, b"r", run=RunGrant(events=[event(1)], length=1, from_start=True))
    rig.push(step_job(2), b"u")
    assert rig.drained() == [Ack(1), Ack(2)] and rig.held() == {b"t", b"r", b"u"}
    (frame,) = rig.frames()
    assert {(r.token, r.kind, r.reason) for r in frame.reports} == {
        (b"t", REPORT_KIND_RELEASED, "drain"),
        (b"u", REPORT_KIND_RELEASED, "drain"),
    }
    assert [r.release.reason for r in frame.requests] == ["drain"]
    rig.report_answer(b"t")
    rig.report_answer(b"u")
    assert rig.drained() == []
    rig.answer(frame.requests[0])
    assert rig.drained() == [Drained()] and rig.core.counts() == (0, 0)


def test_what_runs_finishes_within_the_grace() -> None:
    rig = opened_rig()
    rig.push(step_job(), b"t")
    rig.core.may_start(b"t", rig.now)
    draining(rig)
    rig.frames()
    assert not any(isinstance(a, CancelAttempt | Drained) for a in rig.drained())
    rig.core.attempt_ended(b"t", Report("completed", result=Payload(data=b"1")), rig.now)
    (frame,) = rig.frames()
    assert frame.reports[0].kind == REPORT_KIND_COMPLETED
    assert rig.of(Drained) == []
    rig.report_answer(b"t")
    assert rig.of(Drained) == [Drained()]


def test_a_go_from_before_the_drain_still_starts() -> None:
    rig = opened_rig()
    rig.push(step_job(), b"t")
    draining(rig)
    assert rig.core.may_start(b"t", rig.now)


@pytest.mark.parametrize(
    ("at_most_once", "start", "kind"),
    [(False, True, REPORT_KIND_RELEASED), (True, True, REPORT_KIND_LOST), (True, False, REPORT_KIND_RELEASED)],
)
def test_a9_after_the_grace_attempts_are_cut_off(at_most_once: bool, start: bool, kind: int) -> None:
    rig = opened_rig()
    rig.push(step_job(at_most_once=at_most_once), b"t")
    if start:
        assert rig.core.may_start(b"t", rig.now)
    rig.core.drain_over(rig.now)  # without a drain before: it is one
    assert rig.of(CancelAttempt) == [CancelAttempt(b"t", "drain")]
    assert not rig.core.may_start(b"t", rig.now)
    rig.core.attempt_ended(b"t", Report("released"), rig.now)
    reports = [r for f in rig.frames() for r in f.reports]
    assert [r.kind for r in reports] == [kind]
    rig.report_answer(b"t")
    assert rig.of(Drained) == [Drained()]


def test_runs_that_rest_are_parked_without_a_cache() -> None:
    rig = opened_rig()
    script = rig.granted_run()
    draining(rig)
    request = rig.request()
    assert request.HasField("park") and not request.park.cached
    rig.answer(request, ANSWER_NEWS, events=[event(3)])
    assert script.fed == 3
    request = rig.request()
    assert request.HasField("park")
    rig.answer(request)
    assert script.closed and Drained() in rig.drained()


def test_cached_coroutines_are_dropped() -> None:
    rig = opened_rig()
    script = rig.granted_run()
    rig.pass_ms(1000)
    for request in [r for f in rig.sent for r in f.requests]:
        rig.answer(request)
    rig.sent.clear()
    rig.pass_ms(30_000)
    rig.answer(next(r for f in rig.sent for r in f.requests))
    assert not script.closed
    draining(rig)
    assert script.closed


def test_a_local_step_that_runs_is_finished_and_its_run_given_back_with_the_checkpoint() -> None:
    rig = opened_rig(asks_local(1))
    script = rig.granted_run()
    rig.of(StartLocal)
    rig.core.may_start_local(b"t", "l", rig.now)
    draining(rig)
    assert rig.requests() == []
    rig.core.local_ended(b"t", "l", Report("completed", result=Payload(data=b"1")), rig.now)
    request = rig.request()
    assert len(request.checkpoints) == 1
    rig.answer(request)
    assert rig.held() == set() and script.closed and Drained() in rig.drained()


def test_a_local_step_that_has_not_started_is_left_to_the_next_owner() -> None:
    rig = opened_rig(asks_local(1))
    rig.granted_run(sent_ms=rig.now - 4000)  # it waits for its right
    rig.requests()
    draining(rig)
    rig.reconnect()
    rig.answer(rig.request())
    assert rig.of(StartLocal) == []
    assert rig.request().release.reason == "drain"


def test_a9_a_start_that_has_left_its_trace_is_still_made() -> None:
    rig = opened_rig(asks_local(1, local(at_most_once=True)))
    rig.granted_run()
    request = rig.request()
    draining(rig)
    rig.answer(request, events=[local_started(3)])
    assert len(rig.of(StartLocal)) == 1
    assert rig.core.may_start_local(b"t", "l", rig.now)


@pytest.mark.parametrize(("at_most_once", "kinds"), [(False, []), (True, [REPORT_KIND_LOST])])
def test_a9_after_the_grace_local_steps_are_cut_off_and_runs_released(at_most_once: bool, kinds: list[int]) -> None:
    rig = opened_rig(asks_local(1, local(at_most_once=at_most_once)))
    rig.granted_run()
    if at_most_once:
        rig.answer(rig.request(), events=[local_started(3)])
    rig.of(StartLocal)
    assert rig.core.may_start_local(b"t", "l", rig.now)
    draining(rig)
    rig.core.drain_over(rig.now)
    assert rig.of(CancelLocal) == [CancelLocal(b"t", "l", "drain")]
    assert all(r.WhichOneof("final") is None for r in rig.requests())
    rig.core.local_ended(b"t", "l", Report("released"), rig.now)
    request = rig.request()
    assert (request.release.reason, [c.kind for c in request.checkpoints]) == ("drain", kinds)


def test_after_the_grace_an_offered_local_step_does_not_start() -> None:
    rig = opened_rig(asks_local(1))
    rig.granted_run()
    rig.of(StartLocal)
    draining(rig)
    rig.core.drain_over(rig.now)
    assert not rig.core.may_start_local(b"t", "l", rig.now)
    rig.core.local_refused(b"t", "l", rig.now)
    assert rig.request().release.reason == "drain"


def test_drained_without_a_session_only_after_the_grace() -> None:
    rig = opened_rig()
    rig.cut()
    draining(rig)
    assert rig.of(Drained) == []
    rig.core.drain_over(rig.now)
    assert rig.of(Drained) == [Drained()]


def test_an_outcome_is_still_told_while_draining() -> None:
    def plan(script: Script, fed: object) -> None:
        if script.fed == 3:
            script.outcome = Outcome(cancelled=True)

    rig = opened_rig(plan)
    rig.granted_run(b"t", "r", event(3), run=RunGrant(events=[event(1), opened(2)], length=3, from_start=True))
    rig.news(b"t", event(3))
    draining(rig)
    assert rig.request().HasField("cancelled")


def test_started_attempts_are_none_of_the_consumers_business() -> None:
    rig = draining(opened_rig())
    acts = rig.drained()
    assert acts[:2] == [Consume(JOB_KIND_STEP, False), Consume(JOB_KIND_RUN, False)]
    rig.pass_ms(3000)
    assert not any(isinstance(a, Consume | StartAttempt) for a in rig.drained())


def test_a_question_that_was_never_sent_is_given_back() -> None:
    rig = opened_rig()
    tag = rig.deliver(step_job())
    draining(rig)
    acts = rig.drained()
    assert (acts[0], acts[-1]) == (GiveBack(tag), Drained())
    assert rig.claims() == []
