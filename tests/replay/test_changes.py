"""Code that was changed under its run, guarded by `changed`: whoever continues it, wherever, goes one way to the end."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.replay.catalogue import double, shout
from tests.replay.harness import Server, feed_all
from treadle.worker import changed, receive, step, workflow
from treadle.worker.app import Registry
from treadle.worker.workflows import Workflow


@step(pool="p")
async def triple(x: int) -> int:
    return 3 * x


@workflow(name="prices")
async def prices_before(n: int) -> list[Any]:
    found: list[Any] = [await shout("start")]
    for i in range(n):
        found.append(await double(i))
        await asyncio.sleep(0.1)
    found.append(await receive("go"))
    found.append(await shout("end"))
    return found


@workflow(name="prices")
async def prices_after(n: int) -> list[Any]:
    found: list[Any] = [await shout("start")]
    for i in range(n):
        found.append(await (triple(i) if changed("triple") else double(i)))
        await asyncio.sleep(0.1)
    found.append(await receive("go"))
    if changed("ends"):
        found.append(await triple(5))
    found.append(await shout("end"))
    return found


@workflow(name="tasks")
async def tasks_before(n: int) -> list[Any]:
    async def one(i: int) -> int:
        await asyncio.sleep(0.05 * (n - i))
        value = await double(i)
        await shout(str(i))
        return value

    return [*await asyncio.gather(*(one(i) for i in range(n))), await double(10)]


@workflow(name="tasks")
async def tasks_after(n: int) -> list[Any]:
    async def one(i: int) -> int:
        await asyncio.sleep(0.05 * (n - i))
        value = await (triple(i) if changed("triple") else double(i))
        if not changed("quiet"):
            await shout(str(i))
        return value

    found: list[Any] = [*await asyncio.gather(*(one(i) for i in range(n)))]
    return [*found, await (triple(10) if changed("triple") else double(10))]


PAIRS = [pytest.param(prices_before, prices_after, id="prices"), pytest.param(tasks_before, tasks_after, id="tasks")]
STEPS = (double, triple, shout)
LETTERS = [(500, "go", b'"now"', False)]


def drive(server: Server, after: Workflow[..., Any], deploy_at: int, kills: set[int], *, lose: bool = False) -> Any:
    """Run to the end. Owners die where `kills` says; from `deploy_at` on the next one has the code that comes after.

    Every owner's code is fed the whole history; that it fits is checked as the worker checks it.
    """
    execution = server.fresh()
    while True:
        feed_all(execution, server.history)
        if execution.outcome is not None:
            assert execution.outcome.result is not None, execution.outcome
            found = json.loads(execution.outcome.result.data)
            execution.close()
            return found
        turn, fed = execution.take(), execution.fed
        before = len(server.history)
        killed = next((at for at in sorted(kills) if at <= fed), None)
        if killed is None or not lose:
            server.accept(turn, fed)
        if killed is not None:
            kills = {at for at in kills if at > fed}
            execution.close()
            server.new_owner()
            if fed >= deploy_at and server.workflow is not after:
                deploy(server, after)
            execution = server.fresh()
        elif len(server.history) == before and not server.advance():
            raise AssertionError(f"nothing more happens; the code waits for {execution.waits()}")


def deploy(server: Server, flow: Workflow[..., Any]) -> None:
    server.registry, server.workflow = Registry().add(flow, *STEPS), flow


def started(flow: Workflow[..., Any], **settings: Any) -> Server:
    server = Server(Registry().add(flow, *STEPS), flow, letters=LETTERS if flow.name == "prices" else (), **settings)
    server.start(3)
    return server


def check_ways(server: Server, found: list[Any]) -> None:
    """One way from the beginning to the end, and what the history has is what whoever comes after sees."""
    marks = {event.change_marked.name for event in server.history if event.HasField("change_marked")}
    numbers = [x for x in found if isinstance(x, int)]
    if server.workflow.name == "prices":
        expected = [0, 3, 6] if "triple" in marks else [0, 2, 4]
        assert numbers == ([*expected, 15] if "ends" in marks else expected)
    else:
        assert numbers == ([0, 3, 6, 30] if "triple" in marks else [0, 2, 4, 20])
    for upto in range(len(server.history) + 1):
        execution = server.fresh(upto=upto)
        feed_all(execution, server.history[:upto])
        execution.close()


@pytest.mark.parametrize("lose", [False, True])
@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_deployed_at_every_position_and_killed_at_every_later_one(
    before: Workflow[..., Any], after: Workflow[..., Any], lose: bool
) -> None:
    plain = started(before)
    drive(plain, before, 10**6, set())
    length = len(plain.history)
    both_ways = set()
    for deployed in range(2, length):
        for killed in (*range(deployed + 1, length + 12, 2), 10**6):
            server = started(before)
            found = drive(server, after, deployed, {deployed, killed}, lose=lose)
            if server.workflow is after:
                check_ways(server, found)
                both_ways.add(any(event.change_marked.name == "triple" for event in server.history))
    assert both_ways == {True, False}, "some had passed it, some had not"


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_a_new_run_takes_the_new_way_whoever_dies_when(before: Workflow[..., Any], after: Workflow[..., Any]) -> None:
    length = 60
    for killed in range(2, length):
        for lose in (False, True):
            server = started(after)
            found = drive(server, after, 0, {killed, killed + 7}, lose=lose)
            check_ways(server, found)
            assert not {2, 4, 20}.intersection(x for x in found if isinstance(x, int)), f"killed at {killed}"


def test_results_that_wait_for_their_owner_are_not_what_the_code_has_passed() -> None:
    """Two steps end while nobody holds the run: the code gets to the change for the first time all the same."""

    @workflow(name="late")
    async def late() -> list[Any]:
        first, second = asyncio.ensure_future(double(1)), asyncio.ensure_future(double(2))
        await first
        new = changed("x")
        await second
        return [new]

    server = Server(Registry().add(late, *STEPS), late)
    server.start()
    execution = server.fresh()
    feed_all(execution, server.history)
    turn = execution.take()
    server.accept(turn, execution.fed)
    execution.close()
    while server.advance():
        pass  # both results are there, and others' events behind them
    server.new_owner()
    last = server.fresh()
    feed_all(last, server.history)
    (marked,) = last.take().commands
    assert marked.mark_change.name == "x" and last.outcome is not None and last.outcome.result is not None
    assert json.loads(last.outcome.result.data) == [True]


def test_a_coroutine_that_was_kept_learns_what_others_did_meanwhile() -> None:
    """Its worker parked it, another worker with the old code went on, then it is woken: it replays the other's part."""
    old, server = prices_before, started(prices_before)
    execution = server.fresh()
    feed_all(execution, server.history)
    turn = execution.take()
    server.accept(turn, execution.fed)
    server.advance()
    deploy(server, prices_after)
    kept = server.fresh()
    feed_all(kept, server.history[:2])  # parked before the change
    deploy(server, old)
    while len(server.history) < 9:
        feed_all(execution, server.history)
        turn = execution.take()
        server.accept(turn, execution.fed)
        server.advance()
    deploy(server, prices_after)
    kept.passed(server._passed(len(server.history)), ())
    feed_all(kept, server.history)
    assert not [command for command in kept.take().commands if command.HasField("mark_change")]
    for unmade in (execution, kept):
        unmade.close()


