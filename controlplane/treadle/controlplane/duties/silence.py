"""Looks for workers that have gone silent, so that what they hold is checked at once and not when its lease is due."""

from __future__ import annotations

import structlog

from treadle.controlplane.engine import Engine
from treadle.protocol.errors import RequestError
from treadle.protocol.ids import RunKey
from treadle.v1.state_pb2 import WorkerRecord

from .leases import LeaseChecker
from .timers import TimerDuty

__all__ = ("SilenceDuty",)

_log = structlog.stdlib.get_logger(__name__)

_AGAIN_MS = 500
"""What a silent worker held is looked at again, until nothing of it is left."""
_LEAST_MS = 50
_PAGE = 1_000


class SilenceDuty:
    """Looks at the worker records of the shards whose duty lease this replica holds, when the next of them may be silent."""

    def __init__(self, engine: Engine, leases: LeaseChecker, timers: TimerDuty) -> None:
        self._engine, self._leases, self._timers = engine, leases, timers
        self._done: set[tuple[str, int]] = set()

    async def run(self) -> None:
        """Work for ever."""
        pause_ms = _AGAIN_MS
        while True:
            await self._timers.more_shards(pause_ms)
            pause_ms = _AGAIN_MS
            if not self._timers.shards:
                continue
            try:
                pause_ms = await self.turn()
            except RequestError as error:
                _log.warning("silence_duty_waits", error=str(error))

    async def turn(self) -> int:
        """Look once; returns how long nobody else can be silent (ms): who beats from now on is not. Raises Unavailable."""
        engine = self._engine
        silence_ms, now = engine.settings.silence_ms, engine.clock.now()
        found = await engine.store.silent(self._timers.shards, now - silence_ms, _PAGE)
        self._done = {key for record in found.records if (key := _beat_of(record)) in self._done}
        left = len(found.records) == _PAGE
        for record in found.records:
            held = [(RunKey(h.namespace or record.namespace, h.run_id), h.command_id) for h in record.held]
            if not held or _beat_of(record) in self._done:
                continue
            if await self._leases.check(held, of=record.worker_id):
                left = True
            else:
                self._done.add(_beat_of(record))  # nothing is left of it, until it beats again
        if left:
            return _AGAIN_MS
        next_ms = now if found.next_beat_ms is None else min(now, found.next_beat_ms)
        return max(_LEAST_MS, next_ms + silence_ms + 1 - engine.clock.now())


def _beat_of(record: WorkerRecord) -> tuple[str, int]:
    return record.worker_id, record.last_beat_ms
