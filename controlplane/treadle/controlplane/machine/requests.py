"""What the machine is asked, and what it answers. One request concerns one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from treadle.controlplane.store.port import Change, WorkerView
from treadle.protocol.deferral import DeferralToken
from treadle.protocol.errors import RequestError
from treadle.v1.common_pb2 import (
    EventRef,
    FailedRunInfo,
    Failure,
    FailureHandler,
    ParentRun,
    Payload,
    Tag,
    TraceContext,
)
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.job_pb2 import Job, JobKind
from treadle.v1.run_service_pb2 import ConflictPolicy
from treadle.v1.schedule_pb2 import Occurrence
from treadle.v1.state_pb2 import ChildClosed, Letter, OutboxEntry, RunHead
from treadle.v1.worker_service_pb2 import (
    AttemptProgress,
    AttemptReport,
    ClaimItem,
    ClaimVerdict,
    Grant,
    OwnerAnswer,
    OwnerRequest,
    ReportAnswer,
)

from .env import Credit
from .event_requests import EventRequest
from .schedule_requests import ScheduleReply, ScheduleRequest

__all__ = (
    "AcceptRun",
    "Asked",
    "CancelOrder",
    "CancelRun",
    "CheckLease",
    "ChildEnded",
    "Claimed",
    "Decision",
    "FireTimer",
    "Progressed",
    "PushedGrant",
    "Registered",
    "ReleaseSteps",
    "Reply",
    "Reported",
    "Request",
    "RetryRun",
    "RunReply",
    "SettleStep",
    "SignalRun",
    "StartRun",
    "StopRun",
    "TerminateRun",
)


@dataclass(slots=True)
class StartRun:
    """A client starts the run, of a workflow's name or "name@version"; tags are sorted by key. Reply: RunReply."""

    workflow: str
    pool: str
    input: Payload
    request_id: str
    policy: ConflictPolicy.ValueType
    caller: TraceContext
    trigger: str = "api"
    sampled: bool = True
    parent: ParentRun | None = None
    timeout_ms: int = 0
    occurrence: Occurrence | None = None
    over: bool = False
    retry_of: int = 0
    tags: Sequence[Tag] = ()
    event: EventRef | None = None
    failed_run: FailedRunInfo | None = None


@dataclass(slots=True)
class Claimed:
    """A worker asks whether it may run a job. Reply: ClaimVerdict.

    Attributes:
        handler: Of a run: what handles its failure, as this worker says; None: nothing does.
    """

    item: ClaimItem
    worker_id: str
    replica_id: str
    handler: FailureHandler | None = None


@dataclass(slots=True)
class Reported:
    """The holder of a pool step reports. Reply: ReportAnswer."""

    report: AttemptReport


@dataclass(slots=True)
class Progressed:
    """The holder of a pool step says how far it is, or that it goes on. Reply: ReportAnswer."""

    progress: AttemptProgress


@dataclass(slots=True)
class Asked:
    """The owner of the run asks. Reply: OwnerAnswer."""

    request: OwnerRequest
    worker_id: str
    replica_id: str


@dataclass(slots=True)
class FireTimer:
    """The timer of the run (command id "") or of a command came up.

    Attributes:
        command_id: Whose timer.
        gone: The queue has gone past the job that the row or head waits for (only then is a queued one dispatched again).
        soon: The queue was just seen empty: look again in 16 s.
        closes: The run is to be closed because its timeout is over: its first event is wanted.
    """

    command_id: str
    gone: bool = False
    soon: bool = False
    closes: bool = False


@dataclass(slots=True)
class CheckLease:
    """Is the holder still alive? Decided only if the row's (or head's) token and lease set are those that were read
    before the worker's record was (A6).

    Attributes:
        command_id: "" for the owner of the run.
        token, lease_set_ms: As read from the row, before `view`.
        view: The worker's record and its shard's round, read after them.
    """

    command_id: str
    token: bytes
    lease_set_ms: int
    view: WorkerView


@dataclass(slots=True)
class Registered:
    """A worker with the name came: a waiting step (or run, command id "") is dispatched again."""

    command_id: str


@dataclass(slots=True)
class CancelRun:
    """Somebody asks the run to stop. Reply: RunReply."""

    request_id: str
    reason: str


@dataclass(slots=True)
class TerminateRun:
    """Somebody ends the run. Reply: RunReply."""

    request_id: str
    reason: str


@dataclass(slots=True)
class AcceptRun:
    """Somebody lets a run that needs attention go on. Reply: RunReply."""

    request_id: str
    reason: str


