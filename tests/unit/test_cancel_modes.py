"""What happens to a step whose caller is cancelled, and what a run's timeout does to its code: as the code sees it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.replay.feeder import Feeder
from tests.unit.core_rig import Rig, asks, event, local, opened_rig

from treadle.protocol.errors import ConfigError
from treadle.v1 import history_pb2 as h
from treadle.v1.common_pb2 import (
    FAILURE_KIND_STEP_TIMED_OUT,
    ON_CANCEL_ABANDON,
    ON_CANCEL_WAIT,
    Failure,
    Payload,
)
from treadle.v1.worker_service_pb2 import REPORT_KIND_CANCELLED, REPORT_KIND_COMPLETED, REPORT_KIND_FAILED
from treadle.worker import step, workflow
from treadle.worker.core.port import CancelLocal, Report, StartLocal
from treadle.worker.loop.port import LocalCall
from treadle.worker.steps import Step


async def body(x: int) -> int:
    return x


def a_step(mode: Any, pool: str | None = "p") -> Step[[int], int]:
    return Step(body, name="work", pool=pool, on_cancel=mode)


STEPS = {(mode, pool): a_step(mode, pool) for mode in ("try", "wait", "abandon") for pool in ("p", None)}


@step
def cleanup(text: str) -> str:
    return text


@workflow
async def calls(mode: str, pool: str | None) -> str:
    try:
        return f"returned {await STEPS[mode, pool](1)}"
    finally:
        await cleanup("done")


@workflow
async def bounded(mode: str) -> str:
    try:
        async with asyncio.timeout(10):
            return f"returned {await STEPS[mode, 'p'](1)}"
    except TimeoutError:
        return "too late"


def kinds(run: Feeder) -> list[str]:
    """What the code asks for, in words; pool steps are recorded at once."""
    turn = run.take()
    said = [f"{c.WhichOneof('kind')} {c.command_id}" for c in turn.commands]
    for command in turn.commands:
        if command.WhichOneof("kind") != "cancel":
            run.record(command)
    said += [f"start {c.command_id}" for c in turn.local_calls]
    said += [f"cut {command_id}" for command_id in turn.local_cancels]
    return said + [f"end {c.command_id}" for c in turn.local_ends]


def cancel(run: Feeder, reason: str = "enough") -> None:
    run.feed(cancel_requested=h.CancelRequested(reason=reason))


CLEANUP = "start 0/cleanup#1"
WORK = "0/work#1"


@pytest.mark.parametrize(
    ("mode", "pool", "said"),
    [
        ("try", "p", [f"cancel {WORK}", CLEANUP]),
        ("try", None, [CLEANUP, f"cut {WORK}"]),
        ("abandon", "p", [CLEANUP]),
        ("abandon", None, [CLEANUP]),
    ],
)
def test_the_code_goes_on_at_once(mode: str, pool: str | None, said: list[str]) -> None:
    run = Feeder(calls, mode, pool)
    assert len(kinds(run)) == 1
    cancel(run)
    assert kinds(run) == said
    assert run.execution.outcome is None


@pytest.mark.parametrize("pool", ["p", None])
@pytest.mark.parametrize("how", ["cancelled", "completed", "failed"])
def test_the_code_goes_on_when_the_step_has_ended(pool: str | None, how: str) -> None:
    run = Feeder(calls, "wait", pool)
    assert len(kinds(run)) == 1
    (ask,) = run.execution._ledger._asks.values()
    cancel(run)
    assert kinds(run) == [f"cancel {WORK}" if pool else f"end {WORK}"]
    cancel(run, "again")
    assert kinds(run) == [], "once for one request"
    common: dict[str, Any] = {"command_id": WORK, "digest": ask.digest, "local": pool is None}
    if how == "cancelled":
        run.feed(step_cancelled=h.StepCancelled(**common))
    elif how == "completed":
        run.feed(step_completed=h.StepCompleted(result=Payload(data=b"1"), **common))
    else:
        run.feed(step_failed=h.StepFailed(failure=Failure(type="Boom"), **common))
    assert kinds(run) == [CLEANUP], "CancelledError, whatever became of the step: a cancel is not lost"
    (ask,) = run.execution._ledger._asks.values()
    run.complete("0/cleanup#1", "done", local=True, digest=ask.digest)
    assert run.execution.outcome is not None and run.execution.outcome.cancelled


@pytest.mark.parametrize(("mode", "at_once"), [("try", True), ("wait", False)])
def test_a_timeout_in_the_code_waits_as_it_says(mode: str, at_once: bool) -> None:
    run = Feeder(bounded, mode)
    assert kinds(run) == ["start_timer 0/timer#1", f"schedule_step {WORK}"]
    run.feed(timer_fired=h.TimerFired(command_id="0/timer#1"))
    assert kinds(run) == ([] if at_once else [f"cancel {WORK}"])
    if not at_once:
        assert run.execution.outcome is None
        run.complete(WORK, 1)
    assert run.result() == "too late"


def test_a_cancel_recorded_before_the_step_it_cuts_off_is_replayed_alike() -> None:
    """The cancel was committed while the command was on its way: a replay meets them in that order."""
    for mode, said in (("try", [f"cancel {WORK}", CLEANUP]), ("wait", [f"cancel {WORK}"]), ("abandon", [CLEANUP])):
        run = Feeder(calls, mode, "p")
        (command,) = Feeder(calls, mode, "p").take().commands
        cancel(run)
        run.record(command)
        assert sorted(kinds(run)) == sorted(said), mode


def test_the_history_says_how_a_step_was_asked_for() -> None:
    """The code says "try" today; the step was recorded as one whose end is waited for."""
    run = Feeder(calls, "try", "p")
    (command,) = run.take().commands
    command.schedule_step.on_cancel = ON_CANCEL_WAIT
    run.record(command)
    cancel(run)
    assert kinds(run) == [f"cancel {WORK}"]


def test_a_mode_travels_with_the_command() -> None:
    for mode, wire in (("try", 0), ("wait", ON_CANCEL_WAIT), ("abandon", ON_CANCEL_ABANDON)):
        (command,) = Feeder(calls, mode, "p").take().commands
        assert command.schedule_step.on_cancel == wire


def test_what_was_left_running_does_not_hold_up_the_end() -> None:
    run = Feeder(calls, "abandon", "p")
    kinds(run)
    cancel(run)
    kinds(run)
    (ask,) = [ask for ask in run.execution._ledger._asks.values() if ask.name == "cleanup"]
    run.complete("0/cleanup#1", "done", local=True, digest=ask.digest)
    assert run.execution.outcome is not None and run.execution.outcome.cancelled


# --- a run's timeout -------------------------------------------------------------------------------------------------------
@workflow(timeout="90s")
async def limited() -> str:
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError as error:
        await cleanup(str(error))
        raise
    return "never"


def test_a_run_s_timeout_is_raised_once_and_says_what_it_is() -> None:
    run = Feeder(limited)
    kinds(run)
    run.feed(run_timed_out=h.RunTimedOut(timeout_ms=90_000, raised=True))
    (call,) = run.take().local_calls
    assert b"timeout of 1 m 30 s is over" in call.input.data
    cancel(run)
    run.feed(run_timed_out=h.RunTimedOut(timeout_ms=90_000, raised=True))
    assert kinds(run) == []
    run.complete("0/cleanup#1", "", local=True, digest=call.digest)
    assert run.execution.outcome is not None and run.execution.outcome.cancelled


def test_what_is_being_cancelled_is_not_interrupted_again() -> None:
    run = Feeder(limited)
    kinds(run)
    cancel(run)
    assert "start 0/cleanup#1" in kinds(run)
    run.feed(run_timed_out=h.RunTimedOut(timeout_ms=90_000))
    assert kinds(run) == [] and run.execution.outcome is None


def test_the_first_request_of_an_owner_says_what_its_code_asks_for() -> None:
    rig = opened_rig(asks({}), run_timeouts={"flow": 90_000})
    rig.granted_run()
    rig.pass_ms(1_000)
    first = next(r for frame in rig.sent for r in frame.requests)
    assert first.run_timeout_ms == 90_000
    rig.answer(first)
    rig.sent.clear()
    rig.core.drain(rig.now)
    assert [r.run_timeout_ms for r in rig.requests()] == [0]


def test_a_try_that_failed_while_it_was_to_end_is_not_the_end() -> None:
    """Its failure was on its way when the code was cancelled: no further try is wanted, but still an end."""
    run = Feeder(calls, "wait", None)
    kinds(run)
    (ask,) = run.execution._ledger._asks.values()
    cancel(run)
    assert kinds(run) == [f"end {WORK}"]
    run.feed(attempt_failed=h.AttemptFailed(command_id=WORK, digest=ask.digest, try_number=1, local=True))
    assert kinds(run) == [f"end {WORK}"]
    run.feed(step_retried=h.StepRetried(command_id=WORK, try_number=2))
    assert kinds(run) == []
    run.feed(step_cancelled=h.StepCancelled(command_id=WORK, digest=ask.digest, local=True))
    assert kinds(run) == [CLEANUP]


# --- the core: local steps whose end is waited for -------------------------------------------------------------------------
def ends_local(command_id: str = "l", *, at: int = 3) -> Rig:
    rig = opened_rig(
        asks(
            {
                1: lambda s: s.turn.local_calls.append(local(command_id)),
                at: lambda s: s.turn.local_ends.append(local(command_id)),
            }
        )
    )
    rig.granted_run()
    return rig


def tell(rig: Rig) -> None:
    rig.news(b"t", event(3, cancel_requested=h.CancelRequested()))


def test_a_local_step_that_runs_is_cut_off_and_its_end_recorded() -> None:
    for report, kind in (
        (Report("cancelled"), REPORT_KIND_CANCELLED),
        (Report("failed", failure=Failure(type="Boom")), REPORT_KIND_CANCELLED),
        (Report("completed", result=Payload(data=b"1")), REPORT_KIND_COMPLETED),
    ):
        rig = ends_local()
        assert rig.of(StartLocal) and rig.core.may_start_local(b"t", "l", rig.now)
        tell(rig)
        assert rig.of(CancelLocal) == [CancelLocal(b"t", "l", "cancelled")]
        assert not any(request.checkpoints for request in rig.requests())
        rig.core.local_ended(b"t", "l", report, rig.now)
        rig.pass_ms(1_000)
        (told,) = [c for frame in rig.sent for request in frame.requests for c in request.checkpoints]
        assert told.kind == kind


def test_what_has_ended_is_not_ended_again() -> None:
    rig = ends_local()
    assert rig.of(StartLocal) and rig.core.may_start_local(b"t", "l", rig.now)
    rig.core.local_ended(b"t", "l", Report("failed", failure=Failure(type="Boom")), rig.now)
    (failed,) = [c for request in rig.requests() for c in request.checkpoints]
    tell(rig)
    assert failed.kind == REPORT_KIND_FAILED and not any(request.checkpoints for request in rig.requests())


def test_a_local_step_that_had_not_begun_is_recorded_as_cancelled_at_once() -> None:
    rig = ends_local()
    assert rig.of(StartLocal)  # offered, and its last check has not come
    tell(rig)
    (told,) = [c for request in rig.requests() for c in request.checkpoints]
    assert (told.command_id, told.kind, told.digest) == ("l", REPORT_KIND_CANCELLED, 5)
    assert not rig.core.may_start_local(b"t", "l", rig.now)


def test_a_new_owner_does_not_start_what_is_to_end() -> None:
    """The replay asks for the step and for its end in one go."""
    rig = opened_rig(asks({1: lambda s: s.turn.local_ends.append(local())}))
    rig.granted_run()
    assert rig.of(StartLocal) == []
    (told,) = [c for request in rig.requests() for c in request.checkpoints]
    assert told.kind == REPORT_KIND_CANCELLED


def limited_local(deadline_ms: int) -> LocalCall:
    call = local()
    call.total_timeout_ms, call.deadline_ms = 30_000, deadline_ms
    return call


def test_a_local_step_is_told_what_is_left_of_its_total_timeout() -> None:
    rig = opened_rig(asks({1: lambda s: s.turn.local_calls.append(limited_local(1_000_002 + 7_000))}))
    rig.granted_run()  # the last event it was fed is of 1,000,002
    (start,) = rig.of(StartLocal)
    assert start.left_ms == 7_000
    assert rig.core.may_start_local(b"t", "l", rig.now)
    rig.core.local_ended(b"t", "l", Report("failed", failure=Failure(type="Boom")), rig.now)
    (told,) = [c for request in rig.requests() for c in request.checkpoints]
    assert (told.deadline_ms, told.total_timeout_ms) == (1_007_002, 30_000)


def test_a_local_step_whose_time_is_over_does_not_start() -> None:
    rig = opened_rig(asks({1: lambda s: s.turn.local_calls.append(limited_local(1_000_002))}))
    rig.granted_run()
    assert rig.of(StartLocal) == []
    (told,) = [c for request in rig.requests() for c in request.checkpoints]
    assert told.kind == REPORT_KIND_FAILED and told.failure.kind == FAILURE_KIND_STEP_TIMED_OUT
    assert told.deadline_ms == 1_000_002


# --- decorators ------------------------------------------------------------------------------------------------------------
def test_what_a_step_may_say_of_its_limits() -> None:
    made: Step[..., Any] = Step(body, pool="p", timeout="1s", total_timeout="1m", queue_timeout=2.5, on_cancel="wait")
    assert (made.total_timeout_ms, made.queue_timeout_ms, made.on_cancel, made.limited) == (
        60_000,
        2_500,
        ON_CANCEL_WAIT,
        True,
    )
    assert not Step(body, pool="p", timeout="1s").limited
    for wrong in ({"queue_timeout": "1s"}, {"total_timeout": 0}, {"on_cancel": "stop"}, {"timeout": "soon"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Step(body, **wrong)
    with pytest.raises(ConfigError, match="timeout"):
        workflow(timeout=0)(calls.function)
