"""`map` over many items, and sagas: made of durable calls, so what the loop promises holds for them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.replay.feeder import Feeder

from treadle.protocol.errors import CompensationFailed, ConfigError, MapFailed, StepError
from treadle.v1 import history_pb2 as h
from treadle.v1.common_pb2 import Failure
from treadle.v1.worker_service_pb2 import Command
from treadle.worker import Saga, step, workflow


@step(pool="p")
async def resize(x: int) -> int:
    return 10 * x


@step
def shout(text: str) -> str:
    return text.upper()


@step(pool="p")
async def undo(what: str) -> str:
    return what


@workflow
async def maps(n: int, limit: int, tolerate: float) -> list[Any]:
    try:
        found = await resize.map(range(n), limit=limit, tolerate=tolerate)
    except MapFailed as error:
        return ["failed", sorted(error.failures), str(error)]
    return [str(one) if isinstance(one, StepError) else one for one in found]


def asked(run: Feeder) -> list[Command]:
    commands = list(run.take().commands)
    for command in commands:
        if command.HasField("schedule_step"):
            run.record(command)
    return commands


def fail(run: Feeder, command: Command, text: str = "no") -> None:
    failure = Failure(type="ValueError", message=text, attempts=1)
    run.feed(step_failed=h.StepFailed(command_id=command.command_id, failure=failure))


def test_results_come_in_order_and_no_more_run_than_the_limit() -> None:
    run = Feeder(maps, 5, 2, 0.0)
    first = asked(run)
    assert [c.command_id for c in first] == ["0.1/resize#1", "0.2/resize#1"]
    run.complete("0.2/resize#1", 10)
    assert [c.command_id for c in asked(run)] == ["0.3/resize#1"]
    run.complete("0.3/resize#1", 20)
    run.complete("0.1/resize#1", 0)
    assert [c.command_id for c in asked(run)] == ["0.4/resize#1", "0.5/resize#1"], "the n-th item is the n-th task"
    run.complete("0.5/resize#1", 40)
    run.complete("0.4/resize#1", 30)
    assert run.result() == [0, 10, 20, 30, 40]


def test_failures_are_tolerated_up_to_the_share() -> None:
    run = Feeder(maps, 4, 4, 0.25)
    first, *rest = asked(run)
    fail(run, first)
    for index, command in enumerate(rest, 1):
        run.complete(command.command_id, index)
    text, *numbers = run.result()
    assert "ValueError: no" in text and numbers == [1, 2, 3]


def test_beyond_it_the_rest_is_cancelled_and_nothing_new_begins() -> None:
    run = Feeder(maps, 9, 3, 0.2)
    first, second, third = asked(run)
    fail(run, second)
    (fourth,) = asked(run)
    fail(run, first, "twice")
    word, indexes, text = run.result()
    assert (word, indexes) == ("failed", [0, 1])
    assert "2 of 9 items failed, 1 are tolerated" in text and "no" in text
    assert run.execution.outcome is not None
    assert [third.command_id, fourth.command_id] == ["0.3/resize#1", "0.4/resize#1"]


def test_a_cancelled_map_cancels_what_runs() -> None:
    @workflow
    async def cuts() -> str:
        task = asyncio.create_task(_all())
        await undo("x")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return await undo("y")

    async def _all() -> list[int]:
        return await resize.map(range(3), limit=2)

    run = Feeder(cuts)
    commands = {c.command_id: c for c in asked(run)}
    run.complete("0/undo#1", "x")
    later = asked(run)
    kinds = [(c.command_id, c.WhichOneof("kind")) for c in later]
    assert ("0.1.1/resize#1", "cancel") in kinds and ("0.1.2/resize#1", "cancel") in kinds and len(commands) == 3
    run.complete("0/undo#2", "y")
    assert run.result() == "y"


def test_an_error_that_no_step_has_is_not_tolerated_and_not_lost() -> None:
    run = Feeder(maps, 3, 2, 1.0)
    first, _ = asked(run)
    run.complete(first.command_id, "not a number")
    assert run.failure().type == "PayloadError"


def test_shares_are_counted_exactly() -> None:
    async def main() -> int:
        return sum(isinstance(one, StepError) for one in await _picky.map(range(100), tolerate=0.29))

    assert asyncio.run(main()) == 29


@step
async def _picky(x: int) -> int:
    if x < 29:
        raise StepError(f"no {x}")
    return x


@pytest.mark.parametrize("options", [{"limit": 0}, {"tolerate": 1.5}, {"tolerate": -0.1}])
def test_out_of_range_is_told(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="step resize"):
        asyncio.run(resize.map([1], **options))


def test_outside_a_workflow_it_is_a_plain_loop() -> None:
    assert asyncio.run(resize.map([1, 2])) == [10, 20]
    assert asyncio.run(shout.map(["a", "b"])) == ["A", "B"]
    assert asyncio.run(resize.map([])) == []


# --- sagas ---------------------------------------------------------------------------------------------------------------
@workflow
async def order(fails: bool) -> list[str]:
    try:
        async with Saga() as saga:
            saga.undo(undo, "charge")
            saga.undo(undo, "stock")
            await resize(1)
            if fails:
                raise ValueError("no parcel")
    except ValueError as error:
        return [str(error)]
    except CompensationFailed as error:
        return [str(error), str(error.__context__), str(len(error.failures))]
    return ["shipped"]


def test_nothing_is_undone_when_all_went_well() -> None:
    run = Feeder(order, False)
    (command,) = asked(run)
    run.complete(command.command_id, 1)
    assert run.result() == ["shipped"] and asked(run) == []


def test_what_was_done_is_undone_last_first_and_the_error_goes_on() -> None:
    run = Feeder(order, True)
    (command,) = asked(run)
    run.complete(command.command_id, 1)
    (stock,) = asked(run)
    assert b"stock" in stock.schedule_step.input.data
    run.complete(stock.command_id, "stock")
    (charge,) = asked(run)
    assert b"charge" in charge.schedule_step.input.data
    run.complete(charge.command_id, "charge")
    assert run.result() == ["no parcel"]


def test_one_that_cannot_be_undone_does_not_keep_the_others() -> None:
    run = Feeder(order, True)
    (command,) = asked(run)
    run.complete(command.command_id, 1)
    (stock,) = asked(run)
    fail(run, stock, "gone")
    (charge,) = asked(run)
    run.complete(charge.command_id, "charge")
    text, why, count = run.result()
    assert "gone" in text and why == "no parcel" and count == "1"


def test_a_cancelled_run_undoes_too() -> None:
    run = Feeder(order, False)
    asked(run)
    run.feed(cancel_requested=h.CancelRequested(reason="enough"))
    kinds = [(c.command_id, c.WhichOneof("kind")) for c in asked(run)]
    assert kinds == [("0/resize#1", "cancel"), ("0.1/undo#1", "schedule_step")]
    assert run.execution.undoing
    run.complete("0.1/undo#1", "stock")
    asked(run)
    run.complete("0.1/undo#2", "charge")
    assert run.execution.outcome is not None and run.execution.outcome.cancelled


@pytest.mark.parametrize(
    "interrupt",
    [
        {"cancel_requested": h.CancelRequested(reason="enough")},
        {"run_timed_out": h.RunTimedOut(timeout_ms=1000, raised=True)},
    ],
)
def test_an_interrupt_while_it_undoes_waits_until_all_is_undone(interrupt: dict[str, Any]) -> None:
    run = Feeder(order, True)
    (command,) = asked(run)
    run.complete(command.command_id, 1)
    (stock,) = asked(run)
    run.feed(**interrupt)
    assert asked(run) == [], "what undoes is not told to end"
    run.complete(stock.command_id, "stock")
    (charge,) = asked(run)
    assert b"charge" in charge.schedule_step.input.data
    run.complete(charge.command_id, "charge")
    outcome = run.execution.outcome
    assert outcome is not None and outcome.cancelled and outcome.undone


def test_what_undoes_may_have_timeouts_and_be_cancelled_itself() -> None:
    @workflow
    async def patient() -> str:
        async with Saga() as saga:
            saga.undo(undo, "first")
            saga.undo(hurried)
            await resize(1)
            raise ValueError("no parcel")

    async def hurried() -> None:
        async with asyncio.timeout(5):
            await undo("slow")

    run = Feeder(patient)
    (command,) = asked(run)
    run.complete(command.command_id, 1)
    timer, slow = asked(run)
    run.record(timer)
    run.feed(timer_fired=h.TimerFired(command_id=timer.command_id))
    cancel, first = asked(run)
    assert cancel.command_id == slow.command_id and b"first" in first.schedule_step.input.data
    run.complete(first.command_id, "first")
    assert run.failure().type == "CompensationFailed"


def test_as_a_plain_function_it_undoes_everything_too() -> None:
    undone: list[str] = []

    async def note(what: str) -> None:
        await asyncio.sleep(0)
        undone.append(what)

    async def main() -> None:
        async with Saga() as saga:
            saga.undo(note, "first")
            saga.undo(note, "second")
            raise KeyError("no parcel")

    async def cancelled_twice() -> bool:
        task = asyncio.create_task(main())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,))
        return task.cancelled()

    with pytest.raises(KeyError):
        asyncio.run(main())
    assert undone == ["second", "first"]
    assert asyncio.run(cancelled_twice()) and undone == ["second", "first"] * 2
