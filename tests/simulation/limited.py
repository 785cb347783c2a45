"""Workflows with limits, and with steps of each mode of cancelling; each has one result, whatever comes in time."""

from __future__ import annotations

import asyncio

from treadle.worker import Retry, StepTimedOut, step, workflow

__all__ = ("STEPS", "gentle", "hurried", "late")

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


@step(retry=_QUICK, total_timeout="1s")
async def local_hurry(a: int) -> int:
    return a


STEPS = (listen, local_listen, leave, hurry, local_hurry)


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


@workflow(timeout="4s")
async def late(n: int) -> int:
    """Interrupted by its timeout; cleans up, and returns."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        return await local_listen(await listen(n)) + 1
    return 0
