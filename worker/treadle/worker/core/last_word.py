"""How code ended, as it stands in the last request of its owner."""

from __future__ import annotations

from typing import Final

from treadle.v1.common_pb2 import Failure
from treadle.v1.worker_service_pb2 import FailRun, OwnerRequest

from ..loop.continuation import continuation_of
from ..loop.port import Outcome
from .feed import Feed

__all__ = ("say_outcome",)

_UNREAD: Final = 100
"""So many ids of signals that were not received are told with an outcome."""


def say_outcome(request: OwnerRequest, feed: Feed, outcome: Outcome) -> None:
    """Write into the request how the code ended."""
    if outcome.next_input is not None:
        seal = feed.seals.carried if feed.seals is not None else None
        request.continue_run.CopyFrom(continuation_of(feed.execution, outcome.next_input, seal))
        return
    request.unread.extend(letter.signal_id for letter in feed.execution.unread()[:_UNREAD])
    if outcome.cancelled:
        request.cancelled.SetInParent()
        request.cancelled.undone = outcome.undone
        if outcome.hook is not None:
            request.cancelled.hook.CopyFrom(outcome.hook)
    elif outcome.failure is not None:
        _say_failure(request.fail, outcome, outcome.failure)
    else:
        request.complete.SetInParent()
        if outcome.result is not None:
            request.complete.result.CopyFrom(outcome.result)


def _say_failure(said: FailRun, outcome: Outcome, failure: Failure) -> None:
    said.failure.CopyFrom(failure)
    said.because.extend(outcome.because)
    said.because_all, said.undone = outcome.because_all, outcome.undone
    if outcome.hook is not None:
        said.hook.CopyFrom(outcome.hook)
