"""The attempt protocol, line by line: dispatch, verdicts, reports, retries, waiting, credits."""

from __future__ import annotations

import pytest
from tests.unit.machine_rig import POLICY, RUN, Rig, local, quarantined, schedule, sleep, value

from treadle.controlplane.machine.requests import Claimed, Reported
from treadle.protocol.topology import INLINE_INPUT_BYTES
from treadle.v1.common_pb2 import FAILURE_KIND_CRASHED, FAILURE_KIND_LOST, Failure, RetryPolicy
from treadle.v1.job_pb2 import JOB_KIND_STEP, Job
from treadle.v1.state_pb2 import (
    COMMAND_STATE_BACKOFF,
    COMMAND_STATE_HELD,
    COMMAND_STATE_QUEUED,
    COMMAND_STATE_WAITING,
    OutboxEntry,
)
from treadle.v1.worker_service_pb2 import (
    ANSWER_LEASE_LOST,
    ANSWER_OK,
    ANSWER_SETTLED,
    ANSWER_UNKNOWN,
    REPORT_KIND_CANCELLED,
    REPORT_KIND_COMPLETED,
    REPORT_KIND_FAILED,
    REPORT_KIND_LOST,
    REPORT_KIND_RELEASED,
    VERDICT_GO,
    VERDICT_HELD,
    VERDICT_STALE,
    VERDICT_UNKNOWN,
    VERDICT_WAITING,
    AttemptReport,
    ClaimVerdict,
    ReportKind,
)

STEP = "0/s#1"


def other(job: Job, **fields: object) -> Job:
    changed = Job()
    changed.CopyFrom(job)
    for name, of in fields.items():
        setattr(changed, name, of)
    return changed


# --- dispatch -------------------------------------------------------------------------------------------------------
def test_a_call_is_scheduled_and_dispatched_in_one_commit() -> None:
    rig = Rig()
    rig.with_step()
    row, event = rig.the_row(), rig.last("step_scheduled")
    assert (row.state, row.try_number, row.attempt, row.lost_count) == (COMMAND_STATE_QUEUED, 1, 0, 0)
    assert event.dispatch_id == row.dispatch_id == rig.decision.jobs[0].dispatch_id
    entry = OutboxEntry.FromString(rig.store.snapshot().outbox[RUN.shard][row.dispatch_id][1])
    assert (entry.job.try_number, entry.job.input, entry.job.incarnation) == (1, value("in"), rig.head.incarnation)
    assert rig.timers()[STEP] == row.due_ms == rig.now + 60_000


def test_a_large_input_comes_with_go() -> None:
    rig = Rig()
    rig.with_step(schedule(data=b"x" * (INLINE_INPUT_BYTES + 1)))
    job = rig.decision.jobs[0]
    assert job.input_omitted and not job.HasField("input")
    grant = rig.claim(job).grant
    assert len(grant.job.input.data) == INLINE_INPUT_BYTES + 1 and not grant.job.input_omitted
    assert not rig.claim(rig.step_job()).grant.HasField("job")


def test_a_credit_is_answered_in_the_commit_that_dispatches() -> None:
    rig = Rig()
    rig.start()
    owner = rig.open()
    credit = rig.credit(JOB_KIND_STEP, "B")
    owner.say(schedule(data=b"x" * (INLINE_INPUT_BYTES + 1)))
    row = rig.the_row()
    assert row.state == COMMAND_STATE_HELD
    assert (row.holder.worker_id, row.holder.claim_id, row.holder.sent_ms) == ("B", credit.credit_id, credit.sent_ms)
    assert row.holder.lease_due_ms == rig.now + 2_000 == rig.timers()[STEP]
    assert row.dispatch_id not in rig.outbox() and not rig.decision.jobs
    pushed = rig.decision.grants[0]
    assert pushed.credit == credit and pushed.grant.token == row.holder.token
    assert pushed.grant.job.input.data and pushed.grant.job.command_id == STEP
    assert rig.kinds()[-2:] == ["step_scheduled", "attempt_started"]


