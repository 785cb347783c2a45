"""`continue_as_new` in workflow code: how it ends a part, and what it takes along."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tests.replay.feeder import Feeder

from treadle.protocol.errors import ConfigError
from treadle.v1 import history_pb2 as h
from treadle.v1.common_pb2 import Payload
from treadle.worker import continue_as_new, receive, step, workflow
from treadle.worker.loop.continuation import continuation_of


@step(pool="p")
async def work(x: int) -> int:
    return x


@workflow
async def counts(n: int, label: str = "") -> int:
    while True:
        number = await receive("number", int)
        if number < 0:
            return n
        try:
            continue_as_new(n + number, label="again")
        except Exception:
            return -1


@workflow
async def tidies(n: int) -> int:
    try:
        continue_as_new(n + 1)
    finally:
        await work(n)


@workflow
async def wrong(n: int) -> int:
    continue_as_new("too", "many", "arguments")


@workflow
async def from_a_task(n: int) -> int:
    async def ends() -> None:
        await work(n)
        continue_as_new(n)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(ends())
    return n


def send(run: Feeder, signal_id: str, number: int, size: int = 0) -> None:
    data = json.dumps(number).encode() + b" " * size
    run.feed(signal_received=h.SignalReceived(name="number", signal_id=signal_id, data=Payload(data=data)))


def test_it_ends_the_part_with_the_next_input() -> None:
    run = Feeder(counts, 1)
    send(run, "s1", 2)
    outcome = run.execution.outcome
    assert outcome is not None and outcome.next_input is not None, "an `except Exception` does not hold it up"
    args, kwargs = counts.signature.decode_call(outcome.next_input)
    assert (args, kwargs) == ((3, "again"), {})


def test_what_was_not_received_is_carried_in_order_and_ids_stay_known() -> None:
    run = Feeder(counts, 1)
    for index, number in enumerate((5, 6, 7)):
        send(run, f"s{index}", number)
    outcome = run.execution.outcome
    assert outcome is not None and outcome.next_input is not None
    said = continuation_of(run.execution, outcome.next_input)
    assert [letter.signal_id for letter in said.carried] == ["s1", "s2"]
    assert list(said.known) == ["s0", "s1", "s2"] and said.left_out == 0


@pytest.mark.parametrize(("count", "size", "fits"), [(1201, 0, 1000), (40, 50_000, 10)])
def test_so_much_fits(count: int, size: int, fits: int) -> None:
    run = Feeder(counts, 1)
    for index in range(count):
        send(run, f"s{index}", index, size)
    outcome = run.execution.outcome
    assert outcome is not None and outcome.next_input is not None
    said = continuation_of(run.execution, outcome.next_input)
    assert (len(said.carried), said.left_out) == (fits, count - 1 - fits)
    assert said.ByteSize() < 1 << 20


def test_the_newest_ids_stay_known() -> None:
    run = Feeder(counts, 0)
    for index in range(5000):
        send(run, f"s{index}", 0)
    known = run.execution.known_signals()
    assert known[-1] == "s4999" and 1000 <= len(known) <= 2000


def test_ids_of_parts_before_stay_known() -> None:
    run = Feeder(counts, 1, known_signals=["s1", "s2"])
    send(run, "s3", 4)
    outcome = run.execution.outcome
    assert outcome is not None and outcome.next_input is not None
    assert list(continuation_of(run.execution, outcome.next_input).known) == ["s1", "s2", "s3"]


def test_cleanup_runs_before() -> None:
    run = Feeder(tidies, 4)
    (command,) = run.take().commands
    run.record(command)
    run.complete(command.command_id, 4)
    outcome = run.execution.outcome
    assert outcome is not None and outcome.next_input is not None


@workflow
async def swallows(n: int) -> int:
    try:
        return await work(n)
    except asyncio.CancelledError:
        continue_as_new(n)


INTERRUPTS = [
    {"cancel_requested": h.CancelRequested(reason="enough")},
    {"run_timed_out": h.RunTimedOut(timeout_ms=1000, raised=True)},
]


@pytest.mark.parametrize("interrupt", INTERRUPTS)
def test_an_interrupt_that_came_when_the_code_had_ended_goes_along(interrupt: dict[str, Any]) -> None:
    run = Feeder(counts, 1)
    send(run, "s1", 2)
    outcome = run.execution.outcome
    assert outcome is not None and outcome.next_input is not None
    assert not continuation_of(run.execution, outcome.next_input).unheard
    run.feed(**interrupt)
    assert run.execution.outcome is outcome, "what was returned stays returned"
    assert continuation_of(run.execution, outcome.next_input).unheard


@pytest.mark.parametrize("interrupt", INTERRUPTS)
def test_one_that_the_code_was_told_of_does_not(interrupt: dict[str, Any]) -> None:
    run = Feeder(swallows, 1)
    (command,) = run.take().commands
    run.record(command)
    run.feed(**interrupt)
    outcome = run.execution.outcome
    assert outcome is not None and outcome.next_input is not None
    assert not continuation_of(run.execution, outcome.next_input).unheard


def test_arguments_are_those_of_the_workflow() -> None:
    assert Feeder(wrong, 1).failure().type == "TypeError"


def test_from_a_task_it_ends_the_part_when_it_reaches_the_code() -> None:
    run = Feeder(from_a_task, 1)
    (command,) = run.take().commands
    run.record(command)
    run.complete(command.command_id, 4)
    outcome = run.execution.outcome
    assert outcome is not None and outcome.next_input is not None


def test_elsewhere_it_is_an_error() -> None:
    with pytest.raises(ConfigError, match="belongs into the code of a workflow"):
        continue_as_new(1)
