"""Which requests a batch takes first: timers that are due, but not all of it while others wait."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from tests.integration.shell_rig import Store

from treadle.controlplane.broker.memory import MemoryBroker
from treadle.controlplane.engine import Engine
from treadle.controlplane.machine.requests import FireTimer, StartRun
from treadle.controlplane.store.port import Change, Committed
from treadle.protocol.ids import RunKey
from treadle.v1.common_pb2 import Payload, TraceContext
from treadle.v1.run_service_pb2 import CONFLICT_POLICY_UNSPECIFIED
from treadle.v1.state_pb2 import COMMAND_STATE_TIMER, RUN_STATE_PARKED, CommandRow, RunHead


class Batches(Store):
    """Notes what each commit brings: started runs ("n…") and woken ones ("s…")."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Counter[str]] = []

    async def commit(self, changes: Sequence[Change]) -> list[Committed]:
        self.batches.append(Counter(change.run.run_id[0] for change in changes))
        await asyncio.sleep(0)
        return await super().commit(changes)


def sleeper(store: Store, run: RunKey) -> None:
    """Write a parked run whose timer is due."""
    late = store.now_ms() - 5
    head = RunHead(
        namespace="default", run_id=run.run_id, incarnation=1, state=RUN_STATE_PARKED, workflow="w", pool="p"
    )
    head.length, head.open_commands = 1, 1
    row = CommandRow(command_id="c", state=COMMAND_STATE_TIMER, due_ms=late, timer_at_ms=late)
    change = Change(run, 0, 7, head.SerializeToString(), {"c:c": row.SerializeToString()}, events=[b""])
    store.commit_now([change])


async def batches_of(timers: int, starts: int) -> list[Counter[str]]:
    """Submit starts, then timers, all before anything is taken; returns what the commits brought."""
    store = Batches()
    engine = Engine(store, MemoryBroker(), replica_id="r1")
    await engine.prepare()
    left = asyncio.Semaphore(0)
    for n in range(starts):
        start = StartRun("w", "p", Payload(), f"q{n}", CONFLICT_POLICY_UNSPECIFIED, TraceContext())
        engine.submit(RunKey("default", f"n{n}"), start, lambda _: left.release())
    for n in range(timers):
        run = RunKey("default", f"s{n}")
        sleeper(store, run)
        engine.submit(run, FireTimer("c"), lambda _: left.release())
    task = asyncio.create_task(engine.committer.run())
    async with asyncio.timeout(30):
        for _ in range(timers + starts):
            await left.acquire()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return store.batches


def test_timers_that_are_due_come_first_and_leave_a_part_of_each_batch_to_others() -> None:
    found = asyncio.run(batches_of(timers=190, starts=200))
    assert [(batch["s"], batch["n"]) for batch in found[:5]] == [(38, 12)] * 5
    assert all(batch["s"] == 0 for batch in found[5:])
    assert sum((batch for batch in found), Counter()) == {"s": 190, "n": 200}


def test_where_nobody_else_waits_a_batch_is_all_timers() -> None:
    assert asyncio.run(batches_of(timers=100, starts=0)) == [{"s": 50}, {"s": 50}]


def test_few_timers_leave_room() -> None:
    assert asyncio.run(batches_of(timers=2, starts=98)) == [{"s": 2, "n": 48}, {"n": 50}]


def test_a_timer_of_a_run_that_waits_already_is_folded_and_comes_first() -> None:
    async def main() -> None:
        store = Batches()
        engine = Engine(store, MemoryBroker(), replica_id="r1")
        await engine.prepare()
        done = asyncio.Semaphore(0)
        for n in range(60):
            start = StartRun("w", "p", Payload(), f"q{n}", CONFLICT_POLICY_UNSPECIFIED, TraceContext())
            engine.submit(RunKey("default", f"n{n}"), start, lambda _: done.release())
        run = RunKey("default", "s")
        sleeper(store, run)
        engine.submit(run, FireTimer(""), lambda _: done.release())
        engine.submit(run, FireTimer("c"), lambda _: done.release())
        task = asyncio.create_task(engine.committer.run())
        async with asyncio.timeout(30):
            for _ in range(62):
                await done.acquire()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert store.batches[0] == {"s": 1, "n": 49}

    asyncio.run(main())
