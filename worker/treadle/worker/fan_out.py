"""A step, or a child, for each of many items: bounded, in order, with failures that may be tolerated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from inspect import isawaitable
from math import floor
from typing import Any, Final, TypeVar

from treadle.protocol.errors import ConfigError, MapFailed, RunError, StepError

__all__ = ("map_over",)

T = TypeVar("T")

_GRAIN: Final = 1e-9
"""29 % of 100 are 29, also where floats say 28.999…"""


async def map_over(
    call: Callable[[T], Any], items: Iterable[T], *, what: str, limit: int, tolerate: float
) -> list[Any]:
    """Call once for each item, at most `limit` at a time; return what came of each, in the order of the items.

    The n-th item is the n-th task that is made, so that its steps keep their names when others end in another order.

    Raises:
        ConfigError: `limit` or `tolerate` is out of range.
        Exception: What else a call raised, at once.
        MapFailed: More failed than is tolerated. No further item was begun; what was running was cancelled.
    """
    if limit < 1 or not 0 <= tolerate <= 1:
        raise ConfigError(f"{what}: limit={limit!r}, tolerate={tolerate!r}: give at least 1, and a share from 0 to 1")
    waiting = list(items)
    allowed = floor(len(waiting) * tolerate + _GRAIN)
    found: list[Any] = [None] * len(waiting)
    failed: dict[int, StepError | RunError] = {}
    broken: list[asyncio.Task[None]] = []
    free = asyncio.Semaphore(limit)
    running: set[asyncio.Task[None]] = set()

    async def one(index: int, item: T) -> None:
        try:
            result = call(item)
            found[index] = await result if isawaitable(result) else result  # plain calls of sync steps return at once
        except (StepError, RunError) as error:
            found[index] = failed[index] = error
        finally:
            free.release()

    changed = asyncio.Event()

    def ended(task: asyncio.Task[None]) -> None:
        running.discard(task)
        if task.cancelled() or task.exception() is not None:
            broken.append(task)  # by an error that no step has: nobody tolerates it
        changed.set()

    try:
        for index, item in enumerate(waiting):
            await free.acquire()
            if broken or len(failed) > allowed:
                break
            task = asyncio.create_task(one(index, item))
            running.add(task)
            task.add_done_callback(ended)
        while running and not broken and len(failed) <= allowed:
            changed.clear()
            await changed.wait()
        if broken:
            broken[0].result()  # raises it
    finally:
        if running:
            await _cancel(running)
    if len(failed) > allowed:
        raise MapFailed(
            f"{what}: {len(failed)} of {len(waiting)} items failed, {allowed} are tolerated; the first: "
            f"{next(iter(failed.values()))}",
            failures=failed,
        )
    return found


async def _cancel(running: set[asyncio.Task[None]]) -> None:
    tasks = sorted(running, key=hash)  # in the order in which they were made
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
