"""Workers: decorators for workflows and steps, the durable event loop, and the processes that execute them."""

from __future__ import annotations

from treadle.protocol.errors import (
    ConfigError,
    Fatal,
    NotDeterministic,
    PayloadError,
    RetryAfter,
    StepCancelled,
    StepError,
    StepLost,
    StepTimedOut,
    TreadleError,
)
from treadle.protocol.retry import Retry
from treadle.worker.current import StepInfo, now, random, step_info, uuid4
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
    # inside workflows
    "now",
    "random",
    "uuid4",
    # errors
    "TreadleError",
    "ConfigError",
    "PayloadError",
    "NotDeterministic",
    "StepError",
    "StepTimedOut",
    "StepLost",
    "StepCancelled",
)
