"""Schedules: records that start runs. One commit decides an occurrence, writes the letter that starts its run, and says
when the next one is due; so each occurrence is decided once, whichever replica's timer comes first. What becomes of it
stands in `schedule_runs`.
"""

from __future__ import annotations

from hashlib import blake2b
from itertools import takewhile
from typing import Final

from treadle.protocol.errors import FieldInvalid, NotFound, Refused, RequestError, RunIdConflict, Unavailable
from treadle.protocol.ids import SCHEDULES, RunKey
from treadle.protocol.tags import tags_of
from treadle.v1.schedule_pb2 import (
    OCCURRENCE_CAUSE_TRIGGER,
    OCCURRENCE_FATE_SKIPPED,
    OVERLAP_POLICY_SKIP,
    BackfillRecord,
    OverlapPolicy,
    ScheduleRecord,
    ScheduleSpec,
)
from treadle.v1.state_pb2 import (
    RUN_STATE_RECORD,
    RunHead,
)

from . import schedule_runs
from .occurrences import after, check, upcoming
from .requests import ChildEnded, FireTimer, Reply, Request
from .schedule_requests import (
    BackfillSchedule,
    ChangeSchedule,
    CreateSchedule,
    DeclareSchedule,
    DeleteSchedule,
    PauseSchedule,
    ResumeSchedule,
    ScheduleReply,
    TriggerSchedule,
    UndeclareSchedule,
)
from .view import RunView

__all__ = ("PREFIX", "answer", "record_of")

PREFIX: Final = SCHEDULES
BACKFILLS: Final = 10
BACKFILLED: Final = 1_000
_REQUEST_IDS: Final = 16
_TIMING: Final = frozenset(("cron", "every_ms", "timezone", "start_ms", "until_ms"))
_CHANGEABLE: Final = _TIMING | {
    "workflow",
    "pool",
    "overlap",
    "catch_up_ms",
    "jitter_ms",
    "timeout_ms",
    "tags",
    "input",
}


def record_of(namespace: str, schedule_id: str) -> RunKey:
    """Return where the record of a schedule lives."""
    return RunKey(namespace, f"{PREFIX}{schedule_id}")


# --- the entrance --------------------------------------------------------------------------------------------------------
def answer(view: RunView, request: Request) -> Reply:
    """Decide one request to the record of a schedule."""
    try:
        if view.deleted and isinstance(request, CreateSchedule | DeclareSchedule):
            raise _busy(view, "is deleted")
        if isinstance(request, CreateSchedule):
            return _create(view, request)
        if isinstance(request, DeclareSchedule):
            return _declare(view, request)
        if isinstance(request, DeleteSchedule) and _was_deleted(view, request):
            return ScheduleReply(RunHead())
        if view.deleted or not view.exists:
            return _absent(view, request)
        if isinstance(request, ChildEnded):  # before what is due now: it may have waited for this
            schedule_runs.ended(view, request.letter)
        if not isinstance(request, DeleteSchedule):
            schedule_runs.advance(view)
        return _steer(view, request)
    except RequestError as error:  # nothing was changed by the request itself
        return error


def _absent(view: RunView, request: Request) -> Reply:
    if isinstance(request, FireTimer):
        view.decision.orphans.append(request.command_id)
        return None
    if isinstance(request, ChildEnded | UndeclareSchedule):
        return None
    name = view.run.run_id.removeprefix(PREFIX)
    raise NotFound(
        f"no schedule {name!r} in namespace {view.run.namespace!r}",
        reason="SCHEDULE_NOT_FOUND",
        remedy="see `treadle schedules list`",
    )


def _steer(view: RunView, request: Request) -> Reply:
    match request:
        case FireTimer():
            view.dirty = True  # moves the entry to where it belongs
            return None
        case UndeclareSchedule():
            _undeclare(view)
            return None
        case PauseSchedule():
            _pause(view, request)
        case ResumeSchedule():
            _resume(view)
        case ChangeSchedule():
            _change(view, request)
        case TriggerSchedule():
            return _trigger(view, request)
        case BackfillSchedule():
            return _backfill(view, request)
        case DeleteSchedule():
            _delete(view, request)
        case _:
            return None
    return _reply(view)


def _reply(view: RunView, run_id: str = "", *, queued: bool = False, occurrences: int = 0) -> ScheduleReply:
    head = RunHead()
    head.CopyFrom(view.head)
    return ScheduleReply(head, run_id, queued, occurrences)


def _note_request(view: RunView, request_id: str) -> None:
    """Note a mutating call, so that it is applied once. The first made it: that one stays, however many follow."""
    view.dirty = True
    ids = view.head.request_ids
    ids.append(request_id)
    del ids[1 : -_REQUEST_IDS + 1]


