"""Measures what is exported as gauges: pools, outbox, sessions, the lag of the event loop. Runs only where metrics go out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Final

import structlog

from treadle.controlplane.api.fleet import PoolFleet, sum_up
from treadle.controlplane.engine import Engine
from treadle.controlplane.telemetry import Metrics
from treadle.protocol.errors import Unavailable
from treadle.protocol.topology import Queue
from treadle.v1.job_pb2 import JOB_KIND_RUN, JOB_KIND_STEP

__all__ = ("GaugeDuty",)

_log = structlog.stdlib.get_logger(__name__)
_EVERY_S: Final = 10.0
_PROBE_S: Final = 0.25


class GaugeDuty:
    """Every replica measures the whole: take the maximum over replicas, not the sum."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics

    async def run(self) -> None:
        """Work for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._probe_loop())
            group.create_task(self._look())

    async def _probe_loop(self) -> None:
        """Show the largest lag of the last round: a mean would hide the one stall that hurt."""
        while True:
            largest = 0.0
            until = time.monotonic() + _EVERY_S
            while (began := time.monotonic()) < until:
                await asyncio.sleep(_PROBE_S)
                largest = max(largest, time.monotonic() - began - _PROBE_S)
            self._metrics.gauge("treadle.eventloop.lag", largest)

    async def _look(self) -> None:
        while True:
            try:
                await self.measure()
            except Unavailable as error:
                _log.warning("gauges_wait", error=str(error))
            await asyncio.sleep(_EVERY_S)

    async def measure(self) -> None:
        """Read everything once. Raises Unavailable."""
        engine, metrics = self._engine, self._metrics
        metrics.gauge("treadle.commit.conflicts", engine.committer.conflicts)
        metrics.gauge("treadle.sessions", len(engine.replica.sessions))
        metrics.gauge("treadle.outbox.size", await engine.store.outbox_size())
        pools = await engine.store.pools()
        for namespace in sorted({namespace for namespace, _ in pools}):
            records = await engine.store.workers(namespace)
            fleets = sum_up(records, await engine.store.now())
            await self._measure_pools(namespace, (pool for known, pool in pools if known == namespace), fleets)

    async def _measure_pools(self, namespace: str, pools: Iterable[str], fleets: dict[str, PoolFleet]) -> None:
        for pool in pools:
            fleet = fleets.get(pool, PoolFleet())
            labels = {"namespace": namespace, "pool": pool}
            self._metrics.gauge("treadle.pool.workers", fleet.workers, **labels)
            self._metrics.gauge("treadle.pool.slots", fleet.step_slots, **labels)
            self._metrics.gauge("treadle.pool.slots_used", fleet.steps_running, **labels)
            self._metrics.gauge("treadle.pool.running", fleet.steps_running, **labels)
            for kind, name in ((JOB_KIND_STEP, "step"), (JOB_KIND_RUN, "run")):
                ready = (await self._engine.broker.depth(Queue(namespace, pool, kind))).ready
                self._metrics.gauge("treadle.pool.ready", ready, **labels, kind=name)
