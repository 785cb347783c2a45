"""Registry, pools, indexes, what is kept aside; and hints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.contract.store.cases import ALL, RUN, Case, change, commit
from treadle.controlplane.store.port import Hint, IndexEntry, Store
from treadle.protocol.ids import RunKey


def test_the_registry_keeps_the_last_pool(case: Case) -> None:
    async def body(store: Store) -> None:
        assert dict(await store.registry("a")) == {}
        assert await store.pools() == []
        await store.register("a", "p2", ["w1", "w2"], ["s"])
        await store.register("a", "p1", ["w1"], [])
        await store.register("b", "p1", [], [])
        assert dict(await store.registry("a")) == {"w1": "p1", "w2": "p2"}
        assert dict(await store.registry("b")) == {}
        assert await store.pools() == [("a", "p1"), ("a", "p2"), ("b", "p1")]

    case.run(body)


def test_versions_keep_the_time_when_they_first_came(case: Case) -> None:
    async def body(store: Store) -> None:
        assert (dict(await store.versions("a")), dict(await store.steps("a"))) == ({}, {})
        await store.register("a", "p", ["w@1", "w"], ["s", "t"], 100)
        await store.register("a", "q", ["w@2", "w@1"], ["t"], 200)
        assert dict(await store.versions("a")) == {"w@1": 100, "w@2": 200}
        assert dict(await store.registry("a")) == {"w@1": "q", "w@2": "q", "w": "p"}
        assert dict(await store.steps("a")) == {"s": "p", "t": "q"}
        assert dict(await store.versions("b")) == {}

    case.run(body)


def test_an_index_is_merged_over_shards(case: Case) -> None:
    async def body(store: Store) -> None:
        runs = [RunKey("default", f"r{i:02}") for i in range(40)]
        await commit(store, *(change(r, index_add=[("open", r.run_id, i // 2)]) for i, r in enumerate(runs)))
        every = [IndexEntry(run.shard, run.run_id, i // 2) for i, run in enumerate(runs)]
        assert await store.index("open", ALL, newest_first=False) == every
        assert await store.index("open", ALL) == every[::-1]
        assert await store.index("open", ALL, limit=7) == every[:-8:-1]
        assert await store.index("open", ALL, low=3, high=5, newest_first=False) == every[6:10]
        assert await store.index("open", ALL, low=5, high=5) == []
        shard = runs[0].shard
        assert await store.index("open", [shard], newest_first=False) == [e for e in every if e.shard == shard]
        assert await store.count("open") == 40
        assert await store.count("none") == 0
        assert [await store.count("open", low=3), await store.count("open", high=5)] == [34, 10]
        assert await store.count("open", low=3, high=5) == 4

    case.run(body)


def test_an_index_entry_moves_and_goes(case: Case) -> None:
    async def body(store: Store) -> None:
        await commit(store, change(index_add=[("open", "ü", 2**45), ("pool:csv", "m", 2)]))
        await commit(
            store,
            change(expect=1, revision=2, index_add=[("open", "ü", 3)], index_del=[("pool:csv", "m"), ("no", "m")]),
        )
        assert await store.index("open", ALL) == [IndexEntry(RUN.shard, "ü", 3)]
        assert await store.count("pool:csv") == 0

    case.run(body)


def test_a_full_shard_keeps_nothing_more_aside(case: Case) -> None:
    async def body(store: Store) -> None:
        half = b"\x00\xff" * (1 << 18)
        assert await store.put_aside(3, "unknown", half)
        assert await store.put_aside(3, "unknown", half)
        assert not await store.put_aside(3, "unknown", b"x")
        assert await store.put_aside(3, "garbage", b"x")
        assert await store.put_aside(4, "unknown", b"y")
        assert sorted(data for _, data in await store.aside("unknown", 10)) == sorted([half, half, b"y"])
        assert [data for _, data in await store.aside("garbage", 10)] == [b"x"]
        assert len(await store.aside("unknown", 2)) == 2
        assert await store.aside("unknown", 0) == []

    case.run(body)


def test_what_is_aside_comes_newest_first(case: Case) -> None:
    async def body(store: Store) -> None:
        for i in range(4):
            now = await store.now()
            assert await store.put_aside(i * 7, "unknown", b"%d" % i)
            await case.until(store, now + 3)
        found = await store.aside("unknown", 3)
        assert [data for _, data in found] == [b"3", b"2", b"1"]
        assert found == sorted(found, reverse=True)

    case.run(body)


def test_hints_reach_every_listener_of_the_other_replicas(case: Case) -> None:
    async def body(one: Store, two: Store, three: Store) -> None:
        listeners = [three.hints(), two.hints(), two.hints()]
        waiting = [asyncio.ensure_future(anext(listener)) for listener in listeners]
        await asyncio.sleep(0)  # iteration has begun
        runs = [RunKey("default", f"r{i}") for i in range(30)]
        hints = [Hint(run.namespace, run.run_id, i, i % 2 == 0, "rep-ü") for i, run in enumerate(runs)]
        await commit(
            one,
            change(expect=9, hint=Hint("default", "refused", 1, False, "")),
            *(change(run, hint=hint) for run, hint in zip(runs, hints, strict=True)),
            change(RunKey("default", "silent")),
        )
        for first, listener in zip(waiting, listeners, strict=True):
            async with asyncio.timeout(10):
                heard = list(await first)
                while len(heard) < 30:
                    heard += await anext(listener)
            assert sorted(heard, key=lambda hint: hint.length) == hints
            await _close(listener)

    case.run(body, replicas=3)


@pytest.mark.parametrize("case", ["redis", "cluster", "valkey"], indirect=True)
def test_a_replica_does_not_hear_itself(case: Case) -> None:
    """Alone on a server it does not even publish; a replica that comes is told from its first moment."""

    async def body(one: Any) -> None:
        listener = one.hints()
        own = asyncio.ensure_future(anext(listener))
        await asyncio.sleep(0)
        await commit(one, change(RUN, hint=Hint("default", "alone", 1, False, "")))
        two = case.open()
        await two.start()
        try:
            heard = asyncio.ensure_future(anext(two.hints()))
            await asyncio.sleep(0)
            await commit(one, change(RunKey("default", "r2"), hint=Hint("default", "r2", 2, False, "")))
            async with asyncio.timeout(10):
                assert [hint.run_id for hint in await heard] == ["r2"]
            await commit(two, change(RunKey("default", "r3"), hint=Hint("default", "r3", 3, False, "")))
            async with asyncio.timeout(10):
                assert [hint.run_id for hint in await own] == ["r3"]
        finally:
            await two.stop()
        await _close(listener)

    case.run(body)


async def _close(listener: AsyncIterator[list[Hint]]) -> None:
    close = getattr(listener, "aclose", None)
    assert close is not None
    await close()
