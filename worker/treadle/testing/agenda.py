"""Virtual time: what is planned, by when. Nothing here waits; the time moves when it is told to."""

from __future__ import annotations

import heapq
from collections.abc import Callable

__all__ = ("Agenda",)


class Agenda:
    """See the module.

    Attributes:
        now: The time, in milliseconds since 1970.
    """

    def __init__(self, start_ms: int) -> None:
        self.now = start_ms
        self._heap: list[tuple[int, int, Callable[[], object]]] = []
        self._planned = 0

    def plan(self, when_ms: int, action: Callable[[], object]) -> None:
        """Plan an action; two for the same instant keep the order in which they were planned."""
        self._planned += 1
        heapq.heappush(self._heap, (max(when_ms, self.now), self._planned, action))

    def next_ms(self) -> int | None:
        """When something is planned next; None: nothing is."""
        return self._heap[0][0] if self._heap else None

    def take_due(self) -> Callable[[], object] | None:
        """Return the first action that is due now, once; None: none is."""
        if not self._heap or self._heap[0][0] > self.now:
            return None
        return heapq.heappop(self._heap)[2]
