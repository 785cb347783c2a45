"""What an event costs while many runs wait for events: one control plane over an embedded Valkey, in this process.

    python -m benchmarks.event_waits [--waits 1000 10000 100000] [--events 3000]

So many waits stand in slots of their own (`match={"order": n}`), registered as letters of runs register them. Then events
are sent over gRPC, a third of them for an order that somebody waits for, as fast as 1,000 at once; `a second` is what was
accepted, `cpu us` what this process (client and control plane) spent on each until all letters were delivered, and `p50`
and `p99 ms` are how long 200 single events took, one after another. None of them may grow with the number of waits.
`one slot` is the time until one event has ended all waits of a single slot.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from treadle.client import Client, NewEvent
from treadle.controlplane.broker.memory import MemoryBroker
from treadle.controlplane.config import ServerConfig
from treadle.controlplane.machine.event_requests import TellSlot
from treadle.controlplane.machine.event_routers import slot_of
from treadle.controlplane.plane import ControlPlane
from treadle.controlplane.store.embedded import EmbeddedRedis
from treadle.controlplane.store.port import Want
from treadle.controlplane.store.redis import RedisStore
from treadle.protocol.events import canonical_match
from treadle.protocol.ids import RunKey
from treadle.v1.state_pb2 import EventWait, RunHead, SlotNews

NAME = "order.paid"
_AT_ONCE = 500


async def register(plane: ControlPlane, count: int, *, one_slot: bool = False) -> float:
    """Let so many runs wait; returns how long that took (s)."""
    began = time.perf_counter()
    for start in range(0, count, _AT_ONCE):
        asked = []
        for n in range(start, min(count, start + _AT_ONCE)):
            match = canonical_match({"all": True} if one_slot else {"order": n})
            wait = EventWait(run_id=f"r{n}", incarnation=1, command_id="0/order.paid#1", since_ms=1)
            news = SlotNews(name=NAME, keys=["all" if one_slot else "order"], begin=wait)
            asked.append(plane.engine.ask(RunKey("default", slot_of(NAME, match)), TellSlot(news)))
        await asyncio.gather(*asked)
    return time.perf_counter() - began


async def quiet(plane: ControlPlane) -> None:
    """Until every letter was delivered."""
    while await plane.engine.store.outbox_size():
        await asyncio.sleep(0.02)


async def measure(plane: ControlPlane, client: Client, waits: int, events: int) -> str:
    """Return the line of a table."""
    took = await register(plane, waits)
    await quiet(plane)
    many = [NewEvent(NAME, {"order": n if n % 3 == 0 else -n}) for n in range(events)]
    began, cpu = time.perf_counter(), time.process_time()
    await client.send_many(many)
    accepted = time.perf_counter() - began
    await quiet(plane)
    spent = (time.process_time() - cpu) / events * 1e6
    single = []
    for n in range(200):
        at = time.perf_counter()
        await client.send(NAME, {"order": -n})
        single.append((time.perf_counter() - at) * 1000)
    await quiet(plane)
    single.sort()
    return (
        f"{waits:>8,} {waits / took:>10,.0f} {events / accepted:>10,.0f} {spent:>8,.0f} "
        f"{single[100]:>7.2f} {single[197]:>7.2f}"
    )


async def one_slot(plane: ControlPlane, client: Client, waits: int) -> float:
    """Return how long it takes until one event has ended so many waits of one slot (s)."""
    await register(plane, waits, one_slot=True)
    await quiet(plane)
    slot = RunKey("default", slot_of(NAME, canonical_match({"all": True})))
    began = time.perf_counter()
    await client.send(NAME, {"all": True})
    while True:
        (loaded,) = await plane.engine.store.load([Want(slot)])
        head = RunHead.FromString(loaded.head).event_slot
        if head.logged and not head.more_waits and not head.waits:
            break
        await asyncio.sleep(0.01)
    await quiet(plane)
    return time.perf_counter() - began


async def main(sizes: list[int], events: int) -> None:
    print("   waits  waits a s  events a s  cpu us     p50  p99 ms", flush=True)
    for waits in sizes:
        with TemporaryDirectory() as folder:
            redis = EmbeddedRedis(Path(folder))
            url = await redis.start()
            config = ServerConfig(listen="127.0.0.1:0", redis_url=url, amqp_url="", shutdown_grace_s=0.5)
            store, broker = RedisStore(url), MemoryBroker()
            await store.start()
            plane = ControlPlane(config, store, broker)
            await broker.start(plane.engine)
            stop, address = asyncio.Event(), asyncio.get_running_loop().create_future()
            serving = asyncio.create_task(plane.run(stop, address.set_result))
            try:
                async with Client(await address) as client:
                    print(await measure(plane, client, waits, events), flush=True)
                    if waits <= 10_000:
                        print(f"{'':8} one slot: {await one_slot(plane, client, waits):.2f} s", flush=True)
            finally:
                stop.set()
                await serving
                await store.stop()
                await redis.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--waits", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--events", type=int, default=3_000)
    given = parser.parse_args()
    asyncio.run(main(given.waits, given.events))
