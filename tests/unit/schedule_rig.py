"""A bench for schedules: one record, its runs as the letters name them, and a clock that a test moves."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from random import Random
from typing import Any

from tests.unit.plain_env import plain_env

from treadle.controlplane.counters import DecisionCounter
from treadle.controlplane.machine import Decision, Env, Request, decide
from treadle.controlplane.machine.decide import want
from treadle.controlplane.machine.requests import ChildEnded, FireTimer, Reply
from treadle.controlplane.machine.schedule_requests import CreateSchedule, ScheduleReply, TriggerSchedule
from treadle.controlplane.machine.schedules import record_of
from treadle.controlplane.store.memory import MemoryStore
from treadle.controlplane.store.port import Outcome, Want
from treadle.controlplane.telemetry import Metrics
from treadle.protocol.errors import RequestError
from treadle.v1.common_pb2 import FAILURE_KIND_ID_TAKEN, Failure, Payload
from treadle.v1.schedule_pb2 import (
    OVERLAP_POLICY_SKIP,
    OVERLAP_POLICY_UNSPECIFIED,
    OverlapPolicy,
    ScheduleRecord,
    ScheduleSpec,
)
from treadle.v1.state_pb2 import RUN_OUTCOME_COMPLETED, ChildClosed, Letter, OutboxEntry, RunHead

__all__ = ("BEGIN", "HOUR", "MINUTE", "RECORD", "ScheduleRig", "at", "hourly", "specified", "trigger")

RECORD = record_of("ns", "s")
MINUTE, HOUR = 60_000, 3_600_000
BEGIN = 500_000 * HOUR


def hourly(
    overlap: OverlapPolicy.ValueType = OVERLAP_POLICY_SKIP, *, jitter_ms: int = 0, catch_up_ms: int = 0
) -> ScheduleSpec:
    """Due at each whole hour."""
    return ScheduleSpec(every_ms=HOUR, overlap=overlap, jitter_ms=jitter_ms, catch_up_ms=catch_up_ms)


def specified(spec: ScheduleSpec) -> ScheduleSpec:
    """The same, with a workflow."""
    spec.workflow, spec.pool = "w", "p"
    return spec


def at(hours: float) -> str:
    """Name of the occurrence so many hours after the beginning of a rig."""
    return datetime.fromtimestamp((BEGIN + hours * HOUR) / 1000, UTC).isoformat(timespec="seconds")


def trigger(request_id: str = "t", overlap: OverlapPolicy.ValueType = OVERLAP_POLICY_UNSPECIFIED) -> TriggerSchedule:
    """Somebody wants a run now."""
    return TriggerSchedule(request_id, overlap)


class ScheduleRig:
    """See the module. It begins on a whole hour."""

    def __init__(self, spec: ScheduleSpec | None = None, *, paused: bool = False, begin: int = BEGIN) -> None:
        self.now = begin
        self.store = MemoryStore(lambda: self.now)
        self.rng = Random(7)
        self.posted: list[Letter] = []
        self.decision = Decision()
        self.metrics = Metrics()
        if spec is not None:
            reply = self.ask(CreateSchedule("create", specified(spec), Payload(data=b"in"), paused))
            assert isinstance(reply, ScheduleReply), reply

    @property
    def head(self) -> RunHead:
        return RunHead.FromString(self.store.load_now([Want(RECORD)])[0].head)

    @property
    def record(self) -> ScheduleRecord:
        return self.head.schedule

    @property
    def timer(self) -> int:
        """When its timer is due; 0: it has none."""
        shard = self.store.snapshot().timers.get(RECORD.shard, {})
        return next((due for (run, _), due in shard.items() if run == RECORD), 0)

    def counted(self, name: str) -> float:
        """What a counter of the namespace has come to."""
        return self.metrics.value(name, namespace="ns")

    def outbox(self) -> list[Letter]:
        entries = self.store.snapshot().outbox.get(RECORD.shard, {}).values()
        return [OutboxEntry.FromString(data).letter for _, data in entries]

    def indexes(self) -> set[str]:
        return {name for (name, _), members in self.store.snapshot().index.items() if RECORD.run_id in members}

    def env(self) -> Env:
        return plain_env(self.now, self.rng)

    def decide(self, *requests: Request) -> Decision:
        """Load and decide a batch; nothing is committed."""
        loaded = self.store.load_now([want(RECORD, requests)])[0]
        return decide(RECORD, loaded, requests, self.env())

    def commit(self, decision: Decision) -> Outcome:
        change = decision.change
        outcome = Outcome.OK if change is None else self.store.commit_now([change])[0].outcome
        if outcome is Outcome.OK:
            self.posted += decision.letters
            DecisionCounter(self.metrics)(RECORD, decision)
        return outcome

    def batch(self, *requests: Request) -> list[Reply]:
        self.decision = self.decide(*requests)
        assert self.commit(self.decision) is Outcome.OK
        return self.decision.replies

    def ask(self, request: Request) -> Reply:
        return self.batch(request)[0]

    def told(self, request: Request) -> ScheduleReply:
        """Ask what is not refused."""
        reply = self.ask(request)
        assert isinstance(reply, ScheduleReply), reply
        return reply

    def refused(self, request: Request) -> RequestError:
        before = self.head
        reply = self.ask(request)
        assert isinstance(reply, RequestError), reply
        assert (self.head.schedule.open, self.head.schedule.queue) == (before.schedule.open, before.schedule.queue)
        return reply

    # --- time ------------------------------------------------------------------------------------------------------------
    def fire(self) -> None:
        """What the timer duty does: as long as the timer is due."""
        while 0 < self.timer <= self.now:
            self.ask(FireTimer(""))

    def until(self, at: int) -> None:
        """Time passes; the timer is fired whenever it is due."""
        while 0 < self.timer <= at:
            self.now = max(self.now, self.timer)
            self.fire()
        self.now = at

    def sleep(self, ms: int) -> None:
        self.until(self.now + ms)

    # --- runs --------------------------------------------------------------------------------------------------------------
    def started(self) -> list[str]:
        """What the letters so far start, without the name of the schedule."""
        return [letter.run_id.removeprefix("s-") for letter in self.posted if letter.HasField("start_scheduled")]

    def stopped(self) -> list[tuple[str, bool]]:
        stops = [letter for letter in self.posted if letter.HasField("stop_child")]
        return [(letter.run_id.removeprefix("s-"), letter.stop_child.terminate) for letter in stops]

    def end(self, name: str, **told: Any) -> None:
        """The run of that name closes, and tells the record."""
        letter = next(
            letter for letter in self.posted if letter.run_id == f"s-{name}" and letter.HasField("start_scheduled")
        )
        closed = ChildClosed(parent=letter.start_scheduled.parent, **(told or {"outcome": RUN_OUTCOME_COMPLETED}))
        self.ask(ChildEnded(closed))

    def taken(self, name: str) -> None:
        """There is a run of that name already."""
        self.end(name, failure=Failure(kind=FAILURE_KIND_ID_TAKEN, type="RunIdConflict", final=True))

    @staticmethod
    def names(messages: Sequence[Any]) -> list[str]:
        return [one.run_id.removeprefix("s-") for one in messages]
