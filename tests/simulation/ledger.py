"""The four properties, checked while a schedule runs and once more at its end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from treadle.controlplane.store.memory import MemoryStore
from treadle.controlplane.store.port import Change, Want
from treadle.protocol.ids import RECORD_MARK, RunKey
from treadle.protocol.past import past_of
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.state_pb2 import RUN_STATE_CLOSED, RunHead
from treadle.v1.worker_service_pb2 import OwnerRequest

from .long_steps import Counts

__all__ = ("Broken", "Ledger", "RunRecord")

_STEP_OUTCOMES = ("step_completed", "step_failed", "step_cancelled")
_RUN_OUTCOMES = ("run_completed", "run_failed", "run_cancelled", "run_terminated")
_LAST = (*_RUN_OUTCOMES, "run_continued")


class Broken(AssertionError):
    """A property does not hold."""


@dataclass
class RunRecord:
    """What was seen of one run, in its present part; `before` has the histories of the parts before."""

    before: list[list[HistoryEvent]] = field(default_factory=list)
    events: list[HistoryEvent] = field(default_factory=list)
    settled: set[str] = field(default_factory=set)
    outcome: str = ""
    terminated: bool = False
    settled_by_server: set[str] = field(default_factory=set)


class Ledger:
    """Hears of each commit and of each start of user code."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.runs: dict[RunKey, RunRecord] = {}
        self.windows: Counter[str] = Counter()
        self.starts: Counter[tuple[RunKey, str]] = Counter()
        self.repairs: Counter[str] = Counter()
        self.closed = self.ahead = self.foretold = self.wrong = 0
        self.guesses: dict[tuple[RunKey, int, int, int], HistoryEvent] = {}
        self.counts = Counts()

    def record(self, run: RunKey) -> RunRecord:
        return self.runs.setdefault(run, RunRecord())

    def committed(self, change: Change) -> None:
        """S1: one outcome a step and a run, nothing after the close; every open run has a next wake-up."""
        if change.run.run_id.startswith(RECORD_MARK):
            return  # no run: nothing of it is ever closed
        record = self.record(change.run)
        if change.restart:
            record = self._next_part(change.run, record)
        for data in change.events:
            event = HistoryEvent.FromString(data)
            kind = event.WhichOneof("kind") or ""
            if event.position != len(record.events) + 1:
                raise Broken(f"S1: {change.run} has event {event.position} after {len(record.events)}")
            if kind == "run_retried":
                self._goes_on(change.run, record, event)
            if record.outcome:
                raise Broken(f"S1: {change.run} has {kind} after its outcome {record.outcome}")
            record.events.append(event)
            if kind in _LAST:
                record.outcome = kind
                self.closed += kind in _RUN_OUTCOMES
            if kind in _STEP_OUTCOMES:
                command = getattr(event, kind).command_id
                if command in record.settled:
                    raise Broken(f"S1: {change.run} {command} has a second outcome: {kind}")
                record.settled.add(command)
            if kind in ("attempt_lost", "run_owner_lost"):
                self.repairs[kind] += 1
        self._has_wake_up(change)
        if wrong := self.counts.committed(change):
            raise Broken(f"P: {wrong}")

    def _next_part(self, run: RunKey, record: RunRecord) -> RunRecord:
        if record.outcome != "run_continued":
            raise Broken(f"S1: {run} has another part, but the one before ended as {record.outcome or 'open'}")
        record = self.runs[run] = RunRecord([*record.before, record.events])
        for key in [key for key in self.starts if key[0] == run]:
            del self.starts[key]
        return record

    def _goes_on(self, run: RunKey, record: RunRecord, event: HistoryEvent) -> None:
        """What counts of the past is settled; the rest is asked for again."""
        if record.outcome not in _RUN_OUTCOMES:
            raise Broken(f"S1: {run} goes on, but it is {record.outcome or 'open'}")
        record.outcome = ""
        self.closed -= 1
        kept = past_of([*record.events, event]).events
        kinds = [(kind, one) for one in kept if (kind := one.WhichOneof("kind") or "") in _STEP_OUTCOMES]
        record.settled = {getattr(one, kind).command_id for kind, one in kinds if kind != "step_cancelled"}
        for key in [key for key in self.starts if key[0] == run and key[1] not in record.settled]:
            del self.starts[key]

    def _has_wake_up(self, change: Change) -> None:
        head = RunHead.FromString(change.head)
        if head.timer_at_ms == 0 and not change.delete:
            raise Broken(f"L: {change.run} in state {head.state} has no next wake-up")

    def starts_code(self, run: RunKey, command_id: str, *, half_dead: bool, at_most_once: bool) -> None:
        """S2: no user code starts after its recorded outcome, outside the windows W2 and W4."""
        record = self.record(run)
        self.starts[run, command_id] += 1
        if at_most_once and self.starts[run, command_id] > 1:
            raise Broken(f"S2: at-most-once step {command_id} of {run} starts twice")
        if record.outcome:
            self.windows["W4" if record.outcome == "run_terminated" else "W4 (closed)"] += 1
        elif command_id in record.settled:
            if not half_dead:
                raise Broken(f"S2: {command_id} of {run} starts after its recorded outcome")
            self.windows["W2"] += 1

    def fed(self, run: RunKey, event: HistoryEvent) -> None:
        """S4: the coroutine sees exactly the order of the history."""
        record = self.record(run)  # a frozen owner may still be in a part that is over
        parts = [events for events in (*record.before, record.events) if event.position <= len(events)]
        if event.revision not in [events[event.position - 1].revision for events in parts]:
            raise Broken(f"S4: {run} was fed position {event.position} that the history does not have")

    def counts_on(self, run: RunKey, told: HistoryEvent) -> None:
        """S4: what the code was told ahead stands in the history, as told, before anything that it asked for is taken."""
        events = self.record(run).events
        found = events[told.position - 1].step_completed if told.position <= len(events) else None
        if found is None or (found.command_id, found.ended_ms, found.result) != (
            told.step_completed.command_id,
            told.step_completed.ended_ms,
            told.step_completed.result,
        ):
            raise Broken(
                f"S4: {run} went on from position {told.position}, which it was told ahead and does not stand so"
            )
        self.ahead += 1

    def told_ahead(self, run: RunKey, told: HistoryEvent) -> None:
        """Code goes on by a result before its event."""
        step = told.step_completed
        self.guesses[run, told.position, step.attempt, step.ended_ms] = told

    def taken_ahead(self, run: RunKey, ask: OwnerRequest) -> None:
        """S4: what followed from a result that its code was told ahead was taken; so that stands there, as it was told."""
        told = self.guesses[run, ask.seen + 1, ask.foretold.attempt, ask.foretold.ended_ms]
        self.counts_on(run, told)
        self.foretold += 1

    def heads(self) -> dict[RunKey, RunHead]:
        loaded = self._store.load_now([Want(run) for run in self.runs])
        return {run: RunHead.FromString(found.head) for run, found in zip(self.runs, loaded, strict=True) if found.head}

    def all_closed(self) -> bool:
        return all(head.state == RUN_STATE_CLOSED for head in self.heads().values())
