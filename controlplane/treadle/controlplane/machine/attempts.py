"""The attempt protocol: one step from its dispatch to its outcome.

A try is dispatched (outbox, or GO for a credit), claimed (GO names the holder and sets a lease, in one commit), reported
under its token, and settled once. What is refused changes nothing.

A1 nothing starts without GO. A2 no holder without a lease. A5 the same claim gets the same GO; reports are idempotent.
"""

from __future__ import annotations

from treadle.protocol.retry import DEFAULT_POLICY, next_delay_ms, rule_of
from treadle.v1.common_pb2 import FAILURE_KIND_LOST, FAILURE_KIND_STEP_TIMED_OUT, FAILURE_KIND_TIMED_OUT, Failure
from treadle.v1.history_pb2 import (
    AttemptFailed,
    AttemptReleased,
    AttemptStarted,
    StepCancelled,
    StepCancelRequested,
    StepCompleted,
    StepFailed,
    StepRetried,
    StepScheduled,
    StepWaiting,
)
from treadle.v1.job_pb2 import JOB_KIND_STEP, Job
from treadle.v1.state_pb2 import (
    COMMAND_STATE_BACKOFF,
    COMMAND_STATE_HELD,
    COMMAND_STATE_QUEUED,
    COMMAND_STATE_TIMER,
    COMMAND_STATE_WAITING,
    CommandRow,
    Holder,
)
from treadle.v1.worker_service_pb2 import (
    ANSWER_LEASE_LOST,
    ANSWER_OK,
    ANSWER_SETTLED,
    ANSWER_UNKNOWN,
    REPORT_KIND_CANCELLED,
    REPORT_KIND_COMPLETED,
    REPORT_KIND_DEFERRED,
    REPORT_KIND_FAILED,
    REPORT_KIND_LOST,
    REPORT_KIND_RELEASED,
    VERDICT_GO,
    VERDICT_HELD,
    VERDICT_STALE,
    VERDICT_UNKNOWN,
    VERDICT_WAITING,
    AttemptReport,
    ClaimItem,
    ClaimVerdict,
    Command,
    Grant,
    ReportAnswer,
    Verdict,
)

from . import deadlines, deferral, progress
from .env import Credit
from .requests import Claimed, PushedGrant, Reported
from .view import RunView

__all__ = (
    "cancel_step",
    "claim_step",
    "dispatch",
    "expire",
    "fail_try",
    "report",
    "retry_due",
    "schedule",
    "settle_cancelled",
    "settle_failed",
    "time_out",
)

_WORDS = 200
"""So much of what failed is kept in the head of the run."""


def schedule(view: RunView, command: Command) -> None:
    """Record a call of a pool step and dispatch its first try."""
    spec = command.schedule_step
    row = CommandRow(
        command_id=command.command_id,
        name=spec.name,
        digest=command.digest,
        pool=spec.pool,
        try_number=1 + spec.tries_before,
        attempt=spec.tries_before,
        tries_before=spec.tries_before,
        redone=spec.redone,
        timeout_ms=spec.timeout_ms,
        retry=spec.retry if spec.HasField("retry") else DEFAULT_POLICY,
        at_most_once=spec.at_most_once,
        input_bytes=len(spec.input.data),
        heartbeat_ms=spec.heartbeat_ms,
    )
    view.put_input(command.command_id, spec.input)
    scheduled = view.event(
        step_scheduled=StepScheduled(
            command_id=command.command_id,
            digest=command.digest,
            name=spec.name,
            pool=spec.pool,
            input=spec.input,
            timeout_ms=spec.timeout_ms,
        )
    )
    if spec.total_timeout_ms or spec.queue_timeout_ms or spec.on_cancel:
        deadlines.limit(view, row, spec, scheduled.step_scheduled)
    view.put(row)
    dispatch(view, row)
    scheduled.step_scheduled.dispatch_id = row.dispatch_id


