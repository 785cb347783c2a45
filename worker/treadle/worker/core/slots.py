"""Slots of one kind, and since when each free one is free.

A slot that is taken is the one that was freed last. So the oldest tells since when there has always been a free one: a queue
that had anything for it would have delivered it by now, and all that are free may be credits.
"""

from __future__ import annotations

__all__ = ("Slots",)


class Slots:
    """`total` slots; those that are free are offered as credits once there has been one for `ripe_ms`."""

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
        free = self._free
        return len(free) if free and free[0] <= now_ms - self._ripe_ms else 0

    def next_ripe(self, now_ms: int) -> int | None:
        """When those that are free will be ripe; None: they are, or there is none."""
        free = self._free
        return free[0] + self._ripe_ms if free and free[0] > now_ms - self._ripe_ms else None
