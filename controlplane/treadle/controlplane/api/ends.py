"""Who waits in this process for the end of a run, and how they learn of it.

What this replica closes itself is told from the commit, without a load. What others close is hinted and then read, many
runs at a time. Hints may be lost, so everything that is watched is read again at a slow pace; where that finds an end,
hints were lost together, and the rest is read at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol

import structlog

from treadle.controlplane.api.views import run_view
from treadle.controlplane.hints import HintHub
from treadle.controlplane.machine.view import first_of
from treadle.controlplane.store.port import Hint, RunStore, Want
from treadle.protocol.errors import NotFound, RequestError, Unavailable
from treadle.protocol.ids import RunKey
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.run_service_pb2 import Run
from treadle.v1.state_pb2 import RUN_STATE_CLOSED, RunHead

__all__ = ("OneEnd", "RunEnds", "Watch", "Watcher")

_log = structlog.stdlib.get_logger(__name__)

_HEADS: Final = 200
_OUTCOMES: Final = 25
"""Loaded together: a result may have a megabyte."""
_SHARE: Final = 60
"""With many watches, each round of the slow pace reads one part of so many."""
_RETRY_S: Final = 0.2


class Watcher(Protocol):
    """Who is told. Neither method may block or raise."""

    def ended(self, watch: Watch, head: RunHead, last: HistoryEvent | None) -> bool:
        """The run is closed; `last` is its outcome. False: not now; the watch stays, and is looked at when asked."""
        ...

    def refused(self, watch: Watch, error: RequestError) -> None:
        """There is no end to tell: the run does not exist, or another start has its id. The watch is over."""
        ...


@dataclass(slots=True, eq=False)
class Watch:
    """One wish to hear of one run's end.

    Attributes:
        run: The run.
        number: What the watcher calls it.
        watcher: Who is told.
        incarnation: Which start of that id; 0: whichever is there. None: of a start that is not answered yet.
        missed: It may have ended before the start was answered.
    """

    run: RunKey
    number: int
    watcher: Watcher
    incarnation: int | None = 0
    missed: bool = False


class OneEnd:
    """A Watcher of one run, for a call that waits."""

    def __init__(self) -> None:
        self._woken = asyncio.Event()
        self._run: Run | None = None

    async def wait(self, seconds: float) -> Run | None:
        """Return the closed run; None when the time is over, or it is another one by now."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        return self._run

    def wake(self) -> None:
        """Wait no longer."""
        self._woken.set()

    def ended(self, watch: Watch, head: RunHead, last: HistoryEvent | None) -> bool:
        """See Watcher."""
        self._run = run_view(head, last)
        self.wake()
        return True

    def refused(self, watch: Watch, error: RequestError) -> None:
        """See Watcher."""
        self.wake()


