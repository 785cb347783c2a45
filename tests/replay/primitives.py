"""A workflow that is a tree of asyncio's primitives: locks, queues, conditions, groups, timeouts, shields.

`python -m tests.replay.primitives OUT` records runs of it, for `test_versions.py` on other versions of Python.
"""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio import wait_for as imported_before_treadle
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from random import Random
from typing import Any

from tests.replay.catalogue import broken, cleanup, double, flaky, shout
from tests.replay.harness import Server, check_every_prefix, drive
from treadle.v1.worker_service_pb2 import Command
from treadle.worker import StepError, workflow
from treadle.worker.app import Registry

__all__ = ("REGISTRY", "names", "primitives")

Log = list[Any]


@workflow
async def primitives(node: Any) -> Log:
    """Runs a tree of [kind, arguments ...]."""
    log: Log = []
    try:
        await run(node, log)
    except* (StepError, TimeoutError, ValueError) as errors:
        log.append([type(e).__name__ for e in errors.exceptions])
    await double(len(log))
    return log


async def run(node: Any, log: Log) -> Any:
    kind, *arguments = node
    log.append(kind)
    return await KINDS[kind](log, *arguments)


async def leaf(log: Log, n: int) -> int:
    how = n % 5
    if how == 0:
        log.append(await double(n))
    elif how == 1:
        log.append(await shout(str(n)))
    elif how == 2:
        await asyncio.sleep(n / 100)
    elif how == 3:
        await asyncio.sleep(0)
    else:
        await flaky("k")
    log.append(n)
    return n


async def fails(log: Log, n: int) -> None:
    await leaf(log, n)
    raise ValueError(n)


async def breaks(log: Log, n: int) -> None:
    await broken(n)


async def zero(log: Log, n: int) -> None:
    await in_time(log, asyncio.wait_for(leaf(log, n), 0))


async def stubborn(log: Log) -> None:
    async def keeps() -> str:
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            log.append(await cleanup("c"))
            return "kept"
        return "slept"

    await in_time(log, asyncio.wait_for(keeps(), 0.03))


async def in_time(log: Log, awaitable: Awaitable[Any]) -> None:
    try:
        log.append(await awaitable)
    except TimeoutError:
        log.append("late")


async def inside(log: Log, lock: AbstractAsyncContextManager[Any], n: int) -> None:
    async with lock:
        await leaf(log, n)


async def locked(log: Log, *ns: int) -> None:
    lock = asyncio.Lock()
    await asyncio.gather(*(in_time(log, asyncio.wait_for(inside(log, lock, n), 0.06)) for n in ns))


async def semaphore(log: Log, *ns: int) -> None:
    slots = asyncio.Semaphore(2)
    tasks = [asyncio.create_task(inside(log, slots, n)) for n in ns]
    await asyncio.sleep(0.05)
    tasks[-1].cancel()
    tasks[0].cancel()
    log.append([type(end).__name__ for end in await asyncio.gather(*tasks, return_exceptions=True)])


async def queue(log: Log, *ns: int) -> None:
    items: asyncio.Queue[int] = asyncio.Queue(maxsize=2)

    async def consume() -> None:
        while True:
            await leaf(log, await asyncio.wait_for(items.get(), 9))
            items.task_done()

    consumers = [asyncio.create_task(consume()) for _ in range(2)]
    for n in ns:
        await items.put(n)
        await leaf(log, n + 3)
    await items.join()
    for consumer in consumers:
        consumer.cancel()
    await asyncio.gather(*consumers, return_exceptions=True)


async def condition(log: Log, *ns: int) -> None:
    changed = asyncio.Condition()
    ready: list[int] = []

    async def waits(n: int) -> None:
        async with changed:
            await in_time(log, asyncio.wait_for(changed.wait_for(lambda: len(ready) > n % 3), 0.2))
        await leaf(log, n)

    async def tells() -> None:
        for n in ns:
            await leaf(log, n)
            async with changed:
                ready.append(n)
                changed.notify(1 if n % 2 else len(ns))

    await asyncio.gather(tells(), *map(waits, ns))


async def barrier(log: Log, *ns: int) -> None:
    gate = asyncio.Barrier(len(ns))

    async def passes(n: int) -> None:
        await leaf(log, n)
        log.append(await gate.wait())
        await leaf(log, n + 1)

    await asyncio.gather(*map(passes, ns))


