"""Hints of commits, handed to whoever in this process waits for a run. Only ever hints: who waits also looks by itself.

A subscription keeps one bit, not a queue: a thousand commits while its reader is busy are one wake-up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol

import structlog

from treadle.controlplane.store.port import Hint, RunStore
from treadle.protocol.errors import Unavailable
from treadle.protocol.ids import RunKey
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.state_pb2 import RunHead

__all__ = ("HintHub", "Woken")

_log = structlog.stdlib.get_logger(__name__)
_RETRY_S = 0.5


class Woken:
    """Level-triggered: set by any change since the last `wait` returned, so a change during a read is not missed."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Note that something changed."""
        self._event.set()

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait for a change, at most `timeout` seconds (None: for ever); False when the time was over."""
        try:
            async with asyncio.timeout(timeout):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


class Subscription(Protocol):
    """What `HintHub.subscribe` returns."""

    async def __aenter__(self) -> Woken: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class HintHub:
    """Fans hints out. Fed by the store, and by the local engine at once for its own commits (doubles are harmless)."""

    def __init__(self) -> None:
        self._waiting: dict[RunKey, set[Woken]] = {}
        self._listeners: list[Callable[[Sequence[Hint]], None]] = []
        self._closing: list[Callable[[], None]] = []
        self.closed = False
        """True: the process is about to end; who waits was woken and should answer with what there is."""
        self.on_end: Callable[[RunKey, RunHead, Sequence[HistoryEvent]], None] | None = None
        """Called by the local engine with each commit on a run that is closed then, before the hint of it is fed: the head,
        and the events that the commit appended."""

    def subscribe(self, run: RunKey) -> Subscription:
        """Be woken by changes of `run` while inside. Subscribe first, then read, then wait.

        Usage: `async with hub.subscribe(run) as woken: ... await woken.wait(2.0)`.
        """
        return _Subscription(self._waiting, run, Woken())

    @contextmanager
    def listening(self, listener: Callable[[Sequence[Hint]], None]) -> Iterator[None]:
        """Call `listener` with each batch of hints while inside. It must not block; what it raises is logged."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    @contextmanager
    def closing(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call `callback` when the process is about to end, while inside."""
        self._closing.append(callback)
        try:
            yield
        finally:
            self._closing.remove(callback)

    def feed(self, hints: Sequence[Hint]) -> None:
        """Wake who waits for these runs."""
        for hint in hints if self._waiting else ():
            for woken in self._waiting.get(RunKey(hint.namespace, hint.run_id), ()):
                woken.set()
        for listener in tuple(self._listeners):
            try:
                listener(hints)
            except Exception:
                _log.exception("hint_listener_failed", runs=len(hints))

    def close(self) -> None:
        """Wake everybody: the process is about to end."""
        self.closed = True
        for waiting in self._waiting.values():
            for woken in waiting:
                woken.set()
        for callback in tuple(self._closing):
            callback()

    async def run(self, store: RunStore) -> None:
        """Feed the store's hints for ever: one task of the process. A store that is away is waited for."""
        while True:
            try:
                async for hints in store.hints():
                    self.feed(hints)
            except Unavailable as error:
                _log.warning("hints_unavailable", error=str(error), retry_s=_RETRY_S)
            await asyncio.sleep(_RETRY_S)


class _Subscription:
    __slots__ = ("_run", "_waiting", "_woken")

    def __init__(self, waiting: dict[RunKey, set[Woken]], run: RunKey, woken: Woken) -> None:
        self._waiting = waiting
        self._run = run
        self._woken = woken

    async def __aenter__(self) -> Woken:
        self._waiting.setdefault(self._run, set()).add(self._woken)
        return self._woken

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        others = self._waiting[self._run]
        others.discard(self._woken)
        if not others:
            del self._waiting[self._run]
