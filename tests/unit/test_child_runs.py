"""Children in workflow code: awaited, started, cancelled, failed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tests.replay.feeder import Feeder

from treadle.protocol.errors import (
    ConfigError,
    FieldInvalid,
    MapFailed,
    RunCancelled,
    RunFailed,
    RunIdConflict,
    RunTerminated,
)
from treadle.v1 import history_pb2 as h
from treadle.v1.common_pb2 import (
    FAILURE_KIND_CANCELLED,
    FAILURE_KIND_ID_TAKEN,
    FAILURE_KIND_TERMINATED,
    ON_PARENT_CLOSE_CANCEL,
    ON_PARENT_CLOSE_LEAVE,
    Failure,
    FailureKind,
    Payload,
)
from treadle.v1.worker_service_pb2 import Command
from treadle.worker import start_child, workflow


@workflow(pool="kids")
async def double(x: int) -> int:
    return 2 * x


def scheduled(run: Feeder, command: Command) -> None:
    spec = command.schedule_child
    event = h.ChildScheduled(command_id=command.command_id, digest=command.digest, run_id=spec.run_id)
    run.feed(child_scheduled=event)


def completed(run: Feeder, command: Command, value: Any) -> None:
    result = Payload(data=json.dumps(value).encode())
    run.feed(child_completed=h.ChildCompleted(command_id=command.command_id, result=result))


@workflow
async def awaits(x: int) -> list[int]:
    return [await double(x), await double(x + 1)]


def test_awaiting_a_workflow_runs_a_child() -> None:
    run = Feeder(awaits, 4)
    (command,) = run.take().commands
    spec = command.schedule_child
    assert (command.command_id, spec.workflow, spec.pool) == ("0/double#1", "double", "kids")
    assert (spec.input.data, spec.on_parent_close) == (b'{"x":4}', ON_PARENT_CLOSE_CANCEL)
    assert spec.run_id.startswith("r.") and len(spec.run_id) == 18
    scheduled(run, command)
    assert run.execution.waits().pool_steps == 1, "it is waited for as a pool step is"
    completed(run, command, 8)
    (second,) = run.take().commands
    assert second.schedule_child.run_id != spec.run_id
    scheduled(run, second)
    completed(run, second, 10)
    assert run.result() == [8, 10]


def test_the_id_is_the_same_in_each_replay() -> None:
    one, two = Feeder(awaits, 4), Feeder(awaits, 4)
    assert one.take().commands == two.take().commands


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (0, RunFailed),
        (FAILURE_KIND_CANCELLED, RunCancelled),
        (FAILURE_KIND_TERMINATED, RunTerminated),
        (FAILURE_KIND_ID_TAKEN, RunIdConflict),
    ],
)
def test_what_ends_a_child_is_an_error_of_its_kind(kind: FailureKind.ValueType, error: type[Exception]) -> None:
    @workflow
    async def catches() -> list[str]:
        try:
            await double(1)
        except error as caught:
            return [type(caught).__name__, str(caught), str(caught.__cause__)]
        return []

    run = Feeder(catches)
    (command,) = run.take().commands
    scheduled(run, command)
    failure = Failure(kind=kind, type="ValueError", message="seven")
    run.feed(child_failed=h.ChildFailed(command_id=command.command_id, failure=failure))
    name, text, cause = run.result()
    assert name == error.__name__ and "seven" in text + cause


def test_what_was_started_before_the_end_is_started() -> None:
    """It must be recorded, although the code has ended in the same turn."""

    @workflow
    async def starts() -> str:
        return start_child(double, 3, id="the-child", on_parent_close="leave").id

    run = Feeder(starts)
    assert run.execution.untold == 1
    (command,) = run.take().commands
    assert run.execution.untold == 0
    assert command.schedule_child.on_parent_close == ON_PARENT_CLOSE_LEAVE
    assert command.schedule_child.run_id == run.result() == "the-child"


def test_a_started_child_can_be_awaited_later_and_twice() -> None:
    @workflow
    async def later() -> list[int]:
        child = start_child(double, 3)
        other = await double(1)
        return [other, await child, await child.result()]

    run = Feeder(later)
    first, second = run.take().commands
    scheduled(run, first)
    scheduled(run, second)
    completed(run, first, 6)
    completed(run, second, 2)
    assert run.result() == [2, 6, 6]


def test_a_cancelled_child_is_asked_to_stop() -> None:
    @workflow
    async def cancels() -> str:
        child = start_child(double, 3)
        await double(1)
        child.cancel()
        await asyncio.sleep(1)
        return "on"

    run = Feeder(cancels)
    first, second = run.take().commands
    scheduled(run, first)
    scheduled(run, second)
    completed(run, second, 2)
    cancel, timer = run.take().commands
    assert (cancel.command_id, cancel.WhichOneof("kind")) == (first.command_id, "cancel")
    run.feed(child_cancel_requested=h.ChildCancelRequested(command_id=first.command_id))
    failure = Failure(kind=FAILURE_KIND_CANCELLED)
    run.feed(child_failed=h.ChildFailed(command_id=first.command_id, failure=failure))
    run.record(timer)
    run.feed(timer_fired=h.TimerFired(command_id=timer.command_id))
    assert run.result() == "on"


def test_a_timeout_around_a_child_cancels_it() -> None:
    @workflow
    async def impatient() -> str:
        try:
            async with asyncio.timeout(5):
                await double(1)
        except TimeoutError:
            return "late"
        return "?"

    run = Feeder(impatient)
    commands = {c.WhichOneof("kind"): c for c in run.take().commands}
    run.record(commands["start_timer"])
    scheduled(run, commands["schedule_child"])
    run.feed(timer_fired=h.TimerFired(command_id=commands["start_timer"].command_id))
    assert run.result() == "late"


def test_history_that_has_another_child_diverges() -> None:
    run = Feeder(awaits, 4)
    (command,) = run.take().commands
    other = Feeder(awaits, 4)
    other.feed(child_scheduled=h.ChildScheduled(command_id=command.command_id, digest=command.digest + 1))
    divergence = other.execution.divergence
    assert divergence is not None and "child 0/double#1" in divergence.expected


def test_mistakes_are_told() -> None:
    with pytest.raises(ConfigError, match="inside a @workflow"):
        start_child(double, 1)

    @workflow
    async def wrong() -> list[str]:
        said = []
        for options in ({"on_parent_close": "forget"}, {"id": ""}):
            try:
                start_child(double, 1, **options)
            except (ConfigError, FieldInvalid) as error:
                said.append(str(error))
        try:
            start_child(double, 1, 2)
        except TypeError as error:
            said.append(str(error))
        return said

    first, second, third = Feeder(wrong).result()
    assert "'leave'" in first and "run_id" in second and "double" in third


@pytest.mark.parametrize(("tolerate", "expected"), [(0.5, [2, "failed", 6]), (0.0, "failed")])
def test_a_child_for_each_item(tolerate: float, expected: object) -> None:
    @workflow
    async def maps(n: int) -> list[Any] | str:
        try:
            found = await double.map(range(1, n + 1), limit=2, tolerate=tolerate)
        except MapFailed as error:
            assert [type(failure) for failure in error.failures.values()] == [RunFailed]
            await asyncio.sleep(1)
            return "failed"
        return ["failed" if isinstance(one, RunFailed) else one for one in found]

    run = Feeder(maps, 3)
    first, second = run.take().commands
    assert [c.schedule_child.workflow for c in (first, second)] == ["double"] * 2
    scheduled(run, first)
    scheduled(run, second)
    failure = Failure(type="ValueError", message="no")
    run.feed(child_failed=h.ChildFailed(command_id=second.command_id, failure=failure))
    if tolerate:
        (third,) = run.take().commands
        scheduled(run, third)
        completed(run, first, 2)
        completed(run, third, 6)
    else:
        cancel, sleep = run.take().commands
        assert cancel.HasField("cancel") and cancel.command_id == first.command_id, "the other is asked to stop"
        run.record(sleep)
        run.feed(timer_fired=h.TimerFired(command_id=sleep.command_id))
    assert run.result() == expected
