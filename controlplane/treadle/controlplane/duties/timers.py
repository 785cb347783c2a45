"""Fires what is due, on whichever replica holds a shard's duty lease; and notes, each second, that the shard is looked after.

Firing is a commit like any other, so firing twice is harmless. The duty sleeps until the next due time, a second at most;
a commit that adds an earlier timer here wakes it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import structlog
from google.protobuf.message import DecodeError

from treadle.controlplane.clock import monotonic_ms
from treadle.controlplane.engine import Engine
from treadle.controlplane.machine import deadlines
from treadle.controlplane.machine.decide import want
from treadle.controlplane.machine.requests import FireTimer
from treadle.controlplane.steady import steady
from treadle.controlplane.store.port import Hint, Loaded, Timer, Want
from treadle.protocol.errors import RequestError, Unavailable
from treadle.protocol.ids import SHARDS, RunKey
from treadle.v1.state_pb2 import (
    COMMAND_STATE_HELD,
    COMMAND_STATE_QUEUED,
    RUN_STATE_OPEN,
    RUN_STATE_QUEUED,
    CommandRow,
    RunHead,
)

from .leases import Holding, LeaseChecker
from .queues import QueueWatch

__all__ = ("TimerDuty",)

_log = structlog.stdlib.get_logger(__name__)

_ROUND_MS = 1_000
_LEASE_MS = 3_000
_PAGE = 2_000
_PART, _LANES = 100, 3
_SEEN_MS, _READY_MS = 1_100, 700
"""How far ahead timers are looked for, which is more than a round; and how long before they are due a storm is decided."""
_STORM = 50
"""So many are worth it."""
_PARTS_AHEAD, _MARGIN_MS = 25, 20
_DAMAGED_MS = 60_000
_HINT_MS = 50
"""A hint of a commit shortens the sleep, at most so often."""
_LET_GO_S = 1.0


class TimerDuty:
    """See the module."""

    def __init__(self, engine: Engine, leases: LeaseChecker, queues: QueueWatch) -> None:
        self._engine, self._leases, self._queues = engine, leases, queues
        self.shards: list[int] = []
        self._failed: dict[tuple[RunKey, str], int] = {}
        self._turned_at = 0
        self._looked_ms = 0
        self._more = asyncio.Event()

    async def run(self) -> None:
        """Work for ever, then give the shards up."""
        with self._engine.hub.listening(self._hinted):
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(steady("rounds", self._rounds))
                    group.create_task(steady("timers", self._fire_for_ever))
            finally:
                await self._let_go()

    # --- shards ------------------------------------------------------------------------------------------------------
    async def _rounds(self) -> None:
        """Each second, however long a page of timers takes: a round that is late hides who is silent (A7)."""
        engine = self._engine
        while True:
            began = monotonic_ms()
            try:
                held = await engine.store.hold(engine.replica_id, range(SHARDS), _LEASE_MS)
                more = not set(held).issubset(self.shards)
                self.shards = sorted(held)
                if more:
                    engine.timer_added.set()
                    self._more.set()
            except Unavailable as error:
                _log.warning("rounds_wait_for_store", error=str(error))
            await asyncio.sleep(max(0.2, (began + _ROUND_MS - monotonic_ms()) / 1000))

    async def more_shards(self, pause_ms: int) -> None:
        """Return when there are more, at the latest after so long. One duty may wait."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_ms / 1000):
                await self._more.wait()
        self._more.clear()

    async def _let_go(self) -> None:
        """Others need not wait for the leases to end."""
        shards, self.shards = self.shards, []
        try:
            async with asyncio.timeout(_LET_GO_S):
                await self._engine.store.let_go(self._engine.replica_id, shards)
        except (Unavailable, TimeoutError) as error:
            _log.warning("shards_not_given_up", error=str(error))

    # --- timers ------------------------------------------------------------------------------------------------------
    async def _fire_for_ever(self) -> None:
        while True:
            try:
                pause_ms = await self._turn()
            except Unavailable as error:
                _log.warning("timers_wait_for_store", error=str(error))
                pause_ms = 200
            await self._pause(pause_ms)

    async def _turn(self) -> int:
        """Fire what is due; returns how long there is nothing to do (ms)."""
        engine = self._engine
        engine.timer_added.clear()
        if not self.shards:
            engine.earliest_timer_ms = 0  # what is added here does not wake this duty
            return _ROUND_MS
        engine.earliest_timer_ms = 2**62
        sent = self._turned_at = monotonic_ms()
        self._failed = {key: until for key, until in self._failed.items() if until > sent}
        ahead = engine.committer.ahead
        ahead.clear()
        found = await engine.store.due(self.shards, _PAGE + len(self._failed), _SEEN_MS)
        engine.clock.observe(found.time_ms, sent)
        now_ms = found.time_ms
        coming = [timer for timer in found.due if (timer.run, timer.command_id) not in self._failed]
        due = [timer for timer in coming if timer.due_ms <= now_ms]
        if due:
            await self._fire(due)
            return 0
        later = [timer.due_ms for timer in found.due if timer.due_ms > now_ms] or [found.next_due_ms or 2**62]
        engine.earliest_timer_ms = min(engine.earliest_timer_ms, later[0])
        sleepers = [timer for timer in coming if timer.command_id and timer.due_ms > self._looked_ms]
        if len(sleepers) >= _STORM:
            early_ms = sleepers[0].due_ms - _READY_MS - now_ms
            if early_ms > 0:
                return min(early_ms, later[0] - now_ms)
            await self._decide_ahead(sleepers)
        return max(1, later[0] - engine.clock.now())

    async def _decide_ahead(self, sleepers: Sequence[Timer]) -> None:
        """Have wakes decided that will soon be due together, as far as there is time for it."""
        engine = self._engine
        self._looked_ms = sleepers[-1].due_ms  # what could not be decided is not tried again and again
        for start in range(0, len(sleepers), _PARTS_AHEAD):
            part = sleepers[start : start + _PARTS_AHEAD]
            if engine.clock.now() + _MARGIN_MS >= sleepers[0].due_ms:
                break
            wants = [want(timer.run, [FireTimer(timer.command_id)]) for timer in part]
            for timer, view in zip(part, await engine.committer.runs.load(wants), strict=True):
                engine.committer.ahead.decide(timer, view)

    async def _pause(self, pause_ms: int) -> None:
        pause_ms = min(pause_ms, _ROUND_MS)
        if pause_ms <= 0:
            await asyncio.sleep(0)
            return
        try:
            async with asyncio.timeout(pause_ms / 1000):
                await self._engine.timer_added.wait()
        except TimeoutError:
            pass

    def _hinted(self, hints: Sequence[Hint]) -> None:
        """A commit of another replica may have added a timer to a shard that is looked after here."""
        if hints is not self._engine.own_hints and self.shards and monotonic_ms() - self._turned_at > _HINT_MS:
            self._turned_at = monotonic_ms()
            self._engine.timer_added.set()

    async def _fire(self, due: Sequence[Timer]) -> None:
        """Fire a page, a few batches of commits at a time: while one part is committed the next is read.

        Who asks something meanwhile waits behind those parts only.
        """
        coming = iter([due[start : start + _PART] for start in range(0, len(due), _PART)])

        async def lane() -> None:
            for part in coming:
                await self._fire_part(part)

        for result in await asyncio.gather(*(lane() for _ in range(_LANES)), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def _fire_part(self, due: Sequence[Timer]) -> None:
        """Holders are checked, everything else is fired; one load for all."""
        ahead = self._engine.committer.ahead
        plain = [(timer, FireTimer(timer.command_id)) for timer in due if ahead.has(timer)]
        due = [timer for timer in due if not ahead.has(timer)]
        wants = [Want(t.run, fields=[f"c:{t.command_id}", f"i:{t.command_id}"] if t.command_id else ()) for t in due]
        loaded = await self._engine.committer.runs.load(wants, fresh=True)
        holdings, queued = [], []
        for timer, view in zip(due, loaded, strict=True):
            found = _what(timer, view, self._engine.clock.now())
            if isinstance(found, Holding):
                holdings.append((timer, found))
            if isinstance(found, Queued):
                queued.append((timer, found))
            elif found is None or not timer.command_id:  # an open run has its watch besides its lease
                plain.append(
                    (timer, FireTimer(timer.command_id, closes=_closes(timer, view, self._engine.clock.now())))
                )
        checked, asked, _ = await asyncio.gather(
            self._check(holdings), self._ask_queues(queued), self._fire_each(plain), return_exceptions=True
        )
        for result in (checked, asked):
            if isinstance(result, BaseException):
                raise result

    async def _fire_each(self, fires: Sequence[tuple[Timer, FireTimer]]) -> None:
        """Fire these; returns when all are committed, or refused."""
        if not fires:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        left = len(fires)

        def settle(timer: Timer, result: object) -> None:
            nonlocal left
            self._note(timer, result)
            left -= 1
            if not left and not done.done():
                done.set_result(None)

        for timer, fire in fires:
            self._engine.committer.submit(timer.run, fire, partial(settle, timer))
        await done

    async def _ask_queues(self, queued: Sequence[tuple[Timer, Queued]]) -> None:
        """Fire what waits in a queue, with what is known of the queue."""
        seen = await asyncio.gather(*(self._queues.passed(*waits) for _, waits in queued), return_exceptions=True)
        fires = []
        for (timer, _), known in zip(queued, seen, strict=True):
            if isinstance(known, BaseException):
                self._note(timer, known)
            else:
                fires.append((timer, FireTimer(timer.command_id, *known)))
        await self._fire_each(fires)

    async def _check(self, holdings: Sequence[tuple[Timer, Holding]]) -> None:
        try:
            results = await self._leases.decide([holding for _, holding in holdings])
        except RequestError as error:
            results = [error] * len(holdings)
        for result, (timer, _) in zip(results, holdings, strict=True):
            self._note(timer, result)

    def _note(self, timer: Timer, result: object) -> None:
        """A timer that could not be fired is left alone for a while, so that the others are not held up."""
        if not isinstance(result, Exception):
            return
        known = isinstance(result, RequestError)
        self._failed[timer.run, timer.command_id] = monotonic_ms() + (_ROUND_MS if known else _DAMAGED_MS)
        log = _log.warning if known else _log.error
        log("timer_not_fired", run=str(timer.run), command=timer.command_id, error=str(result) or repr(result))


class Queued(NamedTuple):
    """What waits in a queue; the arguments of QueueWatch.passed."""

    namespace: str
    pool: str
    is_run: bool
    queued_ms: int
    dispatch_id: str


def _what(timer: Timer, loaded: Loaded, now_ms: int) -> Holding | Queued | None:
    """Return who holds, or which queue has, what the timer is about; None: neither, its limit is due (then no queue need be
    asked, which takes a broker), or it is damaged."""
    run, command_id = timer.run, timer.command_id
    try:
        if command_id:
            data = loaded.fields.get(f"c:{command_id}")
            if not data:
                return None
            row = CommandRow.FromString(data)
            if row.state == COMMAND_STATE_HELD and not row.local:
                return Holding(run, command_id, row.holder)
            queued = row.state == COMMAND_STATE_QUEUED and not deadlines.row_is_due(row, now_ms)
            return Queued(run.namespace, row.pool, False, row.queued_ms, row.dispatch_id) if queued else None
        if not loaded.head:
            return None
        head = RunHead.FromString(loaded.head)
    except DecodeError:
        return None
    if head.state == RUN_STATE_OPEN:
        return Holding(run, "", head.owner)
    queued = head.state == RUN_STATE_QUEUED and not deadlines.run_is_due(head, now_ms)
    return Queued(run.namespace, head.pool, True, head.queued_ms, head.wake_dispatch_id) if queued else None


def _closes(timer: Timer, loaded: Loaded, now_ms: int) -> bool:
    """Whether the timer will close its run, so that more of it must be read."""
    if timer.command_id or not loaded.head:
        return False
    try:
        return deadlines.run_closes(RunHead.FromString(loaded.head), now_ms)
    except DecodeError:
        return False
