"""Local steps of an open run (R2, A4, A8, A9)."""

from __future__ import annotations

import pytest
from tests.unit.core_rig import (
    Rig,
    Script,
    asks,
    asks_local,
    attempt_failed,
    completed,
    event,
    local,
    local_started,
    opened,
    opened_rig,
    run_job,
    started,
    timer,
)

from treadle.v1.common_pb2 import FAILURE_KIND_CANCELLED, Failure, Payload
from treadle.v1.history_pb2 import StepFailed, StepRetried, TimerStarted
from treadle.v1.worker_service_pb2 import (
    REPORT_KIND_COMPLETED,
    REPORT_KIND_FAILED,
    REPORT_KIND_LOST,
    OwnerRequest,
    RunGrant,
)
from treadle.worker.core.port import CancelLocal, Report, StartLocal


def done(data: bytes = b"1") -> Report:
    return Report("completed", result=Payload(data=data), duration_ms=3)


def sent_requests(rig: Rig) -> list[OwnerRequest]:
    requests = [r for frame in rig.sent for r in frame.requests]
    rig.sent.clear()
    return requests


def running(rig: Rig, command_id: str = "l") -> Rig:
    assert [s.call.command_id for s in rig.of(StartLocal)] == [command_id]
    assert rig.core.may_start_local(b"t", command_id, rig.now)
    return rig


def test_r2_a_local_step_is_offered_with_the_right_of_the_go() -> None:
    rig = opened_rig(asks_local(1))
    rig.granted_run()
    (start,) = rig.of(StartLocal)
    assert (start.owner_token, start.run_id, start.incarnation, start.attempt, start.alone) == (b"t", "r", 7, 1, False)
    assert rig.core.may_start_local(b"t", "l", rig.now + 3999)
    assert not rig.core.may_start_local(b"t", "l", rig.now)  # once
    assert not rig.core.may_start_local(b"?", "l", rig.now)
    assert not rig.core.may_start_local(b"t", "?", rig.now)


def test_r2_the_last_check_refuses_when_the_right_is_over_and_a_request_renews_it() -> None:
    rig = opened_rig(asks_local(1))
    rig.granted_run()
    rig.of(StartLocal)
    rig.now += 4000
    assert not rig.core.may_start_local(b"t", "l", rig.now)
    rig.core.local_refused(b"t", "l", rig.now)
    assert rig.of(StartLocal) == []
    empty = rig.request()
    assert not empty.commands and not empty.checkpoints and empty.WhichOneof("final") is None
    rig.now += 100
    rig.answer(empty)
    (start,) = rig.of(StartLocal)
    assert start.call.command_id == "l"
    assert not rig.core.may_start_local(b"t", "l", rig.now + 3900)  # it counts from the send time
    assert rig.core.may_start_local(b"t", "l", rig.now + 3899)


def test_r2_a_go_read_late_asks_first() -> None:
    rig = opened_rig(asks_local(1))
    rig.granted_run(sent_ms=rig.now - 4000)
    assert rig.of(StartLocal) == []
    rig.answer(rig.request())
    running(rig)


def test_r2_the_end_of_the_session_voids_the_right_until_the_next_answer() -> None:
    rig = opened_rig(asks_local(1))
    rig.granted_run()
    rig.of(StartLocal)
    rig.reconnect()
    assert not rig.core.may_start_local(b"t", "l", rig.now)
    rig.core.local_refused(b"t", "l", rig.now)
    rig.answer(rig.request())
    running(rig)


def test_a_failure_brings_what_the_step_said_last() -> None:
    rig = running(_granted())
    rig.core.local_ended(b"t", "l", Report("failed", failure=Failure(type="X"), progress=Payload(data=b"7")), rig.now)
    (checkpoint,) = rig.request().checkpoints
    assert checkpoint.progress == Payload(data=b"7")


def test_a_result_needs_no_last_word() -> None:
    rig = running(_granted())
    rig.core.local_ended(
        b"t", "l", Report("completed", result=Payload(data=b"1"), progress=Payload(data=b"7")), rig.now
    )
    (checkpoint,) = rig.request().checkpoints
    assert not checkpoint.HasField("progress")


def _granted() -> Rig:
    rig = opened_rig(asks_local(1))
    rig.granted_run()
    return rig


