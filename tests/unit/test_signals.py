"""Signals, questions and states in workflow code: fed, received, raced, replayed."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import pytest
from tests.replay.feeder import Feeder

from treadle.protocol.errors import ConfigError, PayloadError
from treadle.v1 import history_pb2 as h
from treadle.v1.common_pb2 import FAILURE_KIND_STUCK
from treadle.v1.worker_service_pb2 import Command
from treadle.worker import publish_state, receive, receive_question, step, workflow


@dataclass
class Approval:
    by: str
    ok: bool


@step(pool="p")
async def work(x: int) -> int:
    return x


def send(run: Feeder, name: str, data: Any, signal_id: str = "", *, asks: bool = False) -> None:
    letter = h.SignalReceived(name=name, signal_id=signal_id or f"{name}-{run.execution.fed}", asks=asks)
    letter.data.data = json.dumps(data).encode()
    run.feed(signal_received=letter)


def note(run: Feeder, command: Command) -> None:
    """The history has what the code said."""
    if command.HasField("publish_state"):
        said = h.StatePublished(command_id=command.command_id, digest=command.digest)
        run.feed(state_published=said)
    else:
        run.feed(signal_answered=h.SignalAnswered(command_id=command.command_id, digest=command.digest))


@workflow
async def approved() -> str:
    approval = await receive("approve", Approval)
    return f"{approval.by} says {'yes' if approval.ok else 'no'}"


def test_code_waits_until_it_comes() -> None:
    run = Feeder(approved)
    assert run.execution.outcome is None, "it is not stuck"
    assert run.execution.waits().signals == 1
    send(run, "other", 1)
    assert run.execution.outcome is None
    send(run, "approve", {"by": "Ada", "ok": True})
    assert run.result() == "Ada says yes"
    assert [letter.signal_id for letter in run.execution.unread()] == ["other-1"]
    assert run.execution.waits().signals == 0


def test_what_came_before_is_kept_in_order() -> None:
    @workflow
    async def late() -> list[Any]:
        await work(1)
        return [await receive("n") for _ in range(3)]

    run = Feeder(late)
    (command,) = run.take().commands
    send(run, "n", 1)
    run.record(command)
    send(run, "n", 2)
    run.complete(command.command_id, 1)
    assert run.execution.outcome is None and run.execution.unread() == []
    send(run, "n", 3)
    assert run.result() == [1, 2, 3]


def test_who_waits_longest_gets_it_and_who_gave_up_loses_none() -> None:
    @workflow
    async def raced() -> list[Any]:
        async def one() -> Any:
            return await receive("n")

        first, second, third = (asyncio.create_task(one()) for _ in range(3))
        await work(1)
        first.cancel()
        return [await second, await third]

    run = Feeder(raced)
    (command,) = run.take().commands
    run.record(command)
    run.complete(command.command_id, 1)
    send(run, "n", "a")
    send(run, "n", "b")
    assert run.result() == ["a", "b"]


def test_a_signal_is_not_lost_with_the_task_that_was_woken_by_it() -> None:
    @workflow
    async def cut() -> Any:
        async def takes() -> Any:
            return await receive("n")

        async def cuts(task: asyncio.Task[Any]) -> None:
            await receive("cut")
            task.cancel()

        task = asyncio.create_task(takes())
        await cuts(task)
        await asyncio.gather(task, return_exceptions=True)
        return await receive("n")

    run = Feeder(cut)
    send(run, "cut", None)
    send(run, "n", "kept")
    assert run.result() == "kept"


def test_a_timeout_gives_none_and_loses_nothing() -> None:
    @workflow
    async def patient() -> list[Any]:
        return [await receive("n", int, timeout="3d"), await receive("n", int)]

    run = Feeder(patient)
    (timer,) = run.take().commands
    assert timer.start_timer.delay_ms == 3 * 86_400_000
    run.record(timer)
    run.feed(timer_fired=h.TimerFired(command_id=timer.command_id))
    send(run, "n", 7)
    assert run.result() == [None, 7]


def test_in_time_the_timer_goes() -> None:
    @workflow
    async def prompt() -> Any:
        return await receive("n", int, timeout=60)

    run = Feeder(prompt)
    (timer,) = run.take().commands
    run.record(timer)
    send(run, "n", 7)
    assert run.result() == 7


def test_a_value_of_another_type_is_told_to_the_code() -> None:
    @workflow
    async def strict() -> str:
        try:
            await receive("n", int)
        except PayloadError as error:
            return str(error)
        return "?"

    run = Feeder(strict)
    send(run, "n", "text")
    assert "signal 'n'" in run.result()


def test_a_run_that_waits_for_nothing_else_is_not_stuck_and_one_that_waits_for_nothing_is() -> None:
    @workflow
    async def waits() -> None:
        publish_state("here")
        await asyncio.Event().wait()

    run = Feeder(waits)
    assert run.failure().kind == FAILURE_KIND_STUCK


@workflow
async def shows(n: int) -> int:
    publish_state({"at": 0})
    for i in range(n):
        await work(i)
        publish_state({"at": i + 1})
    return n


def test_states_are_notes() -> None:
    run = Feeder(shows, 1)
    first, command = run.take().commands
    assert (first.command_id, json.loads(first.publish_state.state.data)) == ("0/state#1", {"at": 0})
    note(run, first)
    run.record(command)
    assert run.take().commands == []
    run.complete(command.command_id, 0)
    assert run.result() == 1 and run.execution.untold == 1
    (last,) = run.take().commands
    assert (last.command_id, json.loads(last.publish_state.state.data)) == ("0/state#2", {"at": 1})
    assert run.execution.untold == 0


def test_a_replay_says_nothing_again_and_a_changed_state_diverges() -> None:
    run = Feeder(shows, 1)
    first, command = run.take().commands
    again = Feeder(shows, 1)
    note(again, first)
    assert [c.command_id for c in again.take().commands] == [command.command_id]
    other = Feeder(shows, 1)
    other.feed(state_published=h.StatePublished(command_id=first.command_id, digest=first.digest + 1))
    assert other.execution.divergence is not None
    unasked = Feeder(shows, 1)
    unasked.feed(state_published=h.StatePublished(command_id="0/state#9", digest=1))
    assert unasked.execution.divergence is not None and "0/state#9" in unasked.execution.divergence.expected


@workflow
async def quotes() -> list[int]:
    asked: list[int] = []
    while len(asked) < 2:
        question = await receive_question("double", int)
        asked.append(question.value)
        if question.value < 0:
            question.refuse("negative")
        else:
            question.answer(2 * question.value)
    return asked


def test_questions_are_answered_or_refused() -> None:
    run = Feeder(quotes)
    send(run, "double", 4, "q1", asks=True)
    (said,) = run.take().commands
    assert (said.answer_signal.signal_id, said.answer_signal.result.data) == ("q1", b"8")
    note(run, said)
    send(run, "double", -1, "q2", asks=True)
    (said,) = run.take().commands
    assert (said.answer_signal.signal_id, said.answer_signal.failure.message) == ("q2", "negative")
    assert run.result() == [4, -1]


def test_a_question_of_another_type_is_refused_and_the_next_one_waited_for() -> None:
    run = Feeder(quotes)
    send(run, "double", "text", "q1", asks=True)
    (said,) = run.take().commands
    assert said.answer_signal.signal_id == "q1" and "double" in said.answer_signal.failure.message
    assert run.execution.outcome is None


def test_a_signal_is_no_question() -> None:
    run = Feeder(quotes)
    send(run, "double", 4)
    assert run.take().commands == [] and len(run.execution.unread()) == 1


def test_a_question_whose_answer_cannot_be_encoded_can_still_be_refused() -> None:
    @workflow
    async def tries() -> None:
        question = await receive_question("q")
        try:
            question.answer(object())
        except PayloadError:
            question.refuse("no words for it")

    run = Feeder(tries)
    send(run, "q", None, "q1", asks=True)
    (said,) = run.take().commands
    assert said.answer_signal.failure.message == "no words for it"


def test_a_question_is_answered_once() -> None:
    @workflow
    async def twice() -> str:
        question = await receive_question("q")
        question.answer(1)
        try:
            question.refuse("no")
        except ConfigError as error:
            return str(error)
        return "?"

    run = Feeder(twice)
    send(run, "q", None, "q1", asks=True)
    assert "answer it once" in run.result()


@pytest.mark.parametrize("what", [lambda: publish_state(1), lambda: asyncio.run(receive("x"))])
def test_outside_a_workflow_it_says_where_it_belongs(what: Any) -> None:
    with pytest.raises(ConfigError, match="inside a @workflow"):
        what()
