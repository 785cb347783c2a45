"""`treadle schedules create`, `change`, `pause`, `resume`, `trigger`, `backfill` and `delete`."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from treadle.cli.json_input import read_object
from treadle.cli.options import Connection, Output, OutputOption, TagOption, read_tags

if TYPE_CHECKING:
    from treadle.client import ScheduleInfo

__all__ = ("backfill", "change", "create", "delete", "pause", "resume", "trigger")

Policy = Literal["skip", "queue-one", "queue-all", "cancel", "terminate", "allow"]
Flag = Annotated[bool, Parameter(negative="")]
Input = Annotated[str | None, Parameter(name=["--input", "-i"])]


async def create(
    schedule: str,
    workflow: str,
    /,
    *,
    cron: str | None = None,
    tz: str | None = None,
    every: str | None = None,
    input: Input = None,
    overlap: Policy = "skip",
    catch_up: str = "1m",
    jitter: str | None = None,
    timeout: str | None = None,
    start: str | None = None,
    until: str | None = None,
    tag: TagOption = None,
    pool: str | None = None,
    paused: Flag = False,
    output: OutputOption = "table",
    connection: Connection | None = None,
) -> int:
    """Create a schedule.

    Parameters
    ----------
    schedule
        Its name; its runs are named after it.
    workflow
        Name of the workflow it starts.
    cron
        Five fields (minute, hour, day of month, month, day of week), or @daily and the like.
    tz
        Zone in which --cron is read, like Europe/Berlin; UTC otherwise.
    every
        Instead of --cron: an interval ("15m", "1h30m").
    input
        Arguments of its runs as a JSON object by parameter name; @FILE reads a file, @- stdin.
    overlap
        What happens while a run of it is open.
    catch_up
        What could not be started in so long, because no server was there, is missed.
    jitter
        Each run starts up to so much later, always before the next occurrence.
    timeout
        Longest duration of each run.
    start
        The first time at which it may be due, with its zone: 2027-01-01T00:00+01:00.
    until
        The last one, included.
    tag
        What its runs are found by: customer=42. May be repeated.
    pool
        Pool whose workers execute it; the one where the workflow is registered otherwise.
    paused
        Start nothing until it is resumed.
    """
    arguments = () if input is None else (read_object(input),)
    connection = connection or Connection()
    async with connection.client() as client:
        made = await client.schedules.create(
            schedule,
            workflow,
            *arguments,
            cron=cron,
            tz=tz,
            every=every,
            overlap=overlap,
            catch_up=catch_up,
            jitter=jitter,
            timeout=timeout,
            start=_instant("--start", start),
            until=_instant("--until", until),
            tags=read_tags(tag),
            pool=pool,
            paused=paused,
        )
    return _told(made, "is created", output)


async def change(
    schedule: str,
    /,
    *,
    cron: str | None = None,
    tz: str | None = None,
    every: str | None = None,
    input: Input = None,
    overlap: Policy | None = None,
    catch_up: str | None = None,
    jitter: str | None = None,
    timeout: str | None = None,
    start: str | None = None,
    until: str | None = None,
    tag: TagOption = None,
    untagged: Flag = False,
    workflow: str | None = None,
    pool: str | None = None,
    output: OutputOption = "table",
    connection: Connection | None = None,
) -> int:
    """Change what is given, and leave the rest.

    Parameters
    ----------
    schedule
        Its name.
    cron, tz, every, input, overlap, catch_up, jitter, timeout, start, until, pool
        As for `create`; --cron replaces --every, and the other way round; 0 takes a timeout, a start or an end away.
    tag
        All tags of its runs from now on.
    untagged
        They have none from now on.
    workflow
        Name of another workflow.
    """
    arguments = None if input is None else read_object(input)
    connection = connection or Connection()
    async with connection.client() as client:
        changed = await client.schedules.change(
            schedule,
            cron=cron,
            tz=tz,
            every=every,
            overlap=overlap,
            catch_up=catch_up,
            jitter=jitter,
            timeout=timeout,
            start=0 if start == "0" else _instant("--start", start),
            until=0 if until == "0" else _instant("--until", until),
            tags={} if untagged else read_tags(tag) or None,
            workflow=workflow,
            pool=pool,
            arguments=arguments,
        )
    return _told(changed, "is changed", output)


async def pause(
    schedule: str,
    /,
    *,
    reason: str = "",
    output: OutputOption = "table",
    connection: Connection | None = None,
) -> int:
    """Start nothing by itself until it is resumed; what falls due meanwhile is left out.

    Parameters
    ----------
    schedule
        Its name.
    reason
        Why; shown with it.
    """
    connection = connection or Connection()
    async with connection.client() as client:
        return _told(await client.schedules.pause(schedule, reason), "is paused", output)


async def resume(schedule: str, /, *, output: OutputOption = "table", connection: Connection | None = None) -> int:
    """Go on with the next occurrence; keep one that code declares no more.

    Parameters
    ----------
    schedule
        Its name.
    """
    connection = connection or Connection()
    async with connection.client() as client:
        return _told(await client.schedules.resume(schedule), "goes on", output)


async def trigger(
    schedule: str,
    /,
    *,
    overlap: Policy | None = None,
    output: OutputOption = "table",
    connection: Connection | None = None,
) -> int:
    """Start a run now and print its id.

    Parameters
    ----------
    schedule
        Its name.
    overlap
        What happens if a run of it is open; as the schedule says otherwise.
    """
    from treadle.cli.output import emit_one

    connection = connection or Connection()
    async with connection.client() as client:
        run = await client.schedules.trigger(schedule, overlap=overlap)
    emit_one({"schedule": schedule, "run_id": run.id}, output, lambda: print(run.id))
    return 0


async def backfill(
    schedule: str,
    /,
    *,
    since: str,
    until: str | None = None,
    at_once: Flag = False,
    output: OutputOption = "table",
    connection: Connection | None = None,
) -> int:
    """Start the occurrences of a past span that have no run, one after another.

    Parameters
    ----------
    schedule
        Its name.
    since
        From when on: "2d", or a time like 2026-11-22T10:00.
    until
        Up to when; now otherwise.
    at_once
        Start them beside each other.
    """
    from treadle.cli.output import emit_one, note
    from treadle.cli.run_list import parse_since

    first, last = parse_since(since), None if until is None else parse_since(until)
    connection = connection or Connection()
    async with connection.client() as client:
        count = await client.schedules.backfill(schedule, first, last, at_once=at_once)
    said = f"{count} occurrences of schedule {schedule} are in the span; those that have a run are left alone"
    emit_one({"schedule": schedule, "occurrences": count}, output, lambda: note(said))
    return 0


async def delete(schedule: str, /, *, output: OutputOption = "table", connection: Connection | None = None) -> int:
    """Delete a schedule; its open runs go on.

    Parameters
    ----------
    schedule
        Its name.
    """
    from treadle.cli.output import emit_one, note

    connection = connection or Connection()
    async with connection.client() as client:
        await client.schedules.delete(schedule)
    emit_one({"schedule": schedule, "deleted": True}, output, lambda: note(f"schedule {schedule} is deleted"))
    return 0


def _instant(option: str, text: str | None) -> datetime | None:
    """Return the time that is meant. Raises ConfigError: it is none, or has no zone."""
    from treadle.protocol.errors import ConfigError

    if text is None:
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        raise ConfigError(f"{option} {text!r}: write a time with its zone, like 2027-01-01T00:00+01:00")
    return when


def _told(schedule: ScheduleInfo, what: str, output: Output) -> int:
    from treadle.cli.output import emit_one, note
    from treadle.cli.schedule_look import plain_schedule

    following = f"; next: {schedule.next_at.isoformat(sep=' ')}" if schedule.next_at is not None else ""
    emit_one(plain_schedule(schedule), output, lambda: note(f"schedule {schedule.id} {what}{following}"))
    return 0
