"""A loop of the server that outlives what nobody foresaw: it is logged in full, and the loop goes on after a pause.

One damaged run, or one answer of Redis that no code knows, must not stop everybody's work; nor would a restart cure it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

__all__ = ("steady",)

_log = structlog.stdlib.get_logger(__name__)

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 5.0
_CALM_S = 30.0


async def steady(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work`, and again whenever it raises; returns when it returns. `name` stands in the log."""
    clock = asyncio.get_running_loop().time
    pause = _FIRST_PAUSE_S
    while True:
        began = clock()
        try:
            await work()
            return
        except Exception:
            _log.exception("loop_failed", loop=name)
        if clock() - began > _CALM_S:
            pause = _FIRST_PAUSE_S
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)