class RunEnds:
    """See the module.

    Args:
        store: Where runs are.
        hub: Brings hints, and the closing commits of this replica.
        pace_s: How often a part of what is watched is read again.
    """

    def __init__(self, store: RunStore, hub: HintHub, pace_s: float = 5.0) -> None:
        self._store = store
        self._hub = hub
        self._pace_s = pace_s
        self._watches: dict[RunKey, Watch | tuple[Watch, ...]] = {}  # nearly all have one: it is there for each sleeper
        self._looks: dict[RunKey, None] = {}
        self._asked = asyncio.Event()
        self._rest: list[RunKey] = []
        hub.on_end = self.ended

    def __len__(self) -> int:
        """Return how many runs are watched."""
        return len(self._watches)

    def add(self, watch: Watch) -> None:
        """Watch from now on. Whether the run is closed already only `look` tells."""
        others = self._of(watch.run)
        self._watches[watch.run] = (*others, watch) if others else watch

    def remove(self, watch: Watch) -> None:
        """Watch no longer; nothing happens when that was so before."""
        watches = self._of(watch.run)
        others = tuple(other for other in watches if other is not watch)
        if len(others) > 1:
            self._watches[watch.run] = others
        elif others:
            self._watches[watch.run] = others[0]
        elif watches:
            del self._watches[watch.run]

    def _of(self, run: RunKey) -> tuple[Watch, ...]:
        found = self._watches.get(run, ())
        return found if isinstance(found, tuple) else (found,)

    @contextmanager
    def watching(self, watch: Watch) -> Iterator[None]:
        """Watch while inside."""
        self.add(watch)
        try:
            yield
        finally:
            self.remove(watch)

    def look(self, run: RunKey) -> None:
        """Read the run soon, together with others, and tell its watches if it is closed."""
        self._looks[run] = None
        self._asked.set()

    # --- where ends come from ------------------------------------------------------------------------------------------
    def ended(self, run: RunKey, head: RunHead, events: Sequence[HistoryEvent]) -> None:
        """A commit of this replica was made on a closed run; `events` are what it appended."""
        if run not in self._watches:
            return
        if events:
            self._tell(run, head, events[-1])
        else:
            self.look(run)

    def hinted(self, hints: Sequence[Hint]) -> None:
        """Take hints: closed runs are read."""
        for hint in hints:
            if hint.closed:
                run = RunKey(hint.namespace, hint.run_id)
                if run in self._watches:
                    self.look(run)

    async def run(self) -> None:
        """Read what is to be looked at, for ever: one task of the process."""
        loop = asyncio.get_running_loop()
        self._asked.set()
        with self._hub.listening(self.hinted):
            due = loop.time() + self._pace_s
            while True:
                try:
                    async with asyncio.timeout_at(due):
                        await self._asked.wait()
                except TimeoutError:
                    lost = await self._look_again()
                    due = loop.time() + (0 if lost else self._pace_s)
                else:
                    self._asked.clear()
                    await self._look()

    async def _look(self) -> None:
        while self._looks:
            runs = list(islice(self._looks, _HEADS))
            for run in runs:
                del self._looks[run]
            try:
                await self._read([run for run in runs if run in self._watches])
            except Unavailable as error:
                _log.warning("ends_unavailable", error=str(error), runs=len(runs), retry_s=_RETRY_S)
                self._looks |= dict.fromkeys(runs)
                await asyncio.sleep(_RETRY_S)

    async def _look_again(self) -> bool:
        """One round of the slow pace; returns whether an end was found that nobody had hinted."""
        if not self._rest:
            self._rest = list(self._watches)
        count = min(max(_HEADS, len(self._watches) // _SHARE), len(self._rest))
        found = False
        while count > 0 and not self._looks:
            part = self._rest[-min(count, _HEADS) :]
            del self._rest[-len(part) :]
            count -= len(part)
            try:
                found = await self._read([run for run in part if run in self._watches]) or found
            except Unavailable:
                return False  # the next round comes
        return found

    async def _read(self, runs: Sequence[RunKey]) -> bool:
        """Read these runs and tell the watches of closed ones; returns whether any was told."""
        if not runs:
            return False
        closed: list[tuple[RunKey, RunHead]] = []
        for run, loaded in zip(runs, await self._store.load([Want(run) for run in runs]), strict=True):
            head = RunHead.FromString(loaded.head) if loaded.head else None
            if head is not None and head.state == RUN_STATE_CLOSED:
                closed.append((run, head))
            else:
                self._tell_open(run, head)
        told = False
        for i in range(0, len(closed), _OUTCOMES):
            part = closed[i : i + _OUTCOMES]
            outcomes = await self._store.load([Want(run, event_at=head.length) for run, head in part])
            for (run, head), loaded in zip(part, outcomes, strict=True):
                last = HistoryEvent.FromString(loaded.event) if loaded.event else None
                # Otherwise it changed meanwhile, and is read again later.
                if last is not None and last.revision == head.last_revision:
                    told = self._tell(run, head, last) or told
        return told

    # --- telling -------------------------------------------------------------------------------------------------------
    def _tell(self, run: RunKey, head: RunHead, last: HistoryEvent) -> bool:
        told = False
        for watch in self._of(run):
            if watch.incarnation is None:
                watch.missed = True
            elif watch.incarnation not in (0, first_of(head)):
                self._refuse(watch, _replaced(run))
            elif watch.watcher.ended(watch, head, last):
                self.remove(watch)
                told = True
        return told

    def _tell_open(self, run: RunKey, head: RunHead | None) -> None:
        """The run is open, or not there: that is no end, but watches of another start of it are over."""
        for watch in self._of(run):
            if watch.incarnation is None:
                continue
            if head is None:
                self._refuse(watch, _unknown(run))
            elif watch.incarnation not in (0, first_of(head)):
                self._refuse(watch, _replaced(run))

    def _refuse(self, watch: Watch, error: RequestError) -> None:
        self.remove(watch)
        watch.watcher.refused(watch, error)


def _replaced(run: RunKey) -> NotFound:
    """Return the error for a start of a run that is gone, because its id was started anew."""
    return NotFound(
        f"run {run.run_id} was started anew; this start of it is gone",
        reason="RUN_REPLACED",
        remedy="ask for the run by its id alone to follow whichever start is there",
    )


def _unknown(run: RunKey) -> NotFound:
    return NotFound(
        f"no run {run.run_id!r} in namespace {run.namespace!r}",
        remedy="see `treadle run list`; closed runs are deleted after their retention",
    )
