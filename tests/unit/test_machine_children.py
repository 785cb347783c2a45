"""Parents and children as the machine sees them: rows, events, and the letters between two runs."""

from __future__ import annotations

import pytest
from tests.unit.machine_rig import RUN, Owner, Rig, swept, value

from treadle.controlplane.machine.children import applied, refusal_of, request_of
from treadle.controlplane.machine.policies import SWEEPING
from treadle.controlplane.machine.requests import ChildEnded, RetryRun, RunReply, StartRun, StopRun
from treadle.protocol.errors import NotFound, RunClosed, RunIdConflict, Unavailable
from treadle.protocol.ids import RunKey
from treadle.v1.common_pb2 import (
    FAILURE_KIND_CANCELLED,
    FAILURE_KIND_ID_TAKEN,
    FAILURE_KIND_TERMINATED,
    FAILURE_KIND_UNSPECIFIED,
    ON_PARENT_CLOSE_CANCEL,
    ON_PARENT_CLOSE_LEAVE,
    ON_PARENT_CLOSE_TERMINATE,
    Failure,
    FailureKind,
    OnParentClose,
    ParentRun,
)
from treadle.v1.run_service_pb2 import CONFLICT_POLICY_TERMINATE_EXISTING
from treadle.v1.state_pb2 import (
    RUN_OUTCOME_COMPLETED,
    RUN_OUTCOME_FAILED,
    RUN_STATE_CLOSED,
    RUN_STATE_OPEN,
    RUN_STATE_PARKED,
    RUN_STATE_QUEUED,
    ChildClosed,
    Letter,
    OutboxEntry,
)
from treadle.v1.worker_service_pb2 import (
    ANSWER_OK,
    CancelCommand,
    CancelledRun,
    Command,
    CompleteRun,
    FailRun,
    ParkRun,
    ScheduleChild,
)

CHILD = "0/ship#1"
PARENT = ParentRun(run_id="the-parent", incarnation=77, command_id=CHILD)


def child(policy: OnParentClose.ValueType = ON_PARENT_CLOSE_CANCEL, number: int = 1) -> Command:
    spec = ScheduleChild(run_id=f"child-{number}", workflow="ship", pool="p", input=value(), on_parent_close=policy)
    return Command(command_id=f"0/ship#{number}", digest=4, schedule_child=spec)


def parent(*commands: Command) -> tuple[Rig, Owner]:
    rig = Rig()
    rig.start()
    owner = rig.open()
    assert owner.say(*(commands or (child(),))).answer == ANSWER_OK
    return rig, owner


def letters(rig: Rig) -> list[Letter]:
    """What lies in the outbox for other runs, in no order."""
    entries = rig.store.snapshot().outbox.get(RUN.shard, {}).values()
    found = [OutboxEntry.FromString(data) for _, data in entries]
    return [entry.letter for entry in found if entry.HasField("letter")]


def ended(rig: Rig, command_id: str = CHILD, **told: object) -> ChildEnded:
    whose = ParentRun(run_id=RUN.run_id, incarnation=rig.head.incarnation, command_id=command_id)
    return ChildEnded(ChildClosed(parent=whose, **told))  # type: ignore[arg-type]


def as_child() -> Rig:
    rig = Rig()
    start = rig.start_request("letter-1")
    start.parent = PARENT
    assert isinstance(rig.ask(start), RunReply)
    return rig


# --- the parent --------------------------------------------------------------------------------------------------------
def test_a_child_is_started_by_a_letter_in_the_same_commit() -> None:
    rig, owner = parent()
    (letter,) = letters(rig)
    assert rig.decision.letters == [letter]
    run, request = request_of(letter)
    assert run == RunKey("ns", "child-1") and isinstance(request, StartRun)
    assert (request.workflow, request.pool, request.trigger) == ("ship", "p", "child")
    assert request.request_id == letter.letter_id and request.caller.traceparent
    assert request.parent == ParentRun(run_id=RUN.run_id, incarnation=rig.head.incarnation, command_id=CHILD)
    assert rig.kinds()[-1] == "child_scheduled" and rig.head.open_commands == 1
    owner.say(child())
    assert len(letters(rig)) == 1, "asked for again, it is there"


