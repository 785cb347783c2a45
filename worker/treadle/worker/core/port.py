"""The worker's protocol core, seen from outside: what the shell (or the simulation) tells it, what it asks for.

The core decides claims, credits, rights, tokens and feeding. It does no I/O, has no clock and draws no random numbers:
`now_ms` is the worker's monotonic clock (CLOCK_BOOTTIME where there is one), `random64` is injected. After any call, or
several, the shell drains `actions()` and sends `frame()` if there is one and the session is open.

What is made for each step is not frozen, though nobody changes it: freezing triples the price of making it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from treadle.protocol.errors import PayloadError
from treadle.protocol.payloads import MAX_PAYLOAD_BYTES
from treadle.v1.common_pb2 import Failure, Payload
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.job_pb2 import Job, JobKind
from treadle.v1.state_pb2 import HeldToken
from treadle.v1.worker_service_pb2 import Command, Lane, SessionRequest, SessionResponse

from ..loop.port import LocalCall, Outcome

if TYPE_CHECKING:
    from .seals import RunSeals

__all__ = (
    "Ack",
    "Action",
    "Attempt",
    "CancelAttempt",
    "CancelLocal",
    "Consume",
    "CoreSettings",
    "Drained",
    "GiveBack",
    "Note",
    "OpenEvent",
    "ReopenSession",
    "Report",
    "SealItem",
    "StartAttempt",
    "StartLocal",
    "WorkerCorePort",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreSettings:
    """What a worker process is, and the times of the protocol (milliseconds).

    Attributes:
        worker_id: Random id of the process.
        namespace, pool, lane: Whom it works for, and how it gets step jobs.
        workflows, steps: Names it has. `steps` are those it takes as pool steps.
        step_slots, run_slots: Attempts of pool steps, and open runs, at the same time.
        step_credits: Free slots for pool steps are stated as credits too, on either lane.
        right_ms: From the send time of an answered request to the end of the right to start.
        unanswered_ms: A session whose requests stay unanswered for so long is replaced.
        give_back_session_ms, give_back_slot_ms: Unanswered deliveries go back after so long without session, or slot.
        credit_after_ms: A free slot becomes a credit after so long (deliveries come first). 0 on the session lane.
        confirm_ms: An owner that was fed events and sent nothing since confirms what it has seen after so long.
        gap_ms: A gap in the news is asked for after so long.
        wake_slots: Parked runs whose coroutine is kept that may be open again beside `run_slots`.
        park_ms, park_pressed_ms: An open run that only waits is parked after so long; when run jobs wait.
        park_timers_ms: A run that waits only for timers at least this far away is parked at once.
        cache_runs, cache_bytes: Parked coroutines kept at most, and how much history they may have been fed together.
        always_replay: Drop and replay the coroutine at every event (a test mode).
        run_timeouts: Workflow -> longest duration of its runs (ms), of those that have a limit.
        payload_limit: Values of workflow code with more bytes are refused.
        private: Values must not stand in what is said about runs in words.
    """

    worker_id: str
    namespace: str
    pool: str
    lane: Lane.ValueType
    workflows: frozenset[str]
    steps: frozenset[str]
    step_slots: int = 16
    run_slots: int = 100
    step_credits: bool = True
    wake_slots: int = 400
    right_ms: int = 4000
    unanswered_ms: int = 2000
    give_back_session_ms: int = 5000
    give_back_slot_ms: int = 250
    credit_after_ms: int = 50
    credit_every_ms: int = 1000
    confirm_ms: int = 1000
    gap_ms: int = 2000
    park_ms: int = 30_000
    park_pressed_ms: int = 1000
    park_timers_ms: int = 5000
    cache_runs: int = 10_000
    cache_bytes: int = 64 << 20
    always_replay: bool = False
    run_timeouts: Mapping[str, int] = field(default_factory=dict)
    payload_limit: int = MAX_PAYLOAD_BYTES
    private: bool = False


@dataclass(slots=True)
class Attempt:
    """One attempt of a pool step that may be started while its right is valid.

    Attributes:
        token: Proves the holder.
        job: The whole job, input included.
        number: Number of the attempt over the step's life.
        alone: Execute in a child process of its own.
        traceparent: Context of the attempt's span; "" when there is none.
        pushed: It came down the session, to a credit; else a delivery of the broker brought it.
        progress: What an attempt before this one said last of how far it was; None: none did.
        left_ms: How much was left of the step's total timeout at GO; 0: no limit.
        deferral_key: What its tokens for finishing the step from outside are made with.
    """

    token: bytes
    job: Job
    number: int
    alone: bool
    traceparent: str
    pushed: bool = False
    progress: Payload | None = None
    left_ms: int = 0
    deferral_key: bytes = b""


@dataclass(slots=True)
class Report:
    """How user code of an attempt (pool or local) ended.

    Attributes:
        kind: "completed", "failed", "released" (never started, or cut off by a drain), "lost" (a started at-most-once
            attempt cut off by a drain), "cancelled" (cut off because its cancellation was asked for), "deferred" (pool steps:
            it ended without an outcome, and somebody outside finishes the step).
        result: With "completed".
        failure: With "failed".
        retry_after_ms: With "failed": wait asked for by RetryAfter; 0: by the policy.
        duration_ms: How long user code ran.
        deferred_ms: With "deferred": how long to wait for whoever finishes it; 0: as the step's timeout says.
        sealed: What is sent instead of `result`; None: the result itself.
        progress: Of a local step: what it said last of how far it was, or was given; None: nothing.
    """

    kind: Literal["completed", "failed", "released", "lost", "cancelled", "deferred"]
    result: Payload | None = None
    failure: Failure | None = None
    retry_after_ms: int = 0
    duration_ms: int = 0
    reason: str = ""
    deferred_ms: int = 0
    sealed: Payload | None = None
    progress: Payload | None = None


@dataclass(slots=True)
class Ack:
    """Ack a delivery."""

    tag: int


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Nack a delivery with requeue."""

    tag: int


