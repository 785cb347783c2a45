"""What becomes of a schedule's occurrences: started, queued, skipped or missed, by the policy of what is still open.

A start is a letter in the commit that decides it. The run carries a reference to the record, as a child does to its
parent: its close comes back as a letter, and what waited for it goes on. Its id is that of the occurrence, so that an
occurrence that is asked for again (by a backfill) meets the run that is there.
"""

from __future__ import annotations

from typing import Final

from treadle.v1.common_pb2 import FAILURE_KIND_ID_TAKEN, ParentRun, Payload, TraceContext
from treadle.v1.run_service_pb2 import CONFLICT_POLICY_REJECT
from treadle.v1.schedule_pb2 import (
    OCCURRENCE_CAUSE_BACKFILL,
    OCCURRENCE_CAUSE_TIME,
    OCCURRENCE_CAUSE_TRIGGER,
    OCCURRENCE_FATE_EXISTED,
    OCCURRENCE_FATE_QUEUED,
    OCCURRENCE_FATE_SKIPPED,
    OCCURRENCE_FATE_STARTED,
    OVERLAP_POLICY_ALLOW,
    OVERLAP_POLICY_CANCEL,
    OVERLAP_POLICY_QUEUE_ONE,
    OVERLAP_POLICY_SKIP,
    OVERLAP_POLICY_TERMINATE,
    BackfillRecord,
    Occurrence,
    OccurrenceCause,
    OccurrenceFate,
    OccurrenceRecord,
    OverlapPolicy,
    ScheduleRecord,
)
from treadle.v1.state_pb2 import RUN_OUTCOME_UNSPECIFIED, ChildClosed, Letter, StartScheduled, StopChild

from .occurrences import MISSED_KEPT, after, come_due, offset_s, run_id_of, starts_at
from .requests import StartRun
from .view import RunView

__all__ = (
    "INPUT_FIELD",
    "STARTS",
    "advance",
    "drain",
    "ended",
    "fate_of",
    "holding",
    "make",
    "offer",
    "stands_still",
    "start_request",
    "wind",
)

INPUT_FIELD: Final = "o:input"
"""Where the encoded arguments of the runs are kept, beside the head."""

STARTS: Final = 20
"""Runs that one commit starts at most: each letter has the whole input. What is left is due at once."""
LOOKS: Final = 500
QUEUED: Final = 1_000
_BESIDE_KEPT: Final = 100
_RECENT_KEPT: Final = 20
_PUSHES: Final = (OVERLAP_POLICY_CANCEL, OVERLAP_POLICY_TERMINATE)


def stands_still(record: ScheduleRecord) -> bool:
    """Whether nothing is started by itself."""
    return record.paused or record.orphaned


def wind(view: RunView) -> None:
    """Set the record's timer."""
    head, record = view.head, view.head.schedule
    view.dirty = True
    if not stands_still(record) and any(backfill.allow for backfill in record.backfills):
        head.watch_due_ms = view.now  # one commit starts only so many
    else:
        head.watch_due_ms = starts_at(view.run, record.spec, record.next_ms) if record.next_ms else 0


# --- occurrences -----------------------------------------------------------------------------------------------------------
def advance(view: RunView) -> None:
    """Decide what has come due."""
    head, record = view.head, view.head.schedule
    if stands_still(record) or not head.watch_due_ms or head.watch_due_ms > view.now:
        return
    spec = record.spec
    due = come_due(view.run, spec, record.next_ms, view.now, looks=LOOKS, starts=_left(view))
    record.next_ms = due.next_ms
    record.missed_count += due.missed_count
    view.decision.missed += due.missed_count
    record.missed.extend(due.missed)
    del record.missed[:-MISSED_KEPT]
    for at in due.live:
        view.not_before_ms = max(view.not_before_ms, starts_at(view.run, spec, at))
        occurrence = make(view, at, OCCURRENCE_CAUSE_TIME)
        if spec.overlap in _PUSHES and at != due.live[-1]:
            _skip(view, occurrence)  # its run would be stopped at once
        else:
            offer(view, occurrence, spec.overlap)
    drain(view)
    wind(view)


def _left(view: RunView) -> int:
    """Return how many runs this commit may still start, whatever else is in its batch."""
    return max(0, STARTS - len(view.decision.letters))


