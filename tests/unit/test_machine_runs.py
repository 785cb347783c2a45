"""The run protocol without its owner: start, wake, verdicts on run jobs."""

from __future__ import annotations

from collections import deque

import pytest
from tests.unit.machine_rig import Rig, schedule, sleep, swept, value

from treadle.controlplane.batches import Item, fold
from treadle.controlplane.machine.requests import (
    Reply,
    Request,
    RunReply,
    TerminateRun,
)
from treadle.protocol.errors import RunClosed, RunIdConflict
from treadle.v1.job_pb2 import JOB_KIND_RUN, Job
from treadle.v1.run_service_pb2 import (
    CONFLICT_POLICY_ALLOW_CLOSED,
    CONFLICT_POLICY_ALLOW_FAILED,
    CONFLICT_POLICY_REJECT,
    CONFLICT_POLICY_TERMINATE_EXISTING,
    CONFLICT_POLICY_UNSPECIFIED,
    CONFLICT_POLICY_USE_EXISTING,
    CONFLICT_POLICY_USE_OPEN,
    ConflictPolicy,
)
from treadle.v1.state_pb2 import (
    RUN_OUTCOME_TERMINATED,
    RUN_STATE_OPEN,
    RUN_STATE_PARKED,
    RUN_STATE_QUEUED,
    RUN_STATE_WAITING,
)
from treadle.v1.worker_service_pb2 import (
    ANSWER_OK,
    ANSWER_SETTLED,
    VERDICT_GO,
    VERDICT_HELD,
    VERDICT_STALE,
    VERDICT_UNKNOWN,
    VERDICT_WAITING,
)

STEP = "0/s#1"


def parked(*, cached: bool = False, worker_id: str = "O") -> Rig:
    """A run that waits for a step; nobody owns it."""
    rig = Rig()
    owner = rig.with_step(worker_id=worker_id)
    assert owner.say(park={"cached": cached}).answer == ANSWER_OK
    return rig


# --- start -----------------------------------------------------------------------------------------------------------
def test_a_start_is_recorded_indexed_and_dispatched_in_one_commit() -> None:
    rig = Rig()
    reply = rig.start()
    head = rig.head
    assert reply.started and reply.head == head and rig.kinds() == ["run_started"]
    assert (head.state, head.length, head.created_ms) == (RUN_STATE_QUEUED, 1, rig.now)
    assert head.incarnation and rig.last("run_started").input == value("in")
    assert rig.outbox() == [head.wake_dispatch_id] and rig.decision.jobs[0].incarnation == head.incarnation
    assert rig.timers() == {"": rig.now + 60_000} and head.timer_at_ms == rig.now + 60_000
    assert rig.indexes() == {"s:ns:running", "w:ns:wf:running"}


def test_a_start_is_applied_once_for_each_request_id() -> None:
    rig = Rig()
    first = rig.start("one").head
    again = rig.start("one")
    assert again.started and again.head.incarnation == first.incarnation and rig.decision.change is None
    for n in range(20):
        rig.cancel_run(f"c{n}")
    assert len(rig.head.request_ids) == 16
    assert rig.start("one").head.incarnation == first.incarnation, "however much was asked meanwhile"


def test_a_start_is_applied_once_also_after_the_run_was_deleted() -> None:
    rig = Rig()
    first = rig.start("one").head
    rig.terminate()
    rig.wait(rig.settings.retention_ms)
    rig.fire()
    assert not rig.head.state and not rig.timers() and not rig.indexes()
    again = rig.start("one")
    assert again.started and again.head.incarnation == first.incarnation and rig.decision.change is None
    assert again.head.outcome == RUN_OUTCOME_TERMINATED
    other = rig.start("two")
    assert other.started and other.head.incarnation != first.incarnation and rig.kinds() == ["run_started"]


def test_two_starts_in_one_batch_make_one_run() -> None:
    rig = Rig()
    replies = rig.batch(rig.start_request("one"), rig.start_request("one"), rig.start_request("two"))
    assert isinstance(replies[0], RunReply) and isinstance(replies[1], RunReply)
    assert replies[0].head == replies[1].head and isinstance(replies[2], RunIdConflict)


START, EXISTING, REFUSED, REPLACE = "start", "existing", "refused", "replace"


