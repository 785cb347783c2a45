from __future__ import annotations

import asyncio
import gc
import weakref
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.replay.feeder import Feeder
from tests.replay.harness import START_MS

from treadle.protocol.errors import (
    AttemptTimedOut,
    ConfigError,
    QueueTimedOut,
    StepCancelled,
    StepError,
    StepLost,
    StepTimedOut,
)
from treadle.v1 import history_pb2 as h
from treadle.v1.common_pb2 import (
    FAILURE_KIND_LOST,
    FAILURE_KIND_PAYLOAD,
    FAILURE_KIND_QUEUE_TIMED_OUT,
    FAILURE_KIND_STEP_TIMED_OUT,
    FAILURE_KIND_STUCK,
    FAILURE_KIND_TIMED_OUT,
    Failure,
    Payload,
)
from treadle.worker import Retry, now, random, sleep_until, step, uuid4, workflow
from treadle.worker.app import Registry
from treadle.worker.loop import guard
from treadle.worker.loop.execution import execution_factory
from treadle.worker.loop.port import RunContext, Turn


@step(pool="p")
async def pooled(x: int) -> int:
    return x


@step
async def local(x: int) -> int:
    return x


@step(retry=Retry.never)
async def charge(x: int) -> int:
    return x


@workflow
async def one_of_each(x: int) -> list[int]:
    first = await pooled(x)
    second = await local(first)
    await asyncio.sleep(1.5)
    return [first, second, await pooled(x)]


def test_ids_name_path_name_and_occurrence() -> None:
    run = Feeder(one_of_each, 4)
    (command,) = run.take().commands
    assert command.command_id == "0/pooled#1"
    assert (command.schedule_step.name, command.schedule_step.pool) == ("pooled", "p")
    assert command.schedule_step.input.data == b'{"x":4}'
    assert not command.schedule_step.HasField("retry")
    assert run.take() == Turn()
    run.record(command)
    assert run.take() == Turn()
    assert run.execution.waits().pool_steps == 1
    run.complete("0/pooled#1", 5)
    (call,) = run.take().local_calls
    assert (call.command_id, call.name, call.try_number, call.at_most_once) == ("0/local#1", "local", 1, False)
    run.complete("0/local#1", 6, local=True, digest=call.digest)
    (timer,) = run.take().commands
    assert (timer.command_id, timer.start_timer.delay_ms) == ("0/sleep#1", 1500)
    run.record(timer)
    waits = run.execution.waits()
    assert (waits.pool_steps, waits.local_steps, waits.timers) == (0, 0, 1)
    assert waits.earliest_timer_ms == START_MS + 1500
    run.feed(timer_fired=h.TimerFired(command_id="0/sleep#1"))
    (again,) = run.take().commands
    assert again.command_id == "0/pooled#2"
    run.record(again)
    run.complete("0/pooled#2", 7)
    assert run.result() == [5, 6, 7]


def test_digests_differ_between_runs() -> None:
    one, two = Feeder(one_of_each, 4, run_id="a"), Feeder(one_of_each, 4, run_id="b")
    assert one.take().commands[0].digest != two.take().commands[0].digest


def test_only_the_next_position_is_taken() -> None:
    run = Feeder(one_of_each, 1)
    with pytest.raises(ValueError, match="position 5 was fed where 2 is next"):
        run.execution.feed(h.HistoryEvent(position=5))


def test_input_that_does_not_fit_fails_the_run() -> None:
    context = RunContext("default", "r", 3, "one_of_each")
    execution = execution_factory(Registry().add(one_of_each))(context)
    execution.feed(h.HistoryEvent(position=1, run_started=h.RunStarted(input=Payload(data=b'{"x":"a"}'))))
    assert execution.outcome is not None
    assert execution.outcome.failure is not None
    assert execution.outcome.failure.kind == FAILURE_KIND_PAYLOAD
    assert "argument x" in execution.outcome.failure.message


@workflow
async def returns_object() -> Any:
    return object()


@workflow
async def exits() -> None:
    raise SystemExit(3)