def make(view: RunView, at: int, cause: OccurrenceCause.ValueType, run_id: str = "") -> OccurrenceRecord:
    """Return an occurrence of which nothing is decided yet."""
    record = view.head.schedule
    name = run_id or run_id_of(record.schedule_id, record.spec, at)
    return OccurrenceRecord(scheduled_ms=at, cause=cause, run_id=name, decided_ms=view.now)


def holding(record: ScheduleRecord) -> OccurrenceRecord | None:
    """Return the open run that holds others up; there is one at most."""
    return next((one for one in record.open if not one.beside), None)


def fate_of(record: ScheduleRecord, policy: OverlapPolicy.ValueType) -> OccurrenceFate.ValueType:
    """Return what a policy says to an occurrence that comes now: it is started, waits, or is left out."""
    holder = holding(record)
    if policy == OVERLAP_POLICY_ALLOW:
        return OCCURRENCE_FATE_STARTED
    if holder is None and (stands_still(record) or not record.queue):
        return OCCURRENCE_FATE_STARTED
    if policy == OVERLAP_POLICY_SKIP and not _is_backfilled(holder):
        return OCCURRENCE_FATE_SKIPPED
    waiting = len(record.queue)
    if policy in _PUSHES:
        waiting = sum(one.cause != OCCURRENCE_CAUSE_TIME for one in record.queue)  # the others make room
    room = 1 if policy in (OVERLAP_POLICY_SKIP, OVERLAP_POLICY_QUEUE_ONE) else QUEUED
    return OCCURRENCE_FATE_QUEUED if waiting < room else OCCURRENCE_FATE_SKIPPED


def _is_backfilled(holder: OccurrenceRecord | None) -> bool:
    """Whether what holds others up makes up for the past: nothing is left out or stopped because of that."""
    return holder is not None and holder.cause == OCCURRENCE_CAUSE_BACKFILL


def offer(view: RunView, occurrence: OccurrenceRecord, policy: OverlapPolicy.ValueType) -> None:
    """Do with an occurrence what its policy says."""
    record = view.head.schedule
    view.dirty = True
    fate = fate_of(record, policy)
    if fate == OCCURRENCE_FATE_STARTED:
        _start(view, occurrence, beside=policy == OVERLAP_POLICY_ALLOW)
    elif fate == OCCURRENCE_FATE_SKIPPED:
        _skip(view, occurrence)
    else:
        if policy in _PUSHES:
            _push_aside(view, occurrence, terminate=policy == OVERLAP_POLICY_TERMINATE)
        occurrence.fate = fate
        record.queue.append(occurrence)
        _remember(record, occurrence)


def _push_aside(view: RunView, later: OccurrenceRecord, *, terminate: bool) -> None:
    """The open run is to end, and what waits because its time came is left out. What people asked for stays."""
    record = view.head.schedule
    for index in reversed(range(len(record.queue))):
        if record.queue[index].cause == OCCURRENCE_CAUSE_TIME:
            _skip(view, record.queue.pop(index))
    holder = holding(record)
    if holder is None or _is_backfilled(holder) or holder.terminated or (holder.stopping and not terminate):
        return
    holder.stopping, holder.terminated = True, terminate
    reason = f"its schedule has come to {later.run_id!r}"
    view.post(holder.run_id, stop_child=StopChild(parent=_reference(view, holder), terminate=terminate, reason=reason))


def _skip(view: RunView, occurrence: OccurrenceRecord) -> None:
    record = view.head.schedule
    occurrence.fate = OCCURRENCE_FATE_SKIPPED
    occurrence.decided_ms = view.now
    record.skipped_count += 1
    _remember(record, occurrence)


def _remember(record: ScheduleRecord, occurrence: OccurrenceRecord) -> None:
    """Keep what was decided last of an occurrence among the recent ones."""
    for index, one in enumerate(record.recent):
        if one.run_id == occurrence.run_id:
            del record.recent[index]
            break
    record.recent.append(occurrence)
    del record.recent[:-_RECENT_KEPT]


