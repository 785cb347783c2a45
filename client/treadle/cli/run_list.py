"""`treadle run list`: runs, newest first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

from cyclopts import Parameter

from treadle.cli.options import Connection, OutputOption

__all__ = ("list_runs", "parse_since")


async def list_runs(
    *,
    workflow: str | None = None,
    status: Annotated[list[str] | None, Parameter(negative="", consume_multiple=False)] = None,
    since: str | None = None,
    limit: int = 50,
    output: OutputOption = "table",
    connection: Connection | None = None,
) -> int:
    """List runs, newest first.

    Parameters
    ----------
    workflow
        Only this workflow.
    status
        Only these: running, waiting, needs-attention, completed, failed, cancelled, terminated. May be repeated.
    since
        Only runs started since: "1h", "2d", or a time like 2026-11-22T10:00.
    limit
        At most this many.
    """
    from treadle.cli.draw import status_text
    from treadle.cli.output import emit, table
    from treadle.cli.plain import plain_run
    from treadle.client.progress import duration_text, failure_text
    from treadle.client.views import RunInfo

    connection = connection or Connection()
    bound = parse_since(since) if since is not None else None
    async with connection.client() as client:
        listed = client.list(workflow=workflow, status=status or (), since=bound, limit=limit)
        runs = [run async for run in listed]
    now = datetime.now(UTC)

    def row(run: RunInfo) -> tuple[str, ...]:
        took = (run.duration or (now - run.created_at)) / timedelta(milliseconds=1)
        note = failure_text(run.failure, limit=80) if run.failure is not None else run.reason
        if run.retrying:
            note = f"{run.retrying} retrying · {note}".removesuffix(" · ")
        created = run.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        return run.id, run.workflow, status_text(run.status), created, duration_text(max(took, 0)), note

    columns = ("run", "workflow", "status", "started", "duration", "note")
    emit((plain_run(run) for run in runs), output, lambda: table(columns, map(row, runs)))
    return 0


def parse_since(text: str) -> datetime | timedelta:
    """Return the bound that --since gives: a time, or a span that counts back from now.

    Raises:
        ConfigError: It is neither.
    """
    from treadle.protocol.durations import to_ms
    from treadle.protocol.errors import ConfigError

    try:
        return timedelta(milliseconds=to_ms(text, name="--since"))
    except ConfigError:
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            raise ConfigError(f"--since {text!r}: write it like '1h', '2d' or '2026-11-22T10:00'") from None
        return when if when.tzinfo else when.astimezone()
