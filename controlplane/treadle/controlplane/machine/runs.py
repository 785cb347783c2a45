"""The run protocol, but for what its owner says: start, wake, claim, cancel, terminate, accept, close.

A run is `queued` while a wake is on its way, `open` while a worker owns it, `parked` while nobody needs to, `waiting`
while nobody has its name, `needs attention` until a person or fitting code comes, and `closed` once, with one outcome.
"""

from __future__ import annotations

from treadle.protocol.errors import NotFound, RequestError, RunClosed, Unavailable
from treadle.protocol.tags import code_name, split_name
from treadle.v1.common_pb2 import ON_CANCEL_ABANDON, FailureHandler
from treadle.v1.history_pb2 import (
    CancelRequested,
    HistoryEvent,
    RunAccepted,
    RunHalted,
    RunOpened,
    RunParked,
    RunReleased,
    RunStarted,
    RunTerminated,
    RunWaiting,
)
from treadle.v1.job_pb2 import JOB_KIND_RUN
from treadle.v1.state_pb2 import (
    COMMAND_STATE_CHILD,
    COMMAND_STATE_EVENT,
    COMMAND_STATE_HELD,
    RUN_OUTCOME_FAILED,
    RUN_OUTCOME_TERMINATED,
    RUN_STATE_CLOSED,
    RUN_STATE_NEEDS_ATTENTION,
    RUN_STATE_OPEN,
    RUN_STATE_PARKED,
    RUN_STATE_QUEUED,
    RUN_STATE_WAITING,
    Holder,
    RunHead,
    RunOutcome,
    RunState,
)
from treadle.v1.worker_service_pb2 import (
    VERDICT_GO,
    VERDICT_HELD,
    VERDICT_STALE,
    VERDICT_UNKNOWN,
    VERDICT_WAITING,
    ClaimVerdict,
    Grant,
    RunGrant,
    Verdict,
)

from . import children, event_waits, marks, policies
from .env import Credit
from .indexes import run_waits
from .requests import AcceptRun, CancelRun, Claimed, PushedGrant, RunReply, StartRun, StopRun, TerminateRun
from .view import RunView

__all__ = (
    "accept",
    "begin",
    "cancel",
    "claim_run",
    "close",
    "delete",
    "halt",
    "note_request",
    "park",
    "refuse",
    "release",
    "start",
    "stop",
    "sweep",
    "terminate",
    "vacate",
    "wake",
)

_ERROR_TYPE = 200
_REQUEST_IDS = 16
"""`request_id`s kept on a run's head."""


def note_request(view: RunView, request_id: str) -> None:
    """Note a mutating call, so that it is applied once. The first is the start: it stays, however many follow."""
    ids = view.head.request_ids
    ids.append(request_id)
    if len(ids) > _REQUEST_IDS:
        del ids[1]


def start(view: RunView, request: StartRun) -> RunReply | RequestError:
    """Start a run under an id; what happens when it is taken is the caller's policy."""
    if not view.exists and view.loaded.tombstone is not None:
        left = RunHead.FromString(view.loaded.tombstone)
        if request.request_id in left.request_ids:
            return RunReply(left, started=True)
    if view.exists:
        if request.request_id == view.head.request_ids[0]:
            return RunReply(view.head, started=True)
        if request.request_id in view.head.request_ids:
            return RunClosed(
                f"the run that this request started as {view.run.run_id!r} has closed, and the id was used again",
                reason="RUN_REPLACED",
                remedy="give each start an id of its own",
            )
        refusal = policies.conflict(view, request) or policies.unswept(view)
        if refusal is not None:
            return refusal
    begin(view, request)
    return RunReply(view.head, started=True)


def begin(view: RunView, request: StartRun) -> None:
    """Make the run, in the place of the one that has the id, and ask for an owner."""
    _create(view, request)
    wake(view)


def _create(view: RunView, request: StartRun) -> None:
    view.restart = view.exists
    earlier = view.head.request_ids
    workflow, version = split_name(request.workflow)
    view.head = RunHead(
        namespace=view.run.namespace,
        run_id=view.run.run_id,
        incarnation=view.env.bits64(),
        workflow=workflow,
        version=version,
        tags=request.tags,
        pool=request.pool,
        created_ms=view.now,
        caller=request.caller,
        sampled=request.sampled,
        request_ids=[request.request_id, *[*earlier[1:], *earlier[:1]][1 - _REQUEST_IDS :]],
        state=RUN_STATE_QUEUED,
        parent=request.parent,
        timeout_ms=request.timeout_ms,
        deadline_ms=view.now + request.timeout_ms if request.timeout_ms else 0,
        timeout_known=request.timeout_ms > 0,
        timeout_given=request.timeout_ms > 0,
    )
    view.event(
        run_started=RunStarted(
            workflow=workflow,
            version=version,
            tags=request.tags,
            pool=request.pool,
            input=request.input,
            trigger=request.trigger,
            caller=request.caller,
            sampled=request.sampled,
            timeout_ms=request.timeout_ms,
            parent=children.run_in(request.parent),
            occurrence=request.occurrence,
            retry_of=request.retry_of,
            event=request.event,
            failed_run=request.failed_run,
        )
    )


