"""How code says that the run is to go on as new, and what the next part begins with."""

from __future__ import annotations

from collections.abc import Callable

from treadle.v1.common_pb2 import Payload
from treadle.v1.history_pb2 import SignalReceived
from treadle.v1.worker_service_pb2 import ContinueRun
from treadle.worker.loop.port import Execution

__all__ = ("ContinueAsNew", "continuation_of", "found_in")

_MOST, _MOST_BYTES = 1000, 512 * 1024
"""Signals that were not received: so many, and so large, fit into one request."""


class ContinueAsNew(BaseException):
    """Ends the code. No Exception, so that `except Exception` around a loop does not swallow it."""

    def __init__(self, input: Payload) -> None:
        super().__init__("the run goes on as new")
        self.input = input


def found_in(error: BaseException | None) -> ContinueAsNew | None:
    """Return what ended the code, if that is all: a TaskGroup wraps what its tasks raise."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, ContinueAsNew) else None


def continuation_of(
    execution: Execution, next_input: Payload, seal: Callable[[SignalReceived], SignalReceived] | None = None
) -> ContinueRun:
    """Return what the next part begins with: its input, the signals that wait, those that must stay known, and a cancel.

    Args:
        execution: The part that ended.
        next_input: As it is sent.
        seal: Makes of a signal what is sent; None: the signal itself.
    """
    said = ContinueRun(
        input=next_input,
        known=execution.known_signals(),
        unheard=execution.unheard,
        given=execution.events_given(),
    )
    size = 0
    unread = execution.unread()
    for letter in unread[:_MOST]:
        if seal is not None:
            letter = seal(letter)
        size += letter.ByteSize()
        if size > _MOST_BYTES:
            break
        said.carried.append(letter)
    said.left_out = len(unread) - len(said.carried)
    return said
