"""Failures that no code could report: the control plane closes the run, and starts what handles that in the same commit."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from tests.unit.machine_rig import RUN, Owner, Rig, value

from treadle.controlplane.batches import Item, fold
from treadle.controlplane.machine import Credit
from treadle.controlplane.machine.children import request_of
from treadle.controlplane.machine.requests import Asked, CancelRun, Claimed, FireTimer, StartRun, TerminateRun
from treadle.protocol.ids import RunKey, hook_id
from treadle.protocol.sealing import TO_RUN, Place, place_of, place_of_schedule
from treadle.v1.common_pb2 import BlobRef, FailedRunInfo, FailureHandler, Payload
from treadle.v1.history_pb2 import RunStarted
from treadle.v1.job_pb2 import JOB_KIND_RUN
from treadle.v1.schedule_pb2 import Occurrence
from treadle.v1.state_pb2 import RUN_OUTCOME_FAILED, RUN_STATE_CLOSED, Letter, OutboxEntry
from treadle.v1.worker_service_pb2 import (
    ANSWER_SETTLED,
    VERDICT_GO,
    CancelledRun,
    ContinueRun,
    FailureHook,
    OwnerRequest,
)

HANDLER = FailureHandler(workflow="wf.on_failure@2", pool="ops")
LIMIT_MS, GRACE_MS = 10_000, 60_000


def letters(rig: Rig) -> list[Letter]:
    entries = rig.store.snapshot().outbox.get(RUN.shard, {}).values()
    found = [OutboxEntry.FromString(data) for _, data in entries]
    return [entry.letter for entry in found if entry.letter.HasField("start_child")]


def own(rig: Rig, handler: FailureHandler | None = HANDLER, worker_id: str = "A") -> Owner:
    """A worker becomes the owner, and says what handles failures."""
    verdict = rig.ask(Claimed(rig.item(rig.run_job()), worker_id, "R", handler))
    assert verdict is not None and getattr(verdict, "verdict", None) == VERDICT_GO
    return Owner(rig, verdict.grant, worker_id)  # type: ignore[union-attr]


def started(given: Payload | None = None, **more: Any) -> Rig:
    rig = Rig()
    request = rig.start_request()
    request.timeout_ms = LIMIT_MS
    request.input = value("in") if given is None else given
    for name, what in more.items():
        setattr(request, name, what)
    rig.ask(request)
    return rig


def let_it_close(rig: Rig) -> None:
    """Its time passes, and that of its cleaning up."""
    rig.wait(LIMIT_MS)
    rig.fire()
    assert rig.kinds().count("run_timed_out") == 1 and not letters(rig)
    rig.wait(GRACE_MS)
    rig.fire()
    assert (rig.head.state, rig.head.outcome) == (RUN_STATE_CLOSED, RUN_OUTCOME_FAILED)


def the_start(rig: Rig) -> tuple[RunKey, StartRun]:
    (letter,) = letters(rig)
    run, request = request_of(letter)
    assert isinstance(request, StartRun)
    return run, request


@pytest.mark.parametrize("stands", ["open", "parked", "queued", "attention"])
def test_the_commit_that_closes_a_run_for_its_timeout_starts_what_handles_that(stands: str) -> None:
    rig = started()
    owner = own(rig)
    if stands == "parked":
        owner.say(park={})
    elif stands == "queued":
        owner.say(release={"reason": "drain"})
    elif stands == "attention":
        owner.say(diverged={"expected": "a", "found": "b"})
    let_it_close(rig)
    run, request = the_start(rig)
    failed = rig.last("run_failed")
    assert rig.decision.letters == letters(rig), "it goes with the commit"
    assert run.run_id == hook_id("ns", RUN.run_id, rig.head.incarnation, 0) == failed.hook_run_id
    assert (request.workflow, request.pool, request.trigger) == ("wf.on_failure@2", "ops", "on_failure")
    assert request.input == value("in"), "as it was sent to the run: nobody here reads values"
    assert request.failed_run == FailedRunInfo(run_id=RUN.run_id, workflow="wf", failure=failed.failure)
    rig.fire()
    assert len(letters(rig)) == 1


def test_code_that_ends_in_the_same_moment_comes_first_or_finds_the_run_closed() -> None:
    said = CancelledRun(hook=FailureHook(workflow="wf.on_failure@2", pool="ops", input=value("why")))
    for code_first in (True, False):
        rig = started()
        owner = own(rig)
        rig.wait(LIMIT_MS)
        rig.fire()
        owner.catch_up()
        rig.wait(GRACE_MS)
        if code_first:
            owner.say(cancelled=said)
            rig.fire()
        else:
            rig.fire()
            assert owner.send(owner.request(cancelled=said)).answer == ANSWER_SETTLED
        _, request = the_start(rig)
        assert (request.failed_run is None) == code_first
        assert rig.kinds().count("run_failed") == 1


def test_what_counts_is_what_the_last_owner_said() -> None:
    rig = started()
    own(rig).say(release={"reason": "drain"})
    own(rig, FailureHandler(workflow="newer", pool="p"), "B")
    let_it_close(rig)
    assert the_start(rig)[1].workflow == "newer"
    rig = started()
    own(rig).say(release={"reason": "drain"})
    own(rig, None, "B")
    let_it_close(rig)
    assert not letters(rig) and not rig.last("run_failed").hook_run_id


def test_a_push_says_it_too() -> None:
    rig = Rig()
    rig.credits.append((JOB_KIND_RUN, Credit("A", 7, rig.sent_ms, handler=HANDLER)))
    rig.start()
    assert rig.head.on_failure == HANDLER
    assert hash(Credit("A", 7, 1, handler=HANDLER)) == hash(Credit("A", 7, 1))


@pytest.mark.parametrize("ends", ["cancelled", "terminated", "completed"])
def test_other_ends_start_nothing(ends: str) -> None:
    rig = started()
    owner = own(rig)
    if ends == "terminated":
        rig.ask(TerminateRun("t", "enough"))
    elif ends == "cancelled":
        rig.ask(CancelRun("c", "enough"))
        owner.say(cancelled={})
    else:
        owner.say(complete={})
    rig.wait(LIMIT_MS + GRACE_MS)
    rig.fire()
    assert not letters(rig)


def test_a_run_that_was_to_be_cancelled_and_did_not_end_has_failed() -> None:
    rig = started()
    own(rig)
    rig.ask(CancelRun("c", "enough"))
    let_it_close(rig)
    assert the_start(rig)[1].workflow == "wf.on_failure@2"


def test_the_next_part_keeps_what_handles_failures() -> None:
    rig = started()
    own(rig).say(continue_run=ContinueRun(input=value("next")))
    rig.fire()
    assert rig.kinds() == ["run_started"] and rig.head.on_failure == HANDLER
    let_it_close(rig)
    assert the_start(rig)[1].input == value("next"), "the arguments of the part that failed"


@pytest.mark.parametrize(
    ("given", "omitted"),
    [
        (Payload(data=b"x" * (512 << 10)), False),
        (Payload(data=b"x" * ((512 << 10) + 1)), True),
        (Payload(encoding="blob", blob=BlobRef(keys=["ns/k"], size=512 << 10)), False),
        (Payload(encoding="blob", blob=BlobRef(keys=["ns/k"], size=(512 << 10) + 1)), True),
    ],
)
def test_a_large_input_is_left_out(given: Payload, omitted: bool) -> None:
    rig = started(given)
    own(rig)
    let_it_close(rig)
    _, request = the_start(rig)
    assert request.failed_run is not None and request.failed_run.input_omitted == omitted
    assert request.input == (Payload() if omitted else given)


def test_the_arguments_are_opened_for_whom_they_were_sealed() -> None:
    rig = started(occurrence=Occurrence(schedule_id="nightly"))
    own(rig)
    let_it_close(rig)
    info = the_start(rig)[1].failed_run
    assert info is not None and info.schedule_id == "nightly"
    scheduled = RunStarted(failed_run=info)
    assert place_of("run_started", scheduled, "ns", "hook", {}) == place_of_schedule("ns", "nightly")
    by_client = RunStarted(failed_run=FailedRunInfo(run_id="r"))
    assert place_of("run_started", by_client, "ns", "hook", {}) == Place("ns", "r", TO_RUN)


def test_a_handler_that_fails_itself_hands_nothing_on_that_was_sealed_for_another_run() -> None:
    rig = started(failed_run=FailedRunInfo(run_id="another"))
    own(rig)
    let_it_close(rig)
    info = the_start(rig)[1].failed_run
    assert info is not None and info.input_omitted and info.run_id == RUN.run_id


def test_without_its_first_event_the_run_is_not_closed_yet() -> None:
    """Who fires read the run a moment earlier, when it was not to be closed: the timer comes again."""
    rig = started()
    own(rig)
    rig.wait(LIMIT_MS)
    rig.fire()
    rig.wait(GRACE_MS)
    rig.ask(FireTimer(""))
    assert rig.head.state != RUN_STATE_CLOSED and rig.due() == [""]
    rig.fire()
    assert rig.head.state == RUN_STATE_CLOSED and len(letters(rig)) == 1


def test_the_first_event_is_not_mixed_up_with_another_that_is_looked_up() -> None:
    """One event is read for a commit: what closes a run, and what an owner says, go one after the other."""
    asked = Item(Asked(OwnerRequest(told=5), "A", "R"), lambda reply: None, 0)
    fires = Item(FireTimer("", closes=True), lambda reply: None, 0)
    assert fold(deque((asked, fires))) == [asked]
    assert fold(deque((fires, asked))) == [fires]


def test_an_input_that_a_retry_gave_is_no_longer_that_of_the_schedule() -> None:
    again = RunStarted(occurrence=Occurrence(schedule_id="nightly"), retry_of=7)
    assert place_of("run_started", again, "ns", "r", {}) == Place("ns", "r", TO_RUN)
    rig = started(occurrence=Occurrence(schedule_id="nightly"), retry_of=7)
    own(rig)
    let_it_close(rig)
    info = the_start(rig)[1].failed_run
    assert info is not None and info.schedule_id == ""
