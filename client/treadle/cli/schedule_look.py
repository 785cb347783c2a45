"""`treadle schedules list` and `show`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from treadle.cli.options import Connection, OutputOption

if TYPE_CHECKING:
    from treadle.client import OccurrenceInfo, ScheduleInfo

__all__ = ("list_schedules", "plain_schedule", "show")


async def list_schedules(*, output: OutputOption = "table", connection: Connection | None = None) -> int:
    """List schedules by name."""
    from treadle.cli.output import emit, table

    connection = connection or Connection()
    async with connection.client() as client:
        schedules = [schedule async for schedule in client.schedules.list()]

    def row(schedule: ScheduleInfo) -> tuple[str, ...]:
        return (
            schedule.id,
            schedule.workflow,
            _status(schedule),
            _timing(schedule),
            _clock(schedule.next_at),
            str(schedule.missed_count or ""),
            _note(schedule),
        )

    columns = ("schedule", "workflow", "status", "when", "next", "missed", "note")
    emit(map(plain_schedule, schedules), output, lambda: table(columns, map(row, schedules)))
    return 0


async def show(schedule: str, /, *, output: OutputOption = "table", connection: Connection | None = None) -> int:
    """Show a schedule: what comes next, what was decided last, and what was missed.

    Parameters
    ----------
    schedule
        Its name.
    """
    from treadle.cli.output import emit_one

    connection = connection or Connection()
    async with connection.client() as client:
        found = await client.schedules.get(schedule)
    emit_one(plain_schedule(found), output, lambda: _draw(found))
    return 0


def _draw(schedule: ScheduleInfo) -> None:
    from treadle.cli.output import table
    from treadle.cli.plain import dumps, plain_payload

    print(f"{schedule.id}   {schedule.workflow}   {_status(schedule)}   {_timing(schedule)}")
    for line in (_note(schedule), f"declared in code: {'yes' if schedule.declared else 'no'}, pool {schedule.pool}"):
        if line:
            print(f"  {line}")
    print(
        f"  started {schedule.started_count}, skipped {schedule.skipped_count}, missed {schedule.missed_count}, "
        f"queued {schedule.queued}, to backfill {schedule.backfilling}"
    )
    limit = f", timeout {_span(schedule.timeout)}" if schedule.timeout is not None else ""
    print(f"  overlap {schedule.overlap}, catch-up {_span(schedule.catch_up)}, jitter {_span(schedule.jitter)}{limit}")
    if schedule.start is not None or schedule.until is not None:
        print(f"  from {_clock(schedule.start) or 'ever'} until {_clock(schedule.until) or 'ever'}")
    if schedule.tags:
        print(f"  tags {', '.join(f'{key}={value}' for key, value in schedule.tags.items())}")
    if schedule.input is not None:
        print(f"  input {dumps(plain_payload(schedule.input))}")
    if schedule.upcoming:
        print(f"  next: {', '.join(map(_clock, schedule.upcoming))}")
    for run in schedule.open_runs:
        print(f"  open: {run}")
    if schedule.missed:
        shown = [_clock(at) for at in schedule.missed[-5:]]
        print(f"  missed: {', '.join(['…', *shown] if len(schedule.missed) > len(shown) else shown)}")
    if schedule.recent:
        print()
        table(("run", "due", "cause", "fate"), map(_occurrence_row, reversed(schedule.recent)))


def _occurrence_row(one: OccurrenceInfo) -> tuple[str, ...]:
    mark = {"started": "✓", "queued": "◷", "skipped": "↷", "existed": "="}.get(one.fate, "·")
    return one.run_id, _clock(one.scheduled_at), one.cause, f"{mark} {one.fate}"


def _status(schedule: ScheduleInfo) -> str:
    mark = {"active": "▶", "paused": "‖", "orphaned": "⚠", "ended": "✗"}[schedule.status.value]
    return f"{mark} {schedule.status.value}"


def _note(schedule: ScheduleInfo) -> str:
    notes = [schedule.pause_reason, schedule.reason]
    if schedule.status.value == "orphaned":
        notes.insert(0, "declared in code no more: resume it to keep it, or delete it")
    return " · ".join(note for note in notes if note)


def _timing(schedule: ScheduleInfo) -> str:
    if schedule.every is not None:
        return f"every {_span(schedule.every)}"
    return f"{schedule.cron} {schedule.timezone or 'UTC'}"


def _span(span: timedelta) -> str:
    from treadle.protocol.durations import in_words

    return in_words(round(span / timedelta(milliseconds=1))) if span else "none"


def _clock(at: datetime | None) -> str:
    return "" if at is None else at.isoformat(timespec="seconds", sep=" ")


def _iso(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds")


def plain_schedule(schedule: ScheduleInfo) -> dict[str, Any]:
    """Return how a schedule stands as JSON values."""
    from treadle.cli.plain import plain_payload

    return {
        "id": schedule.id,
        "namespace": schedule.namespace,
        "workflow": schedule.workflow,
        "pool": schedule.pool,
        "status": schedule.status.value,
        "cron": schedule.cron or None,
        "timezone": schedule.timezone or "UTC",
        "every_s": schedule.every.total_seconds() if schedule.every is not None else None,
        "overlap": schedule.overlap,
        "catch_up_s": schedule.catch_up.total_seconds(),
        "jitter_s": schedule.jitter.total_seconds(),
        "timeout_s": schedule.timeout.total_seconds() if schedule.timeout is not None else None,
        "start": _iso(schedule.start) if schedule.start is not None else None,
        "until": _iso(schedule.until) if schedule.until is not None else None,
        "tags": dict(schedule.tags),
        "declared": schedule.declared,
        "pause_reason": schedule.pause_reason,
        "reason": schedule.reason,
        "created_at": _iso(schedule.created_at.astimezone(UTC)),
        "changed_at": _iso(schedule.changed_at.astimezone(UTC)),
        "upcoming": [_iso(at) for at in schedule.upcoming],
        "open_runs": list(schedule.open_runs),
        "queued": schedule.queued,
        "backfilling": schedule.backfilling,
        "recent": [
            {
                "run_id": one.run_id,
                "scheduled_at": _iso(one.scheduled_at),
                "decided_at": _iso(one.decided_at),
                "cause": one.cause,
                "fate": one.fate,
            }
            for one in schedule.recent
        ],
        "missed": [_iso(at) for at in schedule.missed],
        "missed_count": schedule.missed_count,
        "skipped_count": schedule.skipped_count,
        "started_count": schedule.started_count,
        "input": plain_payload(schedule.input) if schedule.input is not None else None,
    }
