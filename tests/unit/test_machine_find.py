"""What a run is found by, and who may execute it: tags, versions, troubles and the indexes that a commit moves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit import machine_invariants
from tests.unit.machine_rig import Owner, Rig, quarantined, schedule, value

from treadle.controlplane.api.views import run_view
from treadle.controlplane.machine.requests import Asked, Claimed, RetryRun, RunReply, StartRun
from treadle.protocol.errors import RunIdConflict
from treadle.v1.common_pb2 import Failure, Tag
from treadle.v1.job_pb2 import JOB_KIND_RUN
from treadle.v1.run_service_pb2 import (
    CONFLICT_POLICY_ALLOW_CLOSED,
    CONFLICT_POLICY_ALLOW_FAILED,
    RUN_TROUBLE_ATTENTION,
    RUN_TROUBLE_RETRYING,
    RUN_TROUBLE_WAITING,
)
from treadle.v1.worker_service_pb2 import (
    ANSWER_OK,
    VERDICT_WAITING,
    Command,
    CompleteRun,
    FailRun,
    MarkChange,
    OwnerRequest,
    ParkRun,
    ReleaseRun,
    SetTags,
)


def tags(**pairs: str) -> list[Tag]:
    return [Tag(key=key, value=pairs[key]) for key in sorted(pairs)]


def retag(**pairs: str) -> Command:
    return Command(command_id="0/tags#1", digest=7, set_tags=SetTags(tags=tags(**pairs)))


def mark(name: str) -> Command:
    return Command(command_id=f"changed/{name}#1", digest=6, mark_change=MarkChange(name=name))


def started(**more: Any) -> Rig:
    rig = Rig()
    reply = rig.ask(replace(rig.start_request(), **more))
    assert isinstance(reply, RunReply)
    return rig


def check(rig: Rig) -> None:
    machine_invariants.check(rig, {*rig.outbox(), rig.head.wake_dispatch_id}, left_over=False)


def test_tags_of_a_start_are_indexed_until_the_run_is_deleted() -> None:
    rig = started(tags=tags(customer="42", tier="gold"))
    mine = {"t:ns:customer=42", "t:ns:tier=gold"}
    assert rig.indexes() == {"s:ns:running", "w:ns:wf:running"} | mine
    assert [tag.key for tag in rig.history()[0].run_started.tags] == ["customer", "tier"]
    rig.open().say(complete=CompleteRun())
    assert rig.indexes() == {"s:ns:completed", "w:ns:wf:completed"} | mine
    rig.wait(rig.settings.retention_ms)
    rig.fire()
    assert not rig.indexes()


def test_code_changes_its_tags_and_the_indexes_follow_in_the_same_commit() -> None:
    rig = started(tags=tags(customer="42", state="new"))
    owner = rig.open()
    assert owner.say(retag(state="paid", customer="", extra="x")).answer == ANSWER_OK
    assert rig.indexes() == {"s:ns:running", "w:ns:wf:running", "t:ns:state=paid", "t:ns:extra=x"}
    assert [(tag.key, tag.value) for tag in rig.head.tags] == [("extra", "x"), ("state", "paid")]
    assert rig.last("tags_set").command_id == "0/tags#1"
    assert owner.say(complete=CompleteRun()).answer == ANSWER_OK


def test_what_no_worker_of_ours_sends_does_no_harm() -> None:
    rig = started()
    owner = rig.open()
    many = {f"k{n:02}": "v" for n in range(30)} | {"k" * 65: "v", "long": "v" * 201}
    owner.say(retag(**many))
    assert [tag.key for tag in rig.head.tags] == [f"k{n:02}" for n in range(20)]
    owner.say(*(mark(f"m{n}") for n in range(150)), mark("x" * 201))
    assert len(rig.head.marks) == 100


def test_an_id_that_is_started_again_leaves_nothing_of_its_old_tags() -> None:
    rig = started(tags=tags(customer="42"))
    rig.terminate()
    rig.wait(1000)
    again = replace(rig.start_request("two", CONFLICT_POLICY_ALLOW_CLOSED), tags=tags(customer="43"))
    assert isinstance(rig.ask(again), RunReply)
    assert rig.indexes() == {"s:ns:running", "w:ns:wf:running", "t:ns:customer=43"}
    (entry,) = rig.store.index_now("t:ns:customer=43", rig.shards)
    assert entry.score == rig.head.created_ms


def test_notes_do_not_hold_up_the_end() -> None:
    rig = started()
    owner = rig.open().catch_up()
    both = owner.request(mark("a"), retag(a="b"), complete=CompleteRun())
    assert owner.send(both).answer == ANSWER_OK
    assert rig.kinds()[-3:] == ["change_marked", "tags_set", "run_completed"]


def test_a_run_without_tags_and_trouble_is_in_two_indexes_and_moves_none_while_it_stays_running() -> None:
    rig = started()
    rig.decide(rig.start_request("x"))
    owner = rig.open()
    change = rig.decision.change
    assert change is not None and not change.index_add and not change.index_del, "queued, open: both are running"
    owner.say(schedule())
    assert owner.say(park=ParkRun()).answer == ANSWER_OK
    change = rig.decision.change
    assert change is not None and not change.index_add and not change.index_del


def test_a_run_of_a_version_is_dispatched_waited_for_and_listed_under_it() -> None:
    rig = started(workflow="wf@2")
    head = rig.head
    assert (head.workflow, head.version) == ("wf", "2")
    assert (rig.history()[0].run_started.workflow, rig.history()[0].run_started.version) == ("wf", "2")
    assert rig.decision.jobs[0].name == "wf@2"
    assert rig.offers == [(JOB_KIND_RUN, "wf@2", "")]
    assert rig.indexes() == {"s:ns:running", "w:ns:wf:running", "w:ns:wf@2:running"}
    assert rig.claim(rig.run_job(), unregistered=True).verdict == VERDICT_WAITING
    assert rig.last("run_waiting").workflow == "wf@2"
    assert {"n:ns:p:wf@2", "x:ns:waiting", "w:ns:wf@2:waiting"} <= rig.indexes()
    assert run_view(rig.head).version == "2"
    rig.register()
    assert rig.open().say(complete=CompleteRun()).answer == ANSWER_OK
    assert rig.indexes() == {"s:ns:completed", "w:ns:wf:completed", "w:ns:wf@2:completed"}


def test_a_diverged_run_of_a_version_is_woken_by_that_version() -> None:
    rig = started(workflow="wf@2")
    rig.open().say(diverged={"expected": "a", "found": "b"})
    assert "a:ns:wf@2" in rig.indexes() and "a:ns:wf" not in rig.indexes()


def test_why_a_step_does_not_move_stands_in_the_head() -> None:
    rig = Rig()
    owner = rig.with_step()
    owner.say(park=ParkRun())
    rig.fail(rig.hold().token)
    check(rig)
    run = run_view(rig.head)
    assert list(run.troubles) == [RUN_TROUBLE_RETRYING] and run.error_type == "Boom"
    assert run.reason == "try 1 of step 's' failed: Boom: m"
    assert {"x:ns:retrying", "e:ns:Boom"} <= rig.indexes()
    rig.wait(60_000)
    rig.fire("0/s#1")
    rig.claim(rig.step_job(), unregistered=True)
    check(rig)
    run = run_view(rig.head)
    assert list(run.troubles) == [RUN_TROUBLE_RETRYING, RUN_TROUBLE_WAITING]
    assert run.reason == "no live worker of pool 'p' has the step 's': deploy one that has it"
    assert {"x:ns:retrying", "x:ns:waiting"} <= rig.indexes()
    rig.register("0/s#1")
    check(rig)
    rig.report(rig.hold().token, result=value())
    check(rig)
    run = run_view(rig.head)
    assert (list(run.troubles), run.reason, run.error_type) == ([], "", "")
    assert rig.indexes() == {"s:ns:running", "w:ns:wf:running"}


def test_what_nobody_takes_for_a_minute_waits_for_a_worker() -> None:
    rig = Rig()
    rig.start()
    rig.wait(60_000)
    rig.fire()
    assert list(run_view(rig.head).troubles) == [RUN_TROUBLE_WAITING] and "x:ns:waiting" in rig.indexes()
    owner = rig.open()
    assert "x:ns:waiting" not in rig.indexes()
    owner.say(schedule())
    owner.say(park=ParkRun())
    for _ in range(2):
        rig.wait(200_000)
        rig.fire("0/s#1")
        check(rig)
        run = run_view(rig.head)
        assert list(run.troubles) == [RUN_TROUBLE_WAITING]
        assert run.reason == "step 's' is queued for over a minute: no worker of pool 'p' takes it"
    rig.hold()
    check(rig)
    assert not run_view(rig.head).troubles and "x:ns:waiting" not in rig.indexes()


def test_a_run_whose_code_nobody_has_waits_although_it_is_asked_for_again() -> None:
    rig = started()
    rig.claim(rig.run_job(), unregistered=True)
    rig.wait(200)
    rig.fire()
    assert list(run_view(rig.head).troubles) == [RUN_TROUBLE_WAITING] and "x:ns:waiting" in rig.indexes()
    rig.open()
    assert "x:ns:waiting" not in rig.indexes()


def test_what_is_opened_and_given_back_in_one_commit_waits_no_longer() -> None:
    rig = started()
    rig.claim(rig.run_job(), unregistered=True)
    rig.wait(200)
    rig.fire()
    item = rig.item(rig.run_job())
    ask = OwnerRequest(run_id="run-1", incarnation=rig.head.incarnation, seq=1, release=ReleaseRun(reason="no slot"))
    rig.rng.seed(1)  # the token is drawn again in the batch
    first = rig.decide(Claimed(item, "A", "R"))
    ask.token = first.replies[0].grant.token  # type: ignore[union-attr]
    rig.rng.seed(1)
    rig.batch(Claimed(item, "A", "R"), Asked(ask, "A", "R"))
    assert rig.kinds()[-2:] == ["run_opened", "run_released"]
    check(rig)
    assert "x:ns:waiting" not in rig.indexes()


def test_a_step_in_quarantine_needs_attention() -> None:
    rig = quarantined()
    run = run_view(rig.head)
    assert list(run.troubles) == [RUN_TROUBLE_ATTENTION]
    assert run.reason == "1 step(s) killed too many workers: see `treadle run show run-1`"
    assert "x:ns:attention" in rig.indexes()
    rig.terminate()
    assert "x:ns:attention" not in rig.indexes()


def test_a_failed_run_is_found_by_its_error() -> None:
    rig = started()
    rig.open().say(fail=FailRun(failure=Failure(type="ValueError", message="no")))
    assert rig.indexes() == {"s:ns:failed", "w:ns:wf:failed", "e:ns:ValueError"}
    assert run_view(rig.head).error_type == "ValueError"


def test_a_run_that_is_retried_keeps_what_it_is_found_by_and_its_error_is_over() -> None:
    rig = started(workflow="wf@2", tags=tags(customer="42"))
    rig.open().say(fail=FailRun(failure=Failure(type="ValueError", message="no")))
    seen = rig.head.seen
    assert isinstance(rig.ask(RetryRun("again", "mended")), RunReply)
    open_ = {"s:ns:running", "w:ns:wf:running", "w:ns:wf@2:running", "t:ns:customer=42"}
    assert rig.indexes() == open_ and rig.decision.jobs[0].name == "wf@2"
    assert rig.claim(rig.run_job()).grant.run.before.until == seen, "what the code had passed is passed"
    rig.terminate()
    assert isinstance(rig.ask(RetryRun("over", "", input=value("other"))), RunReply)
    assert rig.indexes() == open_ and rig.head.version == "2" and not rig.head.passed


@pytest.mark.parametrize(
    ("word", "allowed"), [("complete", False), ("fail", True), ("cancelled", True), ("terminate", True)]
)
def test_only_a_run_that_did_not_complete_is_started_again(word: str, allowed: bool) -> None:
    rig = started()
    again: StartRun = rig.start_request("two", CONFLICT_POLICY_ALLOW_FAILED)
    assert isinstance(rig.ask(again), RunIdConflict), "it is open"
    owner: Owner = rig.open()
    if word == "terminate":
        rig.terminate()
    else:
        rig.cancel_run()
        assert owner.say(**{word: {}}).answer == ANSWER_OK
    reply = rig.ask(again)
    assert isinstance(reply, RunReply if allowed else RunIdConflict)
    if isinstance(reply, RunIdConflict):
        assert "completed" in str(reply)
    else:
        assert reply.started


# --- marked changes ------------------------------------------------------------------------------------------------------
def test_a_new_owner_is_told_how_far_those_before_it_came_and_what_they_marked() -> None:
    rig = started()
    owner = rig.open()
    owner.say(mark("a"))
    owner.say(mark("a"), mark("b"), park=ParkRun())  # NEWS: it has not been fed what it said itself
    owner.say(park=ParkRun())
    seen = rig.head.seen
    assert rig.kinds().count("change_marked") == 2
    rig.cancel_run()
    verdict = rig.claim(rig.run_job(), "B")
    before = verdict.grant.run.before
    assert (before.until, list(before.marks)) == (seen, ["a", "b"])
    again = Owner(rig, verdict.grant, "B")
    again.say(release={"reason": "drain"})
    third = rig.claim(rig.run_job(), "C")
    assert third.grant.run.before.until == seen, "what an owner was fed and did not say does not count"


def test_the_first_owner_is_told_nothing() -> None:
    rig = started()
    assert not rig.claim(rig.run_job()).grant.run.HasField("before")


def test_a_pushed_grant_says_it_too() -> None:
    rig = Rig()
    owner = rig.with_step()
    owner.say(mark("a"))
    owner.say(park=ParkRun(cached=True))
    rig.credit(JOB_KIND_RUN, "O")
    rig.report(rig.hold("A").token, result=value())
    (pushed,) = rig.decision.grants
    assert (pushed.grant.run.before.until, list(pushed.grant.run.before.marks)) == (owner.seen, ["a"])
