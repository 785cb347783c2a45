"""How code ended, as it stands in the last request of its owner."""

from __future__ import annotations

from typing import Final

from treadle.protocol.errors import CodecFailed
from treadle.v1.common_pb2 import Failure
from treadle.v1.worker_service_pb2 import ContinueRun, FailRun, OwnerRequest

from ..loop.continuation import continuation_of
from ..loop.port import Outcome
from .feed import Feed

__all__ = ("say_divergence", "say_outcome")

_UNREAD: Final = 100
"""So many ids of signals that were not received are told with an outcome."""


def say_outcome(request: OwnerRequest, feed: Feed, outcome: Outcome) -> bool:
    """Write into the request how the code ended; False: the codec failed on what goes along, and nothing is written."""
    if outcome.next_input is not None:
        seal = feed.seals.carried if feed.seals is not None else None
        try:
            goes_on = continuation_of(feed.execution, outcome.next_input, seal)
        except CodecFailed:
            return False
        if not goes_on.left_out:
            request.continue_run.CopyFrom(goes_on)
            return True
        fails = _too_many_unread(feed, goes_on)
        if fails is None:
            return False
        outcome = fails
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
    return True


def _too_many_unread(feed: Feed, goes_on: ContinueRun) -> Outcome | None:
    """The run fails: what its code has not received would be lost."""
    fits = len(goes_on.carried)
    failure = Failure(
        type="TooManyUnread",
        message=f"the run cannot go on as new: {fits + goes_on.left_out} signals were not received, and {fits} of them fit "
        "into the next part; receive them before continue_as_new",
        final=True,
    )
    outcome = feed.execution.failing(failure)
    return outcome if feed.seals is None else feed.seals.seal(outcome)


def _say_failure(said: FailRun, outcome: Outcome, failure: Failure) -> None:
    said.failure.CopyFrom(failure)
    said.because.extend(outcome.because)
    said.because_all, said.undone = outcome.because_all, outcome.undone
    if outcome.hook is not None:
        said.hook.CopyFrom(outcome.hook)


def say_divergence(request: OwnerRequest, feed: Feed | None) -> None:
    """Write into the request what code and history disagree about."""
    assert feed is not None and feed.divergence is not None, "it is said of code that diverged"
    request.diverged.expected, request.diverged.found = feed.divergence.expected, feed.divergence.found
