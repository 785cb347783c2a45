"""A closed run goes on, as the machine sees it: which may, what is reset, and that nothing old fits."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.machine_rig import POLICY, RUN, Owner, Rig, schedule, sleep, swept, value
from tests.unit.test_machine_children import letters

from treadle.controlplane.machine.children import refusal_of, request_of
from treadle.controlplane.machine.policies import SWEEPING
from treadle.controlplane.machine.requests import (
    CancelRun,
    ChildEnded,
    FireTimer,
    Reply,
    RetryRun,
    RunReply,
    StartRun,
    StopRun,
    TerminateRun,
)
from treadle.protocol.errors import NotFound, Refused, RequestError, Unavailable, WrongState
from treadle.protocol.ids import hook_id
from treadle.v1.common_pb2 import Failure, ParentRun, RetryPolicy, RetryRule
from treadle.v1.state_pb2 import (
    COMMAND_STATE_BACKOFF,
    COMMAND_STATE_CHILD,
    RUN_OUTCOME_COMPLETED,
    RUN_STATE_CLOSED,
    RUN_STATE_OPEN,
    RUN_STATE_QUEUED,
    ChildClosed,
    Letter,
    StartChild,
)
from treadle.v1.worker_service_pb2 import (
    ANSWER_LEASE_LOST,
    ANSWER_OK,
    ANSWER_SETTLED,
    REPORT_KIND_COMPLETED,
    REPORT_KIND_FAILED,
    VERDICT_GO,
    VERDICT_STALE,
    CancelledRun,
    Command,
    CompleteRun,
    FailRun,
    FailureHook,
    ScheduleChild,
)

FAILED = FailRun(failure=Failure(type="Boom"), because=["0/s#1"])
POLICY_WITH_RULE = RetryPolicy(
    attempts=2,
    initial_ms=1000,
    factor=2,
    cap_ms=60_000,
    rules=[RetryRule(types=["Busy"], attempts=3, initial_ms=30, cap_ms=30)],
)


def retry(rig: Rig, request_id: str = "r", **more: object) -> Reply:
    return rig.ask(RetryRun(request_id, "mended", **more))  # type: ignore[arg-type]


def failed(*commands: Command) -> tuple[Rig, Owner]:
    """A run whose only step failed for good."""
    rig = Rig()
    owner = rig.with_step(*commands)
    assert rig.fail(rig.hold().token, final=True).answer == ANSWER_OK
    assert owner.say(fail=FAILED).answer == ANSWER_OK
    return swept(rig), owner


# --- which run may go on -------------------------------------------------------------------------------------------------
def test_a_failed_run_is_queued_again_with_the_same_id_history_and_incarnation() -> None:
    rig, _ = failed()
    before = rig.head
    reply = retry(rig)
    assert isinstance(reply, RunReply) and reply.head.incarnation == before.incarnation
    head = rig.head
    assert (head.state, head.outcome, head.closed_ms, head.delete_at_ms) == (RUN_STATE_QUEUED, 0, 0, 0)
    assert (head.retries, head.retried_at) == (1, before.length + 1)
    assert rig.kinds()[-2:] == ["run_failed", "run_retried"] and rig.last("run_retried").reason == "mended"
    assert rig.indexes() == {"s:ns:running", "w:ns:wf:running"}
    assert head.wake_dispatch_id in rig.outbox(), "it has its next time"


def test_the_same_request_continues_it_once() -> None:
    rig, _ = failed()
    retry(rig)
    owner = rig.open()
    owner.say(fail=FAILED)
    length = rig.head.length
    assert isinstance(retry(rig), RunReply)
    assert rig.head.state == RUN_STATE_CLOSED and rig.head.length == length


def test_a_run_that_goes_on_as_its_retention_ends_is_not_deleted() -> None:
    rig, _ = failed()
    rig.now = rig.head.delete_at_ms
    _, reply = rig.batch(FireTimer(""), RetryRun("r", "mended"))
    assert isinstance(reply, RunReply) and reply.head.state == RUN_STATE_QUEUED
    assert rig.head.state == RUN_STATE_QUEUED and rig.open() is not None


@pytest.mark.parametrize("how", ["cancelled", "terminated"])
def test_cancelled_and_terminated_runs_may_go_on_and_no_cancel_is_left(how: str) -> None:
    rig = Rig()
    owner = rig.with_step()
    if how == "cancelled":
        rig.cancel_run()
        assert owner.say(cancelled=CancelledRun()).answer == ANSWER_OK
    else:
        rig.terminate()
    swept(rig)
    assert isinstance(retry(rig), RunReply)
    assert not rig.head.cancel_requested and not rig.head.cancel_reason
    assert isinstance(rig.ask(CancelRun("another", "why")), RunReply)
    assert rig.kinds()[-1] == "cancel_requested"


@pytest.mark.parametrize(
    ("ends", "more", "error", "reason"),
    [
        (None, {}, WrongState, "RUN_NOT_CLOSED"),
        ({"complete": CompleteRun()}, {}, WrongState, "RUN_NOT_FAILED"),
        ({"fail": FailRun(undone=True)}, {}, WrongState, "RUN_UNDONE"),
        ({"cancelled": CancelledRun(undone=True)}, {}, WrongState, "RUN_UNDONE"),
        ({"fail": FAILED}, {"from_position": 3, "length": 1}, WrongState, "RUN_CHANGED"),
        ({"fail": FAILED}, {"from_position": 3, "incarnation": 1}, WrongState, "RUN_CHANGED"),
    ],
)
def test_what_may_not_go_on_says_why(
    ends: dict[str, object] | None, more: dict[str, Any], error: type[RequestError], reason: str
) -> None:
    rig = Rig()
    rig.start()
    owner = rig.open()
    if ends is not None:
        if "cancelled" in ends:
            rig.cancel_run()
        assert owner.say(**ends).answer == ANSWER_OK
    length = rig.head.length
    refused = retry(rig, **more)
    assert isinstance(refused, error) and refused.reason == reason and refused.remedy
    assert rig.head.length == length


@pytest.mark.parametrize("ends", [{"complete": CompleteRun()}, {"fail": FailRun(undone=True)}])
def test_from_a_step_even_those_go_on(ends: dict[str, object]) -> None:
    rig = Rig()
    rig.start()
    rig.open().say(**ends)
    assert isinstance(retry(rig, from_position=2, step="0/s#1", length=rig.head.length), RunReply)
    assert (rig.last("run_retried").from_position, rig.last("run_retried").from_command) == (2, "0/s#1")
    assert not rig.head.undone


def test_it_waits_until_what_the_close_left_behind_is_cleared_away() -> None:
    rig = Rig()
    owner = rig.with_step()
    owner.say(fail=FAILED)
    refused = retry(rig)
    assert isinstance(refused, Unavailable) and refused.reason == SWEEPING
    over = retry(rig, "over", input=value("other"))
    assert isinstance(over, Unavailable) and over.reason == SWEEPING, "a new start would know nothing of it"
    swept(rig)
    assert isinstance(retry(rig), RunReply) and rig.head.open_commands == 0


def test_an_unknown_run_is_not_found_and_the_number_of_times_is_bounded() -> None:
    assert isinstance(retry(Rig()), NotFound)
    rig, _ = failed()
    for number in range(100):
        assert isinstance(retry(rig, str(number)), RunReply)
        rig.terminate(f"t{number}")
    assert isinstance(retry(rig, "one more"), Refused)


def test_a_continued_run_is_kept_for_its_retention_from_its_new_end() -> None:
    rig, _ = failed()
    rig.wait(rig.settings.retention_ms - 1000)
    retry(rig)
    rig.wait(2000)
    rig.fire()
    assert rig.head.state == RUN_STATE_QUEUED
    rig.open().say(complete=CompleteRun())
    assert rig.head.delete_at_ms == rig.now + rig.settings.retention_ms


# --- nothing old fits ----------------------------------------------------------------------------------------------------
def test_copies_and_reports_of_before_are_stale_though_id_and_incarnation_are_the_same() -> None:
    rig = Rig()
    owner = rig.with_step()
    old_job, old_run_job = rig.step_job(), rig.run_job()
    grant = rig.hold()
    rig.fail(grant.token, final=True)
    owner.say(fail=FAILED)
    swept(rig)
    retry(rig)
    assert rig.claim(old_run_job, "B").verdict == VERDICT_GO, "a run job names no try: whoever claims it opens the run"
    rig.ask(TerminateRun("t2", ""))
    retry(rig, "r2")
    owner = rig.open("C")
    again = schedule(data=b"other", digest=9)
    again.schedule_step.tries_before = 1
    owner.say(again)
    row = rig.the_row()
    assert (row.try_number, row.attempt, row.tries_before) == (2, 1, 1)
    assert rig.claim(old_job, "B").verdict == VERDICT_STALE
    assert rig.report(grant.token, REPORT_KIND_COMPLETED).answer == ANSWER_LEASE_LOST
    assert rig.hold("B").attempt == 2


def test_the_policy_counts_from_the_continuation() -> None:
    rig, _ = failed()
    retry(rig)
    owner = rig.open()
    again = schedule()
    again.schedule_step.tries_before = 7
    owner.say(again)
    for number in (8, 9):
        assert rig.fail(rig.hold().token).answer == ANSWER_OK
        row = rig.the_row()
        assert row.state == COMMAND_STATE_BACKOFF and row.try_number == number + 1 and rig.head.retrying == 1
        rig.wait(row.due_ms - rig.now)
        rig.fire("0/s#1")
    rig.fail(rig.hold().token)
    assert rig.row() is None and POLICY.attempts == 3 and rig.head.retrying == 0
    assert rig.last("step_failed").attempt == 10


def test_a_local_step_goes_on_with_its_numbers() -> None:
    rig, _ = failed()
    retry(rig)
    owner = rig.open()
    told = rig.checkpoint(
        kind=REPORT_KIND_FAILED, try_number=5, tries_before=4, failure=Failure(type="Boom"), retry=POLICY
    )
    owner.say(checkpoints=[told])
    row = rig.the_row("0/l#1")
    assert (row.try_number, row.attempt, row.tries_before) == (6, 5, 4) and rig.head.retrying == 1
    assert rig.last("attempt_failed").retry_at_ms - rig.now <= POLICY.initial_ms
    owner.say(checkpoints=[rig.checkpoint(try_number=6, tries_before=4)])
    assert rig.head.retrying == 0 and rig.last("step_completed").attempt == 6


def test_the_job_tells_that_the_step_had_been_done() -> None:
    rig, _ = failed()
    retry(rig)
    again = schedule()
    again.schedule_step.redone = 3
    rig.open().say(again)
    assert rig.decision.jobs[0].redone == 3 and rig.the_row().redone == 3


def test_the_new_owner_is_told_where_it_went_on_and_no_kept_coroutine_from_before_is_used() -> None:
    rig, _ = failed()
    retry(rig)
    position = rig.head.retried_at
    verdict = rig.claim(rig.run_job(), "A", after_position=2, after_revision=rig.revision_at(2))
    assert verdict.grant.run.retried_at == position and verdict.grant.run.from_start


def test_timers_are_asked_for_anew() -> None:
    rig = Rig()
    owner = rig.with_step(sleep(delay_ms=5_000))
    owner.say(fail=FailRun())
    swept(rig)
    rig.wait(60_000)
    retry(rig)
    rig.open().say(sleep(delay_ms=5_000))
    assert rig.the_row("0/sleep#1").due_ms == rig.now + 5_000


# --- over again ------------------------------------------------------------------------------------------------------------
def test_with_another_input_it_is_a_new_start_of_the_same_id() -> None:
    rig, _ = failed()
    before = rig.head
    reply = retry(rig, input=value("other"))
    assert isinstance(reply, RunReply)
    assert reply.head.incarnation not in (0, before.incarnation) and reply.head.retried_at == 0
    started = rig.last("run_started")
    assert (started.trigger, started.retry_of) == ("retry", before.incarnation)
    assert started.input == value("other") and rig.kinds() == ["run_started"]
    assert (reply.head.workflow, reply.head.pool) == (before.workflow, before.pool)
    assert isinstance(retry(rig, input=value("other")), RunReply)
    assert rig.kinds() == ["run_started"], "once"


# --- parents and children ------------------------------------------------------------------------------------------------
CHILD = "0/ship#1"


def schedule_child(*, over: bool = False) -> Command:
    spec = ScheduleChild(run_id="child-1", workflow="ship", pool="p", input=value(), over=over)
    return Command(command_id=CHILD, digest=4, schedule_child=spec)


def ended(rig: Rig, retry_number: int) -> ChildEnded:
    whose = ParentRun(run_id=RUN.run_id, incarnation=rig.head.incarnation, command_id=CHILD, retry=retry_number)
    return ChildEnded(ChildClosed(parent=whose, outcome=RUN_OUTCOME_COMPLETED, result=value("done")))


def test_what_a_child_told_before_the_parent_was_continued_is_not_taken_for_what_it_tells_now() -> None:
    rig = Rig()
    rig.start()
    owner = rig.open()
    owner.say(schedule_child())
    owner.say(fail=FailRun(because=[CHILD]))
    swept(rig)
    retry(rig)
    rig.open().say(schedule_child())
    row = rig.the_row(CHILD)
    assert row.state == COMMAND_STATE_CHILD and row.retry_number == 1
    rig.ask(ended(rig, 0))
    assert rig.row(CHILD) is not None, "a late copy of the first letter"
    rig.ask(ended(rig, 1))
    assert rig.row(CHILD) is None and rig.kinds()[-1] == "child_completed"


def asked_again(rig: Rig, number: int, *, over: bool = False, letter: str = "again") -> Reply:
    whose = ParentRun(run_id="the-parent", incarnation=77, command_id=CHILD, retry=number)
    start = StartChild(workflow="wf", pool="p", input=value("new"), parent=whose, over=over)
    _, request = request_of(Letter(letter_id=letter, namespace="ns", run_id=RUN.run_id, start_child=start))
    assert isinstance(request, StartRun)
    return rig.ask(request)


def a_child() -> Rig:
    rig = Rig()
    start = rig.start_request("letter-0")
    start.parent = ParentRun(run_id="the-parent", incarnation=77, command_id=CHILD)
    rig.ask(start)
    return rig


def test_a_child_that_failed_goes_on_when_its_parent_asks_for_it_again_and_tells_it_once() -> None:
    rig = a_child()
    owner = rig.open()
    owner.say(fail=FailRun(failure=Failure(type="Boom")))
    (first,) = letters(rig)
    incarnation = rig.head.incarnation
    for _ in range(2):
        assert isinstance(asked_again(rig, 1), RunReply)
    assert rig.kinds().count("run_retried") == 1 and rig.head.incarnation == incarnation
    rig.open().say(complete=CompleteRun(result=value("ok")))
    told = [letter.child_closed for letter in letters(rig) if letter.letter_id != first.letter_id]
    assert [(t.parent.retry, t.result) for t in told] == [(1, value("ok"))]
    assert isinstance(asked_again(rig, 1), RunReply) and rig.head.state == RUN_STATE_CLOSED


@pytest.mark.parametrize("over", [False, True])
def test_a_child_that_returned_or_gets_another_input_starts_over(over: bool) -> None:
    rig = a_child()
    owner = rig.open()
    owner.say(**({"fail": FailRun()} if over else {"complete": CompleteRun()}))
    before = rig.head.incarnation
    assert isinstance(asked_again(rig, 1, over=over), RunReply)
    assert rig.head.incarnation != before and rig.last("run_started").input == value("new")
    assert rig.head.parent.retry == 1


def test_a_child_that_is_open_is_kept_and_one_that_is_being_stopped_is_waited_for() -> None:
    rig = a_child()
    rig.open()
    assert isinstance(asked_again(rig, 1), RunReply)
    assert rig.head.state == RUN_STATE_OPEN and rig.head.parent.retry == 1
    refused = asked_again(rig, 2, over=True, letter="next")
    assert isinstance(refused, Unavailable), "what it makes of its old input is not what is asked for"
    rig.cancel_run()
    refused = asked_again(rig, 2, letter="next")
    assert isinstance(refused, Unavailable), "the letter comes again"
    assert rig.head.parent.retry == 1


def test_a_stop_of_before_does_not_reach_a_child_that_is_wanted_again() -> None:
    rig = a_child()
    rig.open()
    asked_again(rig, 1)
    rig.ask(StopRun("stop", ParentRun(run_id="the-parent", incarnation=77, command_id=CHILD), False, "parent closed"))
    assert not rig.head.cancel_requested
    rig.ask(StopRun("stop", rig.head.parent, False, "parent closed"))
    assert rig.head.cancel_requested


def test_a_child_that_goes_on_by_itself_changes_nothing_at_a_parent_that_has_its_outcome() -> None:
    rig = Rig()
    rig.start()
    owner = rig.open()
    owner.say(schedule_child())
    rig.ask(ended(rig, 0))
    length = rig.head.length
    rig.ask(ended(rig, 0))
    assert rig.head.length == length


# --- the hook --------------------------------------------------------------------------------------------------------------
HOOK = FailureHook(workflow="wf.on_failure", pool="ops", input=value("why"))


def test_the_hook_is_started_by_a_letter_in_the_commit_that_closes_the_run() -> None:
    rig = Rig()
    rig.start()
    owner = rig.open()
    assert owner.say(fail=FailRun(failure=Failure(type="Boom"), hook=HOOK)).answer == ANSWER_OK
    (letter,) = letters(rig)
    assert rig.decision.letters == [letter] and rig.kinds()[-1] == "run_failed"
    run, request = request_of(letter)
    assert isinstance(request, StartRun)
    assert run.run_id == hook_id("ns", RUN.run_id, rig.head.incarnation, 0) == rig.last("run_failed").hook_run_id
    assert (request.workflow, request.pool, request.input) == ("wf.on_failure", "ops", value("why"))
    assert (request.trigger, request.parent) == ("on_failure", None) and request.caller.traceparent
    assert owner.say(fail=FailRun(hook=HOOK)).answer == ANSWER_SETTLED
    assert len(letters(rig)) == 1


def test_each_failure_has_one_hook() -> None:
    rig = Rig()
    rig.start()
    rig.open().say(fail=FailRun(hook=HOOK))
    retry(rig)
    rig.open().say(fail=FailRun(hook=HOOK))
    ids = {letter.run_id for letter in letters(rig)}
    incarnation = rig.head.incarnation
    assert ids == {hook_id("ns", RUN.run_id, incarnation, 0), hook_id("ns", RUN.run_id, incarnation, 1)}


def test_a_run_that_ended_because_its_timeout_was_over_has_a_hook_too() -> None:
    rig = Rig()
    start = rig.start_request()
    start.timeout_ms = 5_000
    rig.ask(start)
    owner = rig.open()
    rig.wait(5_000)
    rig.fire()
    assert rig.kinds()[-1] == "run_timed_out"
    assert owner.say(cancelled=CancelledRun(hook=HOOK)).answer == ANSWER_OK
    failed = rig.last("run_failed")
    assert failed.failure.type == "RunTimedOut"
    assert [letter.run_id for letter in letters(rig)] == [failed.hook_run_id]


def test_a_run_that_was_timed_out_goes_on_with_its_time_before_it() -> None:
    rig = Rig()
    start = rig.start_request()
    start.timeout_ms = 5_000
    rig.ask(start)
    owner = rig.open()
    rig.wait(5_000)
    rig.fire()
    owner.say(cancelled=CancelledRun())
    rig.wait(60_000)
    retry(rig)
    head = rig.head
    assert (head.deadline_ms, head.close_at_ms, head.timed_out) == (rig.now + 5_000, 0, False)


def test_a_hook_whose_letter_comes_twice_is_started_once_and_never_refused() -> None:
    rig = Rig()
    start = StartChild(workflow="h", pool="p", input=value(), trigger="on_failure")
    letter = Letter(letter_id="l1", namespace="ns", from_run_id="other", run_id=RUN.run_id, start_child=start)
    for _ in range(2):
        assert isinstance(rig.ask(request_of(letter)[1]), RunReply)
    assert rig.kinds() == ["run_started"] and not rig.head.HasField("parent")
    other = Letter(letter_id="l2", namespace="ns", from_run_id="other", run_id=RUN.run_id, start_child=start)
    assert isinstance(rig.ask(request_of(other)[1]), RunReply)
    assert refusal_of(other, NotFound("no")) is None


# --- rules for errors ------------------------------------------------------------------------------------------------------
def test_each_rule_counts_its_own_failures() -> None:
    rig = Rig()
    rig.with_step(schedule(retry=POLICY_WITH_RULE))
    waits = []
    for type_ in ("Busy", "Boom", "Busy"):
        rig.fail(rig.hold().token, type_)
        row = rig.the_row()
        waits.append(row.due_ms - rig.now)
        rig.wait(waits[-1])
        rig.fire("0/s#1")
    assert waits[0] == 30 and waits[1] == 1000 and list(rig.the_row().failures) == [1, 2]
    rig.fail(rig.hold().token, "Boom")
    assert rig.row() is None, "the second failure of that kind: the policy allows two tries"
