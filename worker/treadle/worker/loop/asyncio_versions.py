"""Where asyncio differs between Python 3.11 and 3.13 in what a workflow asks for: as 3.13 has it, on all of them.

A run that began under one version goes on under another one, unless a step gets another id or another turn there. As in
`asyncio_order`, this is so only while a durable loop runs; other loops get what they had.

- Up to 3.11, `wait_for` makes a task of the coroutine that it waits for; later it is awaited in the caller's own task.
- Up to 3.12, a waiter of a `Condition` that is cancelled in the moment of its wake-up takes the wake-up with it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from types import FunctionType
from typing import Any, Literal, TypeVar

from treadle.worker.loop.asyncio_order import is_durable

__all__ = ("in_own_task", "install", "swap_current_task")

R = TypeVar("R")

swap_current_task: Callable[[Any, Any], Any] | None = (
    getattr(asyncio.tasks, "_swap_current_task", None) if sys.version_info >= (3, 14) else None
)
"""For who puts a running loop aside. From 3.14 on the current task belongs to the thread; before, each loop has its own
(and 3.12 raises KeyError where there is none)."""

_wait = asyncio.Condition.wait


async def in_own_task(awaitable: Awaitable[R], timeout: float | None) -> R:
    """Wait for `awaitable` at most `timeout` seconds; None: for ever. Without any time, it is not begun.

    Raises:
        TimeoutError: It took longer, and was cancelled.
    """
    if timeout is None or timeout > 0:
        async with asyncio.timeout(timeout):
            return await awaitable
    future = asyncio.ensure_future(awaitable)
    if not future.done():
        future.cancel()
        await asyncio.wait([future])
    try:
        return future.result()
    except asyncio.CancelledError as error:
        raise TimeoutError from error


async def _wait_or_pass_on(self: asyncio.Condition) -> Literal[True]:
    try:
        return await _wait(self)
    except BaseException:
        if self.locked() and is_durable(asyncio.get_running_loop()):
            self.notify()
        raise


def _correct_wait_for() -> None:
    """The function itself changes, not the name in the module: workflow code may have imported it before."""
    function: Any = asyncio.wait_for
    original: Any = FunctionType(function.__code__, function.__globals__, "wait_for")

    async def chosen(fut: Any, timeout: float | None) -> Any:
        durable = is_durable(asyncio.get_running_loop())
        return await (in_own_task(fut, timeout) if durable else original(fut, timeout))

    async def wait_for(fut, timeout):  # type: ignore[no-untyped-def]
        return await _treadle_wait_for(fut, timeout)  # type: ignore[name-defined]  # noqa: F821  # a global of asyncio's

    function.__globals__["_treadle_wait_for"] = chosen
    function.__code__ = wait_for.__code__


def install() -> None:
    """Correct them for the rest of the process, where they are others. To be called once."""
    if sys.version_info < (3, 12):
        _correct_wait_for()
    if sys.version_info < (3, 13):
        asyncio.Condition.wait = _wait_or_pass_on  # type: ignore[method-assign]
