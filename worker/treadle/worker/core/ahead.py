"""Results that code is fed before their events (R10): what is said of them, and the events that are expected."""

from __future__ import annotations

from treadle.v1.common_pb2 import Payload
from treadle.v1.history_pb2 import StepCompleted
from treadle.v1.worker_service_pb2 import Checkpoint, Foretold

from .attempts import Result
from .feed import Feed

__all__ = ("foretold_of", "of_checkpoint", "of_report")


def of_checkpoint(checkpoint: Checkpoint, result: Payload | None, feed: Feed, now_ms: int) -> StepCompleted:
    """Note in a checkpoint that its result is fed now; returns what its event will tell."""
    checkpoint.ended_ms = feed.about(now_ms)
    return StepCompleted(
        command_id=checkpoint.command_id,
        result=result,
        name=checkpoint.name,
        digest=checkpoint.digest,
        local=True,
        ended_ms=checkpoint.ended_ms,
    )


def of_report(result: Result, feed: Feed, now_ms: int) -> StepCompleted:
    """As `of_checkpoint`, of the report of an attempt of a pool step."""
    told = result.report
    told.ended_ms = feed.about(now_ms)
    return StepCompleted(command_id=told.command_id, attempt=result.attempt, result=told.result, ended_ms=told.ended_ms)


def foretold_of(feed: Feed) -> Foretold | None:
    """Return what a request counts on that follows from the result of a pool step; None: it follows from none."""
    if feed.ahead is None or feed.ahead.step_completed.local:
        return None
    told = feed.ahead.step_completed
    return Foretold(command_id=told.command_id, attempt=told.attempt, ended_ms=told.ended_ms)