async def waits_for(log: Log, ms: int, node: Any) -> None:
    await in_time(log, asyncio.wait_for(run(node, log), ms / 1000))


async def waits_for_task(log: Log, ms: int, node: Any) -> None:
    await in_time(log, imported_before_treadle(asyncio.create_task(run(node, log)), ms / 1000))


async def shielded(log: Log, ms: int, node: Any) -> None:
    inner = asyncio.create_task(run(node, log))
    try:
        async with asyncio.timeout(ms / 1000):
            log.append(await asyncio.shield(inner))
    except TimeoutError:
        await asyncio.wait([inner])


async def cancelled(log: Log, node: Any) -> None:
    async def waits() -> None:
        try:
            await asyncio.wait_for(run(node, log), 5)
        finally:
            log.append(await cleanup("h"))

    task = asyncio.create_task(waits())
    await asyncio.sleep(0.04)
    task.cancel()
    log.append(type((await asyncio.gather(task, return_exceptions=True))[0]).__name__)


async def group(log: Log, *nodes: Any) -> None:
    async with asyncio.TaskGroup() as tasks:
        for node in nodes:
            tasks.create_task(run(node, log))


async def gather(log: Log, *nodes: Any) -> None:
    await asyncio.gather(*(run(node, log) for node in nodes))


async def first_error(log: Log, *nodes: Any) -> None:
    tasks = [asyncio.create_task(run(node, log)) for node in nodes]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION, timeout=0.3)
    log.append([len(done), len(pending)])
    for task in pending:
        task.cancel()
    log.append([type(end).__name__ for end in await asyncio.gather(*tasks, return_exceptions=True)])


async def completed(log: Log, *nodes: Any) -> None:
    for following in asyncio.as_completed([run(node, log) for node in nodes], timeout=0.4):
        try:
            log.append(await following)
        except (StepError, ValueError, TimeoutError, ExceptionGroup) as error:
            log.append(type(error).__name__)


LEAVES: dict[str, Callable[..., Awaitable[Any]]] = {
    "leaf": leaf, "fails": fails, "breaks": breaks, "zero": zero,
}  # fmt: skip
FLAT: dict[str, Callable[..., Awaitable[Any]]] = {
    "locked": locked, "semaphore": semaphore, "queue": queue, "condition": condition, "barrier": barrier,
}  # fmt: skip
TIMED: dict[str, Callable[..., Awaitable[Any]]] = {
    "waits_for": waits_for, "waits_for_task": waits_for_task, "shielded": shielded,
}  # fmt: skip
MANY: dict[str, Callable[..., Awaitable[Any]]] = {
    "group": group, "gather": gather, "first_error": first_error, "completed": completed,
}  # fmt: skip
KINDS = LEAVES | FLAT | TIMED | MANY | {"stubborn": stubborn, "cancelled": cancelled}
REGISTRY = Registry().add(primitives, double, broken, shout, flaky, cleanup)


def tree(random: Random, depth: int = 0, kind: str = "") -> Any:
    """Draw a tree; `kind`: its root."""
    if not kind:
        kind = random.choice(sorted(LEAVES if depth > 2 or (depth and random.random() < 0.4) else KINDS))
    if kind == "stubborn":
        return [kind]
    if kind in LEAVES:
        return [kind, random.randrange(20)]
    if kind in FLAT:
        return [kind, *(random.randrange(20) for _ in range(random.randint(2, 5)))]
    if kind in TIMED:
        return [kind, random.randint(1, 300), tree(random, depth + 1)]
    return [kind, *(tree(random, depth + 1) for _ in range(1 if kind == "cancelled" else random.randint(2, 4)))]


def main(out: str, each: int = 3) -> None:
    """Record `each` runs of every kind."""
    with open(out, "w", encoding="utf-8") as lines:
        for number in range(each * len(KINDS)):
            random = Random(number)
            server = Server(REGISTRY, primitives, seed=number)
            server.start(tree(random, kind=sorted(KINDS)[number % len(KINDS)]))
            asked = list(map(names, check_every_prefix(server, drive(server))))
            history = [event.SerializeToString().hex() for event in server.history]
            lines.write(json.dumps({"history": history, "asked": asked}) + "\n")


def names(commands: list[bytes]) -> list[str]:
    """What is asked for, as far as every build of Treadle says it alike: kinds, ids and digests."""
    return [f"{c.WhichOneof('kind')} {c.command_id} {c.digest:x}" for c in map(Command.FromString, commands)]


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
