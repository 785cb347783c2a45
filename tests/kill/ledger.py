"""What step bodies wrote when they began and ended, and how that compares with the histories of their runs.

The one promise that is checked here: no attempt begins after the recorded result of its step, outside the windows W1 to W4.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treadle.protocol.past import past_of
from treadle.v1.history_pb2 import HistoryEvent

__all__ = ("Entry", "check_ledger", "read_ledger")

_STEP_OUTCOMES = ("step_completed", "step_failed", "step_cancelled")
_RUN_OUTCOMES = ("run_completed", "run_failed", "run_cancelled", "run_terminated")
_LONGEST_MS = {"W2": 4_000, "W4": 4_000}
_CLOCK_MS = 2.0
"""Events have the store's time in whole milliseconds."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger.

    Attributes:
        what: "start" or "end".
        wall: CLOCK_REALTIME in seconds: comparable with the times of events, on the same machine.
        boot: CLOCK_BOOTTIME in seconds: goes on while a process is frozen.
        pid: Of the worker.
        run, step, command, attempt, try_number, key: Of the attempt; `key` is the idempotency key.
        once: True for a step that runs at most once.
        local: True for a local step.
    """

    what: str
    wall: float
    boot: float
    pid: int
    run: str
    step: str
    command: str
    attempt: int
    try_number: int
    key: str
    once: bool
    local: bool


_BEGINS = '{"what": '


def read_ledger(path: Path) -> list[Entry]:
    """Return the entries in the order in which they were written.

    A write may be seen half-way, and SIGKILL may cut one short where it crosses a page: the next entry then follows on the
    same line. What has no end is no entry.
    """
    lines = path.read_text().split("\n")[:-1]
    return [Entry(**json.loads(line[line.rindex(_BEGINS) :])) for line in lines]


def check_ledger(
    entries: Sequence[Entry], histories: Mapping[str, Sequence[HistoryEvent]], windows: Iterable[str] = ()
) -> dict[str, int]:
    """Compare; returns how many starts fell into which window.

    Args:
        entries: The ledger.
        histories: Run id -> its whole history. Entries of other runs fail.
        windows: Which windows may be met.

    Raises:
        AssertionError: With all that is wrong.
    """
    wrong: list[str] = []
    allowed, met = set(windows), Counter[str]()
    for run, events in histories.items():
        wrong += _check_history(run, events)
    read = {run: _Facts(events) for run, events in histories.items()}
    started: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.what == "start":
            started[entry.run, entry.command].append(entry)
    for (run, command), starts in started.items():
        facts = read.get(run)
        if facts is None:
            wrong.append(f"{run}: its bodies ran, but no history of it was given")
            continue
        if len({entry.key for entry in starts}) != 1:
            wrong.append(f"{run} {command}: more than one idempotency key")
        if starts[0].once and len(starts) > 1:
            wrong.append(f"{run} {command}: runs at most once, but began {len(starts)} times")
        for entry in starts:
            wrong += _check_go(facts, entry)
            late = None if _is_own_outcome(facts, entry, starts) else _late_ms(facts, entry)
            if late is None:
                continue
            window = _window(facts, entry, late, allowed)
            if window is None:
                wrong.append(f"{run} {command} attempt {entry.attempt} began {late:.0f} ms after its outcome")
            else:
                met[window] += 1
        twice = [n for n, count in Counter(e.attempt for e in starts if not e.local).items() if count > 1]
        if twice:
            wrong.append(f"{run} {command}: attempts {twice} began more than once")
    for run, facts in read.items():
        wrong += [
            f"{run} {command}: completed, but its body never began"
            for command in facts.completed
            if (run, command) not in started
        ]
    assert not wrong, "\n".join(["the ledger does not fit the histories:", *wrong])
    return {window: met[window] for window in ("W1", "W2", "W3", "W4")}


class _Facts:
    """What a history says about its steps."""

    def __init__(self, events: Sequence[HistoryEvent]) -> None:
        self.outcome_ms: dict[str, int] = {}
        self.outcome_attempt: dict[str, int] = {}
        self.granted_ms: dict[tuple[str, int], int] = {}
        self.completed: set[str] = set()
        self.closed_ms: int | None = None
        self.terminated = False
        for event in events:
            kind = event.WhichOneof("kind") or ""
            if kind in _STEP_OUTCOMES:
                outcome = getattr(event, kind)
                command = outcome.command_id
                self.outcome_ms[command] = event.time_ms
                self.outcome_attempt[command] = outcome.attempt
                if kind == "step_completed":
                    self.completed.add(command)
            elif kind == "attempt_started":
                started = event.attempt_started
                self.granted_ms[started.command_id, started.attempt] = event.time_ms
            elif kind in _RUN_OUTCOMES:
                self.closed_ms = event.time_ms
                self.terminated = kind == "run_terminated"


def _check_history(run: str, events: Sequence[HistoryEvent]) -> list[str]:
    """One outcome a step and a run, nothing after the close, positions without a gap."""
    wrong = []
    settled: set[str] = set()
    closed = ""
    for number, event in enumerate(events, 1):
        kind = event.WhichOneof("kind") or ""
        if event.position != number:
            wrong.append(f"{run}: position {event.position} where {number} should be")
        if kind == "run_retried" and closed:
            closed = ""
            kept = past_of(events[:number]).events
            settled = {getattr(e, k).command_id for e in kept if (k := e.WhichOneof("kind") or "") in _STEP_OUTCOMES}
        if closed:
            wrong.append(f"{run}: {kind} after {closed}")
        if kind in _STEP_OUTCOMES:
            command: Any = getattr(event, kind).command_id
            if command in settled:
                wrong.append(f"{run} {command}: a second outcome, {kind}")
            settled.add(command)
        closed = closed or (kind if kind in _RUN_OUTCOMES else "")
    if not closed:
        wrong.append(f"{run}: not closed; last: {events[-1].WhichOneof('kind') if events else 'nothing'}")
    return wrong


def _check_go(facts: _Facts, entry: Entry) -> list[str]:
    """A pool step begins only behind its GO."""
    if entry.local:
        return []
    granted = facts.granted_ms.get((entry.command, entry.attempt))
    name = f"{entry.run} {entry.command} attempt {entry.attempt}"
    if granted is None:
        return [f"{name} began without a GO in the history"]
    if entry.wall * 1000 < granted - _CLOCK_MS:
        return [f"{name} began {granted - entry.wall * 1000:.0f} ms before its GO"]
    return []


def _is_own_outcome(facts: _Facts, entry: Entry, starts: Sequence[Entry]) -> bool:
    """Whether the outcome is what this very body reported: then no clock is needed to know which came first."""
    same = [other for other in starts if other.attempt == entry.attempt]
    return len(same) == 1 and facts.outcome_attempt.get(entry.command) == entry.attempt


def _late_ms(facts: _Facts, entry: Entry) -> float | None:
    """How long after its outcome, or after its run's, a body began; None: it began before."""
    ends = [end for end in (facts.outcome_ms.get(entry.command), facts.closed_ms) if end is not None]
    if not ends:
        return None
    late = entry.wall * 1000 - min(ends)
    return late if late > _CLOCK_MS else None


def _window(facts: _Facts, entry: Entry, late_ms: float, allowed: set[str]) -> str | None:
    """The window that covers a late start; None: none of those allowed does."""
    settled = facts.outcome_ms.get(entry.command)
    if settled is None or (facts.closed_ms is not None and facts.closed_ms < settled):
        candidates: Sequence[str] = ("W4",)
    else:
        candidates = ("W1", "W2", "W3")
    for window in candidates:
        if window in allowed and late_ms <= _LONGEST_MS.get(window, float("inf")):
            return window
    return None
