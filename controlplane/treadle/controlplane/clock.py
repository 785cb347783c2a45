"""The clock of Redis, as this replica estimates it between replies."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ("StoreClock", "monotonic_ms")


def monotonic_ms() -> int:
    """Return this process's own clock in milliseconds: for waits and credits, never for what is stored."""
    return int(time.monotonic() * 1000)


class StoreClock:
    """Never behind a time that the store has shown, so that what the store called due is due here too."""

    def __init__(self, own_ms: Callable[[], int] = monotonic_ms) -> None:
        self._own_ms = own_ms
        self._offset: int | None = None
        self._highest = 0

    def observe(self, store_ms: int, sent_own_ms: int) -> None:
        """A reply came: the store read its clock between `sent_own_ms` and now."""
        own = self._own_ms()
        offset = store_ms - (sent_own_ms + own) // 2
        self._offset = offset
        self._highest = max(self._highest, store_ms)

    def now(self) -> int:
        """Return the estimate (ms since 1970)."""
        if self._offset is None:
            raise RuntimeError("the store's clock has not been read yet")
        return max(self._highest, self._own_ms() + self._offset)
