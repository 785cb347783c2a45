"""A run that goes on as new: the same id, a new incarnation and history, so that neither grows without end.

Two commits. The first ends the history and keeps what the next part begins with. Rows that the code left behind are swept
as after a close, because a new incarnation knows nothing of them. The last one drops the history and starts the next part.
In between, which takes milliseconds, whoever asks anything of the run is told to ask again.
"""

from __future__ import annotations

from treadle.v1.common_pb2 import Failure
from treadle.v1.history_pb2 import CancelRequested, RunContinued, RunFailed, RunStarted, RunTimedOut
from treadle.v1.state_pb2 import RUN_OUTCOME_FAILED, RUN_STATE_CONTINUING, RUN_STATE_QUEUED, RunHead
from treadle.v1.worker_service_pb2 import ContinueRun

from . import children, runs, signals
from .view import RunView

__all__ = ("ask", "go_on")

_KNOWN = 1_000


def ask(view: RunView, said: ContinueRun) -> None:
    """The code ended to go on as new."""
    if said.left_out:
        failure = Failure(
            type="TooManyUnread",
            message=f"the run cannot go on as new: {len(said.carried) + said.left_out} signals were not received, and "
            f"{len(said.carried)} of them fit into the next part; receive them before continue_as_new",
            final=True,
        )
        view.event(run_failed=RunFailed(failure=failure, unread=[letter.signal_id for letter in said.carried]))
        runs.close(view, RUN_OUTCOME_FAILED)
        return
    view.event(run_continued=RunContinued(input=said.input, carried=len(said.carried)))
    view.head.continuation = said.SerializeToString()
    runs.vacate(view, RUN_STATE_CONTINUING)


def go_on(view: RunView) -> None:
    """Sweep; then start the next part."""
    if view.head.sweeping:
        runs.sweep(view)
    if view.may_sweep and not view.head.sweeping:  # in a batch with others: the timer is still due
        _next_part(view)


def _next_part(view: RunView) -> None:
    old, caller = view.head, view.anchor()
    said = ContinueRun.FromString(old.continuation)
    view.restart = True
    view.keep = [signals.STATE_FIELD]
    for signal_id in said.known:
        view.keep += (signals.seen_field(signal_id), signals.answer_field(signal_id))
    view.head = RunHead(
        namespace=old.namespace,
        run_id=old.run_id,
        incarnation=view.env.bits64(),
        state=RUN_STATE_QUEUED,
        workflow=old.workflow,
        version=old.version,
        tags=old.tags,
        pool=old.pool,
        created_ms=view.now,
        request_ids=old.request_ids,
        caller=caller,
        sampled=old.sampled,
        parent=old.parent if old.HasField("parent") else None,
        first_incarnation=old.first_incarnation or old.incarnation,
        part=max(old.part, 1) + 1,
        timeout_known=old.timeout_known,
        timeout_given=old.timeout_given,
        timeout_ms=old.timeout_ms,
        deadline_ms=old.deadline_ms,
        timed_out=old.timed_out,
        close_at_ms=old.close_at_ms,
        on_failure=old.on_failure if old.HasField("on_failure") else None,
        cancel_requested=said.unheard and old.cancel_requested,
        cancel_reason=old.cancel_reason if said.unheard else "",
    )
    view.event(
        run_started=RunStarted(
            workflow=old.workflow,
            version=old.version,
            tags=old.tags,
            pool=old.pool,
            input=said.input,
            trigger="continued",
            caller=caller,
            sampled=old.sampled,
            parent=children.run_in(old.parent if old.HasField("parent") else None),
            continued_from=old.incarnation,
            part=view.head.part,
            known_signals=_still_known(said),
            given=said.given if said.HasField("given") else None,
        )
    )
    if said.unheard:
        _interrupt(view)
    for letter in said.carried:
        view.event(signal_received=letter)
    runs.wake(view)


def _interrupt(view: RunView) -> None:
    """The part before had ended when it was to be interrupted: what was acknowledged then is raised in this one."""
    head = view.head
    if head.cancel_requested:
        view.event(cancel_requested=CancelRequested(reason=head.cancel_reason))
    elif head.timed_out:
        told = RunTimedOut(timeout_ms=head.timeout_ms, close_at_ms=head.close_at_ms, raised=True)
        view.event(run_timed_out=told)


def _still_known(said: ContinueRun) -> list[str]:
    """The next part tells its own next part what it was told here: a repetition may come later than one part lasts."""
    carried = {letter.signal_id for letter in said.carried}
    return [signal_id for signal_id in said.known if signal_id not in carried][-_KNOWN:]