@dataclass(frozen=True, slots=True)
class Consume:
    """Have a consumer on one of the pool's queues, or none (AMQP lane only)."""

    kind: JobKind.ValueType
    on: bool


@dataclass(slots=True)
class StartAttempt:
    """Start user code. As the last thing before its first line ask `may_start(token, now)`; if not, tell
    `attempt_ended(token, Report("released"))` instead."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class CancelAttempt:
    """Cut off a running attempt of a pool step; its end is reported through `attempt_ended` all the same."""

    token: bytes
    reason: str


@dataclass(slots=True)
class StartLocal:
    """Start a try of a local step of the run that `owner_token` owns. Ask `may_start_local(owner_token, command_id, now)`
    as the last thing; if not, tell `local_refused(...)` (it is offered again when the right is renewed).

    Attributes:
        left_ms: How much is left of its total timeout; 0: no limit.
    """

    owner_token: bytes
    run_id: str
    incarnation: int
    call: LocalCall
    attempt: int
    alone: bool
    left_ms: int = 0


@dataclass(frozen=True, slots=True)
class CancelLocal:
    """Cut off a running local step; its end is reported through `local_ended` all the same (and ignored if fenced)."""

    owner_token: bytes
    command_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class OpenEvent:
    """Fetch the values of an event that is next for a run, then tell `event_opened`."""

    owner_token: bytes
    seals: RunSeals
    event: HistoryEvent


@dataclass(frozen=True, slots=True)
class SealItem:
    """Store the values of what the code of a run says, then tell `item_sealed`."""

    owner_token: bytes
    number: int
    seals: RunSeals
    item: Command | Outcome


@dataclass(frozen=True, slots=True)
class ReopenSession:
    """Requests stay unanswered: open a session with another replica, naming the present one as replaced."""

    reason: str


@dataclass(frozen=True, slots=True)
class Drained:
    """Nothing is left: say goodbye, end the session, exit 0."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something a person may want to read: a log line. `fields` are (key, value) pairs."""

    level: Literal["debug", "info", "warning", "error"]
    event: str
    fields: tuple[tuple[str, object], ...] = ()


Action = (
    Ack
    | GiveBack
    | Consume
    | StartAttempt
    | CancelAttempt
    | StartLocal
    | CancelLocal
    | OpenEvent
    | SealItem
    | ReopenSession
    | Drained
    | Note
)