@workflow
async def interrupted() -> None:
    await asyncio.gather(local(1), raises_interrupt())


async def raises_interrupt() -> None:
    raise KeyboardInterrupt


@workflow
async def cancels_itself() -> None:
    raise asyncio.CancelledError


@workflow
async def spins() -> None:
    while True:
        await asyncio.sleep(0)


@workflow
async def group_of_groups() -> None:
    raise BaseExceptionGroup("all", [ExceptionGroup("inner", [ValueError("a")]), SystemExit(1)])


@pytest.mark.parametrize(
    ("flow", "kind", "type_name", "text"),
    [
        (returns_object, FAILURE_KIND_PAYLOAD, "PayloadError", "its result: cannot encode"),
        (exits, None, "SystemExit", "3"),
        (interrupted, None, "KeyboardInterrupt", ""),
        (cancels_itself, None, "CancelledError", "nobody asked"),
        (spins, FAILURE_KIND_STUCK, "Stuck", "without end"),
        (group_of_groups, None, "BaseExceptionGroup", "- ValueError: a"),
    ],
)
def test_whatever_code_does_is_an_outcome(flow: Any, kind: int | None, type_name: str, text: str) -> None:
    run = Feeder(flow)
    failure = run.failure()
    assert failure.type == type_name
    assert text in failure.message
    assert kind is None or failure.kind == kind
    run.execution.close()


@workflow
async def waits_for_nothing() -> str:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return "woken"
    return ""


def test_a_stuck_run_can_still_be_cancelled() -> None:
    run = Feeder(waits_for_nothing)
    assert run.failure().kind == FAILURE_KIND_STUCK
    assert "Event" in run.failure().message
    run.feed(cancel_requested=h.CancelRequested())
    assert run.result() == "woken"


# failures of steps


@workflow
async def catches(x: int) -> list[Any]:
    try:
        await pooled(x)
    except StepError as error:
        return [type(error).__name__, error.step, error.attempts, str(error.__cause__)]
    return []


@pytest.mark.parametrize(
    ("kind", "cls"),
    [
        (0, StepError),
        (FAILURE_KIND_TIMED_OUT, AttemptTimedOut),
        (FAILURE_KIND_STEP_TIMED_OUT, StepTimedOut),
        (FAILURE_KIND_QUEUE_TIMED_OUT, QueueTimedOut),
        (FAILURE_KIND_LOST, StepLost),
    ],
)
def test_failures_are_raised_in_the_code(kind: Any, cls: type[StepError]) -> None:
    run = Feeder(catches, 1)
    run.record(run.take().commands[0])
    failure = Failure(kind=kind, type="OSError", message="disk", attempts=2)
    run.feed(step_failed=h.StepFailed(command_id="0/pooled#1", failure=failure))
    assert run.result() == [cls.__name__, "pooled", 2, "OSError: disk"]


def test_a_cancelled_step_is_an_error_of_its_own() -> None:
    run = Feeder(catches, 1)
    run.record(run.take().commands[0])
    run.feed(step_cancelled=h.StepCancelled(command_id="0/pooled#1", attempt=1))
    assert run.result()[0] == StepCancelled.__name__


def test_a_result_that_does_not_fit_is_raised_in_the_code() -> None:
    run = Feeder(catches, 1)
    run.record(run.take().commands[0])
    run.complete("0/pooled#1", "text")
    assert run.failure().kind == FAILURE_KIND_PAYLOAD
    assert "step pooled: its result" in run.failure().message


# local steps


@workflow
async def calls_local(x: int) -> int:
    return await local(x)


def test_a_local_step_is_called_again_when_its_wait_is_over() -> None:
    run = Feeder(calls_local, 1)
    (call,) = run.take().local_calls
    run.feed(attempt_failed=h.AttemptFailed(command_id=call.command_id, digest=call.digest, local=True, try_number=1))
    assert run.take().local_calls == []
    assert run.execution.waits().local_steps == 1
    run.feed(step_retried=h.StepRetried(command_id=call.command_id, try_number=2))
    (again,) = run.take().local_calls
    assert again.try_number == 2
    assert run.take().local_calls == []


