"""Pauses between attempts to reach the control plane."""

from __future__ import annotations

import asyncio
import random

__all__ = ("Backoff",)


class Backoff:
    """Waits between attempts: 0.1 s, doubling to `longest` (seconds), jittered by a half."""

    def __init__(self, longest: float = 2.0) -> None:
        self._longest = longest
        self._bound = 0.1

    def reset(self) -> None:
        """Begin anew: it answered."""
        self._bound = 0.1

    async def wait(self) -> None:
        """Wait; the next wait is longer."""
        delay = self._bound * random.uniform(0.5, 1.0)
        self._bound = min(self._bound * 2, self._longest)
        await asyncio.sleep(delay)