def wake(view: RunView) -> None:
    """Ask for an owner: give the run to a credit of this replica (of the worker with the coroutine first), or to its queue."""
    head = view.head
    head.state = RUN_STATE_QUEUED
    head.ClearField("owner")
    head.queued_ms = view.now
    head.watch_step_ms = view.env.settings.watch_ms
    head.watch_due_ms = view.now + head.watch_step_ms
    view.dirty = True
    job = view.run_job()
    credit = view.env.offer(head.namespace, head.pool, JOB_KIND_RUN, job.name, head.cached_by)
    head.wake_dispatch_id = job.dispatch_id
    if credit is None:
        view.publish(job)
        return
    cached = bool(head.cached_by) and credit.worker_id == head.cached_by
    after = head.seen if cached else 0
    grant = _open(view, credit.worker_id, credit.credit_id, credit.sent_ms, view.env.replica_id, credit.handler)
    grant.job.CopyFrom(job)
    _push(view, credit, grant, after)


def _push(view: RunView, credit: Credit, grant: Grant, after: int) -> None:
    """Give the new owner the history where it is at hand; the engine sends the rest as news."""
    head, events = view.head, view.events
    first_new = head.length - len(events) + 1
    parked = view.parked_event()
    if parked is not None and after and first_new == after + 2:
        events, first_new = [parked, *events], first_new - 1  # so that nothing needs to be read
    grant.run.CopyFrom(_run_grant(view, from_start=after == 0))
    if first_new == after + 1:
        grant.run.events.extend(events)
    view.decision.grants.append(PushedGrant(credit, grant, after))


def _run_grant(view: RunView, *, from_start: bool) -> RunGrant:
    head = view.head
    return RunGrant(
        length=head.length,
        accepted_until=head.accepted_until,
        from_start=from_start,
        retried_at=head.retried_at,
        before=marks.before(head),
    )


def _open(
    view: RunView, worker_id: str, claim_id: int, sent_ms: int, replica_id: str, handler: FailureHandler | None
) -> Grant:
    """Make a worker the owner: GO and the lease in one commit, and what handles the failures of its code."""
    head, settings = view.head, view.env.settings
    if head.state == RUN_STATE_WAITING:
        view.name_found(head.pool, code_name(head.workflow, head.version), "")
    view.moves = view.moves or run_waits(head)
    head.state = RUN_STATE_OPEN
    head.alone = head.losses >= settings.alone_from
    head.owner.CopyFrom(
        Holder(
            worker_id=worker_id,
            token=view.env.token(),
            claim_id=claim_id,
            sent_ms=sent_ms,
            lease_set_ms=view.now,
            lease_due_ms=view.now + settings.lease_ms,
            lease_step_ms=settings.lease_ms,
            replica_id=replica_id,
        )
    )
    marks.opened(head)
    if handler is not None:
        head.on_failure.CopyFrom(handler)
    else:
        head.ClearField("on_failure")
    head.owner_seq = head.seen = 0  # of this owner
    head.watch_due_ms = 0
    head.cached_by = ""
    head.retry_step_ms = 0
    view.event(run_opened=RunOpened(worker_id=worker_id, alone=head.alone))
    return _grant(view)


def _grant(view: RunView) -> Grant:
    owner = view.head.owner
    return Grant(token=owner.token, claim_id=owner.claim_id, sent_ms=owner.sent_ms, alone=view.head.alone)