@pytest.mark.parametrize(
    ("policy", "open_", "closed"),
    [
        (CONFLICT_POLICY_UNSPECIFIED, REFUSED, REFUSED),
        (CONFLICT_POLICY_REJECT, REFUSED, REFUSED),
        (CONFLICT_POLICY_USE_EXISTING, EXISTING, EXISTING),
        (CONFLICT_POLICY_USE_OPEN, EXISTING, START),
        (CONFLICT_POLICY_ALLOW_CLOSED, REFUSED, START),
        (CONFLICT_POLICY_ALLOW_FAILED, REFUSED, START),
        (CONFLICT_POLICY_TERMINATE_EXISTING, REPLACE, START),
    ],
)
@pytest.mark.parametrize("is_closed", [False, True])
def test_what_a_taken_id_means(policy: ConflictPolicy.ValueType, open_: str, closed: str, is_closed: bool) -> None:
    rig = Rig()
    rig.with_step()
    first = rig.head
    if is_closed:
        rig.terminate()
        swept(rig)
    reply = rig.ask(rig.start_request("two", policy))
    expected = closed if is_closed else open_
    if expected == START:
        assert isinstance(reply, RunReply) and reply.started and reply.head.incarnation != first.incarnation
        assert rig.kinds() == ["run_started"] and not rig.fields(), "a new history"
        assert rig.indexes() == {"s:ns:running", "w:ns:wf:running"}
        return
    assert rig.decision.change is None
    if expected == EXISTING:
        assert isinstance(reply, RunReply) and not reply.started and reply.head.incarnation == first.incarnation
    else:
        assert isinstance(reply, RunIdConflict)
        assert reply.reason == ("RUN_OPEN" if expected == REPLACE else "RUN_ID_CONFLICT") and reply.remedy


def test_what_is_left_of_the_incarnation_before_is_stale() -> None:
    """Hazard 32."""
    rig = Rig()
    owner = rig.with_step(schedule(), sleep())
    run_job, step_job, token = rig.run_job(), rig.step_job(), rig.hold().token
    before = rig.head.incarnation
    rig.terminate()
    swept(rig)
    rig.start("two", CONFLICT_POLICY_ALLOW_CLOSED)
    assert rig.claim(run_job).verdict == VERDICT_STALE and rig.claim(step_job).verdict == VERDICT_STALE
    assert rig.report(token, incarnation=before).answer == ANSWER_SETTLED
    ask = owner.request()
    ask.incarnation = before
    assert owner.send(ask).answer == ANSWER_SETTLED
    rig.wait(10_000)
    for command_id in rig.due():
        rig.fire(command_id)
    assert list(rig.timers()) == [""] and rig.kinds() == ["run_started"]
    rig.open().say(schedule())
    assert rig.claim(step_job).verdict == VERDICT_STALE


def test_requests_of_the_run_before_are_known_when_its_id_is_used_again() -> None:
    rig = Rig()
    rig.start("one")
    rig.terminate("end-one")
    rig.start("two", CONFLICT_POLICY_TERMINATE_EXISTING)
    first = rig.head.incarnation
    for _ in range(2):  # copies that a slow replica brings late
        reply = rig.ask(rig.start_request("one", CONFLICT_POLICY_ALLOW_CLOSED))
        assert isinstance(reply, RunClosed) and reply.reason == "RUN_REPLACED"
        assert isinstance(rig.terminate("end-one"), RunReply)
    assert rig.head.incarnation == first and rig.kinds() == ["run_started"]
    assert rig.start("two").started
    for number in range(40):
        rig.cancel_run(f"c{number}")
    assert len(rig.head.request_ids) == 16 and rig.head.request_ids[0] == "two"


def test_a_start_comes_first_in_its_batch() -> None:
    """One commit writes events of one incarnation; and a start must not be deleted with the run before it."""
    rig = Rig()
    ends = TerminateRun("t", "")
    starts = rig.start_request("two", CONFLICT_POLICY_ALLOW_CLOSED)

    def settle(reply: Reply | Exception) -> None:
        del reply

    waiting: deque[Item] = deque(Item(request, settle, 0) for request in (ends, starts, ends, starts))
    batches: list[list[Request]] = []
    while waiting:
        batches.append([item.request for item in fold(waiting)])
    assert batches == [[ends], [starts, ends], [starts]]


