"""The workflows that are measured: trivial steps, JSON in and out. Slow steps write down that they run."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from benchmarks.drive import append_line
from benchmarks.sizes import SLOW_STEP_S
from treadle.worker import now, step, workflow

STEP_LOG_VARIABLE = "BENCH_STEP_LOG"

Order = dict[str, Any]


@step
async def local(order: Order) -> Order:
    order["n"] += 1
    return order


@step(pool="default")
async def pooled(order: Order) -> Order:
    order["n"] += 1
    return order


@workflow
async def local_chain(length: int, order: Order) -> int:
    for _ in range(length):
        order = await local(order)
    return int(order["n"])


@workflow
async def pool_chain(length: int, order: Order) -> int:
    for _ in range(length):
        order = await pooled(order)
    return int(order["n"])


@workflow
async def local_fan(width: int, order: Order) -> int:
    return len(await asyncio.gather(*(local(order) for _ in range(width))))


@workflow
async def pool_fan(width: int, order: Order) -> int:
    return len(await asyncio.gather(*(pooled(order) for _ in range(width))))


@step
async def wall_clock() -> float:
    return time.time()


@workflow
async def sleeper(due: float) -> float:
    """Sleep until the Unix time `due`; returns by how much later the code behind the sleep went on, in seconds."""
    await asyncio.sleep(max(due - now().timestamp(), 0))
    return await wall_clock() - due


async def _slow(run: int, index: int) -> int:
    append_line(os.environ[STEP_LOG_VARIABLE], run, index)
    await asyncio.sleep(SLOW_STEP_S)
    return index


@step
async def slow_local(run: int, index: int) -> int:
    return await _slow(run, index)


@step(pool="default")
async def slow_pooled(run: int, index: int) -> int:
    return await _slow(run, index)


@workflow
async def slow_local_chain(run: int, length: int) -> int:
    return len([await slow_local(run, index) for index in range(length)])


@workflow
async def slow_pool_chain(run: int, length: int) -> int:
    return len([await slow_pooled(run, index) for index in range(length)])


@workflow
async def long_history(length: int, marks: int, order: Order) -> int:
    """`length` trivial steps, then `marks` slow ones, which show from outside that it goes on."""
    for _ in range(length):
        order = await local(order)
    for index in range(marks):
        await slow_local(length, index)
    return int(order["n"])


@step
async def big_local(kib: int) -> str:
    return "x" * (kib * 1024)


@step(pool="default")
async def big_pooled(kib: int) -> str:
    return "x" * (kib * 1024)


@workflow
async def big_local_chain(length: int, kib: int) -> int:
    return sum([len(await big_local(kib)) for _ in range(length)])


@workflow
async def big_pool_chain(length: int, kib: int) -> int:
    return sum([len(await big_pooled(kib)) for _ in range(length)])
