"""`treadle run show` and `treadle run history`: one run, as a drawing or as its record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast, get_args

from cyclopts import Parameter

from treadle.cli.options import Connection, Output, OutputOption

__all__ = ("history", "show")


async def show(run: str, /, *, output: OutputOption = "table", connection: Connection | None = None) -> int:
    """Show how a run stands: its steps with attempts, durations and state, and the last error.

    Parameters
    ----------
    run
        Id of the run.
    """
    import time

    from treadle.cli.draw import draw_run
    from treadle.cli.output import console, emit_one
    from treadle.cli.plain import plain_run, plain_timeline
    from treadle.client.timeline import Timeline
    from treadle.client.whole_history import present_history

    connection = connection or Connection()
    async with connection.client() as client:
        info, events = await present_history(client.run(run))
    timeline = Timeline()
    for event in events:
        timeline.feed(event)
    value = {**plain_run(info), "steps": plain_timeline(timeline)}
    now_ms = None if info.status.closed else max(int(time.time() * 1000), timeline.now_ms)
    emit_one(value, output, lambda: draw_run(console(), info, timeline, now_ms=now_ms))
    return 0


async def history(
    run: str,
    /,
    *,
    after: int = 0,
    output: Annotated[str, Parameter(name=["--output", "-o"])] = "table",
    connection: Connection | None = None,
) -> int:
    """Print the events of a run, or save its history for `treadle run replay`.

    Parameters
    ----------
    run
        Id of the run.
    after
        Only events behind this position.
    output
        table, json or jsonl; or a file to save the whole history in: as JSON if its name ends in .json.
    """
    if output not in get_args(Output):
        return await _save(run, output, after, connection or Connection())
    from treadle.cli.output import emit, table
    from treadle.cli.plain import dumps, plain
    from treadle.client.views import from_ms
    from treadle.v1.history_pb2 import HistoryEvent

    connection = connection or Connection()
    async with connection.client() as client:
        events = [event async for event in client.run(run).history(after=after)]

    def row(event: HistoryEvent) -> tuple[str, ...]:
        kind = event.WhichOneof("kind") or "?"
        body = plain(event).get(kind, {})
        when = from_ms(event.time_ms).astimezone().strftime("%H:%M:%S.%f")[:-3]
        rest = {key: value for key, value in body.items() if key not in ("command_id", "digest", "input")}
        return str(event.position), when, kind, body.get("command_id", ""), dumps(rest)[:200] if rest else ""

    emit(
        (plain(event) for event in events),
        cast("Output", output),
        lambda: table(("position", "time", "event", "command", "what"), map(row, events)),
    )
    return 0


async def _save(run: str, name: str, after: int, connection: Connection) -> int:
    from treadle.cli.history_file import write_history
    from treadle.cli.output import note
    from treadle.cli.run_replay import download
    from treadle.protocol.errors import ConfigError

    if after:
        raise ConfigError("treadle run history: a file has the whole history: leave --after out")
    history = await download(run, connection)
    write_history(Path(name), history)
    note(f"{name} has {len(history.events)} events of run {run}")
    return 0