def test_a_call_that_was_taken_out_leaves_its_mark_without_harm() -> None:
    @workflow(name="marked")
    async def marked() -> int:
        return await (triple(1) if changed("x") else double(1))

    @workflow(name="marked")
    async def cleaned() -> int:
        return await triple(1)

    server = Server(Registry().add(marked, *STEPS), marked)
    server.start()
    assert drive(server, cleaned, 3, {3}) == 3
    assert server.workflow is cleaned


@workflow(name="paid")
async def paid_before(n: int) -> list[int]:
    return [await double(n), await broken(n)]


@workflow(name="paid")
async def paid_after(n: int) -> list[int]:
    first = await (triple(n) if changed("triple") else double(n))
    found = [first, await triple(n)]
    return [*found, await triple(5)] if changed("longer") else found


@step(pool="p")
async def broken(x: int) -> int:
    raise ValueError(x)


@pytest.mark.parametrize("lose", [False, True])
def test_a_retried_run_keeps_the_way_of_what_was_done_and_goes_the_new_one_behind_it(lose: bool) -> None:
    """Whoever is led through the past is at each of its points where owners before were, not at its end."""
    for killed in range(7, 18):
        server = Server(Registry().add(paid_before, double, broken), paid_before)
        server.start(4)
        execution = server.fresh()
        while execution.outcome is None:
            feed_all(execution, server.history)
            server.accept(execution.take(), execution.fed)
            server.advance()
        server.close(execution.outcome)
        execution.close()
        deploy(server, paid_after)
        server.retry()
        assert drive(server, paid_after, 0, {killed}, lose=lose) == [8, 12, 15], f"killed at {killed}"
        marks = [event.change_marked.name for event in server.history if event.HasField("change_marked")]
        assert marks == ["longer"]
