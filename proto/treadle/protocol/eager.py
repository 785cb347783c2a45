"""Tasks whose first step runs at once: most steps never suspend, and so never wait for the event loop.

What runs is an ordinary asyncio task, current while it runs, in the context that it was given; only its first step does not
go through the loop's queue. Python does this by itself from 3.12 on. Before, the one callback that a new task gives to its
loop is taken out of the loop's hands and called.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ("start_now",)

R = TypeVar("R")


def start_now(coro: Coroutine[Any, Any, R], *, name: str, context: contextvars.Context) -> asyncio.Task[R]:
    """Make a task of the running loop and run it until it first suspends; it may be done already.

    Loops that make tasks in a way of their own get an ordinary task. A task that calls this is not current meanwhile.
    """
    loop = asyncio.get_running_loop()
    if loop.get_task_factory() is not None:
        return loop.create_task(coro, name=name, context=context)
    if sys.version_info >= (3, 12):
        return asyncio.Task(coro, loop=loop, name=name, context=context, eager_start=True)
    if not isinstance(loop, asyncio.BaseEventLoop):
        return loop.create_task(coro, name=name, context=context)
    first: list[Callable[[], object]] = []
    call_soon = loop.call_soon

    def taken(callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:
        if context is own and not first:
            first.append(callback)
            return None
        return call_soon(callback, *args, context=context)  # a finalizer's, which happened to run just now

    own = context
    loop.call_soon = taken  # type: ignore[method-assign, assignment]
    try:
        task = asyncio.Task(coro, loop=loop, name=name, context=context)
    finally:
        del loop.call_soon
    outer = asyncio.current_task(loop)
    if outer is None:
        context.run(first[0])
        return task
    asyncio.tasks._leave_task(loop, outer)
    try:
        context.run(first[0])
    finally:
        asyncio.tasks._enter_task(loop, outer)
    return task