def test_asking_again_for_what_is_open_is_nothing() -> None:
    """R7: another request may carry a command that is recorded."""
    rig = Rig()
    owner = rig.with_step()
    grant = rig.hold()
    length = rig.head.length
    assert owner.say(schedule()).answer == ANSWER_OK
    assert rig.head.length == length and rig.head.open_commands == 1
    assert rig.the_row().holder.token == grant.token


# --- verdicts -------------------------------------------------------------------------------------------------------
def test_go_names_the_holder_and_sets_a_lease_in_one_commit() -> None:
    rig = Rig()
    rig.with_step()
    rig.wait(70)
    item = rig.item(rig.step_job())
    verdict = rig.send(item, "B")
    row, started = rig.the_row(), rig.last("attempt_started")
    assert verdict.verdict == VERDICT_GO
    assert (row.state, row.attempt, row.holder.worker_id) == (COMMAND_STATE_HELD, 1, "B")
    assert (row.holder.lease_set_ms, row.holder.lease_due_ms) == (rig.now, rig.now + 2_000)
    assert (row.holder.sent_ms, row.holder.claim_id) == (item.sent_ms, item.claim_id)
    assert verdict.grant.token == row.holder.token and len(verdict.grant.token) == 16
    assert verdict.grant.trace.traceparent and not verdict.grant.alone
    assert (started.attempt, started.try_number, started.worker_id) == (1, 1, "B")
    assert rig.timers()[STEP] == rig.now + 2_000
    assert rig.decision.claimed == [("p", JOB_KIND_STEP, rig.now - 70)]


def test_the_same_claim_gets_the_same_go_and_sets_the_lease_anew() -> None:
    rig = Rig()
    rig.with_step()
    item = rig.item(rig.step_job())
    first = rig.send(item)
    rig.wait(500)
    look = rig.look()
    again = rig.send(item, replica_id="S")
    row = rig.the_row()
    assert again.verdict == VERDICT_GO and again.grant.token == first.grant.token
    assert (again.grant.attempt, row.attempt, rig.kinds().count("attempt_started")) == (1, 1, 1)
    assert (row.holder.lease_set_ms, row.holder.replica_id) == (rig.now, "S")
    item.sent_ms += 300
    assert rig.send(item).grant.sent_ms == item.sent_ms, "the later send time"
    item.sent_ms -= 1_000
    assert rig.send(item).grant.sent_ms == item.sent_ms + 1_000
    rig.ask(look)
    assert rig.the_row().holder.token == first.grant.token, "a check under way fails"


@pytest.mark.parametrize("worker_id", ["A", "B"])
def test_a_held_step_is_held_and_its_lease_stands(worker_id: str) -> None:
    rig = Rig()
    rig.with_step()
    item = rig.item(rig.step_job())
    rig.send(item)
    before = rig.the_row()
    rig.wait(100)
    other_claim = rig.item(rig.step_job()) if worker_id == "A" else item
    assert rig.send(other_claim, worker_id).verdict == VERDICT_HELD
    assert rig.the_row() == before and rig.decision.change is None


@pytest.mark.parametrize("unregistered", [False, True])
def test_an_unknown_run_is_put_aside_unless_it_left_a_tombstone(unregistered: bool) -> None:
    rig = Rig()
    job = Job(namespace="ns", run_id=RUN.run_id, kind=JOB_KIND_STEP, command_id=STEP, try_number=1)
    assert rig.claim(job, unregistered=unregistered).verdict == VERDICT_UNKNOWN
    assert rig.decision.unknown == [0] and rig.decision.change is None
    rig.start()
    rig.terminate()
    rig.wait(rig.settings.retention_ms)
    rig.fire()
    assert not rig.head.state and rig.claim(job).verdict == VERDICT_STALE
    rig.wait(rig.settings.tombstone_ms)
    assert rig.claim(job).verdict == VERDICT_UNKNOWN