def test_its_outcome_is_recorded_once_and_is_news() -> None:
    rig, owner = parent()
    owner.say()
    owner.say(park=ParkRun())
    assert rig.head.state == RUN_STATE_PARKED
    told = ended(rig, outcome=RUN_OUTCOME_COMPLETED, result=value("done"))
    rig.ask(told)
    assert rig.last("child_completed").result == value("done")
    assert rig.head.state == RUN_STATE_QUEUED and rig.head.open_commands == 0
    length = rig.head.length
    rig.ask(told)
    assert rig.head.length == length


def test_a_failure_comes_as_it_was() -> None:
    rig, _ = parent()
    rig.ask(ended(rig, outcome=RUN_OUTCOME_FAILED, failure=Failure(type="Boom", message="m")))
    assert rig.last("child_failed").failure.type == "Boom"


def test_what_another_start_of_the_parent_asked_for_is_nothing() -> None:
    rig, _ = parent()
    told = ended(rig, outcome=RUN_OUTCOME_COMPLETED)
    told.letter.parent.incarnation += 1
    rig.ask(told)
    rig.ask(ended(rig, "0/other#1", outcome=RUN_OUTCOME_COMPLETED))
    assert rig.kinds()[-1] == "child_scheduled"


def test_a_cancelled_child_is_told_once_and_its_outcome_still_comes() -> None:
    rig, owner = parent()
    cancel = Command(command_id=CHILD, cancel=CancelCommand())
    owner.say(cancel)
    owner.say(cancel)
    assert rig.kinds().count("child_cancel_requested") == 1
    (stop,) = [letter for letter in letters(rig) if letter.HasField("stop_child")]
    run, request = request_of(stop)
    assert run.run_id == "child-1" and isinstance(request, StopRun) and not request.terminate
    failure = Failure(kind=FAILURE_KIND_CANCELLED)
    rig.ask(ended(rig, failure=failure))
    assert rig.kinds()[-1] == "child_failed" and rig.head.open_commands == 0


@pytest.mark.parametrize(
    ("policy", "stops"),
    [(ON_PARENT_CLOSE_CANCEL, [False]), (ON_PARENT_CLOSE_TERMINATE, [True]), (ON_PARENT_CLOSE_LEAVE, [])],
)
def test_when_the_parent_closes_the_policy_decides(policy: OnParentClose.ValueType, stops: list[bool]) -> None:
    rig, owner = parent(child(policy))
    assert owner.say(complete=CompleteRun()).answer == ANSWER_OK
    rig.fire()
    found = [letter.stop_child for letter in letters(rig) if letter.HasField("stop_child")]
    assert [stop.terminate for stop in found] == stops
    assert all(RUN.run_id in stop.reason for stop in found)
    rig.ask(ended(rig, outcome=RUN_OUTCOME_COMPLETED))
    assert rig.kinds()[-1] == "run_completed"


@pytest.mark.parametrize("over", [False, True], ids=["start", "retry with another input"])
def test_its_children_hear_of_a_close_before_the_id_is_used_again(over: bool) -> None:
    rig, _ = parent(child(ON_PARENT_CLOSE_TERMINATE))
    again = rig.start_request("two", CONFLICT_POLICY_TERMINATE_EXISTING)
    request = RetryRun("two", "", input=value("other")) if over else again
    rig.terminate()
    refused = rig.ask(request)
    assert isinstance(refused, Unavailable) and refused.reason == SWEEPING and rig.decision.change is None
    swept(rig)
    assert isinstance(rig.ask(request), RunReply) and rig.kinds() == ["run_started"]
    assert [letter.stop_child.terminate for letter in letters(rig) if letter.HasField("stop_child")] == [True]


# --- the child ---------------------------------------------------------------------------------------------------------
def test_a_child_is_started_once_however_often_its_letter_comes() -> None:
    rig = as_child()
    start = rig.start_request("letter-1")
    start.parent = PARENT
    reply = rig.ask(start)
    assert isinstance(reply, RunReply) and reply.started and rig.kinds() == ["run_started"]
    assert rig.last("run_started").parent == PARENT


