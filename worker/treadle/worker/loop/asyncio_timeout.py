"""`asyncio.timeout` as later Pythons have it, for workflows on Python 3.11.0 to 3.11.2 (Debian 12 has 3.11.2).

A TaskGroup that fails while it waits for its members leaves one cancellation counted on its task, in later 3.11, too. But
up to 3.11.2 a timeout takes any cancellation that is counted for somebody else's, also one from before it was entered, and
lets CancelledError out instead of raising TimeoutError: every later timeout of that workflow ends its run. As in
`asyncio_order`, this is corrected only while a durable loop runs, so that a run goes on alike on all patch releases.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from types import TracebackType

from treadle.worker.loop.asyncio_order import is_durable

__all__ = ("corrected", "install")

_Enter = Callable[[asyncio.Timeout], Awaitable[asyncio.Timeout]]
_Leave = Callable[
    [asyncio.Timeout, type[BaseException] | None, BaseException | None, TracebackType | None], Awaitable[bool | None]
]


def corrected(enter: _Enter, leave: _Leave) -> tuple[_Enter, _Leave]:
    """Return `Timeout.__aenter__` and `__aexit__` that count only what was cancelled since the timeout was entered."""

    async def entered(self: asyncio.Timeout) -> asyncio.Timeout:
        task = asyncio.current_task()
        if task is not None:
            self._treadle_cancelling = task.cancelling()  # type: ignore[attr-defined]
        return await enter(self)

    async def left(
        self: asyncio.Timeout,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        taken = await leave(self, kind, error, traceback)
        task = asyncio.current_task()
        if task is None or not is_durable(task.get_loop()):
            return taken
        before: int = self._treadle_cancelling  # type: ignore[attr-defined]
        if self.expired() and kind is asyncio.CancelledError and task.cancelling() <= before:
            raise TimeoutError from error
        return taken

    return entered, left


def install() -> None:
    """Correct it for the rest of the process, where it is wrong. To be called once."""
    if sys.version_info < (3, 11, 3):
        entered, left = corrected(asyncio.Timeout.__aenter__, asyncio.Timeout.__aexit__)
        asyncio.Timeout.__aenter__ = entered  # type: ignore[method-assign, assignment]
        asyncio.Timeout.__aexit__ = left  # type: ignore[method-assign, assignment]
