"""Code and history that disagree, and what a person may accept."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.replay.feeder import Feeder

from treadle.v1 import history_pb2 as h
from treadle.v1.common_pb2 import Payload
from treadle.worker import step, workflow
from treadle.worker.loop.port import Turn


@step(pool="p")
async def pooled(x: int) -> int:
    return x


@step
async def local(x: int) -> int:
    return x


@workflow
async def one_of_each(x: int) -> list[int]:
    first = await pooled(x)
    second = await local(first)
    await asyncio.sleep(1.5)
    return [first, second, await pooled(x)]


@workflow
async def calls_local(x: int) -> int:
    return await local(x)


def test_a_command_that_was_not_asked_for() -> None:
    run = Feeder(one_of_each, 4)
    event = h.StepScheduled(command_id="0/other#1", digest=1, name="other", input=Payload(data=b'{"y":1}'))
    divergence = run.feed(step_scheduled=event).divergence
    assert divergence is not None
    assert divergence.expected == 'step 0/other#1 with {"y":1} (event 2)'
    assert divergence.found == 'the code asked for step 0/pooled#1 with {"x":4}'
    assert run.take() == Turn()
    with pytest.raises(ValueError, match="has diverged"):
        run.feed(run_parked=h.RunParked())


def test_another_digest() -> None:
    run = Feeder(one_of_each, 4)
    event = h.StepScheduled(command_id="0/pooled#1", digest=1, input=Payload(data=b'{"x":5}'))
    divergence = run.feed(step_scheduled=event).divergence
    assert divergence is not None
    assert divergence.expected == 'step 0/pooled#1 with {"x":5} (event 2)'
    assert divergence.found == 'step 0/pooled#1 with {"x":4}'


@workflow
async def returns_at_once(x: int) -> int:
    return x


@pytest.mark.parametrize(
    "kind",
    [
        {"step_scheduled": h.StepScheduled(command_id="0/pooled#1", digest=1)},
        {"timer_started": h.TimerStarted(command_id="0/sleep#1", digest=1)},
        {"step_completed": h.StepCompleted(command_id="0/local#1", digest=1, local=True)},
        {"step_failed": h.StepFailed(command_id="0/local#1", digest=1, local=True)},
        {"attempt_failed": h.AttemptFailed(command_id="0/local#1", digest=1, local=True)},
        {"attempt_started": h.AttemptStarted(command_id="0/local#1", digest=1, local=True)},
    ],
)
def test_code_that_ended_before_what_is_recorded(kind: dict[str, Any]) -> None:
    run = Feeder(returns_at_once, 4)
    assert run.execution.outcome is not None
    divergence = run.feed(**kind).divergence
    assert divergence is not None
    assert divergence.found == "the code did not ask for it"
    accepted = Feeder(returns_at_once, 4, accepted_until=2)
    assert accepted.feed(**kind).divergence is None


def test_an_accepted_digest_uses_the_recorded_outcome() -> None:
    run = Feeder(one_of_each, 4, accepted_until=3)
    run.feed(step_scheduled=h.StepScheduled(command_id="0/pooled#1", digest=1))
    assert run.take().commands == []
    run.complete("0/pooled#1", 50)
    assert run.execution.divergence is None
    assert run.take().local_calls[0].input.data == b'{"x":50}'


def test_an_accepted_command_that_is_asked_for_later_has_its_outcome() -> None:
    run = Feeder(one_of_each, 4, accepted_until=10)
    (first,) = run.take().commands
    run.feed(step_completed=h.StepCompleted(command_id="0/local#1", digest=9, local=True, result=Payload(data=b"8")))
    run.feed(timer_started=h.TimerStarted(command_id="0/sleep#1", digest=9))
    run.feed(timer_fired=h.TimerFired(command_id="0/sleep#1"))
    run.record(first)
    run.complete(first.command_id, 5)
    turn = run.take()
    assert turn.local_calls == []
    assert [c.command_id for c in turn.commands] == ["0/pooled#2"]


def test_what_the_history_ran_in_a_pool_does_not_run_here_too() -> None:
    (call,) = Feeder(calls_local, 1).take().local_calls
    scheduled = h.StepScheduled(command_id=call.command_id, digest=call.digest, name="local", pool="p")
    run = Feeder(calls_local, 1)
    run.feed(step_scheduled=scheduled)
    assert run.take() == Turn()
    assert run.execution.waits().pool_steps == 1
    run.complete(call.command_id, 5)
    assert run.result() == 5


def test_the_same_when_it_is_asked_for_later() -> None:
    run = Feeder(one_of_each, 4, accepted_until=2)
    (first,) = run.take().commands
    run.feed(step_scheduled=h.StepScheduled(command_id="0/local#1", digest=9, name="local", pool="p"))
    run.record(first)
    run.complete(first.command_id, 5)
    assert run.take() == Turn()
    run.complete("0/local#1", 6)
    assert [c.command_id for c in run.take().commands] == ["0/sleep#1"]