def test_its_parent_hears_how_it_ended() -> None:
    rig = as_child()
    rig.open().say(complete=CompleteRun(result=value("42")))
    (letter,) = letters(rig)
    assert (letter.run_id, letter.child_closed.parent) == ("the-parent", PARENT)
    assert letter.child_closed.result == value("42")


@pytest.mark.parametrize("how", ["fail", "cancel", "terminate"])
def test_its_parent_hears_why_it_did_not_return(how: str) -> None:
    rig = as_child()
    kind: FailureKind.ValueType
    if how == "terminate":
        rig.terminate()
        kind, text = FAILURE_KIND_TERMINATED, "why"
    elif how == "cancel":
        rig.cancel_run()
        rig.open().say(cancelled=CancelledRun())
        kind, text = FAILURE_KIND_CANCELLED, "why"
    else:
        rig.open().say(fail=FailRun(failure=Failure(type="Boom", message="b")))
        kind, text = FAILURE_KIND_UNSPECIFIED, "b"
    (letter,) = letters(rig)
    assert (letter.child_closed.failure.kind, letter.child_closed.failure.message) == (kind, text)


def test_only_its_own_parent_stops_it_and_once() -> None:
    rig = as_child()
    stranger = ParentRun(run_id="the-parent", incarnation=78, command_id=CHILD)
    rig.ask(StopRun("l1", stranger, terminate=True, reason="r"))
    assert rig.head.state == RUN_STATE_QUEUED
    rig.open()
    for _ in range(2):
        rig.ask(StopRun("l2", PARENT, terminate=False, reason="gone"))
    assert rig.kinds().count("cancel_requested") == 1 and rig.last("cancel_requested").reason == "gone"
    assert rig.head.state == RUN_STATE_OPEN
    assert isinstance(rig.ask(StopRun("l3", PARENT, terminate=True, reason="now")), RunReply)
    assert rig.head.state == RUN_STATE_CLOSED
    assert isinstance(rig.ask(StopRun("l4", PARENT, terminate=True, reason="again")), RunReply)


# --- letters -------------------------------------------------------------------------------------------------------------
def test_a_stop_that_comes_before_the_start_comes_again() -> None:
    reply = Rig().ask(StopRun("l1", PARENT, terminate=False, reason="r"))
    assert isinstance(reply, NotFound) and not applied(reply)


def test_what_is_left_of_another_run_is_no_answer_to_a_stop() -> None:
    rig = as_child()
    rig.terminate()
    rig.wait(rig.settings.retention_ms)
    rig.fire()
    assert not rig.head.state
    later = ParentRun(run_id=PARENT.run_id, incarnation=PARENT.incarnation, command_id=CHILD, retry=1)
    for whose in (ParentRun(run_id="another", incarnation=1, command_id=CHILD), later):
        reply = rig.ask(StopRun("l1", whose, terminate=False, reason="r"))
        assert isinstance(reply, NotFound) and not applied(reply), "its start may be on the way"
    assert isinstance(rig.ask(StopRun("l2", PARENT, terminate=False, reason="r")), RunReply), (
        "it was there, and is gone"
    )


@pytest.mark.parametrize(
    ("reply", "done"), [(None, True), (RunClosed("closed"), True), (Unavailable("away"), False), (NotFound("?"), False)]
)
def test_a_letter_is_delivered_until_it_can_change_nothing_more(reply: Exception | None, done: bool) -> None:
    assert applied(reply) is done


def test_a_letter_of_a_newer_build_is_not_taken_for_another() -> None:
    with pytest.raises(ValueError, match="no kind that is known here"):
        request_of(Letter(letter_id="l1", from_run_id="r"))


def test_a_child_whose_id_is_taken_fails() -> None:
    rig, _ = parent()
    (letter,) = letters(rig)
    told = refusal_of(letter, RunIdConflict("run 'child-1' exists already"))
    assert told is not None and told.letter_id == letter.letter_id and told.run_id == RUN.run_id
    assert refusal_of(letter, NotFound("?")) is None
    run, request = request_of(told)
    assert run == RUN
    rig.ask(request)
    failure = rig.last("child_failed").failure
    assert failure.kind == FAILURE_KIND_ID_TAKEN and "child-1" in failure.message
