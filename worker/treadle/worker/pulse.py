"""The pulse of an attempt that runs in this worker: what its code says, told to the core now and then; and its silence.

User code may say something ten thousand times a second, from any thread: that leaves the value and a time here, no more.
The event loop looks after it: the newest value goes on at most once a second (three times in a heartbeat, if that is
shorter), and a silence as long as the heartbeat ends the attempt.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from treadle.protocol.deferral import make_token
from treadle.v1.common_pb2 import Payload

if TYPE_CHECKING:
    from treadle.worker.core.port import Attempt

__all__ = ("Pulse", "Saying", "interval_s")

_EVERY_S: Final = 1.0
_LATE_S: Final = 0.25
"""A loop that comes so late to look has not let the code speak either: it looks once more."""


class Saying(Protocol):
    """What user code says something to.

    Attributes:
        last: What the code, or an attempt before it, said last; None: nothing.
        deferral: The token that finishes the step from outside; "" where there can be none.
        deferred_ms: Set when the code has asked for that token: how long it is waited for; 0: as the step's timeout says.
    """

    last: Payload | None
    deferred_ms: int | None

    @property
    def deferral(self) -> str: ...

    def say(self, data: bytes) -> None:
        """Say how far it is. Counts as a heartbeat."""
        ...

    def beat(self) -> None:
        """Say that it goes on."""
        ...


def interval_s(heartbeat_ms: int) -> float:
    """Return how often what an attempt says goes on at most."""
    return min(_EVERY_S, heartbeat_ms / 3000) if heartbeat_ms else _EVERY_S


class Pulse:
    """See the module. `say` and `beat` may be called from any thread; the rest on the event loop.

    Args:
        loop: The event loop of the worker.
        heartbeat_ms: Longest silence; 0: no limit.
        attempt: What was granted; None: a local step.
        last: What an attempt before it said last.
        tell: Told the newest value; None: only that the code goes on.
        missed: Called once when the silence has been too long.
    """

    __slots__ = (
        "_armed",
        "_attempt",
        "_beaten",
        "_dirty",
        "_every",
        "_heartbeat_s",
        "_look_at",
        "_loop",
        "_missed",
        "_open",
        "_tell",
        "_ticking",
        "_told",
        "_watching",
        "deferred_ms",
        "last",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        heartbeat_ms: int,
        attempt: Attempt | None,
        last: Payload | None,
        tell: Callable[[bytes | None], None],
        missed: Callable[[], None],
    ) -> None:
        self._attempt = attempt
        self.last = last
        self.deferred_ms: int | None = None
        self._loop = loop
        self._heartbeat_s = heartbeat_ms / 1000
        self._every = interval_s(heartbeat_ms)
        self._tell, self._missed = tell, missed
        self._beaten = time.monotonic()
        self._told = self._beaten - self._every  # the first word goes on at once
        self._dirty = self._armed = False
        self._open = True
        self._ticking: asyncio.TimerHandle | None = None
        self._watching: asyncio.TimerHandle | None = None
        self._look_at = 0.0

    @property
    def deferral(self) -> str:
        if self._attempt is None:
            return ""
        job = self._attempt.job
        return make_token(
            self._attempt.deferral_key,
            namespace=job.namespace,
            run_id=job.run_id,
            incarnation=job.incarnation,
            command_id=job.command_id,
            try_number=job.try_number,
        )

    # --- any thread ------------------------------------------------------------------------------------------------
    def say(self, data: bytes) -> None:
        self.last = Payload(data=data)
        self._dirty = True  # after the value: whoever clears it reads the value then
        self._beaten = time.monotonic()
        self._arm()

    def beat(self) -> None:
        self._beaten = time.monotonic()
        if self._heartbeat_s:
            self._arm()

    def _arm(self) -> None:
        if not self._armed and self._open:
            self._armed = True
            try:
                self._loop.call_soon_threadsafe(self._begin)
            except RuntimeError:
                self._open = False  # the loop is closed: the worker has ended without it

    # --- on the event loop -------------------------------------------------------------------------------------------
    def watch(self) -> None:
        """User code starts: its silence counts from now."""
        if self._heartbeat_s:
            self._beaten = time.monotonic()
            self._look_in(self._heartbeat_s)

    def _look_in(self, delay_s: float) -> None:
        self._look_at = time.monotonic() + delay_s
        self._watching = self._loop.call_later(delay_s, self._look)

    def _look(self) -> None:
        now = time.monotonic()
        left = self._beaten + self._heartbeat_s - now
        if left > 0:
            self._look_in(left)
        elif now - self._look_at > _LATE_S:
            self._look_in(self._every)
        else:
            self._missed()

    def _begin(self) -> None:
        if not self._open:
            return
        wait = self._told + self._every - time.monotonic()
        if wait <= 0:
            self._tick()
        else:
            self._ticking = self._loop.call_later(wait, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        self._armed = False  # first: whoever says something from now on has it looked at again
        now = time.monotonic()
        if self._dirty:
            self._told = now
            self._flush()
        elif self._beaten > self._told:
            if now - self._told >= self._heartbeat_s / 3:
                self._told = now
                self._tell(None)
            else:
                self._armed = True
                self._ticking = self._loop.call_later(self._every, self._tick)

    def _flush(self) -> None:
        self._dirty = False
        assert self.last is not None
        self._tell(self.last.data)

    def close(self) -> None:
        """The attempt ends: its last word is told, and none that comes after it."""
        self._open = False
        for timer in (self._ticking, self._watching):
            if timer is not None:
                timer.cancel()
        if self._dirty:
            self._flush()
