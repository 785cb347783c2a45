"""Runs that have only just closed: who wants one to go on, or its id, waits until what it left behind is cleared away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from treadle.controlplane.machine.policies import SWEEPING
from treadle.protocol.errors import Unavailable

__all__ = ("when_swept",)

T = TypeVar("T")

_PAUSE_S: Final = 0.005
_LONGEST_PAUSE_S: Final = 0.1
_TRIES: Final = 36
"""About three seconds: 10,000 open commands take one."""


async def when_swept(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask again as long as the sweep is the reason for a refusal, which is milliseconds, as a rule.

    Raises:
        RequestError: It was refused for another reason, or the sweep takes seconds.
    """
    pause = _PAUSE_S
    for _ in range(_TRIES):
        try:
            return await ask()
        except Unavailable as error:
            if error.reason != SWEEPING:
                raise
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_S)
    return await ask()
