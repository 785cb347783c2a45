"""Errors as data, and back.

What a step or run raised crosses processes and languages as a `Failure`: type, message, traceback and chain of causes. On
the other side it becomes a StepError or RunError whose `__cause__` chain is rebuilt.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Final

from treadle.protocol.errors import (
    AttemptTimedOut,
    Fatal,
    HeartbeatMissed,
    NotDeterministic,
    PayloadError,
    QueueTimedOut,
    RunCancelled,
    RunError,
    RunFailed,
    RunTerminated,
    RunTimedOut,
    StepCancelled,
    StepError,
    StepLost,
    StepTimedOut,
)
from treadle.v1.common_pb2 import (
    FAILURE_KIND_APPLICATION,
    FAILURE_KIND_CANCELLED,
    FAILURE_KIND_HEARTBEAT_MISSED,
    FAILURE_KIND_LOST,
    FAILURE_KIND_PAYLOAD,
    FAILURE_KIND_QUEUE_TIMED_OUT,
    FAILURE_KIND_RUN_TIMED_OUT,
    FAILURE_KIND_STEP_TIMED_OUT,
    FAILURE_KIND_STUCK,
    FAILURE_KIND_TERMINATED,
    FAILURE_KIND_TIMED_OUT,
    Failure,
)

if TYPE_CHECKING:
    from treadle.v1.common_pb2 import FailureKind

__all__ = (
    "MAX_CAUSES",
    "MAX_MESSAGE_BYTES",
    "MAX_TRACEBACK_BYTES",
    "CauseError",
    "failure_of",
    "run_error",
    "step_error",
)

MAX_MESSAGE_BYTES: Final = 8 << 10
MAX_TRACEBACK_BYTES: Final = 32 << 10
MAX_CAUSES: Final = 8
MAX_BASES: Final = 16
_COMMON: Final = (Exception, BaseException, object)

_STEP_ERRORS: Final[dict[int, type[StepError]]] = {
    FAILURE_KIND_TIMED_OUT: AttemptTimedOut,
    FAILURE_KIND_STEP_TIMED_OUT: StepTimedOut,
    FAILURE_KIND_QUEUE_TIMED_OUT: QueueTimedOut,
    FAILURE_KIND_HEARTBEAT_MISSED: HeartbeatMissed,
    FAILURE_KIND_LOST: StepLost,
    FAILURE_KIND_CANCELLED: StepCancelled,
}
_RUN_ERRORS: Final[dict[int, type[RunError]]] = {
    FAILURE_KIND_CANCELLED: RunCancelled,
    FAILURE_KIND_TERMINATED: RunTerminated,
    FAILURE_KIND_RUN_TIMED_OUT: RunTimedOut,
}
_STEP_WORDS: Final[dict[type[StepError], str]] = {
    AttemptTimedOut: "timed out",
    StepTimedOut: "took too long",
    QueueTimedOut: "waited too long for a worker",
    HeartbeatMissed: "missed its heartbeat",
    StepLost: "was lost with its worker, and may run at most once",
    StepCancelled: "was cancelled",
}


class CauseError(Exception):
    """A cause of a failure, rebuilt from data: the class that was raised is not known here.

    Attributes:
        type_name: Class name of what was raised.
        message: Its message.
        traceback_text: Its formatted traceback, or "".
    """

    def __init__(self, type_name: str, message: str, traceback_text: str = "") -> None:
        super().__init__(f"{type_name}: {message}" if message else type_name)
        self.type_name = type_name
        self.message = message
        self.traceback_text = traceback_text


def failure_of(error: BaseException, *, kind: FailureKind.ValueType | None = None) -> Failure:
    """Return the error as data: at most 8 KiB of message, 32 KiB of traceback, 8 causes.

    Args:
        error: What was raised. `Fatal`, and what no retry can mend, makes it final; groups list their members.
        kind: Why, when it is not to be read off the error.
    """
    return _failure(error, kind, MAX_CAUSES, set())


def _failure(error: BaseException, kind: FailureKind.ValueType | None, depth: int, seen: set[int]) -> Failure:
    seen.add(id(error))
    failure = Failure(
        kind=_kind_of(error) if kind is None else kind,
        type=_type_of(error),
        message=_cut(_message_of(error), MAX_MESSAGE_BYTES),
        traceback=_cut_middle(_traceback_of(error), MAX_TRACEBACK_BYTES),
        final=isinstance(error, Fatal | NotDeterministic | PayloadError),
        bases=_bases_of(error),
    )
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and depth and id(cause) not in seen:
        failure.cause.CopyFrom(_failure(cause, None, depth - 1, seen))
    return failure


def step_error(step: str, failure: Failure) -> StepError:
    """Return a fresh error for a step that failed for good; its `__cause__` chain is rebuilt from the failure."""
    cls = _STEP_ERRORS.get(failure.kind, StepError)
    attempts = failure.attempts
    after = f" after {attempts} attempts" if attempts > 1 else ""
    said = f"{failure.type}: {failure.message}" if failure.message else failure.type
    what = _STEP_WORDS.get(cls, "failed")
    error = cls(
        f"step {step} {what}{after}" + (f": {said}" if said else ""),
        step=step,
        type_name=failure.type,
        message=failure.message,
        traceback_text=failure.traceback,
        attempts=attempts,
        failure=failure,
    )
    error.__cause__ = _causes(failure)
    return error


def run_error(run_id: str, failure: Failure) -> RunError:
    """Return a fresh error for a run that did not return; `__cause__` is what it raised."""
    cls = _RUN_ERRORS.get(failure.kind, RunFailed)
    said = f"{failure.type}: {failure.message}" if failure.message else failure.type
    words = {RunCancelled: "was cancelled", RunTerminated: "was terminated", RunTimedOut: "timed out"}
    what = "is stuck" if failure.kind == FAILURE_KIND_STUCK else words.get(cls, "failed")
    error = cls(f"run {run_id} {what}" + (f": {said}" if said else ""), run_id=run_id, failure=failure)
    error.__cause__ = _causes(failure)
    return error


def _causes(failure: Failure) -> CauseError | None:
    if not failure.type:
        return None
    error = CauseError(failure.type, failure.message, failure.traceback)
    if failure.HasField("cause"):
        error.__cause__ = _causes(failure.cause)
    return error


def _kind_of(error: BaseException) -> FailureKind.ValueType:
    return FAILURE_KIND_PAYLOAD if isinstance(error, PayloadError) else FAILURE_KIND_APPLICATION


def _type_of(error: BaseException) -> str:
    return error.type_name if isinstance(error, CauseError) else type(error).__name__


def _bases_of(error: BaseException) -> list[str]:
    return [cls.__name__ for cls in type(error).__mro__[1:] if cls not in _COMMON][:MAX_BASES]


def _message_of(error: BaseException) -> str:
    if isinstance(error, CauseError):
        return error.message
    try:
        text = str(error)
    except Exception as broken:  # a user's __str__
        return f"(its message cannot be shown: {type(broken).__name__})"
    if isinstance(error, BaseExceptionGroup):
        members = "\n".join(_members(error, "  "))
        return f"{text}\n{members}"
    return text


def _members(group: BaseExceptionGroup[BaseException], indent: str) -> list[str]:
    lines = []
    for member in group.exceptions:
        if isinstance(member, BaseExceptionGroup):
            lines.append(f"{indent}- {type(member).__name__}: {member.message}")
            lines += _members(member, indent + "  ")
        else:
            lines.append(f"{indent}- {_type_of(member)}: {_message_of(member)}")
    return lines


def _traceback_of(error: BaseException) -> str:
    if isinstance(error, CauseError):
        return error.traceback_text
    if error.__traceback__ is None and not isinstance(error, BaseExceptionGroup):
        return ""
    try:
        return "".join(traceback.format_exception(type(error), error, error.__traceback__, limit=-50, chain=False))
    except Exception as broken:  # a user's __str__ or __repr__
        return f"(its traceback cannot be shown: {type(broken).__name__})"


def _cut(text: str, limit: int) -> str:
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode()
    return data[: limit - 4].decode("utf-8", "ignore") + " …"


def _cut_middle(text: str, limit: int) -> str:
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode()
    half = limit // 2 - 8
    return data[:half].decode("utf-8", "ignore") + "\n  …\n" + data[-half:].decode("utf-8", "ignore")
