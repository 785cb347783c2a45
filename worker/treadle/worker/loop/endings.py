"""How workflow code ends, when it does not return: as outcomes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from treadle.protocol.errors import PayloadError
from treadle.protocol.failures import failure_of
from treadle.v1.common_pb2 import FAILURE_KIND_RUN_TIMED_OUT, FAILURE_KIND_STUCK, Failure, Payload
from treadle.worker.hooks import hook_message
from treadle.worker.loop.blame import Undone, blame_of
from treadle.worker.loop.continuation import found_in
from treadle.worker.loop.port import Outcome, RunContext

if TYPE_CHECKING:
    from treadle.worker.workflows import Workflow

__all__ = ("ENDLESS", "STUCK", "ended", "with_hook")


def _stuck(message: str) -> Outcome:
    return Outcome(failure=Failure(kind=FAILURE_KIND_STUCK, type="Stuck", message=message, final=True))


STUCK: Final = _stuck(
    "the code waits, but for nothing that could ever happen: no step, no sleep and no timeout is open. Look for an "
    "asyncio.Event that nobody sets, a Queue that nobody fills, or a Lock that is never released"
)
ENDLESS: Final = _stuck("it goes on without end: a loop that never waits for anything")
_CANCELLED_BY_ITSELF: Final = Outcome(
    failure=Failure(
        type="CancelledError",
        message="the workflow raised CancelledError although nobody asked for the run to be cancelled",
    )
)


def ended(
    main: asyncio.Task[Any], workflow: Workflow[..., Any], limit: int, undone: Undone, *, interrupted: bool
) -> Outcome:
    """Return how the code ended whose main task is done.

    `interrupted`: the run was cancelled, or its timeout is over; `limit`: larger results are refused.
    """
    if main.cancelled():
        if interrupted:
            return Outcome(cancelled=True, undone=undone.by_run)
        return replace(_CANCELLED_BY_ITSELF, undone=undone.any)
    error = main.exception()
    again = found_in(error)
    if again is not None:
        return Outcome(next_input=again.input)
    if error is not None:
        return _raised(error, undone)
    try:
        return Outcome(result=workflow.signature.encode_result(main.result(), limit=limit))
    except PayloadError as unencodable:
        return Outcome(failure=failure_of(unencodable))


def _raised(error: BaseException, undone: Undone) -> Outcome:
    blame = blame_of(error)
    return Outcome(
        failure=failure_of(error),
        because=tuple(blame.because),
        because_all=blame.too_many,
        undone=not blame.undoing and (blame.undone or undone.counts(blame)),
    )


def with_hook(
    outcome: Outcome, workflow: Workflow[..., Any], context: RunContext, given: Payload, timeout: str
) -> Outcome:
    """Return the outcome with what handles it, if it is a failure and the workflow says so.

    `timeout`: how long the run might take, in words, if code that ended as cancelled did so because that is over; else "".
    """
    hook = workflow.on_failure
    if hook is None or outcome.hook is not None:
        return outcome
    failure = outcome.failure
    if failure is None and outcome.cancelled and timeout:
        message = f"it ran longer than its timeout of {timeout}"
        failure = Failure(kind=FAILURE_KIND_RUN_TIMED_OUT, type="RunTimedOut", message=message, final=True)
    return outcome if failure is None else replace(outcome, hook=hook_message(hook, context, given, failure))
