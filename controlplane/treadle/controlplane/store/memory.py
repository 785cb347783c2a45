"""The in-memory twin: the same port over dictionaries, for simulation and tests. Nothing is on disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

from treadle.controlplane.store.memory_core import MemoryCore
from treadle.controlplane.store.port import (
    Beat,
    BeatResult,
    Change,
    CheckResult,
    Committed,
    DueTimers,
    Hint,
    IndexEntry,
    Loaded,
    ShardRound,
    Silent,
    StaleEntry,
    Want,
    WorkerView,
)
from treadle.v1.state_pb2 import WorkerRecord

__all__ = ("MemoryStore",)


class MemoryStore(MemoryCore):
    """The `Store` port in memory. No method ever suspends, `hints` apart.

    Every method `x` of the port has a synchronous `x_now` (clock: `now_ms`); `snapshot` and `restore` play a
    Redis that comes back without its last commits.

    Args:
        clock_ms: The store's clock; the wall clock unless given.
    """

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def check(self) -> list[CheckResult]:
        return [
            CheckResult(
                "persistence",
                ok=False,
                detail="runs are kept in memory only and go with the process",
                remedy="give a Redis URL, or use the embedded store",
            )
        ]

    async def now(self) -> int:
        return self.now_ms()

    async def load(self, wants: Sequence[Want]) -> list[Loaded]:
        return self.load_now(wants)

    async def commit(self, changes: Sequence[Change]) -> list[Committed]:
        return self.commit_now(changes)

    async def hints(self) -> AsyncIterator[list[Hint]]:
        waiting: asyncio.Queue[list[Hint]] = asyncio.Queue()
        end = self.listen(waiting.put_nowait)
        try:
            while True:
                yield await waiting.get()
        finally:
            end()

    async def hold(self, replica_id: str, shards: Iterable[int], ttl_ms: int) -> dict[int, ShardRound]:
        return self.hold_now(replica_id, shards, ttl_ms)

    async def let_go(self, replica_id: str, shards: Iterable[int]) -> None:
        self.let_go_now(replica_id, shards)

    async def due(self, shards: Sequence[int], limit: int, ahead_ms: int = 0) -> DueTimers:
        return self.due_now(shards, limit, ahead_ms)

    async def stale_outbox(self, shards: Sequence[int], older_than_ms: int, limit: int) -> list[StaleEntry]:
        return self.stale_outbox_now(shards, older_than_ms, limit)

    async def outbox_size(self) -> int:
        return self.outbox_size_now()

    async def confirmed(self, entries: Iterable[tuple[int, str]]) -> None:
        self.confirmed_now(entries)

    async def open_session(self, record: WorkerRecord) -> bool:
        return self.open_session_now(record)

    async def close_session(self, worker_id: str, session_id: str, *, drained: bool) -> WorkerRecord | None:
        return self.close_session_now(worker_id, session_id, drained=drained)

    async def beat(self, beats: Sequence[Beat]) -> list[BeatResult]:
        return self.beat_now(beats)

    async def view_workers(self, worker_ids: Sequence[str]) -> list[WorkerView]:
        return self.view_workers_now(worker_ids)

    async def silent(self, shards: Sequence[int], before_ms: int, limit: int) -> Silent:
        return self.silent_now(shards, before_ms, limit)

    async def workers(self, namespace: str) -> list[WorkerRecord]:
        return self.workers_now(namespace)

    async def register(
        self, namespace: str, pool: str, workflows: Sequence[str], steps: Sequence[str], now_ms: int = 0
    ) -> None:
        self.register_now(namespace, pool, workflows, steps, now_ms)

    async def registry(self, namespace: str) -> Mapping[str, str]:
        return self.registry_now(namespace)

    async def steps(self, namespace: str) -> Mapping[str, str]:
        return self.steps_now(namespace)

    async def versions(self, namespace: str) -> Mapping[str, int]:
        return self.versions_now(namespace)

    async def pools(self) -> list[tuple[str, str]]:
        return self.pools_now()

    async def index(
        self,
        name: str,
        shards: Sequence[int],
        *,
        low: int = 0,
        high: int = 2**62,
        limit: int = 1000,
        newest_first: bool = True,
    ) -> list[IndexEntry]:
        return self.index_now(name, shards, low=low, high=high, limit=limit, newest_first=newest_first)

    async def count(self, name: str, *, low: int = 0, high: int = 2**62) -> int:
        return self.count_now(name, low=low, high=high)

    async def put_aside(self, shard: int, kind: str, data: bytes) -> bool:
        return self.put_aside_now(shard, kind, data)

    async def aside(self, kind: str, limit: int) -> list[tuple[int, bytes]]:
        return self.aside_now(kind, limit)
