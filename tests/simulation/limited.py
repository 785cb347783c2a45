"""Workflows with limits, and with steps of each mode of cancelling; each has one result, whatever comes in time."""

from __future__ import annotations

import asyncio

from treadle.worker import FailedRun, Retry, StepTimedOut, step, workflow

__all__ = ("STEPS", "deaf", "gentle", "hurried", "late", "spoiled")

_QUICK = Retry(attempts=0, initial="200ms", cap="2s")


@step(pool="default", retry=_QUICK, on_cancel="wait")
async def listen(a: int) -> int:
    return a


@step(retry=_QUICK, on_cancel="wait")
async def local_listen(a: int) -> int:
    return a


@step(pool="default", retry=_QUICK, on_cancel="abandon")
async def leave(a: int) -> int:
    return a


@step(pool="default", retry=_QUICK, total_timeout="2s", queue_timeout="1s", timeout="1.5s")
async def hurry(a: int) -> int:
    return a


@step(pool="default", retry=_QUICK, timeout="0.5s")
async def brief(a: int) -> int:
    return a


@step(retry=_QUICK, total_timeout="1s")
async def local_hurry(a: int) -> int:
    return a


@workflow
async def gentle(n: int) -> int:
    """Steps that are cancelled by a timeout of the code, alone and two at once."""
    for call in (listen, local_listen, leave):
        try:
            async with asyncio.timeout(0.2):
                await call(n)
        except TimeoutError:
            continue
    tasks = [asyncio.create_task(listen(n)), asyncio.create_task(local_listen(n))]
    await asyncio.sleep(0.1)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return await local_listen(n + 1)


@workflow
async def hurried(n: int) -> int:
    """Limits that are kept, or are not."""
    for call in (hurry, local_hurry, hurry):
        try:
            await call(n)
        except StepTimedOut:
            continue
    return await local_listen(n + 1)


@workflow
async def spoiled(n: int) -> int:
    """After pool steps whose attempts may time out: local ones that are cancelled as they are asked for, and a race."""
    total = n
    for _ in range(2):
        total = await brief(total)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(local_listen(total))
                group.create_task(_fails())
        except* ValueError:
            pass
        tasks = [asyncio.create_task(call(total)) for call in (listen, leave)]
        _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        total = await listen(total + 1)
    return total


async def _fails() -> None:
    raise ValueError


@step(pool="default", retry=_QUICK)
async def report(failed: FailedRun) -> list[str]:
    return [failed.id, failed.error.type, *map(str, failed.input.values())]


STEPS = (listen, local_listen, leave, hurry, brief, local_hurry, report)


@workflow(timeout="4s", on_failure=report)
async def deaf(n: int) -> int:
    """Never ends by itself, whatever it is told."""
    await local_listen(n)
    while True:
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            await listen(n)


@workflow(timeout="4s")
async def late(n: int) -> int:
    """Interrupted by its timeout; cleans up, and returns."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        return await local_listen(await listen(n)) + 1
    return 0