# --- wake ------------------------------------------------------------------------------------------------------------
def test_news_wakes_a_parked_run_by_a_dispatch() -> None:
    rig = parked()
    assert rig.head.state == RUN_STATE_PARKED and not rig.head.HasField("owner")
    rig.report(rig.hold().token)
    head = rig.head
    assert head.state == RUN_STATE_QUEUED and head.wake_dispatch_id in rig.outbox()
    assert rig.decision.jobs[0].kind == JOB_KIND_RUN and rig.timers()[""] <= head.watch_due_ms
    rig.cancel_run()
    assert not rig.decision.jobs and rig.head.wake_dispatch_id == head.wake_dispatch_id, "further news only appends"


def test_what_the_code_cannot_notice_wakes_nobody() -> None:
    rig = parked()
    rig.hold()
    assert rig.head.state == RUN_STATE_PARKED


def test_news_wakes_a_parked_run_by_a_credit() -> None:
    rig = parked()
    token = rig.hold().token
    credit = rig.credit(JOB_KIND_RUN, "B")
    rig.report(token)
    head, pushed = rig.head, rig.decision.grants[0]
    assert (head.state, head.owner.worker_id, head.owner.claim_id) == (RUN_STATE_OPEN, "B", credit.credit_id)
    assert head.owner.sent_ms == credit.sent_ms and head.owner.lease_due_ms == rig.now + 2_000 >= rig.timers()[""]
    assert not rig.decision.jobs and head.wake_dispatch_id not in rig.outbox()
    assert (pushed.after, pushed.grant.run.from_start, pushed.grant.run.length) == (0, True, head.length)
    assert pushed.grant.token == head.owner.token and pushed.grant.job.kind == JOB_KIND_RUN
    assert rig.kinds()[-1] == "run_opened" and not pushed.grant.run.events, "the whole history is loaded and sent"


@pytest.mark.parametrize("worker_id", ["C", "B"])
def test_the_worker_that_has_it_cached_comes_first_and_gets_only_what_is_new(worker_id: str) -> None:
    rig = parked(cached=True, worker_id="C")
    fed = rig.head.seen
    token = rig.hold().token
    if worker_id == "C":
        rig.credit(JOB_KIND_RUN, "B")
    rig.credit(JOB_KIND_RUN, worker_id)
    rig.report(token)
    assert rig.offers[-1] == (JOB_KIND_RUN, "wf", "C") and rig.head.owner.worker_id == worker_id
    pushed = rig.decision.grants[0]
    assert pushed.after == (fed if worker_id == "C" else 0)
    assert pushed.grant.run.from_start is (worker_id != "C") and rig.head.cached_by == ""


def test_a_sleeper_is_woken_with_all_that_its_coroutine_has_not_seen_and_nothing_is_read() -> None:
    rig = Rig()
    rig.with_step(sleep(), worker_id="C").say(park={"cached": True})
    fed = rig.head.seen
    rig.wait(10_000)
    rig.credit(JOB_KIND_RUN, "C")
    rig.fire("0/sleep#1")
    (pushed,) = rig.decision.grants
    assert pushed.after == fed and list(pushed.grant.run.events) == rig.history()[fed:]
    assert rig.kinds()[fed:] == ["run_parked", "timer_fired", "run_opened"]


def test_what_came_while_it_was_parked_and_is_not_at_hand_is_left_to_be_read() -> None:
    rig = parked(cached=True, worker_id="C")
    rig.hold()  # its start is an event, and wakes nobody
    rig.credit(JOB_KIND_RUN, "C")
    rig.cancel_run()
    (pushed,) = rig.decision.grants
    assert pushed.after and not pushed.grant.run.events


def test_a_start_may_be_given_to_a_credit_with_its_history() -> None:
    rig = Rig()
    rig.credit(JOB_KIND_RUN, "B")
    rig.start()
    grant = rig.decision.grants[0].grant
    assert [event.position for event in grant.run.events] == [1, 2] and grant.run.from_start
    assert rig.kinds() == ["run_started", "run_opened"] and not rig.outbox()


