"""The workers of a namespace, summed up by pool."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from treadle.controlplane.store.port import Store
from treadle.v1.pool_service_pb2 import WorkerState
from treadle.v1.state_pb2 import WorkerRecord

__all__ = ("SILENCE_MS", "Fleet", "PoolFleet", "sum_up", "worker_state")

SILENCE_MS: Final = 5_000
"""A worker without a beat for so long is silent."""


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
        self._known: dict[str, tuple[float, Mapping[str, PoolFleet]]] = {}

    async def pools(self, namespace: str) -> Mapping[str, PoolFleet]:
        """Return the live workers by pool, at most `keep_s` old."""
        known = self._known.get(namespace)
        if known is not None and time.monotonic() - known[0] < self._keep_s:
            return known[1]
        records = await self._store.workers(namespace)
        pools = sum_up(records, await self._store.now())
        self._known[namespace] = (time.monotonic(), pools)
        return pools

    async def pool(self, namespace: str, name: str) -> PoolFleet:
        """Return the live workers of one pool; an empty one when there are none."""
        return (await self.pools(namespace)).get(name, PoolFleet())
