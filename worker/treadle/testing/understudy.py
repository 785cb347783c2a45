"""What plays in place of a child workflow: a run like any other, whose code is the double."""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections.abc import Callable
from typing import Any, Final

from treadle.worker.app import Registry
from treadle.worker.current import current_execution
from treadle.worker.loop.execution import execution_factory
from treadle.worker.loop.port import Execution, RunContext
from treadle.worker.signals import receive
from treadle.worker.workflows import Workflow

from .doubles import Double

__all__ = ("Understudies",)

_NEVER: Final = "(none: it was told to hang)"


class Understudies:
    """Those of a lab, by the name of the workflow.

    Args:
        heard: Told of errors that are the test's own, not the workflow's.
    """

    def __init__(self, heard: Callable[[BaseException], None]) -> None:
        self._registry = Registry()
        self._make = execution_factory(self._registry)
        self._heard = heard

    def add(self, workflow: Workflow[..., Any], double: Double) -> None:
        """From now on runs of the workflow are played."""
        played: dict[str, Callable[..., Any]] = {}

        async def play(*args: Any, **kwargs: Any) -> Any:
            execution = current_execution()
            assert execution is not None, "only executions call it"
            if double.takes_ms is None:
                await receive(_NEVER)
            elif double.takes_ms:
                await asyncio.sleep(double.takes_ms / 1000)
            try:
                run_id = execution.context.run_id  # a replay has the outcome that the run had
                if run_id not in played:
                    played[run_id] = double.outcome()
                result = played[run_id](*args, **kwargs)
                return await result if inspect.isawaitable(result) else result
            except BaseException as error:
                self._heard(error)
                raise

        stand_in = copy.copy(workflow)
        stand_in.function = play
        self._registry.workflows[workflow.code] = stand_in

    def plays(self, name: str) -> bool:
        """Whether runs of this workflow are played."""
        return name in self._registry.workflows

    def __call__(self, context: RunContext) -> Execution:
        """Make the coroutine of a run that is played."""
        return self._make(context)
