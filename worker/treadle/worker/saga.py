"""`Saga`: what was done is undone, in reverse order, when what follows fails."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import ParamSpec

from treadle.protocol.errors import CompensationFailed
from treadle.worker.current import current_execution
from treadle.worker.loop.blame import mark_undone
from treadle.worker.loop.future import DurableTask

__all__ = ("Saga",)

P = ParamSpec("P")


class Saga:
    """Collects what undoes each step that was done. If the block raises, or is cancelled, all of it is called in reverse.

        async with Saga() as saga:
            charge = await charge_card(order)
            saga.undo(refund, charge)
            await ship(order)  # if this fails, refund(charge) is called, and then the error goes on

    Undoing is made of durable calls, so it survives kills as everything in a workflow does. One that fails for good does not
    keep the others from being tried, nor does a cancel that comes meanwhile: that is raised when all is undone.

    Raises:
        CompensationFailed: Something could not be undone.
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], Awaitable[object]]] = []

    def undo(self, call: Callable[P, Awaitable[object]], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Note what undoes the step before: a step, a workflow or an async function, and what it is called with."""
        self._undo.append(lambda: call(*args, **kwargs))

    async def compensate(self) -> None:
        """Undo everything now, last first; nothing is left to be undone.

        Raises:
            CompensationFailed: Something could not be undone.
        """
        await self._compensate(sys.exc_info()[1])

    async def __aenter__(self) -> Saga:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Exception | asyncio.CancelledError):
            await self._compensate(error)
        self._undo.clear()

    async def _compensate(self, error: BaseException | None) -> None:
        """Undo everything because of `error`. In a task of its own: whoever cancels the caller does not cut it off."""
        if not self._undo:
            return
        _remember(error)
        task = asyncio.create_task(self._call_all())
        interrupted: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.wait((task,))
            except asyncio.CancelledError as cancelled:
                _remember(cancelled)
                interrupted = interrupted or cancelled
        failures = task.result()
        if failures:
            raise CompensationFailed(
                f"{len(failures)} of the steps could not be undone: " + "; ".join(map(str, failures)),
                failures=failures,
            )
        if interrupted is not None:
            raise interrupted

    async def _call_all(self) -> list[Exception]:
        failures: list[Exception] = []
        while self._undo:
            try:
                await self._undo.pop()()
            except Exception as error:
                failures.append(error)
            except asyncio.CancelledError:
                failures.append(RuntimeError("it raised CancelledError"))
        return failures


def _remember(error: BaseException | None) -> None:
    """A run that ends by this error cannot simply go on where it failed: what is done was undone."""
    if error is None:
        return
    mark_undone(error)
    execution, task = current_execution(), asyncio.current_task()
    if execution is not None and isinstance(error, asyncio.CancelledError):
        because = task.cancelled_for if isinstance(task, DurableTask) else ()
        execution.undone.note(because, by_run=execution.interrupted)
