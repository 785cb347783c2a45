"""The timer duty: it rests without shards, wakes many at once, and shares the replica with others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from tests.integration.shell_rig import House, house, said, until

from treadle.controlplane.broker.memory import MemoryBroker
from treadle.controlplane.duties.leases import Holding, LeaseChecker
from treadle.controlplane.duties.queues import QueueWatch
from treadle.controlplane.duties.timers import TimerDuty
from treadle.controlplane.engine import Engine
from treadle.controlplane.machine.requests import Asked
from treadle.controlplane.store.memory import MemoryStore
from treadle.controlplane.store.port import Change, WorkerView
from treadle.protocol.ids import SHARDS, RunKey
from treadle.v1.state_pb2 import COMMAND_STATE_TIMER, RUN_STATE_PARKED, CommandRow, RunHead


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
        async with asyncio.timeout(20) as limit:
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


def test_ten_thousand_sleepers_wake_and_nobody_waits_behind_all_of_them() -> None:
    async def main() -> None:
        async with house() as here:
            late = here.store.now_ms() - 5
            for i in range(10_000):
                sleeper(here, f"s{i}", late)
            loaded: list[int] = here.store.loads
            loaded.clear()
            here.engine.timer_added.set()
            await until(lambda: here.store.outbox_size_now() > 0)  # the first are awake: queued again
            began = here.store.outbox_size_now()
            await here.start("another")
            assert here.store.outbox_size_now() - began < 3_000, "it was not held up until all had fired"
            await until(lambda: here.store.outbox_size_now() == 10_001)
            assert len(loaded) <= 110, "a part is read at once, and its commits need no other load"
            assert not here.timers._failed

    asyncio.run(main())


def sleeper(here: House, run_id: str, due_ms: int) -> None:
    """Write a parked run that sleeps until `due_ms`."""
    run = RunKey("default", run_id)
    head = RunHead(namespace="default", run_id=run_id, incarnation=1, state=RUN_STATE_PARKED, workflow="w", pool="p")
    head.length, head.open_commands, head.timer_at_ms = 1, 1, due_ms + 3_600_000
    row = CommandRow(command_id="c", state=COMMAND_STATE_TIMER, due_ms=due_ms, timer_at_ms=due_ms)
    change = Change(run, 0, 7, head.SerializeToString(), {"c:c": row.SerializeToString()}, events=[b""])
    change.timers_set = {"c": due_ms, "": due_ms + 3_600_000}
    here.store.commit_now([change])


def test_the_record_of_a_worker_is_read_once_however_many_of_its_leases_are_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with house() as here:
            session = here.session()
            holdings = []
            for i in range(50):
                await here.grant(session, f"r{i}")
                head = here.head(f"r{i}")
                holdings.append(Holding(RunKey("default", f"r{i}"), "", head.owner))
            asked: list[str] = []
            view_workers = here.store.view_workers

            async def counted(worker_ids: Sequence[str]) -> list[WorkerView]:
                asked.extend(worker_ids)
                return await view_workers(worker_ids)

            monkeypatch.setattr(here.store, "view_workers", counted)
            before = here.engine.committer.commits
            assert await here.leases.decide(holdings) == [None] * 50
            assert here.engine.committer.commits - before == 50
            assert asked == [session.worker_id]

    asyncio.run(main())


def test_a_run_that_closes_leaves_no_timer_of_its_lease() -> None:
    async def main() -> None:
        async with house() as here:
            grant = await here.grant(here.session(), "r")
            ask = said(grant)
            ask.complete.SetInParent()
            run = RunKey("default", "r")
            await here.engine.ask(run, Asked(ask, "w1", "r1"))
            (timer,) = [t for t in here.store._state.timers[run.shard].items() if t[0][0] == run]
            assert timer == ((run, ""), here.head("r").delete_at_ms)

    asyncio.run(main())
