"""Timers, outbox, duty leases."""

from __future__ import annotations

import pytest

from tests.contract.store.cases import ALL, RUN, Case, change, commit
from treadle.controlplane.store.port import ShardRound, StaleEntry, Store, Timer
from treadle.protocol.ids import RunKey


def test_timers_come_earliest_first_and_never_early(case: Case) -> None:
    async def body(store: Store) -> None:
        now = await store.now()
        runs = [RunKey("default", f"r{i}") for i in range(20)]
        changes = [
            change(run, timers_set={"": now - 100 + i, "cmd/ö#1": now + 60_000 + i}) for i, run in enumerate(runs)
        ]
        await commit(store, *changes)
        found = await store.due(ALL, 1000)
        assert found.due == [Timer(run, "", now - 100 + i) for i, run in enumerate(runs)]
        assert found.next_due_ms == now + 60_000
        assert found.time_ms >= now
        assert (await store.due(ALL, 3)).due == found.due[:3]
        ahead = await store.due(ALL, 1000, 60_010)
        steps = [timer.due_ms - now for timer in ahead.due if timer.command_id]
        assert [timer for timer in ahead.due if not timer.command_id] == found.due
        assert steps == list(range(60_000, 60_000 + len(steps)))
        assert len(steps) >= 11
        assert ahead.next_due_ms == (now + 60_000 + len(steps) if len(steps) < 20 else None)
        other = [shard for shard in ALL if shard != runs[0].shard]
        assert runs[0] not in [timer.run for timer in (await store.due(other, 1000)).due]

    case.run(body)


def test_a_timer_moves_and_goes(case: Case) -> None:
    async def body(store: Store) -> None:
        await commit(store, change(timers_set={"": 10, "a": 20, "b": 30}))
        await commit(store, change(expect=1, revision=2, timers_set={"a": 5}, timers_del=["b", "none"]))
        assert (await store.due(ALL, 9)).due == [Timer(RUN, "a", 5), Timer(RUN, "", 10)]
        assert (await store.due([], 9)).due == []
        await commit(store, change(expect=2, revision=3, timers_del=["", "a"]))
        found = await store.due(ALL, 9)
        assert (found.due, found.next_due_ms) == ([], None)

    case.run(body)


def test_the_outbox_loses_exactly_what_was_confirmed(case: Case) -> None:
    async def body(store: Store) -> None:
        other = RunKey("default", "other")
        await commit(
            store,
            change(outbox_add={"d1": b"1", "d2": bytes(range(256)), "d3": b"3"}),
            change(other, outbox_add={"d1": b"of the other"}),
        )
        assert RUN.shard != other.shard
        assert await store.outbox_size() == 4
        await store.confirmed([(RUN.shard, "d1"), (RUN.shard, "none"), (other.shard, "d2")])
        await commit(store, change(expect=1, revision=2, outbox_del=["d3"], outbox_add={"d4": b"4"}))
        entries = await store.stale_outbox(ALL, 2**62, 100)
        assert sorted(entries, key=lambda entry: entry.dispatch_id) == [
            StaleEntry(other.shard, "d1", b"of the other"),
            StaleEntry(RUN.shard, "d2", bytes(range(256))),
            StaleEntry(RUN.shard, "d4", b"4"),
        ]
        await store.confirmed([])

    case.run(body)


def test_only_old_outbox_entries_are_stale(case: Case) -> None:
    async def body(store: Store) -> None:
        old = (await store.commit([change(outbox_add={"old": b"o"})]))[0].time_ms
        await case.until(store, old + 5)
        await commit(store, change(expect=1, revision=2, outbox_add={"new": b"n"}))
        stale = await store.stale_outbox(ALL, old, 10)
        assert [entry.dispatch_id for entry in stale] == ["old"]
        assert await store.stale_outbox(ALL, old - 1, 10) == []
        assert len(await store.stale_outbox(ALL, 2**62, 1)) == 1
        assert await store.stale_outbox([s for s in ALL if s != RUN.shard], 2**62, 10) == []

    case.run(body)


def test_a_full_outbox_is_read_in_parts(case: Case) -> None:
    async def body(store: Store) -> None:
        runs = [RunKey("default", f"r{i}") for i in range(30)]
        entries = {f"d{i}": b"x" * 100 for i in range(100)}
        await commit(
            store, *(change(run, outbox_add={f"{run.run_id}-{d}": e for d, e in entries.items()}) for run in runs)
        )
        assert await store.outbox_size() == 3000
        seen: set[str] = set()
        while found := await store.stale_outbox(ALL, 2**62, 500):
            assert len(found) <= 500
            seen |= {entry.dispatch_id for entry in found}
            await store.confirmed((entry.shard, entry.dispatch_id) for entry in found)
        assert len(seen) == 3000

    case.run(body)


def test_a_shard_has_one_holder(case: Case) -> None:
    async def body(one: Store, two: Store) -> None:
        assert set(await one.hold("r1", range(40), 60_000)) == set(range(40))
        assert set(await two.hold("r2", ALL, 60_000)) == set(range(40, 64))
        assert set(await one.hold("r1", ALL, 60_000)) == set(range(40))
        await two.let_go("r2", range(30, 50))
        await one.let_go("r1", [0, 1])
        assert set(await two.hold("r2", ALL, 60_000)) == {0, 1, *range(40, 64)}
        assert await two.hold("r2", [], 60_000) == {}

    case.run(body, replicas=2)


def test_a_lease_that_is_not_extended_ends(case: Case) -> None:
    async def body(one: Store, two: Store) -> None:
        held = await one.hold("r1", [3], 150)
        assert await two.hold("r2", [3], 150) == {}
        await case.until(one, held[3].last_round_ms + 200)
        assert set(await two.hold("r2", [3], 150)) == {3}
        assert await one.hold("r1", [3], 150) == {}

    case.run(body, replicas=2)


def test_rounds_without_a_gap_keep_back_at(case: Case) -> None:
    async def body(one: Store, two: Store) -> None:
        first = (await one.hold("r1", [5], 60_000))[5]
        assert first == ShardRound(first.last_round_ms, first.last_round_ms)
        await case.until(one, first.last_round_ms + 50)
        await one.let_go("r1", [5])
        second = (await two.hold("r2", [5], 60_000))[5]
        assert second.last_round_ms >= first.last_round_ms + 50
        assert second.back_at_ms == first.back_at_ms

    case.run(body, replicas=2)


@pytest.mark.parametrize("case", ["memory", pytest.param("redis", marks=pytest.mark.redis)], indirect=True)
def test_a_round_after_a_gap_sets_back_at(case: Case) -> None:
    async def body(store: Store) -> None:
        first = (await store.hold("r1", [5], 60_000))[5]
        await case.until(store, first.last_round_ms + 3_010)
        second = (await store.hold("r1", [5], 60_000))[5]
        assert second.back_at_ms == second.last_round_ms >= first.last_round_ms + 3_010

    case.run(body)