# --- its life --------------------------------------------------------------------------------------------------------------
def _create(view: RunView, request: CreateSchedule) -> Reply:
    if _knows(view, request.request_id):
        return _reply(view) if view.exists else ScheduleReply(RunHead.FromString(view.loaded.tombstone or b""))
    if view.exists:
        raise RunIdConflict(
            f"schedule {view.head.schedule.schedule_id!r} exists already"
            f"{', declared in code' if view.head.schedule.declared else ''}",
            reason="SCHEDULE_EXISTS",
            remedy="give another name, or change the one that is there",
        )
    check(request.spec)
    _make(view, request.spec)
    record = view.head.schedule
    record.paused = request.paused
    view.put_note(schedule_runs.INPUT_FIELD, request.input.SerializeToString())
    _note_request(view, request.request_id)
    _aim(view, view.now)
    return _reply(view)


def _knows(view: RunView, request_id: str) -> bool:
    """Whether a create was applied already, to this schedule or to one of its name that was deleted."""
    if view.exists:
        return request_id in view.head.request_ids
    if view.loaded.tombstone is None:
        return False
    return request_id in RunHead.FromString(view.loaded.tombstone).request_ids


def _was_deleted(view: RunView, request: DeleteSchedule) -> bool:
    return not view.exists and _knows(view, request.request_id)


def _make(view: RunView, spec: ScheduleSpec) -> None:
    view.head = RunHead(
        namespace=view.run.namespace,
        run_id=view.run.run_id,
        incarnation=view.env.bits64(),
        created_ms=view.now,
        state=RUN_STATE_RECORD,
        schedule=ScheduleRecord(
            schedule_id=view.run.run_id.removeprefix(PREFIX), spec=_filled(spec), changed_ms=view.now
        ),
    )
    view.dirty = True


def _filled(spec: ScheduleSpec) -> ScheduleSpec:
    filled = ScheduleSpec()
    filled.CopyFrom(spec)
    filled.overlap = spec.overlap or OVERLAP_POLICY_SKIP
    del filled.tags[:]
    filled.tags.extend(tags_of(spec.tags))
    return filled


def _declare(view: RunView, request: DeclareSchedule) -> Reply:
    """Code declares the schedule: what code says counts; that a person has paused it stays."""
    check(request.spec)
    if not view.exists:
        _make(view, request.spec)
        view.head.schedule.declared = True
        _aim(view, view.now)
        return _reply(view)
    record, spec = view.head.schedule, _filled(request.spec)
    if record.declared and not record.orphaned and record.spec == spec:
        return _reply(view)
    schedule_runs.advance(view)
    record.declared, record.orphaned = True, False
    _retime(view, spec)
    schedule_runs.drain(view)
    schedule_runs.wind(view)
    return _reply(view)


def _undeclare(view: RunView) -> None:
    """Code does not declare it any more: it stands still until somebody says what is to become of it."""
    record = view.head.schedule
    if record.declared and not record.orphaned:
        record.orphaned = True
        record.changed_ms = view.now
        _aim(view, 0)


def _pause(view: RunView, request: PauseSchedule) -> None:
    record = view.head.schedule
    if not record.paused or record.pause_reason != request.reason:
        record.paused, record.pause_reason = True, request.reason
        _aim(view, 0)


def _resume(view: RunView) -> None:
    record = view.head.schedule
    if not schedule_runs.stands_still(record):
        return
    if record.orphaned:
        record.orphaned = record.declared = False  # from now on it is a person's
    record.paused, record.pause_reason = False, ""
    _aim(view, view.now)
    schedule_runs.drain(view)
    schedule_runs.wind(view)


def _change(view: RunView, request: ChangeSchedule) -> None:
    record = view.head.schedule
    if request.request_id in view.head.request_ids:
        return
    unknown = set(request.fields) - _CHANGEABLE
    if unknown or not request.fields:
        raise FieldInvalid(f"fields {sorted(unknown)}: give some of {', '.join(sorted(_CHANGEABLE))}", field="fields")
    if record.declared and not record.orphaned:
        raise Refused(
            f"schedule {record.schedule_id!r} is declared in code",
            reason="SCHEDULE_DECLARED",
            remedy="change the code; it may be paused, resumed and triggered from here",
        )
    spec = ScheduleSpec()
    spec.CopyFrom(record.spec)
    for name in request.fields:
        if name in ("cron", "every_ms"):
            spec.cron, spec.every_ms = request.spec.cron, request.spec.every_ms
        elif name == "tags":
            del spec.tags[:]
            spec.tags.extend(request.spec.tags)
        elif name != "input":
            setattr(spec, name, getattr(request.spec, name))
    check(spec)
    if "input" in request.fields:
        view.put_note(schedule_runs.INPUT_FIELD, request.input.SerializeToString())
    _note_request(view, request.request_id)
    _retime(view, _filled(spec))


