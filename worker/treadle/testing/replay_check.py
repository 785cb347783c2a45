"""Replays what a run did, and compares: the same history must make the code ask for the same things."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from treadle.protocol.errors import NotDeterministic
from treadle.v1.common_pb2 import FAILURE_KIND_RUN_TIMED_OUT
from treadle.v1.history_pb2 import HistoryEvent
from treadle.worker.loop.port import Execution, ExecutionFactory, RunContext

from .crew import Asked, asked_in

__all__ = ("check_replay",)

_PREFIXES: Final = 10
"""A long history is replayed up to so many places of it, evenly spaced."""
_ENDS: Final = ("run_completed", "run_continued", "run_failed")
"""Events that tell how the code ended. A run that others ended, or that is open, has none."""
_REMEDY: Final = (
    "workflow code may depend on nothing but its input and what it awaits: take times, random numbers and ids from "
    "treadle.worker, do the rest in a @step, and keep nothing in globals"
)


def check_replay(
    context: RunContext,
    make: ExecutionFactory,
    history: Sequence[HistoryEvent],
    asked: dict[Asked, int],
    looked: Sequence[int],
) -> None:
    """Replay the history up to places where the live code was asked what it wants.

    Args:
        context, make: The run, and what makes its coroutine.
        history: All of it.
        asked: What the live code asked for, and at which position first.
        looked: The positions at which it was asked.

    Raises:
        NotDeterministic: A replay does otherwise; says where, and what was expected.
    """
    ended = history[-1].WhichOneof("kind") in _ENDS
    for upto in [*_some(looked), *([len(history)] if ended else [])]:
        execution = make(context)
        try:
            _feed(context, execution, history[:upto], len(history))
            if ended and upto == len(history):
                _compare_end(context, execution, history)
            else:
                _compare(context, execution, upto, asked)
        finally:
            execution.close()


def _some(looked: Sequence[int]) -> Sequence[int]:
    if len(looked) <= _PREFIXES:
        return looked
    step = (len(looked) - 1) / (_PREFIXES - 1)
    return [looked[round(i * step)] for i in range(_PREFIXES)]


def _feed(context: RunContext, execution: Execution, events: Sequence[HistoryEvent], length: int) -> None:
    for event in events:
        execution.feed(event)
        divergence = execution.divergence
        if divergence is not None:
            raise _differs(
                context, f"at event {event.position} of {length} expected {divergence.expected}; {divergence.found}"
            )


def _compare(context: RunContext, execution: Execution, upto: int, asked: dict[Asked, int]) -> None:
    for one in asked_in(execution.take()):
        if asked.get(one, upto + 1) > upto:
            kind, command_id, _ = one
            known = any(other[:2] == one[:2] and position <= upto for other, position in asked.items())
            instead = "with another input" if known else "which it had not asked for"
            raise _differs(context, f"after event {upto} the code asks for {kind} {command_id!r}, {instead} before")


def _compare_end(context: RunContext, execution: Execution, history: Sequence[HistoryEvent]) -> None:
    """Whether the code ends as it ended then."""
    outcome, last = execution.outcome, history[-1]
    kind = last.WhichOneof("kind")
    if kind == "run_completed":
        same = outcome is not None and outcome.result == last.run_completed.result
    elif kind == "run_continued":
        same = outcome is not None and outcome.next_input == last.run_continued.input
    else:
        said = last.run_failed.failure
        if said.kind == FAILURE_KIND_RUN_TIMED_OUT:
            return  # the control plane ended it
        failure = outcome.failure if outcome is not None else None
        same = failure is not None and (failure.type, failure.message) == (said.type, said.message)
    if not same:
        raise _differs(context, f"it ended with {_words(last)}, and a replay ends otherwise")


def _words(event: HistoryEvent) -> str:
    if event.HasField("run_completed"):
        return f"the result {event.run_completed.result.data.decode('utf-8', 'replace')[:300]}"
    if event.HasField("run_continued"):
        return f"continue_as_new of {event.run_continued.input.data.decode('utf-8', 'replace')[:300]}"
    failure = event.run_failed.failure
    return f"{failure.type}: {failure.message[:300]}"


def _differs(context: RunContext, what: str) -> NotDeterministic:
    return NotDeterministic(
        f"run {context.run_id} (workflow {context.workflow}) is not the same when it is replayed: {what}. {_REMEDY}"
    )
