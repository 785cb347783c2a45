"""The workers of a namespace, summed up by pool."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Final

from treadle.controlplane.api.fresh import Fresh
from treadle.controlplane.store.port import Store
from treadle.v1.pool_service_pb2 import WorkerState
from treadle.v1.state_pb2 import WorkerRecord

__all__ = ("SILENCE_MS", "Fleet", "PoolFleet", "sum_up", "worker_state")

SILENCE_MS: Final = 5_000
"""A worker without a beat for so long is silent."""

_NAMESPACES: Final = 1_000


@dataclass(slots=True)
class PoolFleet:
    """Live workers of one pool: how many, their slots, and the names that they have."""

    workers: int = 0
    step_slots: int = 0
    steps_running: int = 0
    run_slots: int = 0
    runs_open: int = 0
    workflows: set[str] = field(default_factory=set)


def worker_state(record: WorkerRecord, now_ms: int) -> WorkerState.ValueType:
    """Return the state of a worker process by its record and the store's clock."""
    if record.closed_ms:
        return WorkerState.WORKER_STATE_GONE
    if now_ms - record.last_beat_ms >= SILENCE_MS:
        return WorkerState.WORKER_STATE_SILENT
    return WorkerState.WORKER_STATE_DRAINING if record.draining else WorkerState.WORKER_STATE_LIVE


def sum_up(records: Iterable[WorkerRecord], now_ms: int) -> dict[str, PoolFleet]:
    """Return the live workers by pool."""
    pools: dict[str, PoolFleet] = {}
    for record in records:
        if worker_state(record, now_ms) != WorkerState.WORKER_STATE_LIVE:
            continue
        pool = pools.setdefault(record.pool, PoolFleet())
        pool.workers += 1
        pool.step_slots += record.step_slots
        pool.steps_running += record.steps_running
        pool.run_slots += record.run_slots
        pool.runs_open += record.runs_open
        pool.workflows.update(record.workflows)
    return pools


class Fleet:
    """Reads the workers of a namespace, at most once a second however many ask."""

    def __init__(self, store: Store, keep_s: float = 1.0) -> None:
        self._store = store
        self._keep_s = keep_s
        self._known: dict[str, Fresh[_Sighting]] = {}

    async def pool(self, namespace: str, name: str) -> tuple[PoolFleet, int]:
        """Return the live workers of a pool (empty when there are none), and the store's clock now, estimated."""
        if namespace not in self._known:
            if len(self._known) >= _NAMESPACES:
                self._known.clear()  # names come from callers, and there is no end of them
            self._known[namespace] = Fresh(partial(self._look, namespace), self._keep_s)
        seen = await self._known[namespace].get()
        passed_ms = int((time.monotonic() - seen.at) * 1000)
        return seen.pools.get(name, PoolFleet()), seen.now_ms + passed_ms

    async def live(self, namespace: str) -> tuple[frozenset[str], int]:
        """Return the workflows that live workers of the namespace have, and the store's clock now, estimated."""
        await self.pool(namespace, "")
        seen = await self._known[namespace].get()
        names = frozenset(chain.from_iterable(pool.workflows for pool in seen.pools.values()))
        return names, seen.now_ms + int((time.monotonic() - seen.at) * 1000)

    async def _look(self, namespace: str) -> _Sighting:
        records = await self._store.workers(namespace)
        now_ms = await self._store.now()
        return _Sighting(sum_up(records, now_ms), now_ms, time.monotonic())


@dataclass(frozen=True, slots=True)
class _Sighting:
    pools: Mapping[str, PoolFleet]
    now_ms: int
    at: float
