"""The same random changes leave memory and Redis with the same data."""

from __future__ import annotations

from random import Random

import pytest

from tests.contract.store.cases import ALL, Case
from treadle.controlplane.store.memory import MemoryStore
from treadle.controlplane.store.port import Change, Store, Want
from treadle.protocol.ids import RunKey

RUNS = [RunKey("default", f"r{i}") for i in range(4)]
NAMES = [f"c:{i}" for i in range(6)]
INDEXES = ["open", "closed"]


def random_change(rng: Random, run: RunKey, expect: int, now: int) -> Change:
    some = [name for name in NAMES if rng.random() < 0.4]
    return Change(
        run,
        expect if rng.random() < 0.9 else 77,
        rng.getrandbits(63) + 1,
        rng.randbytes(rng.randrange(20)),
        set_fields={name: rng.randbytes(rng.choice([0, 5, 5000])) for name in some},
        del_fields=[name for name in NAMES if rng.random() < 0.2],
        events=[rng.randbytes(rng.choice([1, 300])) for _ in range(rng.choice([0, 1, 2, 250]))],
        not_before_ms=now + 3_600_000 if rng.random() < 0.05 else 0,
        outbox_add={name: rng.randbytes(9) for name in some},
        outbox_del=[name for name in NAMES if rng.random() < 0.2],
        timers_set={name: rng.randrange(1, 100) for name in some},
        timers_del=[name for name in NAMES if rng.random() < 0.2],
        index_add=[(rng.choice(INDEXES), name, rng.randrange(50)) for name in some],
        index_del=[(rng.choice(INDEXES), name) for name in NAMES if rng.random() < 0.2],
        restart=rng.random() < 0.1,
        keep_fields=[name for name in NAMES if rng.random() < 0.3],
        delete=rng.random() < 0.1,
        tombstone=b"gone",
        tombstone_ms=rng.choice([0, 3_600_000]),
    )


async def contents(store: Store) -> list[object]:
    wants = [Want(run, all_fields=True, event_at=3, events_after=1) for run in RUNS]
    loaded = await store.load(wants)
    outbox = await store.stale_outbox(ALL, 2**62, 1000)
    return [
        loaded,
        sorted((entry.shard, entry.dispatch_id, entry.entry) for entry in outbox),
        (await store.due(ALL, 1000)).due,
        [await store.index(name, ALL, limit=20) for name in INDEXES],
        [await store.index(name, ALL, low=10, high=30, newest_first=False) for name in INDEXES],
    ]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", ["redis", "cluster", "valkey"], indirect=True)
@pytest.mark.redis
def test_memory_and_redis_agree(case: Case, seed: int) -> None:
    async def body(store: Store) -> None:
        rng = Random(seed)
        now = await store.now()
        twin = MemoryStore(lambda: now)
        for _ in range(40):
            revisions = {run: (await twin.load([Want(run)]))[0].revision for run in RUNS}
            batch = [random_change(rng, run, revisions[run], now) for run in rng.sample(RUNS, 3)]
            answers = await store.commit(batch)
            expected = await twin.commit(batch)
            assert [one.outcome for one in answers] == [one.outcome for one in expected]
            assert await contents(store) == await contents(twin)

    case.run(body)
