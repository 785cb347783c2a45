"""Futures and tasks whose hash is the number of their creation in the run.

asyncio keeps them in sets, and the order of a set follows the hashes. By default these come from addresses, so that the
same code over the same history would go on in another order.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treadle.worker.loop.durable_loop import DurableLoop

__all__ = ("DurableFuture", "DurableTask")


class DurableFuture(asyncio.Future[Any]):
    """A future of a durable loop."""

    __slots__ = ("number",)

    def __init__(self, loop: DurableLoop) -> None:
        self.number = loop.next_number()
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.number


class DurableTask(asyncio.Task[Any]):
    """A task of a durable loop.

    Attributes:
        number: Number of creation in the run.
        path: "0" for the main task; "<parent>.<n>" for the n-th child of a task, from 1.
        children: Tasks that it has made so far.
        random: Its random numbers; made when first asked for.
        cancelled_for: Commands by whose failure it was cancelled.
    """

    __slots__ = ("cancelled_for", "children", "number", "path", "random")

    def __init__(
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        loop: DurableLoop,
        number: int,
        path: str,
        name: object = None,
        context: contextvars.Context | None = None,
    ) -> None:
        self.number = number  # first: asyncio puts the task into a set while it is being made
        self.path = path
        self.children = 0
        self.random: Random | None = None
        self.cancelled_for: tuple[str, ...] = ()
        # A name of asyncio's own would carry a number that counts all tasks of the process.
        super().__init__(coro, loop=loop, name=str(name) if name is not None else path, context=context)

    def __hash__(self) -> int:
        return self.number

    def cancel(self, msg: object = None) -> bool:
        loop: DurableLoop = self.get_loop()  # type: ignore[assignment]
        if loop.failing:
            self.cancelled_for += (loop.failing,)
        return super().cancel(msg)
