"""Two places where asyncio orders things by address, outside of what a loop can decide.

Both are corrected where asyncio looks the names up, and only while a durable loop runs; for every other loop they do what
they did.
"""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ("install", "is_durable")


def is_durable(loop: Any) -> bool:
    """Whether this is a durable loop: it numbers what is made in it."""
    return hasattr(loop, "next_number")


def _hash_of_gather(self: Any) -> int:
    """`gather` makes its future by itself, not through the loop; it is numbered when it is first put into a set."""
    loop = self._loop
    if not is_durable(loop):
        return object.__hash__(self)
    number: int | None = getattr(self, "_treadle_number", None)
    if number is None:
        number = self._treadle_number = loop.next_number()
    return number


def _set_in_order(*iterable: Any) -> Any:
    """`as_completed` makes a set of the coroutines that it is given, before it makes tasks of them."""
    if iterable and is_durable(asyncio._get_running_loop()):
        return dict.fromkeys(*iterable)
    return set(*iterable)


def install() -> None:
    """Correct both for the rest of the process. Idempotent."""
    asyncio.tasks._GatheringFuture.__hash__ = _hash_of_gather  # type: ignore[attr-defined]
    asyncio.tasks.set = _set_in_order  # type: ignore[attr-defined]