class WorkerCorePort(Protocol):
    """The core. One per process; not thread-safe, but for `held`."""

    # --- the session -------------------------------------------------------------------------------------------
    def session_opened(self, session_id: str, now_ms: int) -> None:
        """The welcome was read: everything unanswered is sent again, in order, with the next frame."""
        ...

    def session_ended(self, now_ms: int) -> None:
        """The stream broke or was closed: every right not yet used is void."""
        ...

    def receive(self, response: SessionResponse, now_ms: int) -> None:
        """A batch came down."""
        ...

    def frame(self, now_ms: int) -> SessionRequest | None:
        """The batch that should go up now (None: nothing). Its contents count as sent at `now_ms`."""
        ...

    @property
    def may_go_ahead(self) -> bool:
        """Whether code may run on by results whose frame was just taken: call `go_ahead` once that is on its way."""
        ...

    def go_ahead(self) -> None:
        """Feed these results ahead of their events (R4). Not calling it costs time, nothing else."""
        ...

    # --- the broker (AMQP lane) --------------------------------------------------------------------------------
    def delivered(self, tag: int, job: Job | None, body: bytes, now_ms: int) -> None:
        """A message of one of the pool's queues came; job None: it is no job."""
        ...

    def channel_lost(self, kind: JobKind.ValueType, tags: Sequence[int], now_ms: int) -> None:
        """These deliveries are void: the broker will deliver them again to somebody."""
        ...

    # --- user code -----------------------------------------------------------------------------------------------
    def may_start(self, token: bytes, now_ms: int) -> bool:
        """Whether user code of this attempt may start now; from then on it counts as started."""
        ...

    def attempt_ended(self, token: bytes, report: Report, now_ms: int) -> None:
        """An attempt ended, or was not started."""
        ...

    def progressed(self, token: bytes, number: int, data: bytes | Payload | None) -> None:
        """User code of an attempt (its `number`) says how far it is; None: only that it goes on. Cheap, but not free: the
        shell says it at most once in a while, and the last word before `attempt_ended`."""
        ...

    def may_start_local(self, owner_token: bytes, command_id: str, now_ms: int) -> bool:
        """Whether this local step may start now; from then on it counts as started."""
        ...

    def local_refused(self, owner_token: bytes, command_id: str, now_ms: int) -> None:
        """`may_start_local` said no."""
        ...

    def local_ended(self, owner_token: bytes, command_id: str, report: Report, now_ms: int) -> None:
        """A local step ended."""
        ...

    # --- sealed values -------------------------------------------------------------------------------------------
    def owns(self, owner_token: bytes) -> bool:
        """Whether the run is still open here under this token: else nobody waits for its values."""
        ...

    def event_opened(self, owner_token: bytes, event: HistoryEvent, error: PayloadError | None, now_ms: int) -> None:
        """The values of an event are in it now; or `error`: they never will be."""
        ...

    def item_sealed(self, owner_token: bytes, number: int, item: Command | Outcome, now_ms: int) -> None:
        """The values of what the code said are stored; `item` is what is sent."""
        ...

    # --- time and life -------------------------------------------------------------------------------------------
    def tick(self, now_ms: int) -> None:
        """Do what is due."""
        ...

    def next_due(self) -> int | None:
        """When `tick` must be called next, by the same clock; None: never, unless something comes."""
        ...

    def drain(self, now_ms: int) -> None:
        """SIGTERM: state no credits, take nothing new, give back what is unclaimed."""
        ...

    def drain_over(self, now_ms: int) -> None:
        """The grace ended: cancel and release what still runs, release open runs, then `Drained`."""
        ...

    def actions(self) -> list[Action]:
        """What the shell must do now, in order; empties the list."""
        ...

    def held(self) -> tuple[int, tuple[HeldToken, ...]]:
        """Random id of the list of held tokens, and the list. May be called from the beat thread."""
        ...

    def counts(self) -> tuple[int, int]:
        """(attempts of pool steps that hold a slot, open runs)."""
        ...

    def free_run_slots(self) -> int:
        """Runs that may be opened besides, woken ones apart."""
        ...
