"""Every error that Treadle raises, in one tree. Names say what to do about it.

    TreadleError
    ├── ConfigError              a decorator, setting or name is wrong: change the code
    ├── PayloadError             a value cannot be encoded or decoded
    │   ├── PayloadTooLarge      it has more bytes than are allowed
    │   └── PayloadUnreadable    what is sealed cannot be opened here: no such key, tampered with, or of another run
    │       └── BlobMissing      the blob store has no such value, or another one
    ├── BlobStoreUnavailable     the blob store cannot be reached or does not allow it: try again later
    ├── CodecFailed              the codec of values raised: its key service is away, or it has a bug
    ├── NotDeterministic         workflow code did what only a step may do
    ├── RequestError             the control plane refused a call; `.reason`, `.remedy`
    │   ├── FieldInvalid         INVALID_ARGUMENT / FIELD_INVALID; `.field`
    │   ├── NotFound             NOT_FOUND / RUN_NOT_FOUND, WORKFLOW_NOT_FOUND
    │   ├── RunIdConflict        ALREADY_EXISTS / RUN_ID_CONFLICT
    │   ├── RunClosed            FAILED_PRECONDITION / RUN_CLOSED
    │   ├── StepSettled          FAILED_PRECONDITION / STEP_SETTLED
    │   ├── LeaseLost            ABORTED / LEASE_LOST
    │   ├── Refused              RESOURCE_EXHAUSTED or PERMISSION_DENIED; back off, or ask for the right
    │   └── Unavailable          UNAVAILABLE / DEPENDENCY_DOWN: try again later
    ├── RunError                 the outcome of a run, raised by `result()`
    │   ├── RunFailed            it raised; `.failure`, `__cause__` is what it raised
    │   │   └── RunTimedOut      it ran past its timeout
    │   ├── RunCancelled         it was cancelled
    │   └── RunTerminated        a person ended it
    ├── StepError                a step failed for good; raised in workflow code
    │   ├── StepTimedOut         all its tries together ran past its `total_timeout`
    │   │   ├── AttemptTimedOut  its last attempt ran past its `timeout`
    │   │   ├── QueueTimedOut    no worker took a try of it within its `queue_timeout`
    │   │   └── HeartbeatMissed  its last attempt said nothing for longer than its heartbeat
    │   ├── StepLost             its worker died and it may run at most once
    │   └── StepCancelled        it was cancelled
    ├── MapFailed                more items of a `map` failed than it tolerates; `.failures`
    ├── CompensationFailed       steps of a saga could not be undone; `.failures`
    ├── QuestionRefused          workflow code refused to answer `ask`
    └── ResultTimeout            `result(timeout=)` or `ask(timeout=)` ran out; the run goes on

Raised by user code inside steps, to steer retries (not caught by `except TreadleError`):

    Fatal                        no retry can help
    RetryAfter                   try again after this delay, whatever the policy says
    Deferred                     somebody outside finishes the step, by the token of `defer`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treadle.v1.common_pb2 import Failure

__all__ = (
    "AttemptTimedOut",
    "BlobMissing",
    "BlobStoreUnavailable",
    "CodecFailed",
    "CompensationFailed",
    "ConfigError",
    "Deferred",
    "Fatal",
    "FieldInvalid",
    "HeartbeatMissed",
    "LeaseLost",
    "MapFailed",
    "NotDeterministic",
    "NotFound",
    "PayloadError",
    "PayloadTooLarge",
    "PayloadUnreadable",
    "QuestionRefused",
    "QueueTimedOut",
    "Refused",
    "RequestError",
    "ResultTimeout",
    "RetryAfter",
    "RunCancelled",
    "RunClosed",
    "RunError",
    "RunFailed",
    "RunIdConflict",
    "RunTerminated",
    "RunTimedOut",
    "StepCancelled",
    "StepError",
    "StepLost",
    "StepSettled",
    "StepTimedOut",
    "TreadleError",
    "Unavailable",
    "WrongState",
)


class TreadleError(Exception):
    """Base of everything that Treadle raises."""


class ConfigError(TreadleError):
    """A decorator, setting or name is wrong."""


class PayloadError(TreadleError):
    """A value cannot be encoded or decoded, or is too large."""


class PayloadTooLarge(PayloadError):
    """A value has more bytes than are allowed."""


class PayloadUnreadable(PayloadError):
    """What is sealed cannot be opened here: no such key, tampered with, or sealed for another run."""


class BlobMissing(PayloadUnreadable):
    """The blob store has no such value, or has another one under its name."""


class BlobStoreUnavailable(TreadleError):
    """The blob store cannot be reached, or does not allow what is asked of it."""


class CodecFailed(TreadleError):
    """A codec raised something of its own. Says which class and where, and not its text, which may quote the value.

    Whatever waits for the value tries again.
    """


class NotDeterministic(TreadleError):
    """Workflow code did what only a step may do."""


class RequestError(TreadleError):
    """The control plane refused a call.

    Attributes:
        reason: Machine-readable, upper case ("RUN_NOT_FOUND"); the `reason` of google.rpc.ErrorInfo.
        remedy: What to do, or "".
    """

    code = "UNKNOWN"
    reason = "UNKNOWN"

    def __init__(self, message: str, *, reason: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.reason = reason or type(self).reason
        self.remedy = remedy


class FieldInvalid(RequestError):
    """A field of a request is wrong; `field` names it."""

    code = "INVALID_ARGUMENT"
    reason = "FIELD_INVALID"

    def __init__(self, message: str, *, field: str = "", reason: str = "", remedy: str = "") -> None:
        super().__init__(message, reason=reason, remedy=remedy)
        self.field = field


class NotFound(RequestError):
    """There is no such thing."""

    code = "NOT_FOUND"
    reason = "RUN_NOT_FOUND"


class RunIdConflict(RequestError):
    """Another run has the id."""

    code = "ALREADY_EXISTS"
    reason = "RUN_ID_CONFLICT"


class RunClosed(RequestError):
    """The run has its outcome already."""

    code = "FAILED_PRECONDITION"
    reason = "RUN_CLOSED"


class StepSettled(RequestError):
    """A step that was to be finished from outside has its outcome, or its try is over."""

    code = "FAILED_PRECONDITION"
    reason = "STEP_SETTLED"


class WrongState(RequestError):
    """The run, or a step of it, is not in a state in which this can be asked; `reason` tells which it would have to be."""

    code = "FAILED_PRECONDITION"
    reason = "WRONG_STATE"


class LeaseLost(RequestError):
    """Another token holds what was reported; stop, do not retry."""

    code = "ABORTED"
    reason = "LEASE_LOST"


class Refused(RequestError):
    """A limit is reached or a right is missing."""

    code = "RESOURCE_EXHAUSTED"
    reason = "LIMIT_REACHED"


class Unavailable(RequestError):
    """The control plane, Redis or RabbitMQ cannot be reached."""

    code = "UNAVAILABLE"
    reason = "DEPENDENCY_DOWN"


class RunError(TreadleError):
    """How a run ended, when it did not return.

    Attributes:
        run_id: The run.
        failure: What it raised, as data; None when cancelled or terminated.
    """

    def __init__(self, message: str, *, run_id: str = "", failure: Failure | None = None) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.failure = failure


class RunFailed(RunError):
    """The workflow raised."""


class RunTimedOut(RunFailed):
    """The run took longer than its timeout."""


class RunCancelled(RunError):
    """The run was cancelled."""


class RunTerminated(RunError):
    """A person ended the run."""


class StepError(TreadleError):
    """A step failed for good.

    Attributes:
        step: Name of the step.
        type_name: Class name of what it raised ("ValueError").
        message: Its message.
        traceback_text: Formatted traceback, or "".
        attempts: Attempts made.
        failure: All of that as data, with the chain of causes; `__cause__` is rebuilt from it.
    """

    def __init__(
        self,
        text: str,
        *,
        step: str = "",
        type_name: str = "",
        message: str = "",
        traceback_text: str = "",
        attempts: int = 0,
        failure: Failure | None = None,
    ) -> None:
        super().__init__(text)
        self.step = step
        self.type_name = type_name
        self.message = message
        self.traceback_text = traceback_text
        self.attempts = attempts
        self.failure = failure


class StepTimedOut(StepError):
    """A limit of the step was reached; of this very class: all its tries together took longer than its `total_timeout`."""


class AttemptTimedOut(StepTimedOut):
    """The last attempt took longer than the step's `timeout`."""


