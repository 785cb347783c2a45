"""A closed run goes on: what counts of its past, what runs again, and that it replays as it went."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.replay.catalogue import CATALOGUE, LETTERS, REGISTRY
from tests.replay.harness import Server, check_every_prefix, drive, feed_all
from treadle.v1.worker_service_pb2 import Command
from treadle.worker import MapFailed, Retry, Saga, StepError, publish_state, step, workflow
from treadle.worker.app import Registry
from treadle.worker.loop.port import LocalCall, Outcome

BROKEN: set[str] = set()
RAN: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _whole() -> Iterator[None]:
    BROKEN.clear()
    RAN.clear()
    yield
    BROKEN.clear()


def _work(what: str) -> str:
    RAN[what] += 1
    if what in BROKEN:
        raise ConnectionError(what)
    return what.upper()


@step(pool="p", retry=Retry.never)
async def pooled(what: str) -> str:
    return _work(what)


@step(retry=Retry(attempts=1))
def local(what: str) -> str:
    return _work(what)


@workflow
async def line(words: list[str]) -> list[str]:
    found = []
    for number, word in enumerate(words):
        found.append(await (local(word) if number % 2 else pooled(word)))
    return found


@workflow
async def plan_b(words: list[str]) -> str:
    """A failure that the code handles, and one that it does not."""
    try:
        first = await pooled(words[0])
    except StepError:
        first = await local(words[1])
    await asyncio.sleep(5)
    return first + await pooled(words[2])


@workflow
async def tidy(words: list[str]) -> str:
    """Fails, with cleanup behind it, while a sibling runs."""
    try:
        async with asyncio.TaskGroup() as group:
            one = group.create_task(_one(words[0]))
            two = group.create_task(_two(words[1]))
        return one.result() + two.result()
    finally:
        await local("cleanup")


async def _one(word: str) -> str:
    return await pooled(word)


async def _two(word: str) -> str:
    await asyncio.sleep(1)
    return await pooled(word)


@workflow
async def mapped(words: list[str]) -> list[str]:
    return await pooled.map(words, limit=3)


@workflow
async def saga(words: list[str]) -> str:
    async with Saga() as undo:
        done = await pooled(words[0])
        undo.undo(pooled, f"un{words[0]}")
        return done + await pooled(words[1])


REDRIVEN = Registry().add(line, plan_b, tidy, mapped, saga, pooled, local)


def failed(flow: Any, words: list[str], *broken: str, seed: int = 0) -> tuple[Server, Outcome]:
    server = Server(REDRIVEN, flow, seed=seed)
    server.start(words)
    BROKEN.update(broken)
    outcome = drive(server)
    server.close(outcome)
    BROKEN.clear()
    RAN.clear()
    return server, outcome


def deploy(server: Server, flow: Any) -> None:
    """From now on this is the code of the workflow."""
    server.workflow, server.registry = flow, Registry().add(flow, pooled, local)


def went_on(server: Server, from_position: int = 0, number: int = 1) -> Any:
    """Continue it and return its result; replays of what came are the same at every position."""
    server.retry(from_position, number)
    outcome = drive(server)
    check_every_prefix(server, outcome)
    assert outcome.result is not None, outcome
    return json.loads(outcome.result.data)


def test_it_goes_on_at_the_step_that_failed() -> None:
    server, outcome = failed(line, ["a", "b", "c", "d"], "c")
    assert outcome.because == ("0/pooled#2",)
    assert went_on(server) == ["A", "B", "C", "D"]
    assert RAN == {"c": 1, "d": 1}


def test_a_local_step_that_failed_runs_again() -> None:
    server, outcome = failed(line, ["a", "b", "c"], "b")
    assert outcome.because == ("0/local#1",)
    assert went_on(server) == ["A", "B", "C"]
    assert RAN == {"b": 1, "c": 1}


def test_it_may_fail_again_and_go_on_again() -> None:
    server, _ = failed(line, ["a", "b", "c"], "b", "c")
    server.retry()
    BROKEN.add("c")
    server.close(drive(server))
    BROKEN.clear()
    RAN.clear()
    assert went_on(server, number=2) == ["A", "B", "C"]
    assert RAN == {"c": 1}


def test_a_failure_that_the_code_handled_stays() -> None:
    server, outcome = failed(plan_b, ["a", "b", "c"], "a", "c")
    assert outcome.because == ("0/pooled#2",)
    assert went_on(server) == "BC"
    assert RAN == {"c": 1}, "neither the first plan nor the second one runs again"


@pytest.mark.parametrize("seed", range(4))
def test_what_was_cancelled_because_of_it_runs_again_and_cleanup_that_was_done_does_not(seed: int) -> None:
    server, outcome = failed(tidy, ["a", "b"], "a", seed=seed)
    assert outcome.because == ("0.1/pooled#1",)
    assert went_on(server) == "AB"
    assert RAN == {"a": 1, "b": 1}


@pytest.mark.parametrize("seed", range(4))
def test_of_a_map_only_the_items_that_failed_run_again(seed: int) -> None:
    words = [f"w{n}" for n in range(20)]
    server, outcome = failed(mapped, words, "w4", "w6", seed=seed)
    assert outcome.failure is not None and outcome.failure.type == MapFailed.__name__
    done = {event.step_completed.command_id for event in server.history if event.WhichOneof("kind") == "step_completed"}
    assert went_on(server) == [word.upper() for word in words]
    assert RAN["w4"] == 1 and max(RAN.values()) == 1 and sum(RAN.values()) == len(words) - len(done)


def test_ten_thousand_items_of_which_three_failed() -> None:
    words = [f"w{n}" for n in range(10_000)]
    server = Server(REDRIVEN, tolerant)
    server.start(words)
    BROKEN.update(("w7", "w5000", "w9999"))
    outcome = drive(server)
    assert len(outcome.because) == 3
    server.close(outcome)
    BROKEN.clear()
    RAN.clear()
    server.retry()
    outcome = drive(server)
    assert outcome.result is not None and RAN == {"w7": 1, "w5000": 1, "w9999": 1}


@workflow
async def tolerant(words: list[str]) -> int:
    found = await pooled.map(words, limit=500, tolerate=1)
    errors = [one for one in found if isinstance(one, StepError)]
    if errors:
        raise ExceptionGroup("some items failed", errors)
    return len(found)


REDRIVEN.add(tolerant)


def test_from_a_step_it_and_everything_behind_it_run_again() -> None:
    server, _ = failed(line, ["a", "b", "c", "d"], "d")
    second = next(e.position for e in server.history if e.step_completed.command_id == "0/local#1")
    assert went_on(server, from_position=second) == ["A", "B", "C", "D"]
    assert RAN == {"b": 1, "c": 1, "d": 1}


def test_what_had_been_done_runs_again_under_another_key_and_what_had_failed_under_its_own() -> None:
    server, _ = failed(line, ["a", "b", "c"], "c")
    server.retry(from_position=3)  # the first step
    commands: dict[str, Command] = {}
    calls: dict[str, LocalCall] = {}
    execution = server.fresh()
    while execution.outcome is None:
        feed_all(execution, server.history)
        turn = execution.take()
        commands |= {command.command_id: command for command in turn.commands}
        calls |= {call.command_id: call for call in turn.local_calls}
        server.accept(turn, execution.fed)
        server.advance()
    execution.close()
    first, second, third = commands["0/pooled#1"], calls["0/local#1"], commands["0/pooled#2"]
    assert (first.schedule_step.redone, second.redone, third.schedule_step.redone) == (1, 1, 0)
    assert first.schedule_step.tries_before == 1 and third.schedule_step.tries_before == 1
    assert (second.try_number, second.tries_before) == (2, 1)


def test_todays_code_may_ask_for_more_and_keeps_what_was_done() -> None:
    server, _ = failed(line, ["a", "b", "c"], "c")

    @workflow(name="line")
    async def fixed(words: list[str]) -> list[str]:
        await local("new")
        return [await pooled(words[0]), await local(words[1]), await pooled("better"), await local("last")]

    # The new first step takes the name of the one that was done: another input is no silent repetition.
    deploy(server, fixed)
    server.retry()
    execution = server.fresh()
    for event in server.history:
        execution.feed(event)
        if execution.divergence is not None:
            break
    assert execution.divergence is not None and "local#1" in execution.divergence.expected

    @workflow(name="line")
    async def better(words: list[str]) -> list[str]:
        first = await pooled(words[0])
        second = await local(words[1])
        return [first, second, await local("new"), await pooled("better")]

    execution.close()
    deploy(server, better)
    outcome = drive(server)
    assert outcome.result is not None and json.loads(outcome.result.data) == ["A", "B", "NEW", "BETTER"]
    assert RAN == {"new": 1, "better": 1}


def test_code_that_raised_by_itself_goes_on_when_it_was_mended() -> None:
    @workflow(name="line")
    async def wrong(words: list[str]) -> list[str]:
        first = await pooled(words[0])
        raise KeyError(first)

    server = Server(Registry().add(wrong, pooled, local), wrong)
    server.start(["a", "b"])
    outcome = drive(server)
    assert outcome.failure is not None and outcome.failure.type == "KeyError" and not outcome.because
    server.close(outcome)
    RAN.clear()
    deploy(server, line)
    assert went_on(server) == ["A", "B"]
    assert RAN == {"b": 1}


def test_a_saga_says_that_it_has_undone_what_was_done() -> None:
    server, outcome = failed(saga, ["a", "b"], "b")
    assert outcome.undone and outcome.because == ("0/pooled#2",)
    assert went_on(server, from_position=3) == "AB"
    assert RAN == {"a": 1, "b": 1}


def test_a_saga_that_could_not_be_undone_goes_on_undoing() -> None:
    server, outcome = failed(saga, ["a", "b"], "b", "una")
    assert not outcome.undone and outcome.because == ("0.1/pooled#1",)
    server.retry()
    outcome = drive(server)
    assert outcome.undone and RAN == {"una": 1}, "the step that failed stays failed, its undoing is done"


@workflow
async def shows(words: list[str]) -> str:
    """Shows how far it is, and that it has failed."""
    for word in words:
        publish_state(word)
        try:
            await pooled(word)
        except StepError:
            publish_state(f"failed at {word}")
            raise
    publish_state("done")
    return "done"


REDRIVEN.add(shows)


def test_a_state_is_no_deed_and_is_shown_as_it_is_now() -> None:
    server, _ = failed(shows, ["a", "b", "c"], "c")
    server.retry()
    execution = server.fresh()
    feed_all(execution, server.history)
    said = [c.publish_state.state.data for c in execution.take().commands if c.HasField("publish_state")]
    execution.close()
    assert said == [b'"c"'], "where it is now, not all over again"
    outcome = drive(server)
    check_every_prefix(server, outcome)
    assert outcome.result is not None and RAN == {"c": 1}
    second = next(e.position for e in server.history if e.step_scheduled.command_id == "0/pooled#2")
    assert went_on(server, from_position=second, number=2) == "done" and RAN == {"b": 1, "c": 2}


# --- anything, anywhere --------------------------------------------------------------------------------------------------
ENTRIES = [pytest.param(*entry, id=entry[0].name) for entry in CATALOGUE]


def _kind(outcome: Outcome) -> tuple[bool, str]:
    return outcome.cancelled, outcome.failure.type if outcome.failure is not None else ""


def _terminated_at(server: Server, position: int) -> bool:
    """Drive until so many events are recorded, then terminate; False if it ended before."""
    execution = server.fresh()
    while True:
        feed_all(execution, server.history)
        ended = execution.outcome is not None
        if ended or len(server.history) >= position:
            execution.close()
            return not ended
        turn = execution.take()
        before = len(server.history)
        server.accept(turn, execution.fed)
        if len(server.history) == before:
            assert server.advance()


@pytest.mark.parametrize(("flow", "args", "_expected"), ENTRIES)
def test_terminated_anywhere_it_goes_on_and_ends_as_if_nothing_had_been(
    flow: Any, args: tuple[Any, ...], _expected: Any
) -> None:
    letters = LETTERS.get(flow.name, ())
    whole = Server(REGISTRY, flow, seed=3, letters=letters)
    whole.start(*args)
    kind = _kind(drive(whole))
    for position in range(2, len(whole.history) + 1):
        server = Server(REGISTRY, flow, seed=3, letters=letters)
        server.start(*args)
        if not _terminated_at(server, position):
            continue
        server.close(None)
        server.retry()
        outcome = drive(server)
        assert _kind(outcome) == kind, f"terminated at {position}"
        check_every_prefix(server, outcome)


@pytest.mark.parametrize("cancel_at_ms", [0, 90, 250])
@pytest.mark.parametrize(("flow", "args", "_expected"), ENTRIES)
def test_a_cancelled_run_goes_on_as_if_nobody_had_cancelled_it(
    flow: Any, args: tuple[Any, ...], _expected: Any, cancel_at_ms: int
) -> None:
    letters = LETTERS.get(flow.name, ())
    whole = Server(REGISTRY, flow, seed=4, letters=letters)
    whole.start(*args)
    kind = _kind(drive(whole))
    server = Server(REGISTRY, flow, seed=4, letters=letters, cancel_at_ms=cancel_at_ms)
    server.start(*args)
    outcome = drive(server)
    if not outcome.cancelled:
        pytest.skip("it ended otherwise")
    server.close(outcome)
    server.retry()
    outcome = drive(server)
    assert _kind(outcome) == kind
    check_every_prefix(server, outcome)


@pytest.mark.parametrize(("flow", "args", "_expected"), ENTRIES)
def test_killed_anywhere_after_it_went_on(flow: Any, args: tuple[Any, ...], _expected: Any) -> None:
    def continued() -> Server:
        server = Server(REGISTRY, flow, seed=6, letters=LETTERS.get(flow.name, ()))
        server.start(*args)
        if not _terminated_at(server, 6):
            pytest.skip("it is over too soon")
        server.close(None)
        server.retry()
        return server

    live = continued()
    kind, first = _kind(drive(live)), live.retried_at
    for position in range(first, len(live.history) + 1):
        for lose in (False, True):
            server = continued()
            assert _kind(drive(server, kill_at=position, lose=lose)) == kind, f"killed at {position}"
            last = server.fresh()
            feed_all(last, server.history)
            last.close()
