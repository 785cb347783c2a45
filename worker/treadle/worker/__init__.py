"""Workers: decorators for workflows and steps, the durable event loop, and the processes that execute them."""

from __future__ import annotations

from treadle.protocol.errors import (
    AttemptTimedOut,
    CompensationFailed,
    ConfigError,
    Deferred,
    Fatal,
    HeartbeatMissed,
    MapFailed,
    NotDeterministic,
    PayloadError,
    PayloadTooLarge,
    PayloadUnreadable,
    QueueTimedOut,
    RetryAfter,
    RunCancelled,
    RunFailed,
    RunIdConflict,
    RunTerminated,
    RunTimedOut,
    StepCancelled,
    StepError,
    StepLost,
    StepTimedOut,
    TreadleError,
)
from treadle.protocol.occurrence import Occurrence
from treadle.protocol.retry import Retry
from treadle.worker.changes import changed, set_tags
from treadle.worker.child_runs import ChildRun, start_child
from treadle.worker.continuation import continue_as_new
from treadle.worker.current import StepInfo, now, random, sleep_until, step_info, uuid4
from treadle.worker.event_types import Event
from treadle.worker.events import send_event, wait_for_event
from treadle.worker.hooks import FailedRun, RaisedError
from treadle.worker.long_steps import defer, heartbeat, last_progress, progress
from treadle.worker.saga import Saga
from treadle.worker.signals import Question, publish_state, receive, receive_question
from treadle.worker.steps import Step, step
from treadle.worker.workflows import Workflow, workflow

__all__ = (
    # decorators
    "step",
    "workflow",
    "Step",
    "Workflow",
    "Retry",
    # inside steps
    "Fatal",
    "RetryAfter",
    "StepInfo",
    "step_info",
    "progress",
    "heartbeat",
    "last_progress",
    "defer",
    "Deferred",
    # inside workflows
    "now",
    "random",
    "uuid4",
    "sleep_until",
    "receive",
    "receive_question",
    "Question",
    "publish_state",
    "changed",
    "set_tags",
    "start_child",
    "ChildRun",
    "continue_as_new",
    "Event",
    "send_event",
    "wait_for_event",
    "Saga",
    "Occurrence",
    # in hooks
    "FailedRun",
    "RaisedError",
    # errors
    "TreadleError",
    "ConfigError",
    "PayloadError",
    "PayloadTooLarge",
    "PayloadUnreadable",
    "NotDeterministic",
    "StepError",
    "StepTimedOut",
    "HeartbeatMissed",
    "AttemptTimedOut",
    "QueueTimedOut",
    "StepLost",
    "StepCancelled",
    "RunFailed",
    "RunTimedOut",
    "RunCancelled",
    "RunTerminated",
    "RunIdConflict",
    "MapFailed",
    "CompensationFailed",
)
