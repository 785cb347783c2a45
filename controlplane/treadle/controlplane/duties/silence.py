"""Looks for workers that have gone silent, so that what they hold is checked at once and not when its lease is due."""

from __future__ import annotations

import asyncio

import structlog

from treadle.controlplane.engine import Engine
from treadle.protocol.errors import RequestError
from treadle.protocol.ids import RunKey
from treadle.v1.state_pb2 import WorkerRecord

from .leases import LeaseChecker
from .timers import TimerDuty

__all__ = ("SilenceDuty",)

_log = structlog.stdlib.get_logger(__name__)

_EVERY_S = 0.5
_PAGE = 1_000


class SilenceDuty:
    """Looks at the worker records of the shards whose duty lease this replica holds."""

    def __init__(self, engine: Engine, leases: LeaseChecker, timers: TimerDuty) -> None:
        self._engine, self._leases, self._timers = engine, leases, timers
        self._done: set[tuple[str, int]] = set()

    async def run(self) -> None:
        """Work for ever."""
        while True:
            await asyncio.sleep(_EVERY_S)
            if not self._timers.shards:
                continue
            try:
                await self.turn()
            except RequestError as error:
                _log.warning("silence_duty_waits", error=str(error))

    async def turn(self) -> None:
        """Look once. Raises Unavailable."""
        engine = self._engine
        before = engine.clock.now() - engine.settings.silence_ms
        silent = await engine.store.silent(self._timers.shards, before, _PAGE)
        self._done = {key for record in silent if (key := _beat_of(record)) in self._done}
        for record in silent:
            held = [(RunKey(h.namespace or record.namespace, h.run_id), h.command_id) for h in record.held]
            if not held or _beat_of(record) in self._done:
                continue
            if not await self._leases.check(held, of=record.worker_id):
                self._done.add(_beat_of(record))  # nothing is left of it, until it beats again


def _beat_of(record: WorkerRecord) -> tuple[str, int]:
    return record.worker_id, record.last_beat_ms
