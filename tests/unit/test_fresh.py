"""A value that may be a little old: one read for all, and never older than asked for."""

from __future__ import annotations

import asyncio
import time

import pytest

from treadle.controlplane.api.fresh import Fresh
from treadle.protocol.errors import Unavailable


def test_one_read_serves_all_who_ask_and_later_ones_may_ask_for_newer() -> None:
    async def main() -> None:
        reads = 0
        gate = asyncio.Event()

        async def read() -> int:
            nonlocal reads
            reads += 1
            await gate.wait()
            return reads

        value = Fresh(read, keep_s=60)
        asking = [asyncio.create_task(value.get()) for _ in range(10)]
        while not reads:
            await asyncio.sleep(0)
        gate.set()
        assert await asyncio.gather(*asking) == [1] * 10
        assert await value.get() == 1
        since = time.monotonic()
        assert await asyncio.gather(*(value.get(since) for _ in range(5))) == [2] * 5
        assert await value.get() == 2

    asyncio.run(main())


def test_a_failed_read_keeps_nothing() -> None:
    async def main() -> None:
        answers: list[int] = []

        async def read() -> int:
            if not answers:
                raise Unavailable("away")
            return answers[0]

        value = Fresh(read)
        with pytest.raises(Unavailable):
            await value.get()
        answers.append(3)
        assert await value.get() == 3

    asyncio.run(main())
