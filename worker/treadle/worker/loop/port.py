"""What the worker's core sees of workflow code: a coroutine that is fed events and asks for things.

`treadle.worker.loop.execution` implements `Execution` over the durable event loop. The core owns positions, tokens and
the wire; an execution owns the coroutine and matches what the code asks for with what the history has.

Feeding is the same function live and in replay: exactly the next position, one event, run until nothing is ready.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from treadle.protocol.payloads import MAX_PAYLOAD_BYTES
from treadle.v1.common_pb2 import EventsGiven, Failure, Payload, RetryPolicy
from treadle.v1.history_pb2 import HistoryEvent, SignalReceived
from treadle.v1.worker_service_pb2 import Command, FailureHook

__all__ = (
    "Divergence",
    "Execution",
    "ExecutionFactory",
    "LocalCall",
    "Outcome",
    "RunContext",
    "Turn",
    "Waits",
)


@dataclass(frozen=True, slots=True)
class RunContext:
    """Which run is executed.

    Attributes:
        namespace, run_id, incarnation: The run.
        workflow: Name of the workflow, with its version if it has one ("billing@2").
        accepted_until: Recorded commands at or before this position need not be asked for, and may have another digest.
        retried_at: Position of the last RunRetried; the history before it counts only in part, and what counts of it need not
            be asked for. 0: there is none.
        passed_until: Position up to which owners before had fed the code. Who replays a whole history gives its length.
        marks: Marked changes whose new way the code took.
        payload_limit: Values of more bytes are refused.
        private: Values must not stand in what is said about the run in words.
    """

    namespace: str
    run_id: str
    incarnation: int
    workflow: str
    accepted_until: int = 0
    retried_at: int = 0
    passed_until: int = 0
    marks: frozenset[str] = frozenset()
    payload_limit: int = MAX_PAYLOAD_BYTES
    private: bool = False


@dataclass(slots=True)  # not frozen: one is made for each step
class LocalCall:
    """One try of a local step that the code asks for and the history has no outcome of.

    Attributes:
        command_id: Task path, name and occurrence ("0/notify#1").
        digest: Digest of the encoded input.
        name: Name of the step.
        step: The step object (treadle.worker.steps.Step), for the executor.
        input: Encoded arguments.
        try_number: 1 + recorded failures.
        retry: The policy.
        timeout_ms: Longest duration of an attempt; 0: no limit.
        at_most_once: Its start must be recorded before it runs.
        progress: What a try before this one said last of how far it was; None: none did.
        total_timeout_ms: Longest duration of all tries together; 0: no limit.
        deadline_ms: When that is over, by the clock of Redis; 0: no limit.
        tries_before: Tries, or attempts, that it had before its run was continued.
        redone: Number of the retry by which it runs again although it had been done; 0: none.
    """

    command_id: str
    digest: int
    name: str
    step: Any
    input: Payload
    try_number: int
    retry: RetryPolicy
    timeout_ms: int
    at_most_once: bool
    total_timeout_ms: int = 0
    deadline_ms: int = 0
    tries_before: int = 0
    redone: int = 0
    progress: Payload | None = None


@dataclass(slots=True)
class Turn:
    """What the code asks for that the history does not have and that was not taken before, in the order of asking."""

    commands: list[Command] = field(default_factory=list)
    local_calls: list[LocalCall] = field(default_factory=list)
    local_cancels: list[str] = field(default_factory=list)
    """Command ids of local steps whose result nobody waits for any more (their task was cancelled)."""
    local_ends: list[LocalCall] = field(default_factory=list)
    """Local steps that are to end, and whose end the code waits for."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the code ended: exactly one of `result`, `failure`, `next_input` (it goes on as new), or cancelled=True.

    Attributes:
        because: With a failure: the commands whose failures it was made of.
        because_all: There were too many to name.
        undone: A saga undid what had been done.
        hook: With a failure: what handles it.
    """

    result: Payload | None = None
    failure: Failure | None = None
    cancelled: bool = False
    next_input: Payload | None = None
    because: tuple[str, ...] = ()
    because_all: bool = False
    undone: bool = False
    hook: FailureHook | None = None


@dataclass(frozen=True, slots=True)
class Divergence:
    """Code and history disagree: what the history has, what the code asked for; both in words."""

    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class Waits:
    """What the code waits for: open pool steps (and child runs), local steps and timers, when the earliest timer fires (ms),
    and how many of its tasks wait for a signal."""

    pool_steps: int
    local_steps: int
    timers: int
    earliest_timer_ms: int | None
    signals: int = 0


class Execution(Protocol):
    """The live coroutine of one run."""

    @property
    def fed(self) -> int:
        """Position of the last event that was fed; 0 at first."""
        ...

    def feed(self, event: HistoryEvent) -> None:
        """Feed the event at `fed + 1` and run until nothing is ready. Never raises for what user code does.

        Raises:
            ValueError: It is not the next position (a bug of the caller).
        """
        ...

    def take(self) -> Turn:
        """What is new since the last call. Call it only when every known event was fed."""
        ...

    @property
    def outcome(self) -> Outcome | None:
        """How the code ended; None while it runs. Also set (failure STUCK) when it waits for nothing that can happen."""
        ...

    @property
    def divergence(self) -> Divergence | None:
        """Set when code and history disagree; nothing more may be fed then."""
        ...

    def waits(self) -> Waits:
        """What the code waits for now."""
        ...

    def awaits_only(self, command_id: str) -> bool:
        """Whether the code waits for the outcome of this pool step and for nothing else."""
        ...

    @property
    def untold(self) -> int:
        """How many notes and children `take` has not given out; they count even if the code has ended."""
        ...

    @property
    def unheard(self) -> bool:
        """Whether the run was cancelled, or its timeout over, when the code had ended: it could not be told."""
        ...

    @property
    def undoing(self) -> bool:
        """Whether a saga undoes, or has undone, what had been done because the run is to end."""
        ...

    def unread(self) -> list[SignalReceived]:
        """Signals and questions that were fed and the code has not received, in the order they came."""
        ...

    def known_signals(self) -> list[str]:
        """Ids of the signals and questions that were fed last, oldest first."""
        ...

    def events_given(self) -> EventsGiven:
        """What the next part of the run must know of events that the code was given."""
        ...

    def passed(self, until: int, marks: Iterable[str]) -> None:
        """Other owners had the run meanwhile, and fed its code up to `until`; see RunContext.marks."""
        ...

    def failing(self, failure: Failure) -> Outcome:
        """Return what the run ends with if it fails for a reason that its code does not know."""
        ...

    def close(self) -> None:
        """Drop the coroutine without running any of its code to an end. Idempotent."""
        ...


ExecutionFactory = Callable[[RunContext], Execution]
"""Makes a fresh execution. Raises KeyError when no such workflow is here (the core checks names first)."""
