"""The timeout of a run: raised in its code once, at its time, and the run closed a minute later whatever the code does."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.machine_rig import Rig, value

from treadle.controlplane.machine.requests import CancelRun
from treadle.v1.common_pb2 import (
    FAILURE_KIND_RUN_TIMED_OUT,
)
from treadle.v1.job_pb2 import JOB_KIND_RUN
from treadle.v1.run_service_pb2 import CONFLICT_POLICY_ALLOW_CLOSED
from treadle.v1.state_pb2 import (
    RUN_OUTCOME_CANCELLED,
    RUN_OUTCOME_COMPLETED,
    RUN_OUTCOME_FAILED,
    RUN_STATE_CLOSED,
    RUN_STATE_NEEDS_ATTENTION,
    RUN_STATE_OPEN,
    RUN_STATE_PARKED,
    RUN_STATE_QUEUED,
    RUN_STATE_WAITING,
)
from treadle.v1.worker_service_pb2 import (
    ANSWER_LEASE_LOST,
    ANSWER_OK,
    ANSWER_SETTLED,
    ContinueRun,
)


# --- runs ------------------------------------------------------------------------------------------------------------------
def timed(rig: Rig, timeout_ms: int = 10_000) -> int:
    """Start a run with a timeout; returns its deadline."""
    request = rig.start_request()
    request.timeout_ms = timeout_ms
    rig.ask(request)
    assert rig.last("run_started").timeout_ms == timeout_ms
    return rig.now + timeout_ms


@pytest.mark.parametrize("state", ["open", "parked", "queued", "waiting", "attention"])
def test_a_run_is_asked_to_stop_at_its_deadline_and_closed_a_minute_later(state: str) -> None:
    rig = Rig()
    deadline = timed(rig, 100_000)
    if state in ("open", "parked"):
        owner = rig.open()
        owner.say(**({"park": {}} if state == "parked" else {}))
        if state == "open":
            rig.session()
    elif state == "waiting":
        rig.now = deadline - 100
        rig.claim(rig.run_job(), unregistered=True)
    elif state == "attention":
        owner = rig.open()
        owner.say(diverged={"expected": "a", "found": "b"})
    token = rig.head.owner.token
    stands = {
        "open": RUN_STATE_OPEN,
        "parked": RUN_STATE_PARKED,
        "queued": RUN_STATE_QUEUED,
        "waiting": RUN_STATE_WAITING,
        "attention": RUN_STATE_NEEDS_ATTENTION,
    }[state]
    assert rig.head.state == stands and rig.timers()[""] <= deadline
    rig.now = deadline - 1
    rig.fire()
    assert "run_timed_out" not in rig.kinds(), "not early"
    rig.now = deadline
    rig.fire()
    event = rig.last("run_timed_out")
    assert (event.timeout_ms, event.close_at_ms, event.raised) == (100_000, deadline + 60_000, True)
    assert rig.head.state == (RUN_STATE_QUEUED if state == "parked" else stands)
    assert rig.head.watch_due_ms or state == "waiting", "whoever has the run must hear of it"
    rig.fire()
    assert rig.kinds().count("run_timed_out") == 1
    rig.now = deadline + 59_999
    rig.fire()
    assert rig.head.state != RUN_STATE_CLOSED
    rig.now += 1
    decision = rig.fire()
    assert rig.head.outcome == RUN_OUTCOME_FAILED and rig.kinds()[-1] == "run_failed"
    failure = rig.last("run_failed").failure
    assert failure.kind == FAILURE_KIND_RUN_TIMED_OUT and "1 m" in failure.message
    if state == "open":
        assert decision.owner_gone == ("R", "A", token), "its owner is told"


def test_the_code_that_ends_by_its_deadline_has_timed_out() -> None:
    rig = Rig()
    rig.now = timed(rig)
    owner = rig.open()
    rig.fire()
    owner.say(cancelled={})
    assert rig.head.outcome == RUN_OUTCOME_FAILED
    failure = rig.last("run_failed").failure
    assert (failure.kind, failure.type, failure.final) == (FAILURE_KIND_RUN_TIMED_OUT, "RunTimedOut", True)
    assert "10 s" in failure.message


@pytest.mark.parametrize(("word", "outcome"), [("complete", RUN_OUTCOME_COMPLETED), ("fail", RUN_OUTCOME_FAILED)])
def test_what_the_code_says_after_its_deadline_stands(word: str, outcome: Any) -> None:
    rig = Rig()
    rig.now = timed(rig)
    owner = rig.open()
    rig.fire()
    owner.say(**{word: {}})
    assert rig.head.outcome == outcome and rig.head.timed_out


def test_a_run_that_is_being_cancelled_is_not_interrupted_again_but_closed() -> None:
    rig = Rig()
    rig.now = timed(rig)
    owner = rig.open()
    rig.ask(CancelRun("c", "enough"))
    rig.fire()
    assert not rig.last("run_timed_out").raised and not rig.head.timed_out
    owner.say(cancelled={})
    assert rig.head.outcome == RUN_OUTCOME_CANCELLED


def test_a_cancel_after_the_deadline_is_taken_and_does_not_change_the_outcome() -> None:
    rig = Rig()
    rig.now = timed(rig)
    owner = rig.open()
    rig.fire()
    rig.ask(CancelRun("c", "enough"))
    assert rig.kinds().count("cancel_requested") == 1
    owner.say(cancelled={})
    assert rig.head.outcome == RUN_OUTCOME_FAILED


def test_a_run_that_ends_in_time_has_no_deadline_left() -> None:
    rig = Rig()
    deadline = timed(rig)
    rig.open().say(complete={})
    rig.now = deadline + 100_000
    rig.fire()
    assert "run_timed_out" not in rig.kinds() and rig.head.outcome == RUN_OUTCOME_COMPLETED


def test_the_code_s_own_timeout_counts_from_the_start_and_is_asked_for_once() -> None:
    rig = Rig()
    rig.start()
    began = rig.now
    rig.wait(3_000)
    first = rig.open("A")
    first.say(run_timeout_ms=10_000)
    assert rig.head.deadline_ms == began + 10_000 >= rig.timers()[""]
    first.say(release={"reason": "drain"})
    rig.open("B").say(run_timeout_ms=99_000)
    assert rig.head.deadline_ms == began + 10_000


def test_code_that_gets_a_timeout_later_does_not_end_runs_that_began_without() -> None:
    rig = Rig()
    rig.start()
    rig.open("A").say(release={"reason": "drain"})
    owner = rig.open("B")
    owner.say()
    assert owner.say(release={"reason": "drain"}).answer == ANSWER_OK
    rig.wait(60_000)
    rig.open("C").say(run_timeout_ms=1_000)
    assert rig.head.deadline_ms == 0


def test_who_starts_a_run_has_the_last_word_on_its_timeout() -> None:
    rig = Rig()
    deadline = timed(rig, 50_000)
    rig.open().say(run_timeout_ms=1_000)
    assert rig.head.deadline_ms == deadline


def test_a_new_start_of_the_id_has_a_deadline_of_its_own() -> None:
    rig = Rig()
    rig.now = timed(rig)
    rig.open().say(complete={})
    rig.start("again", CONFLICT_POLICY_ALLOW_CLOSED)
    assert rig.head.deadline_ms == 0 and not rig.head.timeout_known
    rig.wait(100_000)
    rig.fire()
    assert "run_timed_out" not in rig.kinds()


def test_a_deadline_wakes_a_parked_run_at_the_worker_with_its_coroutine() -> None:
    rig = Rig()
    deadline = timed(rig, 100_000)
    rig.open().say(park={"cached": True})
    rig.now = deadline
    rig.credit(JOB_KIND_RUN, "B")
    rig.credit(JOB_KIND_RUN, "A")
    rig.fire()
    (pushed,) = rig.decision.grants
    assert pushed.credit.worker_id == "A" and rig.head.state == RUN_STATE_OPEN


def test_a_fenced_owner_s_end_is_refused() -> None:
    rig = Rig()
    rig.now = timed(rig)
    owner = rig.open()
    rig.fire()
    rig.wait(60_000)
    rig.fire()
    assert owner.say(cancelled={}).answer in (ANSWER_SETTLED, ANSWER_LEASE_LOST)
    assert rig.kinds()[-1] == "run_failed"


def test_a_run_that_continues_as_new_keeps_its_deadline() -> None:
    rig = Rig()
    deadline = timed(rig, 50_000)
    rig.wait(20_000)
    rig.open().say(continue_run=ContinueRun(input=value("next")))
    rig.fire()
    assert rig.kinds()[0] == "run_started" and rig.head.part == 2
    rig.open().say(run_timeout_ms=999_000)
    assert rig.head.deadline_ms == deadline >= rig.timers()[""]
    rig.now = deadline
    rig.fire()
    assert rig.kinds()[-1] == "run_timed_out"
