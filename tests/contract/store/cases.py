"""What a contract test of the store is given: one kind of store, opened as often as there are replicas."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, cast

from treadle.controlplane.store.cache import HotRuns
from treadle.controlplane.store.memory import MemoryStore
from treadle.controlplane.store.port import Change, Loaded, Outcome, Store, Want
from treadle.controlplane.store.redis import RedisStore
from treadle.protocol.ids import SHARDS, RunKey
from treadle.v1.state_pb2 import WorkerRecord

__all__ = ("ALL", "RUN", "Case", "change", "commit", "load", "record")

ALL = range(SHARDS)
RUN = RunKey("default", "order-7/α")
START_MS = 1_800_000_000_000


class _Cached:
    """A store behind a cache of its runs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        runs = HotRuns(store)
        self.load, self.commit = runs.load, runs.commit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class Case:
    """A kind of store with no data.

    Args:
        kind: Its name.
        url: URL of the server; None: the store in memory.
        cluster: The URL is that of a cluster.
        cached: Each replica loads and commits through a cache of its own.
    """

    def __init__(self, kind: str, url: str | None, *, cluster: bool = False, cached: bool = False) -> None:
        self.kind = kind
        self.url = url
        self.cluster = cluster
        self.cached = cached
        self.prefix = f"test-{secrets.token_hex(6)}"
        self._virtual_ms = START_MS
        self._memory = MemoryStore(lambda: self._virtual_ms)

    def open(self) -> Store:
        """Return a store; all of one case have the same data, as replicas have."""
        store: Store = self._memory
        if self.url is not None:
            store = RedisStore(self.url, cluster=self.cluster, prefix=self.prefix)
        return cast("Store", _Cached(store)) if self.cached else store

    def run(self, body: Callable[..., Awaitable[Any]], *, replicas: int = 1) -> None:
        """Run `body` with that many started stores."""

        async def main() -> None:
            async with AsyncExitStack() as stack:
                stores = [self.open() for _ in range(replicas)]
                for store in stores:
                    await store.start()
                    stack.push_async_callback(store.stop)
                await body(*stores)

        asyncio.run(main())

    async def until(self, store: Store, time_ms: int) -> None:
        """Return when the store's clock has reached this time."""
        self._virtual_ms = max(self._virtual_ms, time_ms)
        async with asyncio.timeout(30):
            while (left := time_ms - await store.now()) > 0:
                await asyncio.sleep(left / 1000)


def change(run: RunKey = RUN, expect: int = 0, revision: int = 1, head: bytes = b"head", **rest: Any) -> Change:
    """Return a change with defaults."""
    return Change(run, expect, revision, head, **rest)


async def commit(store: Store, *changes: Change) -> list[Outcome]:
    """Commit one batch; returns what became of each."""
    return [answer.outcome for answer in await store.commit(changes)]


async def load(store: Store, run: RunKey = RUN, **want: Any) -> Loaded:
    """Load one run."""
    (loaded,) = await store.load([Want(run, **want)])
    return loaded


def record(worker_id: str = "w1", session_id: str = "s1", sent_ms: int = 100, **rest: Any) -> WorkerRecord:
    """Return what opens a session."""
    fields = {"namespace": "default", "pool": "csv", "workflows": ["wf"], "step_slots": 8, **rest}
    return WorkerRecord(worker_id=worker_id, session_id=session_id, session_sent_ms=sent_ms, **fields)
