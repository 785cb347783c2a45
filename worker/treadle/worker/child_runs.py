"""`start_child`: a workflow starts another one without waiting for it."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, Final, Generic, Literal, ParamSpec, TypeVar, overload

from treadle.protocol.errors import ConfigError
from treadle.protocol.ids import check_run_id
from treadle.v1.common_pb2 import (
    ON_PARENT_CLOSE_CANCEL,
    ON_PARENT_CLOSE_LEAVE,
    ON_PARENT_CLOSE_TERMINATE,
    OnParentClose,
)
from treadle.worker.current import current_execution
from treadle.worker.workflows import Workflow

__all__ = ("ChildRun", "start_child")

P = ParamSpec("P")
R = TypeVar("R")

Policy = Literal["cancel", "terminate", "leave"]
"""What becomes of a child that is open when its parent closes."""

_POLICIES: Final[dict[str, OnParentClose.ValueType]] = {
    "cancel": ON_PARENT_CLOSE_CANCEL,
    "terminate": ON_PARENT_CLOSE_TERMINATE,
    "leave": ON_PARENT_CLOSE_LEAVE,
}


class ChildRun(Generic[R]):
    """A child of the run that executes now. Await it for its result.

    Attributes:
        id: Its run id.
    """

    __slots__ = ("_future", "id")

    def __init__(self, id: str, future: asyncio.Future[R]) -> None:
        self._future = future
        self.id = id

    def __await__(self) -> Generator[Any, None, R]:
        return self.result().__await__()

    async def result(self) -> R:
        """Wait for the child to close and return what it returned. To stop waiting is not to stop the child.

        Raises:
            RunFailed: The child raised; `__cause__` is what it raised.
            RunCancelled: It was cancelled.
            RunTerminated: A person ended it.
            RunIdConflict: It was never started, because its id is taken.
        """
        return await asyncio.shield(self._future)

    def cancel(self) -> None:
        """Ask the child to stop; its outcome is not waited for any more."""
        self._future.cancel()


@overload
def start_child(workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> ChildRun[R]: ...
@overload
def start_child(
    workflow: Workflow[..., R], /, *args: Any, id: str | None = None, on_parent_close: Policy = "cancel", **kwargs: Any
) -> ChildRun[R]: ...
def start_child(
    workflow: Workflow[..., Any], /, *args: Any, id: Any = None, on_parent_close: Any = "cancel", **kwargs: Any
) -> ChildRun[Any]:
    """Start a run of `workflow` as a child, with a history of its own, and go on. Exactly one is started, whatever dies.

    Args:
        workflow: What it runs.
        args, kwargs: Its arguments.
        id: Its run id, unique in the namespace; None: derived from this run and this call.
        on_parent_close: When this run closes before it: "cancel" asks it to stop, "terminate" ends it, "leave" lets it be.

    Raises:
        ConfigError: It is called outside a workflow, or there is no such policy.
        TypeError: Wrong arguments, as in an ordinary call.
        PayloadError: The arguments cannot be encoded.
    """
    execution = current_execution()
    if execution is None:
        raise ConfigError("start_child(): call it inside a @workflow that a worker executes")
    policy = _POLICIES.get(on_parent_close)
    if policy is None:
        raise ConfigError(f"on_parent_close={on_parent_close!r}: use 'cancel', 'terminate' or 'leave'")
    if id is not None:
        check_run_id(id)
    run_id, future = execution.start_child(workflow, args, kwargs, id=id, on_parent_close=policy)
    future.add_done_callback(_heard)
    return ChildRun(run_id, future)


def _heard(future: asyncio.Future[Any]) -> None:
    """Nobody has to wait for a child, so its error is not one that nobody looked at."""
    if not future.cancelled():
        future.exception()