def _retime(view: RunView, spec: ScheduleSpec) -> None:
    """Take another spec. An occurrence whose time has come, but not its share of the jitter, stays if the new one has it."""
    record = view.head.schedule
    waits = 0 < record.next_ms <= view.now
    moved = any(getattr(spec, name) != getattr(record.spec, name) for name in _TIMING)
    base = record.next_ms - 1 if record.next_ms and (waits or not moved) else view.now
    record.spec.CopyFrom(spec)
    record.changed_ms = view.now
    _aim(view, base)


def _delete(view: RunView, request: DeleteSchedule) -> None:
    """Open runs go on, and what was not started yet never is."""
    if view.decision.letters:
        raise _busy(view, "starts runs")
    _note_request(view, request.request_id)
    view.deleted = True
    view.dirty = True


def _aim(view: RunView, base_ms: int) -> None:
    """Say which occurrence comes next: the first one behind `base_ms`; none while the schedule stands still."""
    record = view.head.schedule
    record.next_ms = 0 if schedule_runs.stands_still(record) else after(record.spec, base_ms)
    schedule_runs.wind(view)


# --- what people ask -------------------------------------------------------------------------------------------------------
def _busy(view: RunView, what: str) -> Unavailable:
    """What the same commit does to the schedule must be committed first."""
    name = view.head.schedule.schedule_id
    return Unavailable(f"schedule {name!r} {what} at this moment", reason="VERSION_CONFLICT", remedy="try again")


def _trigger(view: RunView, request: TriggerSchedule) -> ScheduleReply:
    """Start a run now. Its id is that of the request, so the same request starts one."""
    record = view.head.schedule
    mark = blake2b(request.request_id.encode(), digest_size=6, person=b"treadle-trigger").hexdigest()
    run_id = f"{record.schedule_id}-triggered-{mark}"
    if request.request_id not in view.head.request_ids:
        policy = request.overlap or record.spec.overlap
        if policy not in OverlapPolicy.values():
            raise FieldInvalid(f"overlap {policy}: unknown to this server", field="overlap")
        if schedule_runs.fate_of(record, policy) == OCCURRENCE_FATE_SKIPPED:
            holder = schedule_runs.holding(record)
            raise Refused(
                f"schedule {record.schedule_id!r} has an open run{f', {holder.run_id!r}' if holder else ''}"
                f"{f', and {len(record.queue)} wait for it' if record.queue else ''}",
                reason="SCHEDULE_BUSY",
                remedy="wait for it, or ask for another overlap policy: allow starts one beside it",
            )
        occurrence = schedule_runs.make(view, view.now, OCCURRENCE_CAUSE_TRIGGER, run_id)
        schedule_runs.offer(view, occurrence, policy)
        _note_request(view, request.request_id)
    return _reply(view, run_id, queued=any(one.run_id == run_id for one in record.queue))


def _backfill(view: RunView, request: BackfillSchedule) -> ScheduleReply:
    record = view.head.schedule
    until_ms = request.until_ms or view.now
    if not 0 < request.since_ms <= until_ms or until_ms > view.now:
        raise FieldInvalid(
            f"the span from {request.since_ms} to {until_ms} must lie in the past, and end behind its beginning",
            field="since_ms",
        )
    ahead = upcoming(record.spec, request.since_ms - 1, BACKFILLED + 1)
    found = list(takewhile(lambda at: at <= until_ms, ahead))  # to look further may mean centuries of a calendar
    if len(found) > BACKFILLED:
        raise Refused(
            f"there are more than {BACKFILLED:,} occurrences in the span",
            reason="BACKFILL_TOO_LARGE",
            remedy="ask for it in shorter spans, one after another",
        )
    if request.request_id not in view.head.request_ids and found:
        if len(record.backfills) >= BACKFILLS:
            raise Refused(
                f"{BACKFILLS} backfills of schedule {record.schedule_id!r} are not done yet",
                reason="TOO_MANY_BACKFILLS",
                remedy="wait until one of them is done",
            )
        _note_request(view, request.request_id)
        record.backfills.append(
            BackfillRecord(next_ms=found[0], until_ms=until_ms, left=len(found), allow=request.allow)
        )
        schedule_runs.drain(view)
        schedule_runs.wind(view)
    return _reply(view, occurrences=len(found))
