"""Fires what is due, on whichever replica holds a shard's duty lease; and notes, each second, that the shard is looked after.

Firing is a commit like any other, so firing twice is harmless. The duty sleeps until the next due time, a second at most;
a commit that adds an earlier timer here wakes it.
"""

from __future__ import annotations

import asyncio

import structlog

from treadle.controlplane.clock import monotonic_ms
from treadle.controlplane.engine import Engine
from treadle.controlplane.machine.requests import FireTimer
from treadle.controlplane.store.port import DueTimers, Loaded, Timer, Want
from treadle.protocol.errors import RequestError, Unavailable
from treadle.protocol.ids import SHARDS
from treadle.v1.state_pb2 import COMMAND_STATE_QUEUED, RUN_STATE_QUEUED, CommandRow, RunHead

from .leases import LeaseChecker, holder_in
from .queues import QueueWatch

__all__ = ("TimerDuty",)

_log = structlog.stdlib.get_logger(__name__)

_ROUND_MS = 1_000
_LEASE_MS = 3_000
_PAGE = 500


class TimerDuty:
    """See the module."""

    def __init__(self, engine: Engine, leases: LeaseChecker, queues: QueueWatch) -> None:
        self._engine, self._leases, self._queues = engine, leases, queues
        self.shards: list[int] = []
        self._round_at = 0

    async def run(self) -> None:
        """Work for ever."""
        while True:
            try:
                pause_ms = await self._turn()
            except Unavailable as error:
                _log.warning("timers_wait_for_store", error=str(error))
                pause_ms = 200
            await self._pause(pause_ms)

    async def _turn(self) -> int:
        engine = self._engine
        if monotonic_ms() >= self._round_at:
            self._round_at = monotonic_ms() + _ROUND_MS
            held = await engine.store.hold(engine.replica_id, range(SHARDS), _LEASE_MS)
            self.shards = sorted(held)
        engine.timer_added.clear()
        if not self.shards:  # another replica fires; waking for what is added here would be a loop that never rests
            engine.earliest_timer_ms = 0
            return _ROUND_MS
        engine.earliest_timer_ms = 2**62
        sent = monotonic_ms()
        found = await engine.store.due(self.shards, _PAGE)
        engine.clock.observe(found.time_ms, sent)
        if found.due:
            await self._fire(found)
            return 0
        if found.next_due_ms is None:
            return _ROUND_MS
        engine.earliest_timer_ms = min(engine.earliest_timer_ms, found.next_due_ms)
        return max(1, found.next_due_ms - found.time_ms)

    async def _pause(self, pause_ms: int) -> None:
        pause_ms = min(pause_ms, max(0, self._round_at - monotonic_ms()))
        if pause_ms <= 0:
            await asyncio.sleep(0)
            return
        try:
            async with asyncio.timeout(pause_ms / 1000):
                await self._engine.timer_added.wait()
        except TimeoutError:
            pass

    async def _fire(self, found: DueTimers) -> None:
        """Holders are checked, everything else is fired; one load for the whole page."""
        engine = self._engine
        wants = [Want(t.run, fields=[f"c:{t.command_id}"] if t.command_id else ()) for t in found.due]
        loaded = await engine.store.load(wants)
        holdings, rest = [], []
        for timer, view in zip(found.due, loaded, strict=True):
            holding = holder_in(view, timer.run, timer.command_id)
            if holding is not None:
                holdings.append(holding)
            if holding is None or not timer.command_id:  # an open run has its watch besides its lease
                rest.append((timer, view))
        results = await asyncio.gather(
            self._leases.decide(holdings), *(self._fire_one(t, v) for t, v in rest), return_exceptions=True
        )
        for result in results:
            if isinstance(result, RequestError):
                _log.warning("timer_not_fired", error=str(result))
            elif isinstance(result, BaseException):
                raise result

    async def _fire_one(self, timer: Timer, loaded: Loaded) -> None:
        fire = FireTimer(timer.command_id)
        queued = _queued(timer, loaded)
        if queued is not None:
            fire.gone, fire.soon = await self._queues.passed(*queued)
        await self._engine.ask(timer.run, fire)


def _queued(timer: Timer, loaded: Loaded) -> tuple[str, str, bool, int, str] | None:
    """Return (namespace, pool, is a run job, time of dispatch, dispatch id) of what waits in a queue; None if nothing."""
    if not loaded.head:
        return None
    head = RunHead.FromString(loaded.head)
    if not timer.command_id:
        if head.state != RUN_STATE_QUEUED:
            return None
        return head.namespace, head.pool, True, head.queued_ms, head.wake_dispatch_id
    data = loaded.fields.get(f"c:{timer.command_id}")
    row = CommandRow.FromString(data) if data else None
    if row is None or row.state != COMMAND_STATE_QUEUED:
        return None
    return head.namespace, row.pool, False, row.queued_ms, row.dispatch_id