def claim_run(view: RunView, request: Claimed) -> ClaimVerdict:
    """Answer a claim of a run job, by the first line of the table that fits."""
    item, head = request.item, view.head
    if not view.exists:
        unknown = VERDICT_UNKNOWN if view.loaded.tombstone is None else VERDICT_STALE
        return ClaimVerdict(claim_id=item.claim_id, verdict=unknown)
    if view.over or item.job.incarnation != head.incarnation:
        return ClaimVerdict(claim_id=item.claim_id, verdict=VERDICT_STALE)
    if item.unregistered:
        return ClaimVerdict(claim_id=item.claim_id, verdict=_wait(view))
    if head.state in (RUN_STATE_QUEUED, RUN_STATE_WAITING):
        view.decision.claimed.append((head.pool, JOB_KIND_RUN, head.queued_ms))
        grant = _open(view, request.worker_id, item.claim_id, item.sent_ms, request.replica_id, request.handler)
    elif head.state != RUN_STATE_OPEN:
        return ClaimVerdict(claim_id=item.claim_id, verdict=VERDICT_STALE)
    elif (head.owner.worker_id, head.owner.claim_id) != (request.worker_id, item.claim_id):
        return ClaimVerdict(claim_id=item.claim_id, verdict=VERDICT_HELD)
    else:
        head.owner.lease_set_ms = view.now  # anew, so that a check under way fails
        head.owner.sent_ms = max(head.owner.sent_ms, item.sent_ms)
        head.owner.replica_id = request.replica_id
        view.dirty = True
        grant = _grant(view)
    fits = _cache_fits(view, request)
    grant.run.CopyFrom(_run_grant(view, from_start=not fits))
    if fits or not item.after_position:
        grant.run.events.extend(_known(view, item.after_position if fits else 0))
    return ClaimVerdict(claim_id=item.claim_id, verdict=VERDICT_GO, grant=grant)


def _cache_fits(view: RunView, request: Claimed) -> bool:
    item = request.item
    if not item.after_position or item.after_position < view.head.retried_at or view.loaded.event is None:
        return False
    return HistoryEvent.FromString(view.loaded.event).revision == item.after_revision


def _known(view: RunView, after: int) -> list[HistoryEvent]:
    """Return the events behind `after` that are at hand without a gap: the loaded page, then what was appended."""
    events = [HistoryEvent.FromString(data) for data in view.loaded.events] if not view.restart else []
    events = [event for event in events if event.position > after]
    last = events[-1].position if events else after
    events += [event for event in view.events if event.position > last]
    return events if not events or events[-1].position - after == len(events) else events[: _unbroken(events)]


def _unbroken(events: list[HistoryEvent]) -> int:
    first = events[0].position
    return next((i for i, event in enumerate(events) if event.position != first + i), len(events))


def _wait(view: RunView) -> Verdict.ValueType:
    head, settings = view.head, view.env.settings
    if head.state == RUN_STATE_OPEN:
        return VERDICT_HELD
    if head.state != RUN_STATE_QUEUED:
        return VERDICT_STALE
    head.state = RUN_STATE_WAITING
    step = min(head.retry_step_ms * 2, settings.waiting_cap_ms) if head.retry_step_ms else settings.waiting_ms
    if not head.retry_step_ms:
        view.event(run_waiting=RunWaiting(workflow=code_name(head.workflow, head.version)))
    head.retry_step_ms = step
    head.retry_due_ms = view.now + step
    view.wait_for_name(head.pool, code_name(head.workflow, head.version), "")
    view.dirty = True
    return VERDICT_WAITING


def release(view: RunView, reason: str) -> None:
    """The owner gives the run back unfinished: another one is asked for. Counts nothing."""
    view.event(run_released=RunReleased(reason=reason))
    wake(view)


def park(view: RunView, *, cached: bool) -> None:
    """The owner has nothing to do: nobody needs to hold the run until there is news."""
    head = view.head
    worker_id = head.owner.worker_id
    _disown(view)
    head.cached_by = worker_id if cached else ""
    view.event(run_parked=RunParked(cached=cached))


def _disown(view: RunView) -> None:
    head = view.head
    head.ClearField("owner")
    head.watch_due_ms = 0
    head.alone = False
    head.state = RUN_STATE_PARKED
    view.dirty = True


def halt(view: RunView, reason: str) -> None:
    """Stop the run for a person to look at."""
    _disown(view)
    head = view.head
    head.state = RUN_STATE_NEEDS_ATTENTION
    head.watch_due_ms = view.now + view.env.settings.look_ms
    head.attention = reason
    view.event(run_halted=RunHalted(reason=reason))


def cancel(view: RunView, request: CancelRun) -> RunReply | RequestError:
    """Record that the run should stop; its code sees it at this position."""
    if view.exists and request.request_id in view.head.request_ids:
        return RunReply(view.head)
    refusal = refuse(view)
    if refusal is not None:
        return refusal
    note_request(view, request.request_id)
    view.dirty = True
    if not view.head.cancel_requested:
        view.head.cancel_requested = True
        view.head.cancel_reason = request.reason
        view.event(cancel_requested=CancelRequested(reason=request.reason))
    return RunReply(view.head)


def terminate(view: RunView, request: TerminateRun) -> RunReply | RequestError:
    """End the run without asking its code."""
    if view.exists and request.request_id in view.head.request_ids:
        return RunReply(view.head)
    refusal = refuse(view)
    if refusal is not None:
        return refusal
    note_request(view, request.request_id)
    view.event(run_terminated=RunTerminated(reason=request.reason))
    close(view, RUN_OUTCOME_TERMINATED)
    return RunReply(view.head)


