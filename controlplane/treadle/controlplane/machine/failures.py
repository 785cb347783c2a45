"""A run fails: what its outcome tells of why, and the run that handles the failure.

The hook is a run of its own, under an id that is derived from the run and from how often it was continued. Its start is a
letter in the commit that closes the run, so there is one hook for each failure, whatever dies.
"""

from __future__ import annotations

from treadle.protocol.ids import hook_id, retried_path
from treadle.v1.history_pb2 import RunCancelled, RunFailed
from treadle.v1.state_pb2 import RUN_OUTCOME_CANCELLED, RUN_OUTCOME_FAILED, StartChild
from treadle.v1.worker_service_pb2 import FailureHook, OwnerRequest

from . import runs
from .view import RunView

__all__ = ("HOOK_TRIGGER", "cancelled", "failed", "start_hook")

HOOK_TRIGGER = "on_failure"
"""What a hook's history says started it."""


def failed(view: RunView, ask: OwnerRequest) -> None:
    """The code raised."""
    said = ask.fail
    event = RunFailed(
        failure=said.failure,
        unread=ask.unread,
        because=said.because,
        because_all=said.because_all,
        undone=said.undone,
    )
    if said.HasField("hook"):
        event.hook_run_id = start_hook(view, said.hook)
    view.event(run_failed=event)
    view.head.undone = said.undone
    runs.close(view, RUN_OUTCOME_FAILED)


def start_hook(view: RunView, hook: FailureHook) -> str:
    """Start what handles the failure that this commit records; returns its run id."""
    head = view.head
    run_id = hook_id(head.namespace, head.run_id, head.incarnation, head.retries)
    start = StartChild(
        workflow=hook.workflow,
        pool=hook.pool,
        input=hook.input,
        caller=view.trace(retried_path("run", head.retries)),
        sampled=head.sampled,
        trigger=HOOK_TRIGGER,
    )
    view.post(run_id, start_child=start)
    return run_id


def cancelled(view: RunView, ask: OwnerRequest) -> None:
    """The code ended with the cancellation that was asked for."""
    head = view.head
    undone = ask.cancelled.undone
    view.event(run_cancelled=RunCancelled(reason=head.cancel_reason, unread=ask.unread, undone=undone))
    head.undone = undone
    runs.close(view, RUN_OUTCOME_CANCELLED)
