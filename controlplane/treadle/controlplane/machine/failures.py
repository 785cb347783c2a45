"""A run fails: what its outcome tells of why, and the run that handles the failure.

The hook is a run of its own, under an id that is derived from the run and from how often it was continued. Its start is a
letter in the commit that closes the run, so there is one hook for each failure, whatever dies.
"""

from __future__ import annotations

from treadle.protocol.ids import hook_id, retried_path
from treadle.protocol.tags import code_name
from treadle.v1.common_pb2 import FailedRunInfo, Failure, Payload
from treadle.v1.history_pb2 import RunCancelled, RunFailed
from treadle.v1.state_pb2 import RUN_OUTCOME_CANCELLED, RUN_OUTCOME_FAILED, StartChild
from treadle.v1.worker_service_pb2 import FailureHook, OwnerRequest

from . import runs
from .view import RunView

__all__ = ("HOOK_TRIGGER", "cancelled", "closed_unasked", "failed", "start_hook", "undone")

_INPUT_BYTES = 512 << 10
"""As in workers (`treadle.worker.hooks`)."""

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
    undone(view, said.undone)
    runs.close(view, RUN_OUTCOME_FAILED)


def undone(view: RunView, all_of_it: bool) -> None:
    """Note with the outcome whether sagas undid what had been done; what was begun and is not through goes on in a retry."""
    head = view.head
    head.undone, head.undoing = all_of_it, head.undoing and not all_of_it


def start_hook(view: RunView, hook: FailureHook) -> str:
    """Start what handles the failure that this commit records; returns its run id."""
    return _start(view, hook.workflow, hook.pool, hook.input, None)


def _start(view: RunView, workflow: str, pool: str, given: Payload | None, info: FailedRunInfo | None) -> str:
    head = view.head
    run_id = hook_id(head.namespace, head.run_id, head.incarnation, head.retries)
    start = StartChild(
        workflow=workflow,
        pool=pool,
        input=given,
        failed_run=info,
        caller=view.trace(retried_path("run", head.retries)),
        sampled=head.sampled,
        trigger=HOOK_TRIGGER,
    )
    view.post(run_id, start_child=start)
    return run_id


def closed_unasked(view: RunView, failure: Failure) -> None:
    """The control plane closes the run as failed, whether there is code of it or not.

    What handles that is told what the control plane knows. It does not read values: the run's input goes along as it came,
    and the worker of the handler opens it for the run that it was sent to.
    """
    event = RunFailed(failure=failure)
    if view.head.HasField("on_failure"):
        event.hook_run_id = _start_handler(view, failure)
    view.event(run_failed=event)
    runs.close(view, RUN_OUTCOME_FAILED, unasked=True)


def _start_handler(view: RunView, failure: Failure) -> str:
    head, started = view.head, view.first_event().run_started
    info = FailedRunInfo(run_id=head.run_id, workflow=code_name(head.workflow, head.version), failure=failure)
    info.schedule_id = "" if started.retry_of else started.occurrence.schedule_id
    given = started.input
    size = given.blob.size if given.HasField("blob") else len(given.data)
    info.input_omitted = size > _INPUT_BYTES or started.HasField("failed_run")
    return _start(view, head.on_failure.workflow, head.on_failure.pool, None if info.input_omitted else given, info)


def cancelled(view: RunView, ask: OwnerRequest) -> None:
    """The code ended with the cancellation that was asked for."""
    head = view.head
    said = ask.cancelled
    view.event(run_cancelled=RunCancelled(reason=head.cancel_reason, unread=ask.unread, undone=said.undone))
    undone(view, said.undone)
    runs.close(view, RUN_OUTCOME_CANCELLED)
