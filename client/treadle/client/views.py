"""Runs as clients see them: plain values made from the messages of RunService."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any

from treadle.protocol.errors import FieldInvalid
from treadle.protocol.payloads import decode
from treadle.v1.common_pb2 import Failure, Payload
from treadle.v1.run_service_pb2 import CountRunsResponse, Run
from treadle.v1.run_service_pb2 import RunStatus as WireStatus
from treadle.v1.run_service_pb2 import RunTrouble as WireTrouble

__all__ = ("RunCount", "RunInfo", "RunPage", "RunStatus", "RunTrouble", "StepProgress", "run_count", "run_info")


class RunStatus(Enum):
    """How a run stands, in one word."""

    RUNNING = "running"
    """Open: queued, held by a worker, or parked."""
    WAITING = "waiting"
    """Open, and no worker has the workflow's name."""
    NEEDS_ATTENTION = "needs-attention"
    """Open, and stopped for a person."""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TERMINATED = "terminated"

    @property
    def closed(self) -> bool:
        """Whether the run has its outcome."""
        return self in _CLOSED

    def to_wire(self) -> WireStatus.ValueType:
        """Return the value of the wire's enum."""
        return WireStatus.Value(f"RUN_STATUS_{self.name}")

    @classmethod
    def of(cls, value: RunStatus | str) -> RunStatus:
        """Return the status that `value` names, in any case, with '-' or '_'.

        Raises:
            FieldInvalid: There is no such status.
        """
        if isinstance(value, RunStatus):
            return value
        try:
            return cls(value.lower().replace("_", "-"))
        except ValueError:
            known = ", ".join(status.value for status in cls)
            raise FieldInvalid(f"no status {value!r}: use one of {known}", field="status") from None


class RunTrouble(Enum):
    """What keeps an open run from going on; `RunInfo.reason` says it in words."""

    RETRYING = "retrying"
    """A step has failed and is tried again."""
    WAITING = "waiting"
    """No worker has the name of the workflow, or of a step."""
    ATTENTION = "attention"
    """A person must look at it: it is stopped, or a step is in quarantine."""

    def to_wire(self) -> WireTrouble.ValueType:
        """Return the value of the wire's enum."""
        return WireTrouble.Value(f"RUN_TROUBLE_{self.name}")

    @classmethod
    def of(cls, value: RunTrouble | str) -> RunTrouble:
        """Return the trouble that `value` names, in any case.

        Raises:
            FieldInvalid: There is no such trouble.
        """
        if isinstance(value, RunTrouble):
            return value
        try:
            return cls(value.lower())
        except ValueError:
            known = ", ".join(trouble.value for trouble in cls)
            raise FieldInvalid(f"no trouble {value!r}: use one of {known}", field="trouble") from None


_CLOSED = frozenset({RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.TERMINATED})


@dataclass(frozen=True, slots=True)
class StepProgress:
    """How far an open step is.

    Attributes:
        command_id: Which call of a step it is ("0/load#1").
        step: Name of the step.
        payload: What it said last, encoded.
        at: When that was committed (UTC).
    """

    command_id: str
    step: str
    payload: Payload
    at: datetime

    def value(self, type: Any = Any) -> Any:
        """Return what it said, as a `type`; default: plain JSON values.

        Raises:
            PayloadError: It does not fit the type.
        """
        return decode(self.payload, type, what=f"progress of step {self.step}")