class QueueTimedOut(StepTimedOut):
    """No worker took a try of the step within its `queue_timeout`."""


class HeartbeatMissed(StepTimedOut):
    """The last attempt said nothing for longer than its heartbeat."""


class StepLost(StepError):
    """The step may run at most once and its worker died."""


class StepCancelled(StepError):
    """The step was cancelled."""


class MapFailed(TreadleError):
    """More items of a `map` failed than it tolerates.

    Attributes:
        failures: Index of the item -> what it failed with, in the order in which they failed.
    """

    def __init__(self, message: str, *, failures: Mapping[int, StepError | RunError]) -> None:
        super().__init__(message)
        self.failures = dict(failures)


class CompensationFailed(TreadleError):
    """Steps of a saga could not be undone. `__context__` is why it was to be undone at all.

    Attributes:
        failures: What undoing them failed with, in the order in which it was tried.
    """

    def __init__(self, message: str, *, failures: Sequence[Exception]) -> None:
        super().__init__(message)
        self.failures = list(failures)


class QuestionRefused(TreadleError):
    """The workflow refused to answer a question; the message is its reason."""


class ResultTimeout(TreadleError, TimeoutError):
    """`result(timeout=)` or `ask(timeout=)` ran out. The run goes on."""


class Fatal(Exception):
    """Raise in a step: no retry can help."""


class Deferred(Exception):
    """Raise in a step, after `defer`: the attempt ends without an outcome, and somebody outside finishes the step."""


@dataclass
class RetryAfter(Exception):
    """Raise in a step: try again after this delay, whatever the policy's backoff says. Uses up a try.

    Attributes:
        delay: Wait before the next try; a timedelta, seconds, or text like "30s".
        message: Shown in the history.
    """

    delay: timedelta | float | str
    message: str = ""

    def __str__(self) -> str:
        return self.message or f"retry after {self.delay}"
