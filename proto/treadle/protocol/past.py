"""What counts of the past of a run that was continued after it had closed.

A closed run that goes on keeps its history. RunRetried marks where it went on; `past_of` says what the code is fed of the
events before it, in their order, as if the others had never been:

    left out    outcomes of the run
                its timeout, and cancels of it, unless a saga was undoing because of them: then undoing goes on
                every event of a step, timer, wait or child that has no outcome, and of one that was cancelled
                every event of one that failed, if the run's failure was made of it (RunFailed names these)
                with `from_position`: every event of what was first recorded there or behind, whatever its outcome
                tags and states: they are no deeds, so the code says again what holds now
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

__all__ = ("Past", "concerns", "first_call", "past_of")

_DONE: Final = frozenset(
    (
        *("step_completed", "child_completed", "timer_fired", "signal_answered"),
        *("event_matched", "event_wait_timed_out", "event_sent"),
    )
)
_CANCELS: Final = frozenset(("step_cancel_requested", "child_cancel_requested"))
_FAILED: Final = frozenset(("step_failed", "child_failed"))
_CANCELLED: Final = frozenset(("timer_cancelled", "event_wait_cancelled", "event_wait_refused"))
_OUTCOMES: Final = _DONE | _FAILED | _CANCELLED | {"step_cancelled"}
_ENDS: Final = frozenset(("run_completed", "run_failed", "run_cancelled", "run_terminated"))
_INTERRUPTS: Final = frozenset(("run_timed_out", "cancel_requested"))


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
    """A command, as the events that count tell it.

    Attributes:
        first: Where it was asked for (last, if more than once).
        outcome: Kind of the event; "" while it is open.
        cancelling: It was told to end.
    """

    first: int
    outcome: str = ""
    cancelling: bool = False


_Entry = tuple[HistoryEvent, str, Any, str]
"""An event, its kind, what it says, and which command it is about ("": none)."""


def past_of(events: Iterable[HistoryEvent]) -> Past:
    """Return what counts of a history that ends with RunRetried."""
    past, entries = Past(), list[_Entry]()
    for event in events:
        entries = _followed(entries, event, past)
    past.events = [entry[0] for entry in entries]
    return past


def concerns(event: HistoryEvent, step: str) -> bool:
    """Whether `first_call` needs an event: it is of the step (a name, or one call of it), or says what counts of the past."""
    kind = event.WhichOneof("kind") or ""
    if kind in ("run_failed", "run_retried"):
        return True
    command_id: str = getattr(getattr(event, kind), "command_id", "") if kind else ""
    return bool(command_id) and step in (command_id, command_id.rpartition("/")[2].rpartition("#")[0])


def first_call(events: Iterable[HistoryEvent], step: str) -> tuple[int, str] | None:
    """Return position and command of the first call of a step that counts; None: there is none.

    What was asked for again after an earlier retry stands where that was: code may have asked for other things before it.
    """
    past, entries = Past(), list[_Entry]()
    for event in events:
        if concerns(event, step):
            entries = _followed(entries, event, past)
    lives, _ = _lives(entries)
    return min(((life.first, command_id) for command_id, life in lives.items()), default=None)


def _followed(entries: list[_Entry], event: HistoryEvent, past: Past) -> list[_Entry]:
    """Return what counts when `event` has followed."""
    kind = event.WhichOneof("kind") or ""
    body = getattr(event, kind) if kind else None
    command_id = getattr(body, "command_id", "")
    if kind == "run_retried":
        entries = _kept(entries, event.run_retried, past)
    elif kind == "child_scheduled":
        past.asked[command_id] = event.child_scheduled.digest
    entries.append((event, kind, body, command_id))
    if command_id:
        _count(past.tries, kind, body, command_id)
    return entries


def _kept(entries: list[_Entry], retried: RunRetried, past: Past) -> list[_Entry]:
    """Leave out what counts no more from here on."""
    lives, failed = _lives(entries)
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
    of_the_run = _ENDS if retried.undoing else _ENDS | _INTERRUPTS
    return [entry for entry in entries if entry[3] not in gone and entry[1] not in of_the_run]


def _lives(entries: Iterable[_Entry]) -> tuple[dict[str, _Life], RunFailed]:
    lives: dict[str, _Life] = {}
    failed, retried_at = RunFailed(), 0
    for event, kind, _, command_id in entries:
        if not command_id:
            if kind == "run_failed":
                failed = event.run_failed
            elif kind == "run_retried":
                retried_at = event.position
            continue
        life = lives.get(command_id)
        if life is None or life.first < retried_at:  # one that was cancelled before may be asked for again
            life = lives[command_id] = _Life(event.position)
        if kind in _OUTCOMES:
            life.outcome = kind
        elif kind == "child_cancel_requested":
            life.cancelling = True
        elif kind not in _CANCELS:
            life.outcome = ""  # asked for again after an earlier retry
    return lives, failed


def _count(tries: dict[str, int], kind: str, body: Any, command_id: str) -> None:
    """Note the highest number in use. One that was dispatched and never claimed is in use, too."""
    known = tries.get(command_id, 0)
    if kind in ("step_scheduled", "step_retried"):
        tries[command_id] = known + 1
    elif kind in ("attempt_lost", "attempt_released"):
        tries[command_id] = max(known, body.attempt) + 1
    elif kind in ("attempt_started", "attempt_failed"):
        tries[command_id] = max(known, body.attempt, body.try_number)
    elif kind in ("step_completed", "step_failed"):
        tries[command_id] = max(known, body.attempt)
