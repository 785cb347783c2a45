"""Where the code that runs now is: inside a workflow, inside a step, or neither; and what that offers it."""

from __future__ import annotations

import asyncio
import random as _random
import time
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Protocol

from treadle.protocol.errors import ConfigError
from treadle.protocol.ids import idempotency_key, span_ids, trace_id
from treadle.worker.loop.durable_loop import DurableLoop
from treadle.worker.pulse import Saying

if TYPE_CHECKING:
    from treadle.worker.loop.execution import WorkflowExecution

__all__ = (
    "STEP_INFO",
    "LazyInfo",
    "StepInfo",
    "current_execution",
    "now",
    "random",
    "sleep_until",
    "step_info",
    "uuid4",
)


class Live(Protocol):
    """What runs an attempt."""

    def saying(self) -> Saying:
        """What its code says how far it is to."""
        ...


@dataclass(slots=True)
class StepInfo:
    """What a step may know about its attempt.

    Attributes:
        run_id: The run that called it.
        step: Name of the step.
        attempt: Number of the attempt over the step's life, from 1; lost ones count.
        idempotency_key: 32 hex digits, equal in all attempts of this step; pass it on to payment providers and the like.
        cancel_reason: Why it is being cancelled ("cancelled", "timed out", "lease lost", "run closed", "drain"); "" while it is
            not.
        namespace: Namespace of the run.
        command_id: Which call of the run it is ("0/validate#1").
        try_number: 1 + failures so far.
        traceparent: Context of the attempt's span, as W3C writes it; "" when there is none.
        live: What runs it, while it runs; for `progress` and the like.
    """

    run_id: str
    step: str
    attempt: int
    idempotency_key: str
    cancel_reason: str = ""
    namespace: str = ""
    command_id: str = ""
    try_number: int = 1
    traceparent: str = ""
    live: Live | None = field(default=None, repr=False, compare=False)

    def saying(self) -> Saying | None:
        """What the code of the attempt says how far it is to; None: the attempt is over."""
        live = self.live
        return None if live is None else live.saying()

    @property
    def cancelled(self) -> bool:
        """Whether it is to end. Code in a thread asks this now and then; other code is told by CancelledError."""
        return bool(self.cancel_reason)

    @property
    def made_here(self) -> bool:
        """Whether `traceparent` is made when it is asked for: it is well formed, and costs something."""
        return False

    @property
    def incarnation(self) -> int:
        """Which start of the run's id it is; 0 where that is not known."""
        return 0


class LazyInfo(StepInfo):
    """The same; what must be hashed is made when somebody asks for it, which most steps never do."""

    __slots__ = ("_incarnation", "_redone", "_traceparent")

    def __init__(
        self,
        run_id: str,
        incarnation: int,
        step: str,
        attempt: int,
        namespace: str,
        command_id: str,
        try_number: int,
        traceparent: str | None,
        redone: int = 0,
    ) -> None:
        """`traceparent`: None for a local step, whose span is made from the history later, under ids that are known now."""
        self.run_id = run_id
        self.step = step
        self.attempt = attempt
        self.cancel_reason = ""
        self.namespace = namespace
        self.command_id = command_id
        self.try_number = try_number
        self._incarnation = incarnation
        self._redone = redone
        self._traceparent = traceparent
        self.live = None

    @property
    def idempotency_key(self) -> str:  # type: ignore[override]
        return idempotency_key(self.namespace, self.run_id, self._incarnation, self.command_id, self._redone)

    @property
    def made_here(self) -> bool:
        return self._traceparent is None

    @property
    def incarnation(self) -> int:
        return self._incarnation

    @property
    def traceparent(self) -> str:  # type: ignore[override]
        if self._traceparent is None:
            trace, span = _ids(self.namespace, self.run_id, self._incarnation)
            self._traceparent = f"00-{trace}-{span(f'step/{self.command_id}/{self.attempt}').hex()}-01"
        return self._traceparent


@lru_cache(maxsize=1024)
def _ids(namespace: str, run_id: str, incarnation: int) -> tuple[str, Callable[[str], bytes]]:
    """Return the trace id of a run, and what makes the ids of its spans."""
    return trace_id(namespace, run_id, incarnation), span_ids(namespace, run_id, incarnation)


STEP_INFO: Final[ContextVar[StepInfo | None]] = ContextVar("treadle_step_info", default=None)
"""Set by the executor around the body of a step; threads get it by running in a copy of the context."""

_ORDINARY: Final = _random.Random()


def current_execution() -> WorkflowExecution | None:
    """The execution whose workflow code runs now on this thread; None outside workflows."""
    loop = asyncio._get_running_loop()
    return loop.owner if isinstance(loop, DurableLoop) else None  # type: ignore[return-value]


def step_info() -> StepInfo:
    """Return what is known about the attempt that runs now.

    Raises:
        ConfigError: No step of a worker runs here (a step that is called as a plain function has no attempt).
    """
    info = STEP_INFO.get()
    if info is None:
        raise ConfigError("step_info(): call it inside a @step that a worker runs; there is no attempt here")
    return info


def now() -> datetime:
    """Return the current time in UTC; inside a workflow the time of the event that it reacts to, the same in each replay."""
    execution = current_execution()
    return datetime.fromtimestamp(time.time() if execution is None else execution.now(), UTC)


async def sleep_until(when: datetime) -> None:
    """Sleep until a point in time, however far; inside a workflow durably, as `asyncio.sleep`. What is over is no sleep.

    Raises:
        ConfigError: The time has no time zone.
    """
    if when.tzinfo is None:
        raise ConfigError(f"sleep_until({when!r}): give it a time zone, as in datetime.now(UTC)")
    await asyncio.sleep(max(0.0, (when - now()).total_seconds()))


def random() -> _random.Random:
    """Return a source of random numbers; inside a workflow the same ones in each replay."""
    execution = current_execution()
    return _ORDINARY if execution is None else execution.random()


def uuid4() -> uuid.UUID:
    """Return a random UUID; inside a workflow the same one in each replay."""
    execution = current_execution()
    if execution is None:
        return uuid.uuid4()
    return uuid.UUID(int=execution.random().getrandbits(128), version=4)
