"""`Saga`: what was done is undone, in reverse order, when what follows fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import ParamSpec

from treadle.protocol.errors import CompensationFailed
from treadle.worker.current import current_execution
from treadle.worker.loop.blame import mark_undone

__all__ = ("Saga",)

P = ParamSpec("P")


class Saga:
    """Collects what undoes each step that was done. If the block raises, or is cancelled, all of it is called in reverse.

        async with Saga() as saga:
            charge = await charge_card(order)
            saga.undo(refund, charge)
            await ship(order)  # if this fails, refund(charge) is called, and then the error goes on

    Undoing is made of durable calls, so it survives kills as everything in a workflow does. One that fails for good does not
    keep the others from being tried.

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
        failures: list[Exception] = []
        while self._undo:
            try:
                await self._undo.pop()()
            except Exception as error:
                failures.append(error)
        if failures:
            raise CompensationFailed(
                f"{len(failures)} of the steps could not be undone: " + "; ".join(map(str, failures)),
                failures=failures,
            )

    async def __aenter__(self) -> Saga:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Exception | asyncio.CancelledError):
            undoes = bool(self._undo)
            await self.compensate()
            if undoes:
                _remember(error)
        self._undo.clear()


def _remember(error: BaseException) -> None:
    """A run that ends by this error cannot simply go on where it failed: what is done was undone."""
    mark_undone(error)
    execution = current_execution()
    if execution is not None and isinstance(error, asyncio.CancelledError):
        execution.undone = True
