"""The worker's clock: milliseconds that never go back, and that count the time a machine was suspended."""

from __future__ import annotations

import time
from typing import Final

__all__ = ("monotonic_ms",)

_CLOCK: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)


def monotonic_ms() -> int:
    """Return the time in milliseconds, from an arbitrary beginning.

    CLOCK_BOOTTIME where there is one: a right to start must run out while a laptop sleeps. Elsewhere the monotonic clock.
    """
    if _CLOCK is not None:
        return time.clock_gettime_ns(_CLOCK) // 1_000_000
    return time.monotonic_ns() // 1_000_000
