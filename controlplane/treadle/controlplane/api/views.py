"""What clients see of a run, made from its head and its last event. Pure."""

from __future__ import annotations

from typing import Final

from treadle.controlplane.api.fleet import PoolFleet
from treadle.controlplane.machine.indexes import status_of, troubles_of
from treadle.protocol.ids import trace_id
from treadle.protocol.tags import code_name
from treadle.v1.common_pb2 import Failure
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.run_service_pb2 import Run, RunStatus
from treadle.v1.state_pb2 import (
    RUN_STATE_CLOSED,
    RUN_STATE_NEEDS_ATTENTION,
    RUN_STATE_QUEUED,
    RUN_STATE_WAITING,
    RunHead,
)

__all__ = ("QUEUED_LONG_MS", "brief", "reason_of", "run_view", "show", "status_name")

QUEUED_LONG_MS: Final = 5_000
"""From then on a queued run says why, although its pool has live workers."""

_MESSAGE_LIMIT: Final = 300


def status_name(status: RunStatus.ValueType) -> str:
    """Return the short name, as index names have it: "running", "needs_attention"."""
    return RunStatus.Name(status).removeprefix("RUN_STATUS_").lower()


def run_view(head: RunHead, last: HistoryEvent | None = None, fleet: PoolFleet | None = None, now_ms: int = 0) -> Run:
    """Return the run as clients see it.

    Args:
        head: Its head.
        last: The last event of a closed run, which is its outcome; None leaves result and failure out.
        fleet: The run's pool, for the reason of waiting; None leaves out what is known only from there.
        now_ms: The store's clock.
    """
    run = Run()
    show(run, head, last, fleet, now_ms)
    return run


def show(
    run: Run, head: RunHead, last: HistoryEvent | None = None, fleet: PoolFleet | None = None, now_ms: int = 0
) -> None:
    """Write the run, as clients see it, into an empty message. See run_view."""
    run.namespace = head.namespace
    run.run_id = head.run_id
    run.incarnation = head.incarnation
    run.first_incarnation = head.first_incarnation
    run.part = head.part
    run.workflow = head.workflow
    run.version = head.version
    run.tags.extend(head.tags)
    run.pool = head.pool
    run.status = status_of(head)
    run.state = head.state
    run.created_ms = head.created_ms
    run.closed_ms = head.closed_ms
    run.length = head.length
    run.reason = reason_of(head, fleet, now_ms)
    run.retrying = head.retrying
    run.retries = head.retries
    run.error_type = head.error_type
    run.troubles.extend(troubles_of(head))
    run.open_commands = head.open_commands
    run.cancel_requested = head.cancel_requested
    if head.deadline_ms:
        run.deadline_ms = head.deadline_ms
        run.timed_out = head.close_at_ms > 0
    run.trace_id = trace_id(head.namespace, head.run_id, head.incarnation)
    kind = last.WhichOneof("kind") if last is not None else None
    if last is not None and kind == "run_completed":
        run.result.CopyFrom(last.run_completed.result)
    elif last is not None and kind == "run_failed":
        run.failure.CopyFrom(last.run_failed.failure)
    elif last is not None and kind == "run_cancelled":
        run.reason = last.run_cancelled.reason
    elif last is not None and kind == "run_terminated":
        run.reason = last.run_terminated.reason


def reason_of(head: RunHead, fleet: PoolFleet | None, now_ms: int) -> str:
    """Return why the run does not move, with what to do; "" when it does."""
    if head.state == RUN_STATE_NEEDS_ATTENTION:
        return head.attention
    if head.state not in (RUN_STATE_WAITING, RUN_STATE_QUEUED) or fleet is None:
        return _trouble(head)
    first = f"waiting for version {head.version}: " if head.version else ""
    if fleet.workers == 0:
        return f"{first}no live worker in pool {head.pool!r}: start one with `treadle worker APP --pool {head.pool}`"
    if head.state == RUN_STATE_WAITING:
        code = code_name(head.workflow, head.version)
        if code in fleet.workflows:
            return f"{first}a worker of pool {head.pool!r} with workflow {code!r} has come: starts within 30 s"
        return f"{first}no live worker in pool {head.pool!r} has the workflow {code!r}: deploy one that has it"
    waited_ms = now_ms - head.queued_ms
    if head.queued_ms and waited_ms >= QUEUED_LONG_MS:
        used = f"{fleet.runs_open} of {fleet.run_slots} run slots in use"
        return f"queued for {waited_ms // 1000} s in pool {head.pool!r}: {used} on {fleet.workers} worker(s)"
    return _trouble(head)


def _trouble(head: RunHead) -> str:
    """Why a step of an open run does not move."""
    if head.state == RUN_STATE_CLOSED:
        return ""
    if head.quarantined:
        return f"{head.quarantined} step(s) killed too many workers: see `treadle run show {head.run_id}`"
    if head.waiting_steps:
        return head.waiting_for
    return head.trouble if head.retrying else ""


def brief(run: Run) -> Run:
    """Cut the run down to what a list shows: no result, of a failure only type and beginning of the message."""
    run.ClearField("result")
    if run.HasField("failure"):
        full = run.failure
        short = Failure(
            kind=full.kind,
            type=full.type,
            message=full.message[:_MESSAGE_LIMIT],
            final=full.final,
            attempts=full.attempts,
        )
        run.failure.CopyFrom(short)
    return run