# --- verdicts on run jobs ----------------------------------------------------------------------------------------------
def test_go_makes_an_owner_with_a_lease() -> None:
    rig = Rig()
    rig.start()
    rig.wait(30)
    item = rig.item(rig.run_job())
    verdict = rig.send(item, "B")
    owner = rig.head.owner
    assert verdict.verdict == VERDICT_GO and verdict.grant.token == owner.token
    assert (owner.worker_id, owner.claim_id, owner.sent_ms) == ("B", item.claim_id, item.sent_ms)
    assert (owner.lease_set_ms, owner.lease_due_ms) == (rig.now, rig.now + 2_000) and rig.timers()[
        ""
    ] == rig.now + 2_000
    assert [event.position for event in verdict.grant.run.events] == [1, 2] and verdict.grant.run.length == 2
    assert rig.decision.claimed == [("p", JOB_KIND_RUN, rig.now - 30)]


def test_the_same_claim_of_a_run_gets_the_same_go() -> None:
    rig = Rig()
    rig.start()
    item = rig.item(rig.run_job())
    first = rig.send(item)
    rig.wait(100)
    again = rig.send(item, replica_id="S")
    assert again.verdict == VERDICT_GO and again.grant.token == first.grant.token
    assert [event.position for event in again.grant.run.events] == [1, 2]
    assert (rig.head.owner.lease_set_ms, rig.head.owner.replica_id) == (rig.now, "S")
    assert rig.kinds().count("run_opened") == 1


def test_verdicts_that_are_not_go() -> None:
    rig = Rig()
    assert rig.claim(Job(run_id="run-1", kind=JOB_KIND_RUN)).verdict == VERDICT_UNKNOWN
    rig.start()
    job = rig.run_job()
    old = Job()
    old.CopyFrom(job)
    old.incarnation += 1
    assert rig.claim(old).verdict == VERDICT_STALE
    owner = rig.open()
    for worker_id in ("A", "B"):
        assert rig.claim(job, worker_id).verdict == VERDICT_HELD
        assert rig.claim(job, worker_id, unregistered=True).verdict == VERDICT_HELD
    owner.say(park={})
    assert rig.claim(job).verdict == VERDICT_STALE, "parked"
    assert rig.claim(job, unregistered=True).verdict == VERDICT_STALE
    rig.terminate()
    assert rig.claim(job).verdict == VERDICT_STALE and rig.decision.change is None


@pytest.mark.parametrize("fits", [True, False])
def test_a_cache_is_used_only_with_a_history_that_it_extends(fits: bool) -> None:
    rig = parked()
    after = rig.head.seen
    revision = rig.revision_at(after)
    rig.report(rig.hold().token)
    item = rig.item(rig.run_job(), after_position=after, after_revision=revision if fits else revision + 1)
    run = rig.send(item, "O").grant.run
    assert run.from_start is not fits and run.length == rig.head.length
    assert [event.position for event in run.events] == (list(range(after + 1, rig.head.length + 1)) if fits else [])


def test_a_cache_that_is_ahead_of_the_history_is_not_used() -> None:
    rig = Rig()
    rig.start()
    run = rig.claim(rig.run_job(), after_position=9, after_revision=1).grant.run
    assert run.from_start and not run.events


def test_an_unregistered_workflow_waits_ever_longer_and_a_register_wakes_it() -> None:
    rig = Rig()
    rig.start()
    steps = []
    for _ in range(9):
        assert rig.claim(rig.run_job(), unregistered=True).verdict == VERDICT_WAITING
        assert rig.head.state == RUN_STATE_WAITING and "n:ns:p:wf" in rig.indexes()
        assert rig.indexes() >= {"s:ns:waiting", "w:ns:wf:waiting"}
        steps.append(rig.head.retry_due_ms - rig.now)
        assert rig.timers()[""] <= rig.head.retry_due_ms
        rig.wait(steps[-1])
        rig.fire()
        assert rig.head.state == RUN_STATE_QUEUED and rig.decision.jobs
    assert steps == [200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000]
    assert rig.kinds().count("run_waiting") == 1
    rig.claim(rig.run_job(), unregistered=True)
    rig.register()
    assert rig.head.state == RUN_STATE_QUEUED and rig.indexes() == {"s:ns:running", "w:ns:wf:running", "x:ns:waiting"}
    rig.register()
    assert rig.decision.change is None
    rig.claim(rig.run_job(), unregistered=True)
    assert rig.claim(rig.run_job()).verdict == VERDICT_GO and "n:ns:p:wf" not in rig.indexes()
