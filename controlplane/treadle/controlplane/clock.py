"""The clock of Redis, as this replica estimates it between replies."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ("StoreClock", "monotonic_ms")


def monotonic_ms() -> int:
    """Return this process's own clock in milliseconds: for waits and credits, never for what is stored."""
    return int(time.monotonic() * 1000)


class StoreClock:
    """Never behind a time that the store has shown, so that what the store called due is due here too.

    The length of a round trip bounds the error of what it tells. So the estimate moves only as far as a reply proves it
    wrong, which a slow one hardly does: at once after a start, or behind a long script, half of its time would be the error.
    """

    def __init__(self, own_ms: Callable[[], int] = monotonic_ms) -> None:
        self._own_ms = own_ms
        self._offset: int | None = None
        self._highest = 0

    def observe(self, store_ms: int, sent_own_ms: int) -> None:
        """A reply came: the store read its clock between `sent_own_ms` and now."""
        own = self._own_ms()
        if self._offset is None:
            self._offset = store_ms - (sent_own_ms + own) // 2
        self._offset = min(max(self._offset, store_ms - own), store_ms - sent_own_ms)
        self._highest = max(self._highest, store_ms)

    def now(self) -> int:
        """Return the estimate (ms since 1970)."""
        if self._offset is None:
            raise RuntimeError("the store's clock has not been read yet")
        return max(self._highest, self._own_ms() + self._offset)
