"""The workflows that are measured: trivial steps, JSON in and out."""

from __future__ import annotations

from treadle.worker import step, workflow


@step
async def local(n: int) -> int:
    return n + 1


@step(pool="default")
async def pooled(n: int) -> int:
    return n + 1


@workflow
async def local_chain(length: int) -> int:
    n = 0
    for _ in range(length):
        n = await local(n)
    return n


@workflow
async def pool_chain(length: int) -> int:
    n = 0
    for _ in range(length):
        n = await pooled(n)
    return n
