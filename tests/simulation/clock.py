"""Virtual time: a heap of things to do. Two that fall on the same instant keep the order in which they were planned."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random

__all__ = ("Schedule",)


class Schedule:
    """One seed is one schedule: every delay is drawn from `rng`, nothing else is random."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.now = 1_000_000_000
        self.began = self.now
        self.steps = 0
        self.trace: list[str] | None = None
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._planned = 0

    def later(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Plan an action."""
        self._planned += 1
        heapq.heappush(self._heap, (self.now + max(0, delay_ms), self._planned, action))

    def note(self, text: str) -> None:
        """Add a line to the trace, when one is kept."""
        if self.trace is not None:
            self.trace.append(f"{(self.now - self.began) / 1000:9.3f}  {text}")

    def run(self, done: Callable[[], bool], limit_ms: int) -> bool:
        """Go on until `done`, at most to `limit_ms` after the beginning; returns whether it was done."""
        end = self.began + limit_ms
        while self._heap:
            if done():
                return True
            when, _, action = heapq.heappop(self._heap)
            if when > end:
                return False
            self.now = max(self.now, when)
            self.steps += 1
            action()
        return done()

    def network_ms(self) -> int:
        """Draw how long a message takes: mostly a millisecond or two, sometimes long."""
        draw = self.rng.random()
        if draw < 0.9:
            return int(draw * 3.3)
        return int(2 + (draw - 0.9) * 420) if draw < 0.99 else int(40 + (draw - 0.99) * 56_000)
