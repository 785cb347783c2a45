"""Publishes and delivers again what stayed in the outbox: who committed it died, or it was not confirmed."""

from __future__ import annotations

import asyncio

import structlog

from treadle.controlplane.engine import Engine
from treadle.protocol.errors import TreadleError, Unavailable
from treadle.v1.job_pb2 import Job
from treadle.v1.state_pb2 import OutboxEntry

from .timers import TimerDuty

__all__ = ("OutboxDuty",)

_log = structlog.stdlib.get_logger(__name__)

_EVERY_S = 1.0
_STALE_MS = 5_000
_PAGE = 1_000
_STRIDE = 7


class OutboxDuty:
    """Looks at the shards whose duty lease this replica holds."""

    def __init__(self, engine: Engine, timers: TimerDuty) -> None:
        self._engine, self._timers = engine, timers
        self.size = 0
        self._turns = 0

    async def run(self) -> None:
        """Work for ever."""
        first = True
        while True:
            try:
                if self._timers.shards:
                    await self.turn(everything=first and self._engine.broker.has("") is not None)
                    first = False
            except Unavailable as error:
                _log.warning("outbox_waits", error=str(error))
            await asyncio.sleep(_EVERY_S if not first else 0.05)

    async def turn(self, *, everything: bool) -> None:
        """Publish what waits for too long. Raises Unavailable.

        At the start of an in-memory broker the whole outbox is published: it is that broker's disk.
        """
        engine = self._engine
        self.size = await engine.store.outbox_size()
        if not self.size:
            return
        older = 2**62 if everything else engine.clock.now() - _STALE_MS
        limit = _PAGE * (100 if everything else 1)
        stale = await engine.store.stale_outbox(self._in_turn(), older, limit)
        by_pool: dict[tuple[str, str], list[Job]] = {}
        for entry in stale:
            found = OutboxEntry.FromString(entry.entry)
            if found.HasField("letter"):
                engine.deliver(found.letter)
                continue
            job = found.job
            if not engine.broker.has(job.dispatch_id):
                by_pool.setdefault((job.namespace, job.pool), []).append(job)
        for (namespace, pool), jobs in sorted(by_pool.items()):
            await self._publish(namespace, pool, jobs)

    def _in_turn(self) -> list[int]:
        """The shards, beginning with another one each time: what cannot be published in one must not hide the others."""
        shards = self._timers.shards
        self._turns += 1
        start = self._turns * _STRIDE % len(shards)
        return shards[start:] + shards[:start]

    async def _publish(self, namespace: str, pool: str, jobs: list[Job]) -> None:
        try:
            await self._engine.declare(namespace, pool)
        except TreadleError as error:
            _log.warning("jobs_wait_for_queue", namespace=namespace, pool=pool, jobs=len(jobs), error=str(error))
            return
        _log.info("outbox_published_again", namespace=namespace, pool=pool, jobs=len(jobs))
        self._engine.broker.publish(jobs)
