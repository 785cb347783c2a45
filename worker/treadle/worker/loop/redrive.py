"""What counts of the past of a run that was continued after it had closed.

A closed run that goes on keeps its history. RunRetried marks where it went on; `past_of` says what the code is fed of the
events before it, in their order, as if the others had never been:

    left out    outcomes of the run, its timeout, and cancels of it
                every event of a step, timer, wait or child that has no outcome, and of one that was cancelled
                every event of one that failed, if the run's failure was made of it (RunFailed names these)
                with `from_position`: every event of what was first recorded there or behind, whatever its outcome
    kept        everything else: what completed, failures that the code handled, signals

A step that was cancelled is asked for again if the code, with this past, does not cancel it itself.

What was left out is asked for again by the code, under the same id. Numbers of its tries go on, so that an old copy of a job
never fits; its idempotency key stays, except where it had been done and is done once more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from treadle.v1.history_pb2 import HistoryEvent, RunFailed, RunRetried

__all__ = ("Past", "past_of")

_DONE: Final = frozenset(
    (
        *("step_completed", "child_completed", "timer_fired", "signal_answered", "state_published"),
        *("event_matched", "event_wait_timed_out", "event_sent"),
    )
)
_CANCELS: Final = frozenset(("step_cancel_requested", "child_cancel_requested"))
_FAILED: Final = frozenset(("step_failed", "child_failed"))
_CANCELLED: Final = frozenset(("timer_cancelled", "event_wait_cancelled", "event_wait_refused"))
_OF_THE_RUN: Final = frozenset(
    ("run_completed", "run_failed", "run_cancelled", "run_terminated", "run_timed_out", "cancel_requested")
)


@dataclass(slots=True)
class Past:
    """What a continued run has of its past.

    Attributes:
        events: What counts, in order, positions as in the history.
        tries: Command -> the highest number that a try or attempt of it had, or may have had.
        redone: Command -> number of the retry by which it was asked for again although it had been done.
        asked: Child that was asked for -> digest of what it was last asked with.
    """

    events: list[HistoryEvent] = field(default_factory=list)
    tries: dict[str, int] = field(default_factory=dict)
    redone: dict[str, int] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Life:
    """A command, as the events that count tell it."""

    first: int
    outcome: str = ""
    cancelling: bool = False


def past_of(events: Iterable[HistoryEvent]) -> Past:
    """Return what counts of a history that ends with RunRetried."""
    past = Past()
    for event in events:
        kind = event.WhichOneof("kind") or ""
        body = getattr(event, kind) if kind else None
        if kind == "run_retried":
            _drop(past, event.run_retried)
        elif kind == "child_scheduled":
            past.asked[event.child_scheduled.command_id] = event.child_scheduled.digest
        past.events.append(event)
        _count(past.tries, kind, body)
    return past


def _drop(past: Past, retried: RunRetried) -> None:
    """Leave out what counts no more from here on."""
    lives, failed = _lives(past.events)
    because = set(failed.because)
    gone: set[str] = set()
    for command_id, life in lives.items():
        if retried.from_position and life.first >= retried.from_position:
            gone.add(command_id)
            if life.outcome in _DONE:
                past.redone[command_id] = retried.number
        elif (
            not life.outcome
            or life.outcome in _CANCELLED
            or (life.outcome in _FAILED and (life.cancelling or failed.because_all or command_id in because))
        ):
            gone.add(command_id)
    past.events = [event for event in past.events if not _is_left_out(event, gone)]


def _lives(events: Iterable[HistoryEvent]) -> tuple[dict[str, _Life], RunFailed]:
    lives: dict[str, _Life] = {}
    failed = RunFailed()
    for event in events:
        kind = event.WhichOneof("kind") or ""
        if kind == "run_failed":
            failed = event.run_failed
        command_id = _command_of(event, kind)
        if not command_id:
            continue
        life = lives.setdefault(command_id, _Life(event.position))
        if kind == "child_cancel_requested":
            life.cancelling = True
        elif kind in _DONE or kind in _FAILED or kind in _CANCELLED or kind == "step_cancelled":
            life.outcome = kind
        elif kind not in _CANCELS:
            life.outcome = ""  # asked for again after an earlier retry
    return lives, failed


def _is_left_out(event: HistoryEvent, gone: set[str]) -> bool:
    kind = event.WhichOneof("kind") or ""
    return kind in _OF_THE_RUN or _command_of(event, kind) in gone


def _command_of(event: HistoryEvent, kind: str) -> str:
    return getattr(getattr(event, kind), "command_id", "") if kind else ""


def _count(tries: dict[str, int], kind: str, body: Any) -> None:
    """Note the highest number in use. One that was dispatched and never claimed is in use, too."""
    command_id = getattr(body, "command_id", "")
    if not command_id:
        return
    known = tries.get(command_id, 0)
    if kind in ("step_scheduled", "step_retried"):
        tries[command_id] = known + 1
    elif kind in ("attempt_lost", "attempt_released"):
        tries[command_id] = max(known, body.attempt) + 1
    elif kind in ("attempt_started", "attempt_failed"):
        tries[command_id] = max(known, body.attempt, body.try_number)
    elif kind in ("step_completed", "step_failed"):
        tries[command_id] = max(known, body.attempt)