def test_r2_it_starts_only_after_the_commands_before_it_were_answered() -> None:
    def ask(script: Script) -> None:
        script.turn.commands.append(timer())
        script.turn.local_calls.append(local())

    rig = opened_rig(asks({1: ask}))
    rig.granted_run()
    assert rig.of(StartLocal) == []
    rig.answer(rig.request(), position=3, revision=103)
    assert rig.of(StartLocal) == []  # the event is known of and not fed
    rig.news(b"t", event(3, timer_started=TimerStarted(command_id="0/sleep#1")))
    running(rig)


def test_r2_it_does_not_wait_for_commands_that_come_after_it() -> None:
    def both(script: Script) -> None:
        script.turn.commands.append(timer("a"))
        script.turn.local_calls.append(local())

    plan = asks(
        {
            1: both,
            3: lambda s: s.turn.commands.append(timer("b")),
        }
    )
    rig = opened_rig(plan)
    rig.granted_run()
    rig.answer(rig.request(), events=[event(3)])
    running(rig)
    assert [c.command_id for c in rig.request().commands] == ["b"]


def test_r2_it_waits_for_a_gap_in_what_is_known() -> None:
    rig = opened_rig(asks_local(1))
    rig.push(run_job(), b"t", run=RunGrant(events=[started(), opened(2)], length=3, from_start=True))
    assert rig.of(StartLocal) == []
    rig.news(b"t", event(3))
    running(rig)


def test_a_checkpoint_carries_the_outcome_and_the_event_is_fed_at_its_position() -> None:
    rig = opened_rig(asks_local(1))
    script = rig.granted_run()
    running(rig)
    rig.core.local_ended(b"t", "l", done(b"42"), rig.now)
    request = rig.request()
    (checkpoint,) = request.checkpoints
    assert (checkpoint.command_id, checkpoint.digest, checkpoint.name, checkpoint.try_number) == ("l", 5, "notify", 1)
    assert (checkpoint.kind, checkpoint.result.data, checkpoint.duration_ms) == (REPORT_KIND_COMPLETED, b"42", 3)
    assert len(script.events) == 2  # not before it is committed
    rig.answer(request, events=[completed(3, result=b"")], result_omitted=["l"])
    assert script.events[-1].step_completed.result.data == b"42"
    rig.core.local_ended(b"t", "l", done(), rig.now)  # told twice
    assert rig.requests() == []


def test_a_failed_try_carries_its_policy_and_the_next_try_is_a_call_of_its_own() -> None:
    plan = asks(
        {
            1: lambda s: s.turn.local_calls.append(local()),
            4: lambda s: s.turn.local_calls.append(local(try_number=2)),
        }
    )
    rig = opened_rig(plan)
    rig.granted_run()
    running(rig)
    failure = Failure(type="ValueError", message="no")
    rig.core.local_ended(b"t", "l", Report("failed", failure=failure, retry_after_ms=7), rig.now)
    request = rig.request()
    (checkpoint,) = request.checkpoints
    assert (checkpoint.kind, checkpoint.failure, checkpoint.retry_after_ms) == (REPORT_KIND_FAILED, failure, 7)
    assert checkpoint.retry.attempts == 3
    rig.answer(request, events=[attempt_failed(3)])
    assert rig.of(StartLocal) == []
    rig.news(b"t", event(4, step_retried=StepRetried(command_id="l", try_number=2)))
    (start,) = rig.of(StartLocal)
    assert (start.call.try_number, start.attempt) == (2, 2)


@pytest.mark.parametrize("alone", [False, True])
def test_a9_a8_a_start_that_must_leave_a_trace_is_committed_first(alone: bool) -> None:
    rig = opened_rig(asks_local(1, local(at_most_once=not alone)))
    rig.granted_run(alone=alone)
    assert rig.of(StartLocal) == []
    request = rig.request()
    (command,) = request.commands
    spec = command.start_local_step
    assert (command.command_id, command.digest, spec.name, spec.try_number) == ("l", 5, "notify", 1)
    assert spec.at_most_once is not alone
    rig.answer(request, position=3, revision=103)
    assert rig.of(StartLocal) == []  # its event is known of and not fed yet
    rig.news(b"t", local_started(3, attempt=4))
    (start,) = rig.of(StartLocal)
    assert (start.attempt, start.alone) == (4, alone)


def test_a9_a_refused_start_is_not_announced_twice() -> None:
    rig = opened_rig(asks_local(1, local(at_most_once=True)))
    rig.granted_run()
    rig.answer(rig.request(), events=[local_started(3)])
    rig.of(StartLocal)
    rig.now += 4000
    assert not rig.core.may_start_local(b"t", "l", rig.now)
    rig.core.local_refused(b"t", "l", rig.now)
    empty = rig.request()
    assert not empty.commands
    rig.answer(empty)
    running(rig)


