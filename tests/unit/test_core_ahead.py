"""Code that is fed a local result ahead of its event: what is said then, what waits, and what happens when it was not so."""

from __future__ import annotations

import pytest
from tests.unit.core_rig import Plan, Rig, Script, ends, event, local, opened_rig, timer

from treadle.v1.common_pb2 import Payload
from treadle.v1.history_pb2 import CancelRequested, HistoryEvent, StepCompleted
from treadle.v1.worker_service_pb2 import ANSWER_NEWS, ANSWER_OK, ANSWER_REWIND, OwnerRequest
from treadle.worker.core.port import Report, StartLocal
from treadle.worker.loop.port import Outcome, Waits

END = Outcome(result=Payload(data=b'"end"'))


def one_step(then: Plan) -> Plan:
    """A plan that asks for a local step at the first event, waits for it alone, and goes on with `then`."""

    def plan(script: Script, fed: HistoryEvent) -> None:
        script.waiting = Waits(0, 1, 0, None)
        if fed.position == 1:
            script.turn.local_calls.append(local())
        then(script, fed)

    return plan


def ended_step(rig: Rig, run_id: str = "r", token: bytes = b"t") -> OwnerRequest:
    """Open a run and execute its step; returns the request that says the result."""
    rig.granted_run(token, run_id)
    (start,) = rig.of(StartLocal)
    assert rig.core.may_start_local(token, start.call.command_id, rig.now)
    rig.now += 7
    rig.core.local_ended(token, "l", Report("completed", result=Payload(data=b"42"), duration_ms=7), rig.now)
    return rig.request()


def as_said(request: OwnerRequest, position: int = 3) -> HistoryEvent:
    """The event that the store made of a checkpoint, as it comes in the answer."""
    (told,) = request.checkpoints
    return event(
        position,
        step_completed=StepCompleted(
            command_id=told.command_id, result=told.result, local=True, ended_ms=told.ended_ms, attempt=9
        ),
    )


def known_end(rig: Rig) -> None:
    """A run of the workflow that ended by its third event."""
    first = ended_step(rig, "r0", b"t0")
    rig.answer(first, events=[as_said(first)])
    rig.answer(rig.request())
    rig.drained()


def test_the_end_goes_along_with_the_last_result() -> None:
    rig = opened_rig(one_step(ends(3, END)))
    known_end(rig)
    request = ended_step(rig)
    assert request.ahead and request.complete.result == END.result and (request.seen, request.told) == (2, 2)
    assert request.checkpoints[0].ended_ms == 1_000_002 + 7  # by the last event, and the time since
    rig.answer(request)
    assert not rig.held() and rig.script.closed


def test_where_runs_did_not_end_the_result_goes_first() -> None:
    rig = opened_rig(one_step(ends(3, END)))
    request = ended_step(rig)
    assert not request.WhichOneof("final") and rig.script.fed == 2
    rig.core.go_ahead()
    assert rig.script.fed == 3 and rig.requests() == []
    rig.answer(request, events=[as_said(request)])
    end = rig.request()
    assert end.complete.result == END.result and not end.ahead and (end.seen, end.told) == (3, 3)


@pytest.mark.parametrize("early", [True, False])
def test_what_the_code_asks_for_waits_for_the_event(early: bool) -> None:
    def then(script: Script, fed: HistoryEvent) -> None:
        if fed.position == 3:
            script.turn.local_calls.append(local("m"))
            script.turn.commands.append(timer())

    rig = opened_rig(one_step(then))
    request = ended_step(rig)
    assert rig.core.may_go_ahead
    if early:
        rig.core.go_ahead()
        rig.core.go_ahead()
        assert rig.script.fed == 3
    assert rig.of(StartLocal) == [] and rig.requests() == []
    rig.answer(request, events=[as_said(request)])
    rig.core.go_ahead()  # too late: nothing
    (asked,) = rig.requests()
    assert [c.command_id for c in asked.commands] == ["0/sleep#1"] and asked.seen == 3
    assert [e.position for e in rig.script.events] == [1, 2, 3]  # not fed again


def test_the_answer_may_come_before_there_was_time() -> None:
    rig = opened_rig(one_step(lambda script, fed: None))
    request = ended_step(rig)
    rig.answer(request, events=[as_said(request)])
    assert rig.script.events[2].revision == 103
    rig.core.go_ahead()
    assert rig.script.fed == 3


@pytest.mark.parametrize("ahead", [True, False], ids=["end was said", "result was said"])
def test_where_something_else_came_first_the_code_is_dropped_and_the_run_given_back(ahead: bool) -> None:
    rig = opened_rig(one_step(ends(3, END)))
    if ahead:
        known_end(rig)
    request = ended_step(rig)
    rig.core.go_ahead()
    cancel = event(3, cancel_requested=CancelRequested(reason="enough"))
    rig.answer(request, ANSWER_NEWS if ahead else ANSWER_OK, events=[cancel, as_said(request, 4)])
    given_back = rig.request()
    assert rig.script.closed and given_back.HasField("release") and not given_back.checkpoints


def test_an_answer_without_the_event_ends_what_was_told_ahead() -> None:
    rig = opened_rig(one_step(lambda script, fed: None))
    request = ended_step(rig)
    rig.core.go_ahead()
    rig.answer(request)
    assert rig.script.closed and rig.request().HasField("release")


def test_an_event_that_comes_later_is_waited_for() -> None:
    rig = opened_rig(one_step(ends(3, END)))
    request = ended_step(rig)
    rig.core.go_ahead()
    rig.answer(request, position=3, revision=103)
    assert rig.requests() == []
    rig.news(b"t", as_said(request), length=3)
    assert rig.request().complete.result == END.result


def test_a_rewind_and_a_new_session_leave_nothing_behind() -> None:
    rig = opened_rig(one_step(ends(3, END)))
    known_end(rig)
    request = ended_step(rig)
    rig.reconnect()
    again = rig.request()
    assert (again.seq, again.ahead, again.checkpoints) == (request.seq, True, request.checkpoints)
    rig.answer(again, ANSWER_REWIND)
    assert rig.script.closed and rig.request().HasField("release")


@pytest.mark.parametrize("waits", [Waits(1, 1, 0, None), Waits(0, 2, 0, None), Waits(0, 1, 1, 5)])
def test_code_that_waits_for_more_is_not_told_ahead(waits: Waits) -> None:
    rig = opened_rig(one_step(lambda script, fed: setattr(script, "waiting", waits)))
    request = ended_step(rig)
    assert not rig.core.may_go_ahead and not request.checkpoints[0].ended_ms


def test_a_worker_that_drains_or_replays_always_tells_nothing_ahead() -> None:
    replays = opened_rig(one_step(lambda script, fed: None), always_replay=True)
    ended_step(replays)
    assert not replays.core.may_go_ahead