@pytest.mark.parametrize("unregistered", [False, True])
@pytest.mark.parametrize("case", ["incarnation", "try before", "try after", "step", "settled", "closed", "timer"])
def test_what_is_outdated_is_stale(case: str, unregistered: bool) -> None:
    rig = Rig()
    owner = rig.with_step()
    job = rig.step_job()
    if case == "incarnation":
        job = other(job, incarnation=job.incarnation + 1)
    elif case == "try before":
        rig.fail(rig.hold().token)
        rig.wait(1_000)
        rig.fire(STEP)
    elif case == "try after":
        job = other(job, try_number=2)
    elif case == "step":
        job = other(job, command_id="0/s#2")
    elif case == "settled":
        rig.report(rig.hold().token)
    elif case == "closed":
        rig.terminate()
    else:
        owner.say(sleep())
        job = other(job, command_id="0/sleep#1", try_number=0)
    assert rig.claim(job, unregistered=unregistered).verdict == VERDICT_STALE
    assert rig.decision.change is None


def test_states_without_a_line_of_their_own_are_stale() -> None:
    rig = Rig()
    rig.with_step()
    job = rig.step_job()
    rig.fail(rig.hold().token)
    assert rig.claim(other(job, try_number=2)).verdict == VERDICT_STALE, "backoff"
    rig = quarantined()
    assert rig.claim(rig.step_job()).verdict == VERDICT_STALE
    assert rig.claim(rig.step_job(), unregistered=True).verdict == VERDICT_STALE


def test_jobs_name_the_try_so_an_old_copy_of_a_lost_attempt_is_good() -> None:
    """Hazard 28."""
    rig = Rig()
    rig.with_step()
    first = rig.step_job()
    rig.hold()
    rig.kill()
    assert rig.the_row().dispatch_id != first.dispatch_id
    verdict = rig.claim(first, "B")
    assert (verdict.verdict, verdict.grant.attempt) == (VERDICT_GO, 2)


def test_two_claims_in_one_batch_make_one_holder() -> None:
    rig = Rig()
    rig.with_step()
    job = rig.step_job()
    a, b = rig.batch(Claimed(rig.item(job), "A", "R"), Claimed(rig.item(job), "B", "R"))
    assert isinstance(a, ClaimVerdict) and isinstance(b, ClaimVerdict)
    assert (a.verdict, b.verdict) == (VERDICT_GO, VERDICT_HELD)


# --- waiting for a name ----------------------------------------------------------------------------------------------
def test_an_unregistered_name_waits_ever_longer_and_a_register_wakes_it() -> None:
    rig = Rig()
    rig.with_step()
    steps = []
    for _ in range(10):
        assert rig.claim(rig.step_job(), unregistered=True).verdict == VERDICT_WAITING
        row = rig.the_row()
        assert row.state == COMMAND_STATE_WAITING and rig.timers()[STEP] <= row.due_ms
        steps.append(row.due_ms - rig.now)
        rig.wait(steps[-1])
        rig.fire(STEP)
        assert rig.the_row().state == COMMAND_STATE_QUEUED and rig.decision.jobs
    assert steps == [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]
    assert rig.kinds().count("step_waiting") == 1, "said once"
    rig.claim(rig.step_job(), unregistered=True)
    assert "n:ns:p:s" in rig.indexes()
    rig.register(STEP)
    assert rig.the_row().state == COMMAND_STATE_QUEUED and rig.the_row().dispatch_id in rig.outbox()
    rig.hold()
    assert "n:ns:p:s" not in rig.indexes() and rig.the_row().step_ms == 0
    rig.register(STEP)
    assert rig.decision.change is None, "only what waits is woken"


def test_a_waiting_step_may_be_claimed() -> None:
    rig = Rig()
    rig.with_step()
    job = rig.step_job()
    rig.claim(job, unregistered=True)
    assert rig.claim(job, unregistered=True).verdict == VERDICT_STALE, "only a queued row waits"
    assert rig.claim(job).verdict == VERDICT_GO
    assert rig.claim(job, unregistered=True).verdict == VERDICT_HELD
    assert "n:ns:p:s" not in rig.indexes()


