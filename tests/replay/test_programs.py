"""Generated workflows: what they ask for in a replay is what they asked for live, at every position."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.replay.catalogue import broken, cleanup, double, flaky, shout
from tests.replay.harness import Server, check_every_prefix, drive
from treadle.worker import StepError, changed, random, workflow
from treadle.worker.app import Registry


@workflow
async def program(node: Any) -> list[Any]:
    """Runs a tree of [what, arguments ...]."""
    log: list[Any] = []
    try:
        await execute(node, log)
    except* (StepError, TimeoutError) as errors:
        log.append([type(e).__name__ for e in errors.exceptions])
    await double(len(log))
    return log


async def execute(node: Any, log: list[Any]) -> None:
    kind, *args = node
    log.append(kind)
    if kind == "pool":
        log.append(await double(args[0]))
    elif kind == "local":
        log.append(await shout(args[0]))
    elif kind == "broken":
        await broken(args[0])
    elif kind == "flaky":
        await flaky(args[0])
    elif kind == "sleep":
        await asyncio.sleep(args[0] / 1000)
    elif kind == "changed":
        log.append(await double(1) if changed(args[0]) else await shout("old"))
    elif kind == "draw":
        await double(random().randrange(100))
    else:
        await combine(kind, args, log)


async def combine(kind: str, args: list[Any], log: list[Any]) -> None:
    if kind == "sequence":
        for child in args[0]:
            await execute(child, log)
    elif kind == "gather":
        found = await asyncio.gather(*(execute(child, log) for child in args[0]), return_exceptions=True)
        log.append([type(f).__name__ for f in found])
    elif kind == "group":
        async with asyncio.TaskGroup() as group:
            for child in args[0]:
                group.create_task(execute(child, log))
    elif kind == "first":
        tasks = {asyncio.create_task(execute(child, log)) for child in args[0]}
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        ended = await asyncio.gather(*pending, *done, return_exceptions=True)
        log.append([type(e).__name__ for e in ended])
    elif kind == "completed":
        for following in asyncio.as_completed([execute(child, log) for child in args[0]]):
            try:
                await following
            except StepError as error:
                log.append(error.message)
    elif kind == "timeout":
        try:
            async with asyncio.timeout(args[0] / 1000):
                await execute(args[1], log)
        except TimeoutError:
            log.append("late")
    elif kind == "waits":
        await asyncio.shield(asyncio.wait_for(execute(args[1], log), args[0] / 1000))
    elif kind == "finally":
        try:
            await execute(args[0], log)
        finally:
            log.append(await cleanup(str(len(log))))
    elif kind == "generator":
        async for child in each(args[0], log):
            log.append(child)
            if len(log) % 3 == 0:
                break
    else:
        raise AssertionError(kind)


async def each(children: list[Any], log: list[Any]) -> AsyncIterator[str]:
    try:
        for child in children:
            await execute(child, log)
            yield child[0]
    finally:
        log.append("closed")


MS = st.integers(1, 500)
LEAVES = st.one_of(
    st.tuples(st.just("pool"), st.integers(0, 9)),
    st.tuples(st.just("local"), st.sampled_from(["a", "b"])),
    st.tuples(st.just("broken"), st.integers(0, 3)),
    st.tuples(st.just("flaky"), st.just("k")),
    st.tuples(st.just("sleep"), MS),
    st.tuples(st.just("draw")),
    st.tuples(st.just("changed"), st.sampled_from(["x", "y"])),
)


def trees(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(children, min_size=1, max_size=5)
    kinds = st.sampled_from(["sequence", "gather", "group", "first", "completed", "generator"])
    return st.one_of(
        st.tuples(kinds, several),
        st.tuples(st.sampled_from(["timeout", "waits"]), MS, children),
        st.tuples(st.just("finally"), children),
    )


PROGRAMS = st.recursive(LEAVES, trees, max_leaves=14)
REGISTRY = Registry().add(program, double, broken, shout, flaky, cleanup)


def started(tree: Any, seed: int, late: bool, cancel_at_ms: int | None) -> Server:
    server = Server(REGISTRY, program, seed=seed, late=late, cancel_at_ms=cancel_at_ms)
    server.start(tree)
    return server


@settings(max_examples=120, deadline=None)
@given(tree=PROGRAMS, seed=st.integers(0, 1000), cancel_at_ms=st.none() | st.integers(0, 600))
def test_every_prefix_asks_for_the_same(tree: Any, seed: int, cancel_at_ms: int | None) -> None:
    server = started(tree, seed, False, cancel_at_ms)
    check_every_prefix(server, drive(server))


@settings(max_examples=120, deadline=None)
@given(
    tree=PROGRAMS,
    seed=st.integers(0, 1000),
    cancel_at_ms=st.none() | st.integers(0, 600),
    kill_at=st.integers(1, 40),
    lose=st.booleans(),
    late=st.booleans(),
)
def test_a_killed_one_is_gone_on_with(
    tree: Any, seed: int, cancel_at_ms: int | None, kill_at: int, lose: bool, late: bool
) -> None:
    server = started(tree, seed, late, cancel_at_ms)
    outcome = drive(server, kill_at=kill_at, lose=lose)
    again = server.fresh()
    for event in server.history:
        again.feed(event)
        assert again.divergence is None, again.divergence
    assert again.outcome == outcome
    again.close()
