"""Timers, outbox and duty leases in Redis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from treadle.controlplane.store.keys import timer_of
from treadle.controlplane.store.limits import ROUND_GAP_MS
from treadle.controlplane.store.port import DueTimers, ShardRound, StaleEntry, Timer
from treadle.controlplane.store.redis_runs import RedisPart
from treadle.protocol.ids import SHARDS

__all__ = ("RedisDuties",)

_SHARDS_AT_ONCE = 8  # shards whose outbox is read in one round trip: what is not needed is not carried
_IDS_AT_ONCE = 500
_DUE_A_SHARD = 50


class RedisDuties(RedisPart):
    """The DutyStore of Redis."""

    async def hold(self, replica_id: str, shards: Iterable[int], ttl_ms: int) -> dict[int, ShardRound]:
        wanted = list(shards)
        held: dict[int, ShardRound] = {}
        for group, replies in await self._per_group("hold", wanted, replica_id, ttl_ms, ROUND_GAP_MS):
            for position, reply in zip(group, replies, strict=True):
                if reply is not None:
                    held[wanted[position]] = ShardRound(int(reply[0]), int(reply[1]))
        return held

    async def let_go(self, replica_id: str, shards: Iterable[int]) -> None:
        await self._per_group("let_go", list(shards), replica_id)

    async def due(self, shards: Sequence[int], limit: int, ahead_ms: int = 0) -> DueTimers:
        due: list[Timer] = []
        next_due_ms: int | None = None
        time_ms, whole_ms = 0, 2**62
        a_shard = max(_DUE_A_SHARD, 2 * limit // max(1, len(shards)))  # not all of all shards, to use a few
        for _, (now, first, whole, found) in await self._per_group("due", shards, a_shard, ahead_ms):
            time_ms = max(time_ms, int(now))
            if first is not None and (next_due_ms is None or first < next_due_ms):
                next_due_ms = int(first)
            if whole is not None:
                whole_ms = min(whole_ms, int(whole))
            pairs = iter(found)
            due += [timer_of(member, int(score)) for member, score in zip(pairs, pairs, strict=True)]
        due = [timer for timer in due if timer.due_ms <= whole_ms]
        due.sort(key=lambda timer: (timer.due_ms, timer.run, timer.command_id))
        return DueTimers(due[:limit], next_due_ms, time_ms or await self._now_ms())

    async def stale_outbox(self, shards: Sequence[int], older_than_ms: int, limit: int) -> list[StaleEntry]:
        stale: list[StaleEntry] = []
        for start in range(0, len(shards), _SHARDS_AT_ONCE):
            some = shards[start : start + _SHARDS_AT_ONCE]
            calls = [
                (self._route(shard), (older_than_ms, limit - len(stale), self._keys.shards[shard])) for shard in some
            ]
            for shard, found in zip(some, await self._link.run_each("stale", calls), strict=True):
                pairs = iter(found)
                stale += [
                    StaleEntry(shard, dispatch_id.decode(), entry)
                    for dispatch_id, entry in zip(pairs, pairs, strict=True)
                ]
            if len(stale) >= limit:
                break
        return stale[:limit]

    async def outbox_size(self) -> int:
        return sum(int(size) for _, size in await self._per_group("outbox_size", range(SHARDS)))

    async def confirmed(self, entries: Iterable[tuple[int, str]]) -> None:
        by_shard: dict[int, list[str]] = {}
        for shard, dispatch_id in entries:
            by_shard.setdefault(shard, []).append(dispatch_id)
        await self._link.commands(
            [
                ("HDEL", self._keys.of_shard(shard, "outbox"), *ids[start : start + _IDS_AT_ONCE])
                for shard, ids in by_shard.items()
                for start in range(0, len(ids), _IDS_AT_ONCE)
            ]
        )