# --- reports ---------------------------------------------------------------------------------------------------------
def test_a_result_is_recorded_once() -> None:
    rig = Rig()
    rig.with_step()
    token = rig.hold().token
    assert rig.report(token, result=value("r"), duration_ms=7).answer == ANSWER_OK
    done = rig.last("step_completed")
    assert (done.result, done.attempt, done.duration_ms) == (value("r"), 1, 7)
    assert rig.row() is None and STEP not in rig.timers() and not rig.fields() and rig.head.open_commands == 0
    assert rig.report(token, result=value("r")).answer == ANSWER_SETTLED
    assert rig.kinds().count("step_completed") == 1


def test_a_result_sent_twice_in_one_batch_is_recorded_once() -> None:
    rig = Rig()
    rig.with_step()
    told = AttemptReport(run_id=RUN.run_id, incarnation=rig.head.incarnation, command_id=STEP, token=rig.hold().token)
    told.kind = REPORT_KIND_COMPLETED
    replies = rig.batch(Reported(told), Reported(told))
    assert [getattr(reply, "answer", None) for reply in replies] == [ANSWER_OK, ANSWER_SETTLED]


ALL = (REPORT_KIND_COMPLETED, REPORT_KIND_FAILED, REPORT_KIND_RELEASED, REPORT_KIND_LOST, REPORT_KIND_CANCELLED)


@pytest.mark.parametrize("kind", ALL)
def test_an_old_token_changes_nothing(kind: ReportKind.ValueType) -> None:
    rig = Rig()
    rig.with_step()
    old = rig.hold().token
    rig.kill()
    for _ in ("queued", "held"):
        before = rig.the_row()
        assert rig.report(old, kind).answer == ANSWER_LEASE_LOST
        assert rig.the_row() == before and rig.decision.change is None
        if before.state == COMMAND_STATE_QUEUED:
            rig.hold("B")
    assert rig.report(b"", kind).answer == ANSWER_LEASE_LOST


@pytest.mark.parametrize("kind", ALL)
def test_reports_that_belong_to_nothing(kind: ReportKind.ValueType) -> None:
    rig = Rig()
    assert rig.report(b"t" * 16, kind, incarnation=1).answer == ANSWER_UNKNOWN
    assert rig.decision.unknown == [0]
    rig.with_step()
    token = rig.hold().token
    assert rig.report(token, kind, incarnation=rig.head.incarnation + 1).answer == ANSWER_SETTLED
    assert rig.report(token, kind, command_id="0/s#2").answer == ANSWER_SETTLED
    rig.terminate()
    assert rig.report(token, kind).answer == ANSWER_SETTLED
    rig.fire()
    rig.fire()
    rig.wait(rig.settings.retention_ms)
    rig.fire()
    assert rig.report(token, kind, incarnation=1).answer == ANSWER_SETTLED, "a tombstone is left"


def test_a_report_without_a_token_settles_no_local_step() -> None:
    rig = Rig()
    rig.start()
    rig.open().say(local("0/l#1"))
    assert rig.report(b"", command_id="0/l#1").answer == ANSWER_LEASE_LOST
    assert rig.the_row("0/l#1").state == COMMAND_STATE_HELD


# --- retries ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_failed_try_is_followed_by_another_after_its_backoff(share: float) -> None:
    rig = Rig()
    rig.with_step()
    rig.share = share
    for number, bound in ((1, 1_000), (2, 2_000)):
        token = rig.hold().token
        assert rig.fail(token).answer == ANSWER_OK
        row, failed = rig.the_row(), rig.last("attempt_failed")
        delay = row.due_ms - rig.now
        assert bound / 2 <= delay <= bound and delay == int(bound * (1 - share / 2))
        assert (row.state, row.try_number, row.attempt) == (COMMAND_STATE_BACKOFF, number + 1, number)
        assert (failed.try_number, failed.retry_at_ms, failed.failure.type) == (number, row.due_ms, "Boom")
        assert rig.head.retrying == 1 and not row.HasField("holder")
        assert rig.fail(token).answer == ANSWER_LEASE_LOST, "sent twice"
        rig.wait(delay - 1)
        rig.fire(STEP)
        assert rig.the_row().state == COMMAND_STATE_BACKOFF, "not early"
        rig.wait(1)
        rig.fire(STEP)
        assert rig.last("step_retried").try_number == number + 1 == rig.decision.jobs[0].try_number
        assert rig.decision.change is not None and rig.decision.change.not_before_ms == row.due_ms
    rig.fail(rig.hold().token)
    failed = rig.last("step_failed")
    assert (failed.failure.type, failed.failure.attempts, failed.attempt) == ("Boom", 3, 3)
    assert rig.row() is None and rig.head.retrying == 0 and rig.head.open_commands == 0