def test_what_a_local_step_said_is_given_to_its_next_try() -> None:
    """Also by whoever replays the history; a try that said nothing hands on what it was given."""
    run = Feeder(calls_local, 1)
    (call,) = run.take().local_calls
    assert call.progress is None
    failed = h.AttemptFailed(command_id=call.command_id, digest=call.digest, local=True, try_number=1)
    failed.progress.data = b"7"
    run.feed(attempt_failed=failed)
    run.feed(step_retried=h.StepRetried(command_id=call.command_id, try_number=2))
    (second,) = run.take().local_calls
    assert second.progress == Payload(data=b"7")
    again = h.AttemptFailed(command_id=call.command_id, digest=call.digest, local=True, try_number=2)
    run.feed(attempt_failed=again)
    run.feed(step_retried=h.StepRetried(command_id=call.command_id, try_number=3))
    (third,) = run.take().local_calls
    assert third.progress == Payload(data=b"7")


def test_replay_of_a_failed_local_step_waits_too() -> None:
    run = Feeder(calls_local, 1)
    probe = Feeder(calls_local, 1)
    (call,) = probe.take().local_calls
    run.feed(attempt_failed=h.AttemptFailed(command_id=call.command_id, digest=call.digest, local=True, try_number=1))
    assert run.take().local_calls == []


@workflow
async def calls_charge(x: int) -> int:
    return await charge(x)


def test_a_started_at_most_once_step_is_not_started_again() -> None:
    (call,) = Feeder(calls_charge, 1).take().local_calls
    assert call.at_most_once
    run = Feeder(calls_charge, 1)
    run.feed(attempt_started=h.AttemptStarted(command_id=call.command_id, digest=call.digest, local=True))
    assert run.take().local_calls == []
    failure = Failure(kind=FAILURE_KIND_LOST, attempts=1)
    lost = h.StepFailed(command_id=call.command_id, digest=call.digest, local=True, failure=failure)
    run.feed(step_failed=lost)
    assert run.failure().type == "StepLost"


# cancellation


@workflow
async def cancellable() -> str:
    try:
        await asyncio.gather(pooled(1), local(2), asyncio.sleep(60))
    except asyncio.CancelledError:
        await pooled(3)
        raise
    return "done"


def test_cancel_is_raised_once_and_cancels_what_is_open() -> None:
    run = Feeder(cancellable)
    turn = run.take()
    for command in turn.commands:
        run.record(command)
    run.feed(cancel_requested=h.CancelRequested(reason="enough"))
    after = run.take()
    assert [(c.command_id, c.WhichOneof("kind")) for c in after.commands] == [
        ("0.1/pooled#1", "cancel"),
        ("0.3/sleep#1", "cancel"),
        ("0/pooled#1", "schedule_step"),
    ]
    assert after.local_cancels == ["0.2/local#1"]
    run.feed(cancel_requested=h.CancelRequested(reason="again"))
    run.complete("0.1/pooled#1", 1)
    run.record(after.commands[2])
    run.complete("0/pooled#1", 3)
    assert run.execution.outcome is not None
    assert run.execution.outcome.cancelled


def test_what_was_never_handed_out_needs_no_cancel() -> None:
    run = Feeder(cancellable)
    run.feed(cancel_requested=h.CancelRequested())
    turn = run.take()
    assert [c.command_id for c in turn.commands] == ["0/pooled#1"]
    assert (turn.local_calls, turn.local_cancels) == ([], [])


@workflow
async def short_timer() -> int:
    async with asyncio.timeout(60):
        await asyncio.sleep(0)
    timer = asyncio.get_running_loop().call_later(5, print)
    timer.cancel()
    return await pooled(1)


def test_a_timer_cancelled_in_the_same_turn_is_no_command() -> None:
    run = Feeder(short_timer)
    assert [c.command_id for c in run.take().commands] == ["0/pooled#1"]


