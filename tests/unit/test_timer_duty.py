"""The timer duty of a replica that looks after no shard: it leaves the event loop to others."""

from __future__ import annotations

import asyncio

from treadle.controlplane.broker.memory import MemoryBroker
from treadle.controlplane.duties.leases import LeaseChecker
from treadle.controlplane.duties.queues import QueueWatch
from treadle.controlplane.duties.timers import TimerDuty
from treadle.controlplane.engine import Engine
from treadle.controlplane.store.memory import MemoryStore
from treadle.protocol.ids import SHARDS


def test_a_replica_without_shards_rests_although_timers_are_added() -> None:
    async def main() -> None:
        store = MemoryStore()
        await store.start()
        engine = Engine(store, MemoryBroker())
        await engine.prepare()
        await store.hold("another replica", range(SHARDS), 60_000)
        duty = TimerDuty(engine, LeaseChecker(engine), QueueWatch(engine))
        task = asyncio.create_task(duty.run())
        await asyncio.sleep(0)
        turns = 0
        async with asyncio.timeout(0.5) as limit:
            while turns < 1000:
                engine.timer_added.set()  # a commit here added a timer
                await asyncio.sleep(0)
                turns += 1
        task.cancel()
        assert not limit.expired()
        assert duty.shards == []
        assert engine.earliest_timer_ms == 0, "what is added here does not wake it"
        await store.stop()

    asyncio.run(main())