@dataclass(frozen=True, slots=True)
class RunInfo:
    """How a run stands.

    Attributes:
        id: The name its client gave it.
        namespace: Where it lives.
        incarnation: Which start of that name (random, 64 bits).
        workflow: Name of the workflow.
        version: Version of it that the run is pinned to; "" for none.
        tags: What it is found by.
        pool: Pool whose workers execute it.
        status: In one word.
        created_at: When it was started (UTC).
        closed_at: When it was closed (UTC); None while open.
        length: Events in its history.
        reason: Why it waits, retries or needs attention; "" otherwise.
        troubles: The same in single words.
        error_type: Class name of what a failed run raised, or of the last failed try while a step is retried; "" otherwise.
        retrying: Steps that have failed at least once and are still open.
        open_commands: Steps and timers that are open.
        cancel_requested: Whether a cancel was asked for.
        trace_id: 32 hex digits.
        result: Encoded result of a completed run, else None.
        failure: What a failed run raised, else None.
        part: Which part of a run that continues as new it is, from 1; `incarnation`, `created_at` and `length` are its own.
        progress: How far its open steps are, as far as they said (at most 16); empty in lists.
        deadline: When its timeout is over (UTC); None: it has none, or no worker has said yet which its code has.
        timed_out: The timeout is over.
        retries: How often it was continued after it had closed.
    """

    id: str
    namespace: str
    incarnation: int
    workflow: str
    pool: str
    status: RunStatus
    created_at: datetime
    closed_at: datetime | None
    length: int
    reason: str
    retrying: int
    open_commands: int
    cancel_requested: bool
    trace_id: str
    result: Payload | None
    failure: Failure | None
    part: int = 1
    progress: tuple[StepProgress, ...] = ()
    deadline: datetime | None = None
    timed_out: bool = False
    retries: int = 0
    version: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    troubles: tuple[RunTrouble, ...] = ()
    error_type: str = ""

    @property
    def duration(self) -> timedelta | None:
        """From start to close; None while open."""
        return self.closed_at - self.created_at if self.closed_at else None


@dataclass(frozen=True, slots=True)
class RunCount:
    """How many runs.

    Attributes:
        total: So many.
        at_least: There are more: not all that may fit were looked at.
        by_status: The same by status; those with none are left out.
    """

    total: int
    at_least: bool
    by_status: Mapping[RunStatus, int]


@dataclass(frozen=True, slots=True)
class RunPage:
    """A page of runs, newest first; `next_token` is "" at the end."""

    runs: tuple[RunInfo, ...]
    next_token: str


def run_info(run: Run) -> RunInfo:
    """Return the message as a value."""
    return RunInfo(
        id=run.run_id,
        namespace=run.namespace,
        incarnation=run.incarnation,
        workflow=run.workflow,
        pool=run.pool,
        status=RunStatus.of(WireStatus.Name(run.status).removeprefix("RUN_STATUS_")),
        created_at=from_ms(run.created_ms),
        closed_at=from_ms(run.closed_ms) if run.closed_ms else None,
        length=run.length,
        reason=run.reason,
        retrying=run.retrying,
        open_commands=run.open_commands,
        cancel_requested=run.cancel_requested,
        trace_id=run.trace_id,
        result=run.result if run.HasField("result") else None,
        failure=run.failure if run.HasField("failure") else None,
        part=max(run.part, 1),
        progress=tuple(
            StepProgress(said.command_id, said.name, said.value, from_ms(said.time_ms)) for said in run.progress
        ),
        deadline=from_ms(run.deadline_ms) if run.deadline_ms else None,
        timed_out=run.timed_out,
        retries=run.retries,
        version=run.version,
        tags={tag.key: tag.value for tag in run.tags},
        troubles=tuple(RunTrouble.of(WireTrouble.Name(one).removeprefix("RUN_TROUBLE_")) for one in run.troubles),
        error_type=run.error_type,
    )


def run_count(answer: CountRunsResponse) -> RunCount:
    """Return the message as a value."""
    by_status = {
        RunStatus.of(WireStatus.Name(part.status).removeprefix("RUN_STATUS_")): part.count for part in answer.by_status
    }
    return RunCount(answer.count, answer.at_least, by_status)


def from_ms(ms: int) -> datetime:
    """Return the point in time `ms` milliseconds after 1970, in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC)


def to_ms(when: datetime | timedelta | None, *, now: datetime) -> int:
    """Return a bound of a list as milliseconds since 1970; a timedelta counts back from `now`, None is 0."""
    if when is None:
        return 0
    moment = now - when if isinstance(when, timedelta) else when
    return int(moment.timestamp() * 1000)