@dataclass(slots=True)
class RetryRun:
    """Somebody lets a closed run go on. Reply: RunReply.

    Attributes:
        request_id, reason: As for the others.
        from_position: What was first recorded there or behind runs again; 0: what failed does.
        step: The command there.
        length: How long the history was when the position was looked up; 0: it was not.
        incarnation: Whose history that was; 0: as for `length`.
        input: Start over with these arguments instead.
    """

    request_id: str
    reason: str
    from_position: int = 0
    step: str = ""
    length: int = 0
    incarnation: int = 0
    input: Payload | None = None


@dataclass(slots=True)
class ReleaseSteps:
    """Somebody lets quarantined steps go on. Reply: RunReply.

    Attributes:
        request_id, reason: As for the others.
        step: What was asked for, for the refusal; "": all.
        command_ids: Those that were found to be quarantined.
    """

    request_id: str
    reason: str
    step: str
    command_ids: Sequence[str]


@dataclass(slots=True)
class SignalRun:
    """Somebody sends the run a signal, or (`asks`) a question. Reply: RunReply."""

    signal_id: str
    name: str
    data: Payload
    asks: bool = False


@dataclass(slots=True)
class SettleStep:
    """Somebody outside finishes a step by its token: with a result, or else with a failure. Reply: RunReply."""

    token: DeferralToken
    request_id: str
    result: Payload | None = None
    failure: Failure | None = None


@dataclass(slots=True)
class ChildEnded:
    """A child of the run has closed, or could not be started. Reply: None."""

    letter: ChildClosed


@dataclass(slots=True)
class StopRun:
    """The parent needs the run no longer, or has closed. Reply: RunReply, also if it is not that parent's child."""

    request_id: str
    parent: ParentRun
    terminate: bool
    reason: str


Request = (
    StartRun
    | Claimed
    | Reported
    | Progressed
    | Asked
    | FireTimer
    | CheckLease
    | Registered
    | CancelRun
    | TerminateRun
    | AcceptRun
    | RetryRun
    | ReleaseSteps
    | SignalRun
    | SettleStep
    | ChildEnded
    | StopRun
    | ScheduleRequest
    | EventRequest
)


@dataclass(slots=True)
class RunReply:
    """How the run stands after the request; `started` tells a start from an answer about an existing run."""

    head: RunHead
    started: bool = False


Reply = RunReply | ScheduleReply | ClaimVerdict | ReportAnswer | OwnerAnswer | RequestError | None
"""A RequestError is a refusal: raised to the caller, nothing was changed by that request."""


@dataclass(slots=True)
class PushedGrant:
    """A GO for a credit, to be pushed once the commit is done. Run jobs: `after` is the position the worker's coroutine
    was fed up to (0: it has none); what the grant does not bring is loaded and sent as news."""

    credit: Credit
    grant: Grant
    after: int = 0


@dataclass(slots=True)
class CancelOrder:
    """Tell a holder to cut off an attempt."""

    worker_id: str
    token: bytes
    reason: str


@dataclass(slots=True)
class Decision:
    """What a batch of requests to one run comes to.

    Attributes:
        change: What to commit; None: nothing changes.
        replies: One for each request, in order. Valid only once `change` is committed.
        jobs: Publish these after the commit (their entries are in `change.outbox_add`).
        letters: Deliver these after the commit (their entries are there too).
        grants: Push these after the commit; give their credits back if it fails.
        cancels: Send these after the commit.
        events: What was appended, for the owner and for watchers.
        head: The head as committed.
        resend: The owner has not confirmed what it was sent: hint again.
        unknown: Indexes of requests that named a run nobody knows: put them aside before answering.
        claimed: (pool, kind, time of dispatch) of jobs that a claim was answered with GO for: their queues got so far.
        orphans: Command ids of timers of a run that is no more: remove them.
        owner_gone: (replica id, worker id, token) of an owner whose run was closed under it.
        missed: Occurrences of a schedule that nobody could start in time.
    """

    change: Change | None = None
    replies: list[Reply] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)
    grants: list[PushedGrant] = field(default_factory=list)
    cancels: list[CancelOrder] = field(default_factory=list)
    events: list[HistoryEvent] = field(default_factory=list)
    head: RunHead | None = None
    resend: bool = False
    unknown: list[int] = field(default_factory=list)
    owner_gone: tuple[str, str, bytes] | None = None
    orphans: list[str] = field(default_factory=list)
    missed: int = 0
    claimed: list[tuple[str, JobKind.ValueType, int]] = field(default_factory=list)


def entry(job: Job, now_ms: int) -> bytes:
    """Return the encoded outbox entry of a job."""
    return OutboxEntry(time_ms=now_ms, job=job).SerializeToString()
