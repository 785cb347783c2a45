"""Code that goes on by the result of a pool step that its own worker executed: what is said beside the report (R10)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.core_rig import Plan, Rig, Script, ends, event, local, opened_rig, step_job, timer

from treadle.v1.common_pb2 import Payload
from treadle.v1.history_pb2 import CancelRequested, HistoryEvent, StepCompleted
from treadle.v1.job_pb2 import Job
from treadle.v1.worker_service_pb2 import (
    ANSWER_LEASE_LOST,
    ANSWER_REWIND,
    AttemptReport,
    OwnerRequest,
    SessionRequest,
)
from treadle.worker.core.port import Report, StartLocal
from treadle.worker.loop.port import Divergence, Outcome

END = Outcome(result=Payload(data=b'"end"'))
RESULT = Payload(data=b"42")


def awaiting(then: Plan) -> Plan:
    """A plan whose code waits for one pool step, and goes on with `then`."""

    def plan(script: Script, fed: HistoryEvent) -> None:
        script.awaited = "0/work#1" if fed.position < 3 else ""
        then(script, fed)

    return plan


def asks_for_more(script: Script, fed: HistoryEvent) -> None:
    if fed.position == 3:
        script.turn.commands.append(timer("0/sleep#1"))


def job(**changes: object) -> Job:
    mine = step_job(1)
    mine.run_id = "r"
    mine.MergeFrom(Job(**changes))  # type: ignore[arg-type]
    return mine


def executed(rig: Rig, report: Report | None = None) -> list[SessionRequest]:
    """Open run r, execute its step here; returns the frames that go up then."""
    rig.granted_run(b"t")
    rig.push(job(), b"a", attempt=4)
    assert rig.core.may_start(b"a", rig.now)
    rig.frames()
    rig.now += 7
    rig.core.attempt_ended(b"a", report or Report("completed", result=RESULT, duration_ms=7), rig.now)
    return rig.frames()


def both(rig: Rig) -> tuple[AttemptReport, OwnerRequest]:
    (frame,) = executed(rig)
    (report,), (request,) = frame.reports, frame.requests
    return report, request


def as_reported(report: AttemptReport, position: int = 3, *, result: Payload | None = RESULT) -> HistoryEvent:
    """The event that the store made of a report."""
    completed = StepCompleted(command_id="0/work#1", attempt=4, result=result, ended_ms=report.ended_ms)
    return event(position, step_completed=completed)


def test_what_the_code_asks_for_goes_along_with_the_report() -> None:
    rig = opened_rig(awaiting(asks_for_more))
    report, request = both(rig)
    assert report.ended_ms == 1_000_002 + 7  # by the last event, and the time since
    assert [c.command_id for c in request.commands] == ["0/sleep#1"] and not request.ahead
    foretold = request.foretold
    assert (foretold.command_id, foretold.attempt, foretold.ended_ms) == ("0/work#1", 4, report.ended_ms)
    assert (request.seen, request.told) == (2, 2)
    rig.report_answer(b"a")
    rig.answer(request, events=[as_reported(report, result=None)], result_omitted=["0/work#1"])
    assert [e.position for e in rig.script.events] == [1, 2, 3] and rig.requests() == []
    assert rig.script.events[2].step_completed.result == RESULT and not rig.script.closed


def test_the_end_goes_along_with_the_report() -> None:
    rig = opened_rig(awaiting(ends(3, END)))
    _, request = both(rig)
    assert request.complete.result == END.result and request.foretold.attempt == 4 and not request.ahead
    rig.report_answer(b"a")
    rig.answer(request)
    assert rig.script.closed and not rig.held()


def test_a_local_step_that_follows_waits_for_the_event() -> None:
    def then(script: Script, fed: HistoryEvent) -> None:
        if fed.position == 3:
            script.turn.local_calls.append(local("m"))

    rig = opened_rig(awaiting(then))
    (frame,) = executed(rig)
    assert not frame.requests and rig.script.fed == 3 and rig.of(StartLocal) == []
    rig.news(b"t", as_reported(frame.reports[0]), length=3)
    (start,) = rig.of(StartLocal)
    assert start.call.command_id == "m"


def test_the_event_may_come_before_the_answer() -> None:
    rig = opened_rig(awaiting(asks_for_more))
    report, request = both(rig)
    rig.news(b"t", as_reported(report), length=3)
    assert rig.requests() == []
    rig.answer(request, events=[as_reported(report)])
    assert rig.script.fed == 3 and not rig.script.closed


def test_where_something_else_came_first_the_run_is_given_back() -> None:
    rig = opened_rig(awaiting(asks_for_more))
    _, request = both(rig)
    rig.answer(request, ANSWER_REWIND)
    given_back = rig.request()
    assert rig.script.closed and given_back.release.reason == "rewind" and given_back.seq == request.seq
    assert not given_back.commands and not given_back.HasField("foretold")


@pytest.mark.parametrize("first", [asks_for_more, lambda script, fed: None], ids=["said", "nothing said"])
def test_another_event_in_its_place_ends_the_code(first: Plan) -> None:
    rig = opened_rig(awaiting(first))
    (frame,) = executed(rig)
    rig.news(b"t", event(3, cancel_requested=CancelRequested(reason="enough")), length=3)
    if frame.requests:
        rig.answer(frame.requests[0], ANSWER_REWIND)
    assert rig.script.closed and rig.request().HasField("release")


def test_a_report_that_is_refused_has_the_owner_ask_for_what_stands_instead() -> None:
    rig = opened_rig(awaiting(lambda script, fed: None))
    executed(rig)
    assert rig.requests() == []
    rig.report_answer(b"a", ANSWER_LEASE_LOST)
    asks = rig.request()
    assert asks.foretold.attempt == 4 and not asks.commands
    rig.answer(asks, ANSWER_REWIND)
    assert rig.script.closed and rig.request().HasField("release")


def test_an_event_that_does_not_come_is_asked_for() -> None:
    """News may be lost, or go where the session was before; nothing else would bring this owner to speak."""
    rig = opened_rig(awaiting(lambda script, fed: None))
    rig.granted_run(b"t")
    rig.pass_ms(rig.settings.confirm_ms)
    (confirms,) = [request for sent in rig.sent for request in sent.requests]
    rig.answer(confirms)
    rig.sent.clear()
    rig.push(job(), b"a", attempt=4)
    assert rig.core.may_start(b"a", rig.now)
    rig.core.attempt_ended(b"a", Report("completed", result=RESULT), rig.now)
    reports = [report for frame in rig.frames() for report in frame.reports]
    rig.report_answer(b"a")
    rig.pass_ms(rig.settings.gap_ms - 1)
    assert not any(sent.requests for sent in rig.sent)
    rig.pass_ms(1)
    (asks,) = [request for sent in rig.sent for request in sent.requests]
    assert asks.foretold.attempt == 4
    rig.answer(asks, events=[as_reported(reports[0])])
    assert rig.script.fed == 3 and not rig.script.closed


def test_what_ends_a_local_step_follows_from_the_result_too() -> None:
    """A step that is cancelled in the turn in which it is asked for is said with nothing but a checkpoint."""

    def then(script: Script, fed: HistoryEvent) -> None:
        if fed.position == 3:
            script.turn.local_calls.append(local("m"))
            script.turn.local_ends.append(local("m"))

    rig = opened_rig(awaiting(then))
    _, request = both(rig)
    assert [c.command_id for c in request.checkpoints] == ["m"] and request.foretold.attempt == 4


def test_code_does_not_go_on_while_another_report_of_its_run_is_on_its_way() -> None:
    """That event comes first."""
    rig = opened_rig(awaiting(asks_for_more))
    rig.granted_run(b"t")
    for token, command_id in ((b"b", "0/slow#1"), (b"a", "0/work#1")):
        rig.push(job(command_id=command_id), token, attempt=4)
        assert rig.core.may_start(token, rig.now)
    rig.frames()
    rig.core.attempt_ended(b"b", Report("cancelled"), rig.now)
    (cancelled,) = rig.frames()
    rig.core.attempt_ended(b"a", Report("completed", result=RESULT), rig.now)
    (frame,) = rig.frames()
    assert cancelled.reports and frame.reports and not frame.requests and rig.script.fed == 2
    rig.report_answer(b"b")
    rig.push(job(), b"c", attempt=5)
    assert rig.core.may_start(b"c", rig.now)
    rig.report_answer(b"a")
    rig.core.attempt_ended(b"c", Report("completed", result=RESULT), rig.now)
    assert rig.request().foretold.attempt == 5


def test_a_run_that_was_misled_goes_on_by_events_for_a_minute() -> None:
    rig = opened_rig(awaiting(asks_for_more), step_slots=9, run_slots=9)
    _, request = both(rig)
    rig.answer(request, ANSWER_REWIND)
    rig.answer(rig.request())
    rig.report_answer(b"a")
    for token, passed_ms, says in ((b"2", 59_000, 0), (b"3", 1_001, 1)):
        rig.granted_run(b"t" + token)
        rig.now += passed_ms
        rig.frames()
        rig.push(job(), token, attempt=4)
        assert rig.core.may_start(token, rig.now)
        rig.core.attempt_ended(token, Report("completed", result=RESULT), rig.now)
        foretold = [r for frame in rig.frames() for r in frame.requests if r.HasField("foretold")]
        assert len(foretold) == says
        rig.report_answer(token)


def test_a_new_session_brings_both_again_the_report_first() -> None:
    rig = opened_rig(awaiting(asks_for_more))
    report, request = both(rig)
    rig.reconnect()
    (frame,) = rig.frames()
    assert list(frame.reports) == [report] and list(frame.requests) == [request]


def test_no_request_overtakes_its_report() -> None:
    """A report for which there is no room in the frame takes what follows from it along into the next."""
    rig = opened_rig(awaiting(asks_for_more), step_slots=10)
    big = Payload(data=b"x" * (700 << 10))
    rig.granted_run(b"t")
    for token, mine in ((b"8", step_job(8)), (b"a", job())):
        rig.push(mine, token, attempt=4)
        assert rig.core.may_start(token, rig.now)
    rig.frames()
    for token in (b"8", b"a"):
        rig.core.attempt_ended(token, Report("completed", result=big), rig.now)
    frames = rig.frames()
    at = {}
    for index, frame in enumerate(frames):
        at.update({("report", report.token): index for report in frame.reports})
        at.update({("request", request.token): index for request in frame.requests})
    assert len(frames) > 1 and at["request", b"t"] >= at["report", b"a"] > at["report", b"8"]


def test_code_that_diverges_by_it_says_nothing_until_the_event_is_there() -> None:
    def then(script: Script, fed: HistoryEvent) -> None:
        if fed.position == 3:
            script.divergence = Divergence("a", "b")

    rig = opened_rig(awaiting(then))
    (frame,) = executed(rig)
    assert not frame.requests
    rig.news(b"t", as_reported(frame.reports[0]), length=3)
    assert rig.request().diverged.found == "b"


def test_it_is_no_rest() -> None:
    """Code that waits for nothing that it has said is not parked before its event was read, however much room is wanted."""
    rig = opened_rig(awaiting(lambda script, fed: None), run_slots=1)
    (frame,) = executed(rig)
    rig.receive(run_job_waits=True)
    assert rig.requests() == []
    rig.news(b"t", as_reported(frame.reports[0]), length=3)
    assert rig.request().HasField("park")


@pytest.mark.parametrize("kind", ["failed", "released", "cancelled", "deferred"])
def test_only_results_are_foretold(kind: str) -> None:
    rig = opened_rig(awaiting(asks_for_more))
    (frame,) = executed(rig, replace(Report("completed"), kind=kind))  # type: ignore[arg-type]
    assert not frame.requests and not frame.reports[0].ended_ms and rig.script.fed == 2


def _waits_for_more(rig: Rig) -> None:
    rig.script.awaited = ""


def _has_news(rig: Rig) -> None:
    rig.news(b"t", length=3)


def _drains(rig: Rig) -> None:
    rig.core.drain(rig.now)


@pytest.mark.parametrize("meanwhile", [_waits_for_more, _has_news, _drains])
def test_where_more_is_waited_for_or_known_the_report_goes_alone(meanwhile: object) -> None:
    rig = opened_rig(awaiting(asks_for_more))
    rig.granted_run(b"t")
    rig.push(job(), b"a", attempt=4)
    assert rig.core.may_start(b"a", rig.now)
    rig.frames()
    meanwhile(rig)  # type: ignore[operator]
    rig.core.attempt_ended(b"a", Report("completed", result=RESULT), rig.now)
    frames = rig.frames()
    assert sum(len(frame.reports) for frame in frames) == 1 and rig.script.fed == 2
    assert not any(request.HasField("foretold") for frame in frames for request in frame.requests)


def test_a_request_that_is_not_answered_yet_is_not_gone_beyond() -> None:
    rig = opened_rig(awaiting(asks_for_more))
    rig.granted_run(b"t")
    rig.push(job(), b"a", attempt=4)
    assert rig.core.may_start(b"a", rig.now)
    rig.reconnect()
    assert rig.requests()  # says where it is, and waits for the answer
    rig.core.attempt_ended(b"a", Report("completed", result=RESULT), rig.now)
    (frame,) = rig.frames()
    assert frame.reports and not frame.requests and rig.script.fed == 2


@pytest.mark.parametrize("other", [{"incarnation": 8}, {"run_id": "q"}], ids=["another start", "another run"])
def test_only_its_own_run_goes_on(other: dict[str, object]) -> None:
    rig = opened_rig(awaiting(asks_for_more))
    rig.granted_run(b"t")
    rig.push(job(**other), b"a")
    assert rig.core.may_start(b"a", rig.now)
    rig.frames()
    rig.core.attempt_ended(b"a", Report("completed", result=RESULT), rig.now)
    (frame,) = rig.frames()
    assert frame.reports and not frame.requests and rig.script.fed == 2


def test_a_worker_that_always_replays_goes_on_by_events_alone() -> None:
    rig = opened_rig(awaiting(asks_for_more), always_replay=True)
    (frame,) = executed(rig)
    assert frame.reports and not frame.requests
