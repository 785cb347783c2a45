"""The hint hub: nothing missed between a read and a wait, nothing queued, nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

from treadle.controlplane.hints import HintHub
from treadle.controlplane.store.port import Hint, RunStore
from treadle.protocol.errors import Unavailable
from treadle.protocol.ids import RunKey

A, B = RunKey("default", "a"), RunKey("default", "b")


def hint(run: RunKey, length: int = 1) -> Hint:
    return Hint(run.namespace, run.run_id, length, False, "")


def test_a_change_during_a_read_is_not_missed_and_many_are_one() -> None:
    async def main() -> None:
        hub = HintHub()
        async with hub.subscribe(A) as woken, hub.subscribe(A) as other:
            for length in range(1000):
                hub.feed([hint(A, length), hint(B)])
            assert await woken.wait(1)
            assert not await woken.wait(0.01), "a thousand changes are one wake-up"
            assert await other.wait(1)
            hub.close()
            assert await woken.wait(1)
        hub.feed([hint(A)])
        assert not hub._waiting

    asyncio.run(main())


def test_the_stores_hints_are_fed_and_its_absence_survived() -> None:
    class Flaky:
        rounds = 0

        async def hints(self) -> AsyncIterator[list[Hint]]:
            self.rounds += 1
            if self.rounds == 1:
                raise Unavailable("Redis at r:6379 does not answer")
            yield [hint(A)]
            await asyncio.get_running_loop().create_future()

    async def main() -> None:
        hub = HintHub()
        heard: list[Hint] = []
        broken: list[int] = []
        with hub.listening(heard.extend), hub.listening(lambda hints: broken.append(1 // 0)):
            feeding = asyncio.create_task(hub.run(cast(RunStore, Flaky())))
            async with hub.subscribe(A) as woken:
                assert await woken.wait(10)
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
        assert heard == [hint(A)]
        hub.feed([hint(A)])
        assert heard == [hint(A)], "nobody listens any more"

    asyncio.run(main())
