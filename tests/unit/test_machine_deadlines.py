"""Limits of steps: settled at their time, never early, once, and never under a holder that may still begin."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.machine_rig import RUN, Rig, quarantined, schedule

from treadle.controlplane.duties.timers import _what as what_a_timer_is_about
from treadle.controlplane.machine.requests import FireTimer
from treadle.controlplane.store.port import Outcome, Timer, Want
from treadle.protocol.retry import Retry
from treadle.v1.common_pb2 import (
    FAILURE_KIND_LOST,
    FAILURE_KIND_QUEUE_TIMED_OUT,
    FAILURE_KIND_STEP_TIMED_OUT,
    FAILURE_KIND_TIMED_OUT,
    ON_CANCEL_ABANDON,
    ON_CANCEL_WAIT,
    Failure,
)
from treadle.v1.job_pb2 import JOB_KIND_STEP
from treadle.v1.state_pb2 import (
    COMMAND_STATE_BACKOFF,
    COMMAND_STATE_HELD,
    COMMAND_STATE_QUEUED,
    COMMAND_STATE_WAITING,
)
from treadle.v1.worker_service_pb2 import (
    ANSWER_OK,
    ANSWER_SETTLED,
    REPORT_KIND_CANCELLED,
    REPORT_KIND_FAILED,
    VERDICT_GO,
    VERDICT_STALE,
    CancelCommand,
    Command,
)

STEP = "0/s#1"
CANCEL = Command(command_id=STEP, cancel=CancelCommand())
FIXED = Retry(attempts=5, initial="10s", factor=1, jitter=0).to_message()


def limited(*, total_ms: int = 0, queue_ms: int = 0, on_cancel: Any = 0, **kind: Any) -> Command:
    command = schedule(retry=FIXED, **kind)
    spec = command.schedule_step
    spec.total_timeout_ms, spec.queue_timeout_ms, spec.on_cancel = total_ms, queue_ms, on_cancel
    return command


def failed(rig: Rig) -> Failure:
    assert rig.kinds().count("step_failed") == 1 and rig.row() is None and STEP not in rig.timers()
    failure = rig.last("step_failed").failure
    assert isinstance(failure, Failure)
    return failure


def stop(rig: Rig, at: str) -> None:
    """Bring the step to a state in which nobody holds it."""
    if at == "waiting":
        rig.claim(rig.step_job(), unregistered=True)
        assert rig.the_row().state == COMMAND_STATE_WAITING
    elif at == "backoff":
        rig.fail(rig.hold().token)
        assert rig.the_row().state == COMMAND_STATE_BACKOFF
    elif at == "lost":
        rig.hold()
        rig.kill()


def fire_until(rig: Rig, at_ms: int) -> None:
    """Fire what comes due, as the duty does, up to an instant."""
    while (due := rig.timers().get(STEP)) is not None and due <= at_ms:
        rig.now = max(rig.now, due)
        rig.fire(STEP)
    rig.now = at_ms


# --- all tries together ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("at", ["queued", "waiting", "backoff", "lost"])
def test_what_nobody_holds_fails_when_its_total_timeout_is_over(at: str) -> None:
    rig = Rig()
    rig.with_step(limited(total_ms=20_000))
    deadline = rig.now + 20_000
    stop(rig, at)
    job = rig.step_job()
    fire_until(rig, deadline - 1)
    assert rig.row() is not None, "not early"
    assert rig.timers()[STEP] <= deadline
    fire_until(rig, deadline)
    failure = failed(rig)
    assert failure.kind == FAILURE_KIND_STEP_TIMED_OUT and "20 s" in failure.message
    assert failure.HasField("cause") == (at == "backoff"), "what the last try failed with"
    assert rig.claim(job).verdict == VERDICT_STALE
    assert rig.head.retrying == 0 and "n:ns:p:s" not in rig.indexes()


def test_a_quarantined_step_fails_when_its_total_timeout_is_over() -> None:
    rig = quarantined()
    owner = rig.open("Z").catch_up()
    command = limited(command_id="0/s#2", total_ms=60_000)
    owner.send(owner.request(command))
    deadline = rig.now + 60_000
    for n in range(5):
        rig.hold(f"W{n}", "0/s#2")
        rig.kill("0/s#2")
    assert rig.last("step_quarantined").command_id == "0/s#2" and rig.timers()["0/s#2"] <= deadline
    rig.now = deadline
    rig.fire("0/s#2")
    assert rig.last("step_failed").failure.kind == FAILURE_KIND_STEP_TIMED_OUT


def test_a_retry_that_would_come_too_late_is_not_waited_for() -> None:
    rig = Rig()
    rig.with_step(limited(total_ms=25_000))
    rig.fail(rig.hold().token)
    assert rig.the_row().state == COMMAND_STATE_BACKOFF
    rig.wait(10_000)
    rig.fire(STEP)
    rig.wait(5_000)
    rig.fail(rig.hold().token, "Late")
    failure = failed(rig)
    assert failure.kind == FAILURE_KIND_STEP_TIMED_OUT and failure.cause.type == "Late" and failure.attempts == 2


def test_go_tells_what_is_left_and_the_holder_s_word_ends_the_step() -> None:
    rig = Rig()
    rig.with_step(limited(total_ms=30_000, timeout_ms=20_000))
    rig.fail(rig.hold().token)
    rig.wait(10_000)
    rig.fire(STEP)
    rig.wait(4_000)
    item = rig.item(rig.step_job())
    grant = rig.send(item).grant
    assert grant.left_ms == 16_000 == rig.send(item).grant.left_ms
    rig.wait(16_000)
    word = Failure(kind=FAILURE_KIND_STEP_TIMED_OUT, type="TimeoutError")
    assert rig.report(grant.token, REPORT_KIND_FAILED, failure=word).answer == ANSWER_OK
    failure = failed(rig)
    assert failure.kind == FAILURE_KIND_STEP_TIMED_OUT and failure.cause.type == "Boom" and failure.attempts == 2


def test_a_credit_is_told_what_is_left() -> None:
    rig = Rig()
    rig.credit(JOB_KIND_STEP, "B")
    rig.start()
    owner = rig.open().catch_up()
    owner.send(owner.request(limited(total_ms=3_000)))
    (pushed,) = rig.decision.grants
    assert pushed.grant.left_ms == 3_000


def test_no_limit_is_no_word() -> None:
    rig = Rig()
    rig.with_step(schedule())
    assert rig.hold().left_ms == 0


@pytest.mark.parametrize("limit", [{"total_ms": 3_000}, {"total_ms": 3_000, "timeout_ms": 60_000}])
def test_a_holder_that_says_nothing_is_settled_5_s_after_the_deadline(limit: dict[str, int]) -> None:
    """Hazard 33, A11."""
    rig = Rig()
    rig.with_step(limited(**limit))
    rig.session()
    token = rig.hold().token
    for _ in range(7):
        rig.wait(1_000)
        rig.beat(tokens=[token])
        if STEP in rig.due():
            rig.check()
    assert rig.the_row().state == COMMAND_STATE_HELD
    rig.fire(STEP)
    assert rig.the_row().state == COMMAND_STATE_HELD, "a holder is nobody's but its check's to settle"
    rig.wait(1_000)
    rig.beat(tokens=[token])
    rig.check()
    assert failed(rig).kind == FAILURE_KIND_STEP_TIMED_OUT
    assert [(order.token, order.reason) for order in rig.decision.cancels] == [(token, "timed out")]
    assert rig.report(token).answer == ANSWER_SETTLED


def test_never_before_lease_set_and_5_s() -> None:
    rig = Rig()
    rig.with_step(limited(total_ms=1_000))
    rig.session()
    rig.wait(990)
    item = rig.item(rig.step_job())
    token = rig.send(item).grant.token
    rig.wait(4_000)
    assert rig.send(item).verdict == VERDICT_GO, "the same claim: lease set anew"
    for _ in range(4):
        rig.wait(1_000)
        rig.beat(tokens=[token])
        rig.check()
        assert rig.the_row().state == COMMAND_STATE_HELD
    rig.wait(1_000)
    rig.beat(tokens=[token])
    rig.check()
    assert failed(rig).kind == FAILURE_KIND_STEP_TIMED_OUT


def test_a_check_that_finds_the_holder_lost_comes_first() -> None:
    rig = Rig()
    rig.with_step(limited(total_ms=1_000, at_most_once=True))
    rig.hold()
    rig.wait(7_000)
    rig.kill()
    assert failed(rig).kind == FAILURE_KIND_LOST


def test_the_shorter_limit_of_an_attempt_counts() -> None:
    rig = Rig()
    rig.with_step(limited(total_ms=600_000, timeout_ms=1_000))
    rig.session()
    token = rig.hold().token
    rig.wait(6_000)
    rig.beat(tokens=[token])
    rig.check()
    assert rig.last("attempt_failed").failure.kind == FAILURE_KIND_TIMED_OUT
    assert rig.the_row().state == COMMAND_STATE_BACKOFF


def test_a_cancelled_holder_that_runs_past_the_deadline_is_cancelled() -> None:
    rig = Rig()
    owner = rig.with_step(limited(total_ms=1_000))
    rig.session()
    token = rig.hold().token
    owner.say(CANCEL)
    rig.wait(6_000)
    rig.beat(tokens=[token])
    rig.check()
    assert rig.kinds()[-1] == "step_cancelled" and rig.row() is None


# --- waiting for a worker ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("at", ["queued", "waiting"])
def test_a_try_that_no_worker_takes_fails_when_its_queue_timeout_is_over(at: str) -> None:
    rig = Rig()
    rig.with_step(limited(queue_ms=90_000))
    due = rig.now + 90_000
    stop(rig, at)
    job = rig.step_job()
    fire_until(rig, due - 1)
    assert rig.row() is not None, "not early"
    rig.now = due
    rig.fire(STEP)
    failure = failed(rig)
    assert (
        failure.kind == FAILURE_KIND_QUEUE_TIMED_OUT and "90 s" not in failure.message and "1 m 30 s" in failure.message
    )
    assert rig.claim(job).verdict == VERDICT_STALE


def test_asking_again_for_the_same_try_does_not_begin_the_wait_anew() -> None:
    rig = Rig()
    rig.with_step(limited(queue_ms=90_000))
    due = rig.the_row().queue_due_ms
    rig.wait(60_000)
    rig.fire(STEP, gone=True)
    assert rig.the_row().state == COMMAND_STATE_QUEUED and rig.the_row().queue_due_ms == due == rig.timers()[STEP]
    rig.claim(rig.step_job(), unregistered=True)
    rig.register(STEP)
    assert rig.the_row().queue_due_ms == due == rig.the_row().due_ms >= rig.timers()[STEP]
    rig.now = due
    rig.fire(STEP)
    assert failed(rig).kind == FAILURE_KIND_QUEUE_TIMED_OUT


@pytest.mark.parametrize("why", ["retry", "lost"])
def test_each_dispatch_of_a_try_begins_its_wait(why: str) -> None:
    rig = Rig()
    rig.with_step(limited(queue_ms=30_000))
    rig.wait(20_000)
    if why == "retry":
        rig.fail(rig.hold().token)
        rig.wait(10_000)
        assert rig.row() is not None, "what was taken in time does not wait"
        rig.fire(STEP)
    else:
        rig.hold()
        rig.kill()
    assert rig.the_row().state == COMMAND_STATE_QUEUED and rig.the_row().queue_due_ms == rig.now + 30_000
    rig.wait(30_000)
    rig.fire(STEP)
    failure = failed(rig)
    assert failure.kind == FAILURE_KIND_QUEUE_TIMED_OUT
    assert failure.cause.type == ("Boom" if why == "retry" else "")


def test_a_claim_that_comes_after_the_limit_is_stale_though_no_timer_has_fired() -> None:
    rig = Rig()
    rig.with_step(limited(queue_ms=5_000))
    job = rig.step_job()
    rig.wait(5_000)
    assert rig.claim(job).verdict == VERDICT_STALE
    assert failed(rig).kind == FAILURE_KIND_QUEUE_TIMED_OUT
    rig.fire(STEP)
    assert rig.kinds().count("step_failed") == 1


def test_the_store_refuses_a_limit_that_is_not_due() -> None:
    """Hazard 19."""
    rig = Rig()
    rig.with_step(limited(queue_ms=5_000))
    rig.wait(3_000)
    decided_at = rig.now
    rig.now += 2_000
    decision = rig.decide(FireTimer(STEP))
    rig.now = decided_at
    assert rig.commit(decision) is Outcome.EARLY and "step_failed" not in rig.kinds()


def test_a_limit_that_is_due_needs_no_word_of_the_broker() -> None:
    rig = Rig()
    rig.with_step(limited(queue_ms=5_000))

    def about(command_id: str) -> object:
        timer = Timer(RUN, command_id, rig.now)
        wants = [Want(RUN, fields=[f"c:{command_id}"] if command_id else ())]
        return what_a_timer_is_about(timer, rig.store.load_now(wants)[0], rig.now)

    assert type(about(STEP)).__name__ == "Queued"
    rig.wait(5_000)
    assert about(STEP) is None


# --- on_cancel -------------------------------------------------------------------------------------------------------------
def test_what_is_abandoned_is_not_told_when_its_run_closes() -> None:
    for mode, told in ((ON_CANCEL_ABANDON, 0), (ON_CANCEL_WAIT, 1)):
        rig = Rig()
        owner = rig.with_step(limited(on_cancel=mode))
        assert rig.last("step_scheduled").on_cancel == mode
        token = rig.hold().token
        owner.say(complete={})
        rig.fire()
        assert len(rig.decision.cancels) == told
        assert rig.report(token).answer == ANSWER_SETTLED


def test_a_local_step_whose_end_is_waited_for_is_recorded_as_cancelled() -> None:
    rig = Rig()
    rig.start()
    owner = rig.open()
    owner.say(checkpoints=[rig.checkpoint(kind=REPORT_KIND_CANCELLED)])
    cancelled = rig.last("step_cancelled")
    assert (cancelled.command_id, cancelled.name, cancelled.digest, cancelled.local) == ("0/l#1", "l", 3, True)
    assert rig.head.open_commands == 0 and rig.row("0/l#1") is None


def test_a_local_step_fails_when_its_next_try_would_come_too_late() -> None:
    rig = Rig()
    rig.start()
    owner = rig.open()

    def fails(number: int, deadline_ms: int) -> None:
        told = rig.checkpoint(kind=REPORT_KIND_FAILED, try_number=number, failure=Failure(type="Boom"), retry=FIXED)
        told.deadline_ms, told.total_timeout_ms = deadline_ms, 25_000
        owner.say(checkpoints=[told])

    deadline = rig.now + 25_000
    fails(1, deadline)
    assert rig.the_row("0/l#1").state == COMMAND_STATE_BACKOFF
    rig.wait(10_000)
    rig.fire("0/l#1")
    rig.wait(5_000)
    fails(2, deadline)
    failure = rig.last("step_failed").failure
    assert failure.kind == FAILURE_KIND_STEP_TIMED_OUT and failure.cause.type == "Boom" and rig.row("0/l#1") is None


def test_a_local_step_between_tries_whose_run_slept_past_the_limit_fails() -> None:
    """All servers were down when its retry was due."""
    rig = Rig()
    rig.start()
    owner = rig.open()
    told = rig.checkpoint(kind=REPORT_KIND_FAILED, failure=Failure(type="Boom"), retry=FIXED)
    told.deadline_ms, told.total_timeout_ms = rig.now + 25_000, 25_000
    owner.say(checkpoints=[told])
    rig.wait(30_000)
    rig.fire("0/l#1")
    assert rig.last("step_failed").failure.kind == FAILURE_KIND_STEP_TIMED_OUT
