"""What waits to be committed, by run, and which runs the next batch takes. No I/O.

Per run there is at most one batch in flight; what arrives meanwhile is folded into the next. Timers that are due come first,
and what runs ask for that they have just woken comes last: else it would hold up those that still sleep. But each of the
three has a part of every batch, so that a storm of timers holds up nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from treadle.controlplane.batches import Item, fold
from treadle.controlplane.machine.requests import FireTimer
from treadle.protocol.ids import RunKey

__all__ = ("Backlog",)

_RUNS_A_BATCH = 50
_TIMERS, _WOKEN = 38, 4
"""Places of a batch while all three wait; the rest is for the others."""


class Backlog:
    """See the module. `len()` is how many runs are ready to be taken."""

    def __init__(self) -> None:
        self._waiting: dict[RunKey, deque[Item]] = {}
        self._busy: set[RunKey] = set()
        self._timers: dict[RunKey, None] = {}
        self._others: dict[RunKey, None] = {}
        self._woken: dict[RunKey, None] = {}
        self._fired: set[RunKey] = set()  # since timers have been waiting

    def __len__(self) -> int:
        return len(self._timers) + len(self._others) + len(self._woken)

    @property
    def runs(self) -> int:
        """How many runs have something that waits, ready or not."""
        return len(self._waiting)

    def put(self, run: RunKey, item: Item) -> None:
        """Queue a request."""
        self._waiting.setdefault(run, deque()).append(item)
        if run in self._busy:
            return
        if isinstance(item.request, FireTimer) and item.request.command_id:
            self._others.pop(run, None)
            self._woken.pop(run, None)
            self._timers[run] = None
        elif run not in self._timers and run not in self._others and run not in self._woken:
            self._line_of(run)[run] = None  # one line only: which it would be changes while it waits

    def put_back(self, run: RunKey, items: list[Item]) -> None:
        """Put back what was taken and is not done; it stays first of its run. To be released like all that was taken."""
        self._waiting.setdefault(run, deque()).extendleft(reversed(items))

    def take(self) -> dict[RunKey, list[Item]]:
        """Return the next batch."""
        timers, others, woken = self._timers, self._others, self._woken
        batch: dict[RunKey, list[Item]] = {}
        if not timers:
            self._fired.clear()
            if not woken:
                self._take(others, _RUNS_A_BATCH, batch)
                return batch
        self._take(timers, _TIMERS, batch)
        self._take(others, _RUNS_A_BATCH - len(batch) - min(_WOKEN, len(woken)), batch)
        self._take(woken, _WOKEN, batch)
        for line in (timers, others, woken):
            self._take(line, _RUNS_A_BATCH, batch)
        return batch

    def release(self, runs: Iterable[RunKey]) -> None:
        """These are not in flight any more."""
        for run in runs:
            self._busy.discard(run)
            if self._waiting.get(run):
                self._line_of(run)[run] = None
            else:
                self._waiting.pop(run, None)

    def _line_of(self, run: RunKey) -> dict[RunKey, None]:
        return self._woken if self._timers and run in self._fired else self._others

    def _take(self, line: dict[RunKey, None], count: int, batch: dict[RunKey, list[Item]]) -> None:
        until = min(len(batch) + count, _RUNS_A_BATCH)
        while line and len(batch) < until:
            run = next(iter(line))
            del line[run]
            self._busy.add(run)
            if line is self._timers:
                self._fired.add(run)
            batch[run] = fold(self._waiting[run])
