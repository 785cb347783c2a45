"""Slots of one kind, and since when each free one is free.

A slot that is taken is the one that was freed last, so that old ones ripen into credits while deliveries come and go.
"""

from __future__ import annotations

from bisect import bisect_right

__all__ = ("Slots",)


class Slots:
    """`total` slots; a free one is offered as a credit once it has been free for `ripe_ms`."""

    __slots__ = ("_free", "_ripe_ms", "full_since", "total")

    def __init__(self, total: int, ripe_ms: int) -> None:
        self.total = total
        self._ripe_ms = ripe_ms
        self._free = [0] * total  # since when, oldest first
        self.full_since: int | None = None if total else 0

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.total - len(self._free)

    def take(self, now_ms: int) -> bool:
        """Take a slot; False when there is none."""
        if not self._free:
            return False
        self._free.pop()
        if not self._free:
            self.full_since = now_ms
        return True

    def give(self, now_ms: int) -> None:
        self._free.append(now_ms)
        self.full_since = None

    def unripe(self, now_ms: int) -> None:
        """A consumer was made: every free slot waits for deliveries first."""
        self._free = [now_ms] * len(self._free)

    def ripe(self, now_ms: int) -> int:
        """How many free slots may be credits."""
        return bisect_right(self._free, now_ms - self._ripe_ms)

    def next_ripe(self, now_ms: int) -> int | None:
        """When one more will be ripe; None: all free ones are."""
        index = self.ripe(now_ms)
        return self._free[index] + self._ripe_ms if index < len(self._free) else None