def stop(view: RunView, request: StopRun) -> RunReply | RequestError:
    """The parent stops its child. One that was not started yet, or not for this call, may still be: the letter comes again."""
    of = request.parent
    if not view.exists:
        left = RunHead.FromString(view.loaded.tombstone).parent if view.loaded.tombstone is not None else None
        if left is None or not children.is_same_call(left, of) or left.retry < of.retry:
            return refuse(view) or RunReply(view.head)
        return RunReply(view.head)
    if children.is_same_call(view.head.parent, of) and view.head.parent.retry < of.retry:
        return Unavailable(f"run {view.run.run_id!r} was not asked for again yet", remedy="the letter comes again")
    if view.closed or not children.is_child_of(view, of):
        return RunReply(view.head)
    if request.terminate:
        return terminate(view, TerminateRun(request.request_id, request.reason))
    return cancel(view, CancelRun(request.request_id, request.reason))


def accept(view: RunView, request: AcceptRun) -> RunReply | RequestError:
    """Let a run that needs attention go on: what its code does not ask for any more is left behind."""
    if view.exists and request.request_id in view.head.request_ids:
        return RunReply(view.head)
    refusal = refuse(view)
    if refusal is not None:
        return refusal
    head = view.head
    if head.state != RUN_STATE_NEEDS_ATTENTION:
        return RunClosed(
            f"run {view.run.run_id!r} does not need attention",
            reason="NOT_STOPPED",
            remedy="nothing to accept",
        )
    note_request(view, request.request_id)
    head.accepted_until = head.length
    head.attention = ""
    head.losses = 0
    view.event(run_accepted=RunAccepted(reason=request.reason, until=head.accepted_until))
    wake(view)
    return RunReply(head)


def refuse(view: RunView) -> RequestError | None:
    """Return why nothing can be asked of the run: it is not there, or closed."""
    run_id = view.run.run_id
    if not view.exists:
        return NotFound(
            f"no run {run_id!r} in namespace {view.run.namespace!r}",
            remedy="check the id and the namespace; closed runs are deleted after their retention",
        )
    if view.closed:
        return RunClosed(f"run {run_id!r} is closed already", remedy="start it again under the same or another id")
    if view.over:
        return Unavailable(
            f"run {run_id!r} is about to go on with a new history", reason="RUN_CONTINUES", remedy="ask again"
        )
    return None


def close(view: RunView, outcome: RunOutcome.ValueType, *, unasked: bool = False) -> None:
    """Give the run its one outcome (its event is written by the caller); what is left of it is swept.

    `unasked`: it was not its owner that closed it, who must be told.
    """
    head = view.head
    holder = head.owner if head.state == RUN_STATE_OPEN else None
    if holder is not None and (unasked or outcome == RUN_OUTCOME_TERMINATED):
        view.decision.owner_gone = (holder.replica_id, holder.worker_id, holder.token)
    if head.state == RUN_STATE_WAITING:
        view.name_found(head.pool, code_name(head.workflow, head.version), "")
    vacate(view, RUN_STATE_CLOSED)
    head.outcome = outcome
    head.attention = head.trouble = head.waiting_for = ""
    head.error_type = view.events[-1].run_failed.failure.type[:_ERROR_TYPE] if outcome == RUN_OUTCOME_FAILED else ""
    head.closed_ms = head.last_time_ms
    head.delete_at_ms = view.now + view.env.settings.retention_ms
    children.closed(view, outcome)


def vacate(view: RunView, state: RunState.ValueType) -> None:
    """The code has ended: nobody owns the run, and the rows that it left are swept."""
    head = view.head
    head.ClearField("owner")
    head.cached_by = head.attention = ""
    head.watch_due_ms = 0
    head.state = state
    head.sweeping = head.open_commands > 0
    del head.started_locals[:]
    view.dirty = True


def sweep(view: RunView) -> None:
    """Remove rows that a close left behind, a page at a time, and tell their holders."""
    view.dirty = True
    if not view.may_sweep:
        return  # in a batch with others; the timer is still due
    head = view.head
    rows = view.all_rows()
    for row in rows:
        if row.state == COMMAND_STATE_HELD and not row.local:
            if row.on_cancel != ON_CANCEL_ABANDON:
                view.cancel_holder(row, "run closed")
        elif row.state == COMMAND_STATE_CHILD:
            children.leave(view, row)
        elif row.state == COMMAND_STATE_EVENT:
            event_waits.leave(view, row)
        view.drop(row)
    if not rows:  # notes, which stay, come last in a page
        head.sweeping = False
        head.open_commands = 0


def delete(view: RunView) -> None:
    """The retention is over: a tombstone stays."""
    view.deleted = True
    view.dirty = True