def dispatch(view: RunView, row: CommandRow) -> None:
    """Ask for a holder of the present try: a credit of this replica, or the broker; nobody gets it behind a limit."""
    limited = row.deadline_ms or row.queue_timeout_ms
    if limited:
        deadlines.queued(row, view.now)
    row.state = COMMAND_STATE_QUEUED
    if row.HasField("holder"):
        deferral.unhold(row)
    row.queued_ms = view.now
    row.watch_step_ms = view.env.settings.watch_ms
    row.due_ms = view.now + row.watch_step_ms
    if limited:
        deadlines.bound(row)
        if expire(view, row):
            return
    job = view.step_job(row)
    row.dispatch_id = job.dispatch_id
    view.put(row)
    credit = view.env.offer(view.run.namespace, row.pool, JOB_KIND_STEP, row.name, view.returning)
    if credit is None:
        view.publish(job)
    else:
        _grant_credit(view, row, job, credit)


def _grant_credit(view: RunView, row: CommandRow, job: Job, credit: Credit) -> None:
    grant = _go(view, row, credit.worker_id, credit.credit_id, credit.sent_ms, view.env.replica_id)
    if job.input_omitted:
        job.input.CopyFrom(view.input_of(row.command_id))
        job.input_omitted = False
    grant.job.CopyFrom(job)
    view.decision.grants.append(PushedGrant(credit, grant))