@pytest.mark.parametrize(
    ("policy", "failure", "retried"),
    [
        (POLICY, Failure(type="Boom"), True),
        (POLICY, Failure(type="Boom", final=True), False),
        (RetryPolicy(attempts=1), Failure(type="Boom"), False),
        (RetryPolicy(attempts=0, factor=1), Failure(type="Boom"), True),
        (RetryPolicy(attempts=3, give_up_on=["Boom"]), Failure(type="Boom"), False),
        (RetryPolicy(attempts=3, give_up_on=["Bang"]), Failure(type="Boom"), True),
        (POLICY, Failure(kind=FAILURE_KIND_CRASHED, type="Crashed"), True),
    ],
)
@pytest.mark.parametrize("retry_after_ms", [0, 30_000])
def test_which_failures_are_retried(policy: RetryPolicy, failure: Failure, retried: bool, retry_after_ms: int) -> None:
    rig = Rig()
    rig.with_step(schedule(retry=policy))
    rig.report(rig.hold().token, REPORT_KIND_FAILED, failure=failure, retry_after_ms=retry_after_ms)
    assert (rig.row() is not None) is retried
    assert rig.kinds()[-1] == ("attempt_failed" if retried else "step_failed")
    if retried and retry_after_ms:
        assert rig.the_row().due_ms == rig.now + retry_after_ms


def test_a_step_without_a_policy_has_the_default_one() -> None:
    rig = Rig()
    command = schedule()
    command.schedule_step.ClearField("retry")
    rig.with_step(command)
    assert (rig.the_row().retry.attempts, rig.the_row().retry.cap_ms) == (5, 300_000)


def test_a_lost_attempt_uses_up_no_try() -> None:
    rig = Rig()
    rig.with_step()
    rig.hold()
    rig.kill()
    row = rig.the_row()
    assert (row.state, row.try_number, row.attempt, row.lost_count) == (COMMAND_STATE_QUEUED, 1, 1, 1)
    assert rig.decision.jobs[0].try_number == 1 and rig.head.retrying == 0


# --- release, at most once ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("at_most_once", [False, True])
def test_a_release_counts_nothing(at_most_once: bool) -> None:
    rig = Rig()
    rig.with_step(schedule(at_most_once=at_most_once))
    token = rig.hold().token
    before = rig.the_row().dispatch_id
    assert rig.report(token, REPORT_KIND_RELEASED, reason="right over").answer == ANSWER_OK
    row = rig.the_row()
    assert (row.state, row.try_number, row.lost_count) == (COMMAND_STATE_QUEUED, 1, 0)
    assert row.dispatch_id != before and row.dispatch_id in rig.outbox()
    assert rig.last("attempt_released").reason == "right over"
    assert rig.report(token, REPORT_KIND_RELEASED).answer == ANSWER_LEASE_LOST
    assert rig.hold("B").attempt == 2


def test_a_started_at_most_once_attempt_is_reported_lost_by_a_drain() -> None:
    rig = Rig()
    rig.with_step(schedule(at_most_once=True))
    rig.report(rig.hold().token, REPORT_KIND_LOST, reason="drain")
    assert rig.last("step_failed").failure.kind == FAILURE_KIND_LOST and rig.row() is None


def test_an_at_most_once_step_is_not_tried_again_after_a_failure() -> None:
    rig = Rig()
    rig.with_step(schedule(at_most_once=True))
    rig.fail(rig.hold().token)
    assert rig.last("step_failed").failure.type == "Boom"
