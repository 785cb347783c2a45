"""What becomes of a start whose id is taken, as its caller wants it."""

from __future__ import annotations

from typing import Final

from treadle.protocol.errors import RequestError, RunIdConflict, Unavailable
from treadle.v1.run_service_pb2 import (
    CONFLICT_POLICY_ALLOW_CLOSED,
    CONFLICT_POLICY_ALLOW_FAILED,
    CONFLICT_POLICY_TERMINATE_EXISTING,
    CONFLICT_POLICY_USE_EXISTING,
    CONFLICT_POLICY_USE_OPEN,
)
from treadle.v1.state_pb2 import RUN_OUTCOME_COMPLETED, RunOutcome

from .requests import RunReply, StartRun
from .view import RunView

__all__ = ("SWEEPING", "conflict", "unswept")

SWEEPING: Final = "RUN_SWEEPING"
"""Why a run that has just closed can neither go on nor make room for a moment: what it left behind is not cleared away."""

_REPLACE_CLOSED: Final = (CONFLICT_POLICY_ALLOW_CLOSED, CONFLICT_POLICY_TERMINATE_EXISTING, CONFLICT_POLICY_USE_OPEN)


def conflict(view: RunView, request: StartRun) -> RunReply | RequestError | None:
    """Return the answer when the id is taken and stays so; None when it is free for a new start."""
    policy = request.policy
    if policy == CONFLICT_POLICY_USE_EXISTING or (policy == CONFLICT_POLICY_USE_OPEN and not view.closed):
        return RunReply(view.head)
    if view.closed and policy in _REPLACE_CLOSED:
        return None
    if view.closed and policy == CONFLICT_POLICY_ALLOW_FAILED and view.head.outcome != RUN_OUTCOME_COMPLETED:
        return None
    if policy == CONFLICT_POLICY_TERMINATE_EXISTING:
        return RunIdConflict(
            f"run {view.run.run_id!r} is open and must be terminated first",
            reason="RUN_OPEN",
            remedy="the control plane terminates it and starts again by itself",
        )
    return RunIdConflict(
        f"run {view.run.run_id!r} exists already ({_stands(view)}, workflow {view.head.workflow!r})",
        remedy="give another id, or a conflict policy: use_existing, use_open, allow_closed, allow_failed, "
        "terminate_existing",
    )


def unswept(view: RunView) -> Unavailable | None:
    """Return why the id is not free yet though its run has closed: its children and waits do not know of it."""
    if not view.head.sweeping:
        return None
    return Unavailable(f"run {view.run.run_id!r} has only just closed", reason=SWEEPING, remedy="ask again in a moment")


def _stands(view: RunView) -> str:
    return RunOutcome.Name(view.head.outcome).removeprefix("RUN_OUTCOME_").lower() if view.closed else "open"
