"""Names of all attributes of history spans. A renamed convention is a change of this file only."""

from __future__ import annotations

from typing import Final

__all__ = (
    "ATTEMPT_NUMBER",
    "ATTEMPT_OUTCOME",
    "CHILD_RUN_ID",
    "DROPPED",
    "ERROR_TYPE",
    "EXCEPTION",
    "EXCEPTION_MESSAGE",
    "EXCEPTION_STACKTRACE",
    "EXCEPTION_TYPE",
    "FANOUT_ATTEMPTS",
    "FANOUT_STEPS",
    "INCARNATION",
    "LINK_TYPE",
    "LOCAL",
    "NAMESPACE",
    "OTHER_ERROR",
    "POOL",
    "QUEUE_MS",
    "RETRY_DELAY_MS",
    "RUN_ID",
    "RUN_OUTCOME",
    "SCOPE",
    "SIGNAL_ID",
    "SIGNAL_NAME",
    "SOURCE",
    "STEP_ID",
    "STEP_KIND",
    "STEP_NAME",
    "STEP_OUTCOME",
    "TIMER_FIRE_AT",
    "TRIGGER",
    "WAIT_OUTCOME",
    "WORKER_ID",
    "WORKFLOW",
    "resource_of",
)

SCOPE: Final = ("treadle.history", "1")
"""Name and version of the instrumentation scope; the version is that of the projection, not of the package."""

NAMESPACE: Final = "treadle.namespace"
RUN_ID: Final = "treadle.run.id"
WORKFLOW: Final = "treadle.workflow.name"
SOURCE: Final = "treadle.span.source"
"""Which half of a trace a span is of: "history" or "worker"."""

INCARNATION: Final = "treadle.run.incarnation"
"""16 hex digits."""
TRIGGER: Final = "treadle.run.trigger"
SCHEDULE: Final = "treadle.schedule.id"
SCHEDULED_AT: Final = "treadle.schedule.scheduled_at"
"""When the occurrence was due, without jitter (ms)."""
VERSION: Final = "treadle.workflow.version"
TAG: Final = "treadle.run.tag"
"""Followed by a dot and the key of a tag that the start gave."""
RUN_OUTCOME: Final = "treadle.run.outcome"
"""success, failure, timeout or cancellation: the words of CI/CD."""
DROPPED: Final = "treadle.run.spans_dropped"
"""Spans that the budget of a run left out."""

STEP_ID: Final = "treadle.step.id"
STEP_NAME: Final = "treadle.step.name"
STEP_KIND: Final = "treadle.step.kind"
"""task, sleep, child, signal or question."""
STEP_OUTCOME: Final = "treadle.step.outcome"
"""On the last attempt only."""
LOCAL: Final = "treadle.step.local"
"""True: the step ran in the process of the workflow code."""
ATTEMPT_NUMBER: Final = "treadle.attempt.number"
ATTEMPT_OUTCOME: Final = "treadle.attempt.outcome"
"""success, failure, timeout, lost, released or cancelled."""
QUEUE_MS: Final = "treadle.attempt.queue_ms"
RETRY_DELAY_MS: Final = "treadle.retry.delay_ms"
POOL: Final = "treadle.pool.name"
WORKER_ID: Final = "treadle.worker.id"

TIMER_FIRE_AT: Final = "treadle.timer.fire_at"
"""Milliseconds since 1970."""
WAIT_OUTCOME: Final = "treadle.wait.outcome"
"""fired or cancelled; of a question answered, refused or cancelled."""
CHILD_RUN_ID: Final = "treadle.child.run.id"
SIGNAL_NAME: Final = "treadle.signal.name"
SIGNAL_ID: Final = "treadle.signal.id"

FANOUT_STEPS: Final = "treadle.fanout.steps"
FANOUT_ATTEMPTS: Final = "treadle.fanout.attempts"
"""Followed by a dot and an outcome of attempts."""

LINK_TYPE: Final = "treadle.link.type"
"""started_by or retry_of."""

ERROR_TYPE: Final = "error.type"
OTHER_ERROR: Final = "_OTHER"
EXCEPTION: Final = "exception"
EXCEPTION_TYPE: Final = "exception.type"
EXCEPTION_MESSAGE: Final = "exception.message"
EXCEPTION_STACKTRACE: Final = "exception.stacktrace"


def resource_of(namespace: str) -> dict[str, str]:
    """Return the resource, which is constant: with a host or process in it, another replica's export would be another span."""
    return {"service.name": "treadle", "service.namespace": namespace, "host.id": "treadle-history"}
