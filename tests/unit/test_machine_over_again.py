"""A run that starts over with another input, or goes on before it ever had an owner: what its starter said still holds."""

from __future__ import annotations

from tests.unit.machine_rig import Rig, value

from treadle.controlplane.machine.requests import RetryRun, RunReply
from treadle.v1.common_pb2 import ParentRun
from treadle.v1.schedule_pb2 import Occurrence
from treadle.v1.worker_service_pb2 import CompleteRun, ContinueRun

NIGHTLY = Occurrence(schedule_id="nightly", scheduled_ms=1_700_000_000_000)
RECORD = ParentRun(run_id="~schedule/nightly", incarnation=5, command_id="o1")


def started(*, timeout_ms: int = 0, scheduled: bool = False) -> Rig:
    rig = Rig()
    request = rig.start_request()
    request.timeout_ms = timeout_ms
    if scheduled:
        request.parent, request.occurrence, request.trigger = RECORD, NIGHTLY, "schedule"
    rig.ask(request)
    return rig


def over(rig: Rig) -> Rig:
    rig.terminate()
    assert isinstance(rig.ask(RetryRun("r", "", input=value("other"))), RunReply)
    assert rig.last("run_started").trigger == "retry" and rig.last("run_started").input == value("other")
    return rig


def announces(rig: Rig, timeout_ms: int) -> None:
    """The owner says what its code asks for."""
    owner = rig.open().catch_up()
    ask = owner.request()
    ask.run_timeout_ms = timeout_ms
    owner.send(ask)


def test_a_timeout_that_was_given_with_the_start_holds_from_the_new_one() -> None:
    rig = started(timeout_ms=3_600_000)
    rig.wait(60_000)
    over(rig)
    assert rig.head.deadline_ms == rig.now + 3_600_000 and rig.last("run_started").timeout_ms == 3_600_000
    announces(rig, 10_000)
    assert rig.head.timeout_ms == 3_600_000


def test_one_that_the_code_asked_for_is_asked_for_anew() -> None:
    rig = started()
    announces(rig, 3_600_000)
    over(rig)
    assert not rig.head.deadline_ms
    announces(rig, 10_000)
    assert rig.head.deadline_ms == rig.head.created_ms + 10_000


def test_a_run_of_a_schedule_still_knows_its_occurrence_and_tells_its_record() -> None:
    rig = over(started(scheduled=True))
    told = rig.last("run_started")
    assert told.occurrence == NIGHTLY and not told.HasField("parent"), "no run started it"
    rig.open().say(complete=CompleteRun())
    assert [letter.run_id for letter in rig.decision.letters] == ["~schedule/nightly"]


def test_a_later_part_of_one_has_no_parent_either() -> None:
    rig = started(timeout_ms=3_600_000, scheduled=True)
    rig.open().say(continue_run=ContinueRun(input=value("next")))
    rig.fire()
    over(rig)
    assert not rig.last("run_started").HasField("parent") and rig.head.parent == RECORD
    assert rig.head.timeout_ms == 3_600_000


def test_a_run_that_nobody_had_before_it_was_retried_has_its_whole_time() -> None:
    rig = started()
    rig.wait(7_200_000)
    rig.terminate()
    assert isinstance(rig.ask(RetryRun("r", "")), RunReply)
    began = rig.now
    rig.wait(1_000)
    announces(rig, 3_600_000)
    assert rig.head.deadline_ms == began + 3_600_000
