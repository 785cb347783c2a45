"""A value of the store that may be a little old: read once for all who ask at the same time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

__all__ = ("Fresh",)

T = TypeVar("T")


class Fresh(Generic[T]):
    """See the module.

    Args:
        read: Reads the value. What it raises goes to all who wait for it, and nothing is kept.
        keep_s: How old the value may be, in seconds.
    """

    def __init__(self, read: Callable[[], Awaitable[T]], keep_s: float = 1.0) -> None:
        self._read = read
        self._keep_s = keep_s
        self._kept: tuple[float, T] | None = None
        self._reading = asyncio.Lock()

    async def get(self, since: float | None = None) -> T:
        """Return the value as it was `since` then (time.monotonic()) or later; by default at most `keep_s` ago."""
        oldest = time.monotonic() - self._keep_s if since is None else since
        if self._kept is None or self._kept[0] < oldest:
            async with self._reading:
                if self._kept is None or self._kept[0] < oldest:
                    began = time.monotonic()
                    self._kept = (began, await self._read())
        return self._kept[1]
