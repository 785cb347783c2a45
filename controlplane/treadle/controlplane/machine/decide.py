"""The one entrance: a batch of requests to one run, and what was loaded of it, become one decision."""

from __future__ import annotations

from collections.abc import Sequence

from treadle.controlplane.store.port import Loaded, Want
from treadle.protocol.ids import RunKey
from treadle.v1.job_pb2 import JOB_KIND_RUN
from treadle.v1.state_pb2 import RUN_STATE_OPEN, RUN_STATE_PARKED, RunHead
from treadle.v1.worker_service_pb2 import (
    ANSWER_UNKNOWN,
    VERDICT_UNKNOWN,
    ClaimVerdict,
    OwnerAnswer,
    ReportAnswer,
)

from . import (
    attempts,
    children,
    deferral,
    events,
    leases,
    owners,
    progress,
    quarantine,
    redrive,
    runs,
    schedule_runs,
    schedules,
    signals,
    timers,
)
from .env import Env
from .event_requests import AcceptEvent, EventRequest
from .requests import (
    AcceptRun,
    Asked,
    CancelRun,
    CheckLease,
    ChildEnded,
    Claimed,
    Decision,
    FireTimer,
    Progressed,
    Registered,
    ReleaseSteps,
    Reply,
    Reported,
    Request,
    RetryRun,
    RunReply,
    SettleStep,
    SignalRun,
    StartRun,
    StopRun,
    TerminateRun,
)
from .view import RunView

__all__ = ("decide", "want")


def want(run: RunKey, requests: Sequence[Request]) -> Want:
    """Return what must be loaded to decide these requests."""
    need = Want(run, new=isinstance(requests[0], StartRun | AcceptEvent))
    fields: dict[str, None] = {}
    for request in requests:
        if isinstance(request, Claimed):
            job = request.item.job
            if job.kind == JOB_KIND_RUN:
                after = request.item.after_position
                need.event_at = max(need.event_at, after)
                need.events_after = after if need.events_after is None else min(need.events_after, after)
                continue
            fields[f"c:{job.command_id}"] = None
            if job.input_omitted:
                fields[f"i:{job.command_id}"] = None
        elif isinstance(request, Reported):
            fields[f"c:{request.report.command_id}"] = fields[f"i:{request.report.command_id}"] = None
        elif isinstance(request, Asked):
            ask = request.request
            need.event_at = max(need.event_at, ask.told)
            need.events_after = ask.seen if need.events_after is None else min(need.events_after, ask.seen)
            for command in ask.commands:
                fields[f"c:{command.command_id}"] = None
            for checkpoint in ask.checkpoints:
                fields[f"c:{checkpoint.command_id}"] = None
        elif (isinstance(request, FireTimer) and request.closes) or (
            isinstance(request, RetryRun) and request.input is not None
        ):
            need.event_at = max(need.event_at, 1)
        elif isinstance(request, FireTimer | CheckLease | Registered) and request.command_id:
            fields[f"c:{request.command_id}"] = fields[f"i:{request.command_id}"] = None
        elif isinstance(request, Progressed):
            fields[f"c:{request.progress.command_id}"] = None
        elif isinstance(request, ReleaseSteps):
            fields |= dict.fromkeys(f"{kind}:{c}" for c in request.command_ids for kind in "ci")
        elif isinstance(request, SignalRun):
            fields[signals.seen_field(request.signal_id)] = None
        elif isinstance(request, SettleStep):
            fields.update(dict.fromkeys(deferral.fields(request.token)))
        elif isinstance(request, ChildEnded):
            fields[f"c:{request.letter.parent.command_id}"] = None
        elif isinstance(request, EventRequest):
            fields.update(dict.fromkeys(events.fields(request)))
    if run.run_id.startswith(schedules.PREFIX):
        fields[schedule_runs.INPUT_FIELD] = None
    need.fields = list(fields)
    need.all_fields = _may_sweep(requests)
    return need


def _may_sweep(requests: Sequence[Request]) -> bool:
    """Whether rows may be swept: all that fit into a page are loaded then, so that named ones may be missing."""
    return isinstance(requests[0], FireTimer) and all(
        isinstance(request, FireTimer) and not request.command_id for request in requests
    )


def decide(run: RunKey, loaded: Loaded, requests: Sequence[Request], env: Env) -> Decision:
    """Decide a batch. Pure: the same arguments give the same decision.

    Args:
        run: The run.
        loaded: What `want(run, requests)` asked for, read at one instant.
        requests: In the order in which they came.
        env: Time, chance, credits and settings.
    """
    view = RunView(run, loaded, env)
    view.may_sweep = _may_sweep(requests)
    decision = view.decision
    one = schedules.answer if run.run_id.startswith(schedules.PREFIX) else _one
    for index, request in enumerate(requests):
        reply = one(view, request)
        decision.replies.append(reply)
        if _is_unknown(reply):
            decision.unknown.append(index)
    _afterwards(view)
    decision.change = view.change()
    decision.head = view.head if view.exists else None
    for i, reply in enumerate(decision.replies):
        if isinstance(reply, RunReply):  # the head went on after the reply was made
            head = RunHead()
            head.CopyFrom(reply.head)
            decision.replies[i] = RunReply(head, reply.started)
    return decision


def _one(view: RunView, request: Request) -> Reply:
    match request:
        case Asked():
            return owners.asked(view, request)
        case Claimed():
            if request.item.job.kind == JOB_KIND_RUN:
                return runs.claim_run(view, request)
            return attempts.claim_step(view, request)
        case Reported():
            return attempts.report(view, request)
        case Progressed():
            return progress.said(view, request)
        case StartRun():
            if request.parent is not None and request.parent.retry:
                return redrive.start_child_again(view, request)
            return runs.start(view, request)
        case FireTimer():
            timers.fire(view, request)
        case CheckLease():
            leases.check(view, request)
        case Registered():
            timers.registered(view, request)
        case CancelRun():
            return runs.cancel(view, request)
        case TerminateRun():
            return runs.terminate(view, request)
        case AcceptRun():
            return runs.accept(view, request)
        case RetryRun():
            return redrive.retry(view, request)
        case ReleaseSteps():
            return quarantine.release(view, request)
        case SignalRun():
            return signals.receive(view, request)
        case SettleStep():
            return deferral.settle(view, request)
        case ChildEnded():
            children.ended(view, request)
        case StopRun():
            return runs.stop(view, request)
    if isinstance(request, EventRequest):
        return events.handle(view, request)
    return None


def _is_unknown(reply: Reply) -> bool:
    if isinstance(reply, ClaimVerdict):
        return reply.verdict == VERDICT_UNKNOWN
    return isinstance(reply, ReportAnswer | OwnerAnswer) and reply.answer == ANSWER_UNKNOWN


def _afterwards(view: RunView) -> None:
    """What news does to the run: it wakes a parked one, and an open one's owner must confirm that it has seen it."""
    head = view.head
    if not view.matters:
        return
    limit = head.accepted_until + view.env.settings.history_limit  # who accepts lets it go on for as long again
    if head.length >= limit and head.state in (RUN_STATE_OPEN, RUN_STATE_PARKED):
        owners.lost_locals(view)  # the owner is fenced: whether they began is not known here
        runs.halt(view, f"its history has {head.length} events; the limit is {limit}")
    elif head.state == RUN_STATE_PARKED:
        runs.wake(view)
    elif head.state == RUN_STATE_OPEN and head.seen < head.length and not head.watch_due_ms:
        head.watch_due_ms = view.now + view.env.settings.unseen_ms