def _go(view: RunView, row: CommandRow, worker_id: str, claim_id: int, sent_ms: int, replica_id: str) -> Grant:
    settings = view.env.settings
    if row.waiting_noted:
        view.name_found(row.pool, row.name, row.command_id)
        row.waiting_noted = False
    row.state = COMMAND_STATE_HELD
    row.attempt += 1
    row.started_ms = view.now
    row.step_ms = 0
    row.holder.CopyFrom(
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
    row.due_ms = row.holder.lease_due_ms
    view.put(row)
    alone = row.lost_count >= settings.alone_from
    view.event(
        attempt_started=AttemptStarted(
            command_id=row.command_id,
            attempt=row.attempt,
            try_number=row.try_number,
            worker_id=worker_id,
            alone=alone,
        )
    )
    return _grant(view, row, alone)


def _grant(view: RunView, row: CommandRow, alone: bool) -> Grant:
    grant = Grant(
        token=row.holder.token,
        claim_id=row.holder.claim_id,
        sent_ms=row.holder.sent_ms,
        attempt=row.attempt,
        alone=alone,
        trace=view.trace(f"step/{row.command_id}/{row.attempt}"),
    )
    progress.began(view, row, grant)
    if row.deadline_ms:
        grant.left_ms = deadlines.left_ms(row, view.now)
    if row.deferral_key:
        grant.deferral_key = row.deferral_key
    return grant


def claim_step(view: RunView, request: Claimed) -> ClaimVerdict:
    """Answer a claim of a step job, by the first line of the table that fits."""
    item, job = request.item, request.item.job
    if not view.exists:
        return ClaimVerdict(claim_id=item.claim_id, verdict=_unknown(view))
    row = view.row(job.command_id)
    if (
        view.over
        or job.incarnation != view.head.incarnation
        or row is None
        or row.local
        or row.state == COMMAND_STATE_TIMER
        or row.try_number != job.try_number
    ):
        return ClaimVerdict(claim_id=item.claim_id, verdict=VERDICT_STALE)
    if item.unregistered:
        return ClaimVerdict(claim_id=item.claim_id, verdict=_wait(view, row))
    if expire(view, row):
        return ClaimVerdict(claim_id=item.claim_id, verdict=VERDICT_STALE)
    if row.state in (COMMAND_STATE_QUEUED, COMMAND_STATE_WAITING):
        view.decision.claimed.append((row.pool, JOB_KIND_STEP, row.queued_ms))
        grant = _go(view, row, request.worker_id, item.claim_id, item.sent_ms, request.replica_id)
        return _verdict_go(view, row, item, grant)
    if row.state != COMMAND_STATE_HELD:
        return ClaimVerdict(claim_id=item.claim_id, verdict=VERDICT_STALE)
    holder = row.holder
    if (holder.worker_id, holder.claim_id) != (request.worker_id, item.claim_id):
        return ClaimVerdict(claim_id=item.claim_id, verdict=VERDICT_HELD)
    holder.lease_set_ms = view.now  # anew, so that a check under way fails
    holder.sent_ms = max(holder.sent_ms, item.sent_ms)
    holder.replica_id = request.replica_id
    view.put(row)
    return _verdict_go(view, row, item, _grant(view, row, row.lost_count >= view.env.settings.alone_from))


def _verdict_go(view: RunView, row: CommandRow, item: ClaimItem, grant: Grant) -> ClaimVerdict:
    if item.job.input_omitted:
        grant.job.CopyFrom(item.job)
        grant.job.input.CopyFrom(view.input_of(row.command_id))
        grant.job.input_omitted = False
    return ClaimVerdict(claim_id=item.claim_id, verdict=VERDICT_GO, grant=grant)


def _unknown(view: RunView) -> Verdict.ValueType:
    return VERDICT_UNKNOWN if view.loaded.tombstone is None else VERDICT_STALE


def _wait(view: RunView, row: CommandRow) -> Verdict.ValueType:
    """No such name at that worker: only a queued try waits for one that has it."""
    if row.state == COMMAND_STATE_HELD:
        return VERDICT_HELD
    if row.state != COMMAND_STATE_QUEUED:
        return VERDICT_STALE
    settings = view.env.settings
    row.state = COMMAND_STATE_WAITING
    row.step_ms = min(row.step_ms * 2, settings.waiting_cap_ms) if row.step_ms else settings.waiting_ms
    row.due_ms = view.now + row.step_ms
    deadlines.bound(row)
    if not row.waiting_noted:
        row.waiting_noted = True
        view.wait_for_name(row.pool, row.name, row.command_id)
        view.event(step_waiting=StepWaiting(command_id=row.command_id, name=row.name))
    view.put(row)
    return VERDICT_WAITING


def report(view: RunView, request: Reported) -> ReportAnswer:
    """Take the holder's report: once, and only under its token."""
    told = request.report
    if not view.exists and view.loaded.tombstone is None:
        return ReportAnswer(token=told.token, answer=ANSWER_UNKNOWN)
    row = view.row(told.command_id)
    if view.over or not view.exists or told.incarnation != view.head.incarnation or row is None:
        return ReportAnswer(token=told.token, answer=ANSWER_SETTLED)
    if row.state != COMMAND_STATE_HELD or row.local or row.holder.token != told.token:
        return ReportAnswer(token=told.token, answer=ANSWER_LEASE_LOST)
    _apply(view, row, told)
    return ReportAnswer(token=told.token, answer=ANSWER_OK)


def _apply(view: RunView, row: CommandRow, told: AttemptReport) -> None:
    if told.progress_number:
        progress.take(view, row, told)
    if told.kind == REPORT_KIND_COMPLETED:
        view.event(
            step_completed=StepCompleted(
                command_id=row.command_id,
                attempt=row.attempt,
                result=told.result,
                duration_ms=told.duration_ms,
                ended_ms=told.ended_ms if row.holder.worker_id == view.head.owner.worker_id else 0,
            )
        )
        view.drop(row)
    elif told.kind == REPORT_KIND_CANCELLED or row.cancel_requested:
        settle_cancelled(view, row)
    elif told.kind == REPORT_KIND_FAILED:
        fail_try(view, row, told.failure, told.retry_after_ms, told.duration_ms)
    elif told.kind == REPORT_KIND_DEFERRED:
        deferral.defer(view, row, told)
    elif told.kind == REPORT_KIND_LOST:
        lost = Failure(kind=FAILURE_KIND_LOST, type="Lost", message=f"cut off: {told.reason or 'drain'}")
        settle_failed(view, row, lost, told.duration_ms)
    elif told.kind == REPORT_KIND_RELEASED:
        view.event(
            attempt_released=AttemptReleased(
                command_id=row.command_id, attempt=row.attempt, reason=told.reason or "drain"
            )
        )
        dispatch(view, row)


def fail_try(view: RunView, row: CommandRow, failure: Failure, retry_after_ms: int = 0, duration_ms: int = 0) -> None:
    """A try failed: the next one after its backoff, or the step fails for good."""
    rule = rule_of(row.retry, failure)
    count = _count_failure(row, rule)
    delay = next_delay_ms(row.retry, try_number=count, failure=failure, share=view.env.share(), rule=rule)
    if failure.kind == FAILURE_KIND_STEP_TIMED_OUT:
        settle_failed(view, row, deadlines.total_timed_out(row), duration_ms)
        return
    if row.at_most_once or delay is None:
        settle_failed(view, row, failure, duration_ms)
        return
    if retry_after_ms:
        delay = retry_after_ms
    retry_at = view.now + delay
    if row.deadline_ms and retry_at >= row.deadline_ms:
        settle_failed(view, row, deadlines.total_timed_out(row, failure), duration_ms)
        return
    view.event(
        attempt_failed=AttemptFailed(
            command_id=row.command_id,
            attempt=row.attempt,
            try_number=row.try_number,
            failure=failure,
            retry_at_ms=retry_at,
            name=row.name if row.local else "",
            digest=row.digest if row.local else 0,
            local=row.local,
            duration_ms=duration_ms,
        )
    )
    head = view.head
    if row.try_number == 1 + row.tries_before:
        head.retrying += 1
    view.moves = True
    head.error_type = failure.type[:_WORDS]
    head.trouble = f"try {row.try_number} of step {row.name!r} failed: {failure.type}: {failure.message}"[:_WORDS]
    row.try_number += 1
    row.state = COMMAND_STATE_BACKOFF
    if row.HasField("holder"):
        deferral.unhold(row)
    row.due_ms = retry_at
    row.last_failure.CopyFrom(Failure(kind=failure.kind, type=failure.type, message=failure.message))
    view.put(row)


def _count_failure(row: CommandRow, rule: int) -> int:
    """Return how many failures count under the rule, this one included."""
    if not row.retry.rules:
        return row.try_number - row.tries_before
    row.failures.extend([0] * (rule + 1 - len(row.failures)))
    row.failures[rule] += 1
    return row.failures[rule]


def settle_failed(view: RunView, row: CommandRow, failure: Failure, duration_ms: int = 0) -> None:
    """Record that the step failed for good."""
    final = Failure()
    final.CopyFrom(failure)
    final.attempts = row.attempt
    view.event(
        step_failed=StepFailed(
            command_id=row.command_id,
            attempt=row.attempt,
            failure=final,
            name=row.name if row.local else "",
            digest=row.digest if row.local else 0,
            local=row.local,
            duration_ms=duration_ms,
        )
    )
    view.drop(row)


def expire(view: RunView, row: CommandRow) -> bool:
    """Fail a step that nobody holds and that has come to a limit. False: it has not."""
    failure = deadlines.expired(view, row) if row.deadline_ms or row.queue_due_ms else None
    if failure is None:
        return False
    settle_failed(view, row, failure)
    return True


def time_out(view: RunView, row: CommandRow) -> None:
    """The holder did not report its timeout: settle the attempt without it (A11 was checked by the caller)."""
    view.cancel_holder(row, "timed out")
    if row.cancel_requested:
        settle_cancelled(view, row)  # nobody wants a further try
        return
    if 0 < row.deadline_ms <= view.now:
        settle_failed(view, row, deadlines.total_timed_out(row))
        return
    failure = Failure(
        kind=FAILURE_KIND_TIMED_OUT,
        type="TimedOut",
        message=f"step {row.name!r} ran longer than {row.timeout_ms / 1000:g} s and its worker did not report",
        bases=["TimeoutError"],
    )
    fail_try(view, row, failure)


def retry_due(view: RunView, row: CommandRow) -> None:
    """The backoff is over: the next try starts."""
    view.not_before_ms = max(view.not_before_ms, row.due_ms)
    view.event(step_retried=StepRetried(command_id=row.command_id, try_number=row.try_number))
    if row.local:
        row.state = COMMAND_STATE_HELD  # the owner runs it; its lease is the owner's
        row.due_ms = 0
        view.put(row)
    else:
        dispatch(view, row)


def cancel_step(view: RunView, row: CommandRow) -> None:
    """The workflow needs the step no longer: settle it, or tell its holder."""
    if row.state != COMMAND_STATE_HELD:
        settle_cancelled(view, row)
    elif not row.cancel_requested:
        row.cancel_requested = True
        view.event(step_cancel_requested=StepCancelRequested(command_id=row.command_id))
        view.cancel_holder(row, "cancelled")
        view.put(row)


def settle_cancelled(view: RunView, row: CommandRow) -> None:
    """Record that the step was cancelled."""
    view.event(
        step_cancelled=StepCancelled(
            command_id=row.command_id,
            attempt=row.attempt,
            name=row.name if row.local else "",
            digest=row.digest if row.local else 0,
            local=row.local,
        )
    )
    view.drop(row)