@workflow
async def ignores_cancel() -> int:
    return 1


def test_code_that_had_returned_stays_returned() -> None:
    run = Feeder(ignores_cancel)
    run.feed(cancel_requested=h.CancelRequested())
    assert run.result() == 1


# values


@workflow
async def values() -> list[Any]:
    async def draw() -> float:
        return random().random()

    drawn = await asyncio.gather(draw(), draw())
    return [now().isoformat(), str(uuid4()), *drawn]


def test_values_are_the_same_in_each_replay_and_differ_by_run_and_task() -> None:
    first = Feeder(values).result()
    assert Feeder(values).result() == first
    assert first[0] == "2023-11-14T22:13:21+00:00"
    assert first[2] != first[3]
    assert Feeder(values, run_id="x").result()[1] != first[1]


def test_time_never_goes_backwards() -> None:
    run = Feeder(one_of_each, 1)
    before = run.execution.now()
    run.feed(time_ms=5, run_parked=h.RunParked())
    assert run.execution.now() == before


# dropping it

CLOSED: list[str] = []


@step
def destructive() -> None:
    CLOSED.append("the body of a step ran")


@workflow
async def with_cleanup() -> None:
    try:
        await pooled(1)
    finally:
        CLOSED.append("cleanup")
        try:
            await destructive()
        finally:
            await asyncio.sleep(1)


def test_dropping_it_runs_no_step() -> None:
    CLOSED.clear()
    run = Feeder(with_cleanup)
    run.take()
    run.execution.close()
    run.execution.close()
    assert CLOSED == ["cleanup"]
    with pytest.raises(ValueError, match="closed"):
        run.feed(run_parked=h.RunParked())


@workflow
async def writes(path: str) -> None:
    with open(path, "w") as file:  # it must not get that far
        file.write("x")


def test_what_only_a_step_may_do_fails_the_run(tmp_path: Path) -> None:
    guard.install()
    failure = Feeder(writes, str(tmp_path / "x")).failure()
    assert failure.type == "NotDeterministic"
    assert "for writing inside a workflow" in failure.message
    assert list(tmp_path.iterdir()) == []


def test_a_sleep_until_ends_at_that_time_and_one_that_is_over_at_once() -> None:
    @workflow
    async def waits(until: datetime) -> list[float]:
        await sleep_until(until - timedelta(days=1000))
        await sleep_until(until)
        return [now().timestamp()]

    until = datetime.fromtimestamp(START_MS / 1000, UTC) + timedelta(days=365)
    run = Feeder(waits, until)
    (timer,) = run.take().commands
    due = timer.start_timer.from_ms + timer.start_timer.delay_ms
    assert due == round(until.timestamp() * 1000)
    run.record(timer)
    run.feed(due, timer_fired=h.TimerFired(command_id=timer.command_id))
    assert run.result() == [until.timestamp()]


def test_a_sleep_until_needs_a_time_zone() -> None:
    with pytest.raises(ConfigError, match="time zone"):
        asyncio.run(sleep_until(datetime(2030, 1, 1)))  # that is the mistake


def test_other_names_are_a_key_error() -> None:
    with pytest.raises(KeyError):
        execution_factory(Registry())(RunContext("default", "r", 1, "nope"))


def test_a_closed_execution_needs_no_garbage_collector() -> None:
    """What refers to itself would be found late, and looked for all the time."""

    @workflow
    async def flow() -> int:
        async with asyncio.timeout(60):
            return await local(1) + await pooled(2)

    gc.collect()
    gc.disable()
    try:
        f = Feeder(flow)
        (call,) = f.take().local_calls
        f.complete(call.command_id, 1, local=True, digest=call.digest)
        for command in f.take().commands:
            f.record(command)
        f.complete("0/pooled#1", 2)
        assert f.result() == 3
        f.execution.close()
        execution, loop = weakref.ref(f.execution), weakref.ref(f.execution._loop)
        del f
        assert execution() is None and loop() is None
    finally:
        gc.enable()