def _start(view: RunView, occurrence: OccurrenceRecord, *, beside: bool = False) -> None:
    """Write the letter that starts the run."""
    record, spec = view.head.schedule, view.head.schedule.spec
    occurrence.fate, occurrence.beside, occurrence.decided_ms = OCCURRENCE_FATE_STARTED, beside, view.now
    data = view.note(INPUT_FIELD)
    view.post(
        occurrence.run_id,
        start_scheduled=StartScheduled(
            workflow=spec.workflow,
            pool=spec.pool,
            input=Payload.FromString(data) if data else None,
            parent=_reference(view, occurrence),
            timeout_ms=spec.timeout_ms,
            tags=spec.tags,
            occurrence=Occurrence(
                schedule_id=record.schedule_id,
                scheduled_ms=occurrence.scheduled_ms,
                timezone=spec.timezone,
                cause=occurrence.cause,
                utc_offset_s=offset_s(spec, occurrence.scheduled_ms),
            ),
        ),
    )
    record.open.append(occurrence)
    besides = [index for index, one in enumerate(record.open) if one.beside]
    if len(besides) > _BESIDE_KEPT:
        del record.open[besides[0]]
    record.started_count += 1
    view.dirty = True
    _remember(record, occurrence)


def _reference(view: RunView, occurrence: OccurrenceRecord) -> ParentRun:
    """Return what the run of an occurrence carries, so that its close is told to this record."""
    return ParentRun(run_id=view.run.run_id, incarnation=view.head.incarnation, command_id=occurrence.run_id)


def ended(view: RunView, told: ChildClosed) -> None:
    """A run has closed, or could not be started because there is one of its id."""
    record = view.head.schedule
    if told.parent.incarnation != view.head.incarnation:
        return
    found = next((i for i, one in enumerate(record.open) if one.run_id == told.parent.command_id), None)
    if found is None:
        return
    occurrence = record.open.pop(found)
    if told.outcome == RUN_OUTCOME_UNSPECIFIED and told.failure.kind == FAILURE_KIND_ID_TAKEN:
        record.started_count -= 1
        occurrence.fate = OCCURRENCE_FATE_EXISTED
        _remember(record, occurrence)
    drain(view)
    wind(view)


def drain(view: RunView) -> None:
    """Start what waited, as far as nothing holds it up: what was queued first, then what is backfilled."""
    record = view.head.schedule
    still = stands_still(record)
    if holding(record) is None:
        queued = next(
            (i for i, one in enumerate(record.queue) if one.cause == OCCURRENCE_CAUSE_TRIGGER or not still), None
        )
        if queued is not None:
            _start(view, record.queue.pop(queued))
        elif not still:
            for backfill in [one for one in record.backfills if not one.allow]:
                if _backfilled(view, backfill, beside=False):
                    break
    for backfill in [one for one in record.backfills if one.allow and not still]:
        while _left(view) and _backfilled(view, backfill, beside=True):
            pass
    for index in reversed(range(len(record.backfills))):
        if not record.backfills[index].left:
            del record.backfills[index]
    view.dirty = True


def _backfilled(view: RunView, backfill: BackfillRecord, *, beside: bool) -> bool:
    """Start the next occurrence of a backfill that is not open or queued already; returns whether there was one."""
    record = view.head.schedule
    known = {one.run_id for one in (*record.open, *record.queue)}
    while backfill.left:
        occurrence = make(view, backfill.next_ms, OCCURRENCE_CAUSE_BACKFILL)
        backfill.left -= 1
        backfill.next_ms = after(record.spec, backfill.next_ms)
        if not 0 < backfill.next_ms <= backfill.until_ms:
            backfill.left = 0  # what it was counted by may have changed meanwhile
        if occurrence.run_id not in known:
            _start(view, occurrence, beside=beside)
            return True
    return False


# --- letters ---------------------------------------------------------------------------------------------------------------
def start_request(letter: Letter) -> StartRun:
    """Return what the letter that starts a run asks of it."""
    said = letter.start_scheduled
    return StartRun(
        workflow=said.workflow,
        pool=said.pool,
        input=said.input,
        request_id=letter.letter_id,
        policy=CONFLICT_POLICY_REJECT,
        caller=TraceContext(),
        trigger="schedule",
        parent=said.parent,
        occurrence=said.occurrence,
        timeout_ms=said.timeout_ms,
        tags=said.tags,
    )
