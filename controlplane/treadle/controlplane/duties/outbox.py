"""Publishes again what stayed in the outbox: the replica that committed it died, or the broker did not confirm."""

from __future__ import annotations

import asyncio

import structlog

from treadle.controlplane.engine import Engine
from treadle.protocol.errors import ConfigError, Unavailable
from treadle.v1.state_pb2 import OutboxEntry

from .timers import TimerDuty

__all__ = ("OutboxDuty",)

_log = structlog.stdlib.get_logger(__name__)

_EVERY_S = 1.0
_STALE_MS = 5_000
_PAGE = 1_000


class OutboxDuty:
    """Looks at the shards whose duty lease this replica holds."""

    def __init__(self, engine: Engine, timers: TimerDuty) -> None:
        self._engine, self._timers = engine, timers
        self.size = 0

    async def run(self) -> None:
        """Work for ever."""
        first = True
        while True:
            try:
                if self._timers.shards:
                    await self._turn(everything=first and self._engine.broker.has("") is not None)
                    first = False
            except (Unavailable, ConfigError) as error:
                _log.warning("outbox_waits", error=str(error))
            await asyncio.sleep(_EVERY_S if not first else 0.05)

    async def _turn(self, *, everything: bool) -> None:
        """At the start of an in-memory broker the whole outbox is published: it is that broker's disk."""
        engine = self._engine
        self.size = await engine.store.outbox_size()
        if not self.size:
            return
        older = 2**62 if everything else engine.clock.now() - _STALE_MS
        stale = await engine.store.stale_outbox(self._timers.shards, older, _PAGE * (100 if everything else 1))
        jobs = [OutboxEntry.FromString(s.entry).job for s in stale]
        for namespace, pool in sorted({(job.namespace, job.pool) for job in jobs}):
            await engine.declare(namespace, pool)
        if jobs:
            _log.info("outbox_published_again", jobs=len(jobs))
            engine.broker.publish(jobs)