@pytest.mark.parametrize("kind", ["released", "lost"])
def test_a9_a_started_at_most_once_step_that_was_cut_off_is_lost(kind: str) -> None:
    rig = opened_rig(asks_local(1, local(at_most_once=True)))
    rig.granted_run()
    rig.answer(rig.request(), events=[local_started(3)])
    running(rig)
    rig.core.local_ended(b"t", "l", Report(kind), rig.now)  # type: ignore[arg-type]
    assert [c.kind for c in rig.request().checkpoints] == [REPORT_KIND_LOST]


def test_a_released_step_is_offered_again() -> None:
    rig = opened_rig(asks_local(1))
    rig.granted_run()
    running(rig)
    rig.core.local_ended(b"t", "l", Report("released"), rig.now)
    running(rig)


def test_a_step_that_nobody_waits_for_is_cut_off_or_never_offered() -> None:
    plan = asks(
        {
            1: lambda s: s.turn.local_calls.extend([local("a"), local("b")]),
            3: lambda s: s.turn.local_cancels.extend(["a", "b", "unknown"]),
        }
    )
    rig = opened_rig(plan)
    rig.granted_run()
    assert len(rig.of(StartLocal)) == 2
    rig.core.may_start_local(b"t", "a", rig.now)
    rig.news(b"t", event(3))
    assert rig.of(CancelLocal) == [CancelLocal(b"t", "a", "cancelled"), CancelLocal(b"t", "b", "cancelled")]
    assert not rig.core.may_start_local(b"t", "b", rig.now)
    rig.core.local_refused(b"t", "b", rig.now)
    rig.core.local_ended(b"t", "a", Report("cancelled"), rig.now)
    assert rig.of(StartLocal) == []
    assert all(not r.checkpoints for r in rig.requests())


def test_a_cancelled_step_that_completed_all_the_same_is_recorded() -> None:
    plan = asks({1: lambda s: s.turn.local_calls.append(local()), 3: lambda s: s.turn.local_cancels.append("l")})
    rig = opened_rig(plan)
    rig.granted_run()
    running(rig)
    rig.news(b"t", event(3))
    rig.core.local_ended(b"t", "l", done(), rig.now)
    assert [c.kind for c in rig.request().checkpoints] == [REPORT_KIND_COMPLETED]


def test_a_step_cancelled_by_nobody_is_a_failure() -> None:
    rig = opened_rig(asks_local(1))
    rig.granted_run()
    running(rig)
    rig.core.local_ended(b"t", "l", Report("cancelled"), rig.now)
    (checkpoint,) = rig.request().checkpoints
    assert (checkpoint.kind, checkpoint.failure.kind) == (REPORT_KIND_FAILED, FAILURE_KIND_CANCELLED)


def test_a_step_that_the_history_settles_is_cut_off() -> None:
    rig = opened_rig(asks_local(1))
    rig.granted_run()
    running(rig)
    rig.news(b"t", event(3, step_failed=StepFailed(command_id="l", local=True)))
    assert rig.of(CancelLocal) == [CancelLocal(b"t", "l", "settled")]
    rig.core.local_ended(b"t", "l", done(), rig.now)
    assert all(not r.checkpoints for r in rig.requests())


def test_checkpoints_of_neighbours_go_up_together() -> None:
    rig = opened_rig(asks_local(1, local("a"), local("b"), local("c")))
    rig.granted_run()
    assert len(rig.of(StartLocal)) == 3
    for name in "abc":
        rig.core.may_start_local(b"t", name, rig.now)
        rig.core.local_ended(b"t", name, done(), rig.now)
    request = rig.request()
    assert [c.command_id for c in request.checkpoints] == ["a", "b", "c"]


def test_r2_each_step_waits_for_its_own_commands() -> None:
    def both(script: Script) -> None:
        script.turn.commands.append(timer(f"t{script.fed}"))
        script.turn.local_calls.append(local(f"l{script.fed}"))

    rig = opened_rig(asks({1: both, 4: both}))
    rig.granted_run()
    rig.answer(rig.request(), events=[event(3)])
    running(rig, "l1")
    rig.news(b"t", event(4))
    assert rig.of(StartLocal) == []
    rig.answer(rig.request(), events=[event(5)])
    running(rig, "l4")
