"""`treadle run list` and `treadle run count`: which runs there are, newest first, and how many."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from treadle.cli.options import Connection, OutputOption, TagOption, read_tags

if TYPE_CHECKING:
    from treadle.client import RunFilters

__all__ = ("Filters", "count_runs", "list_runs", "parse_since")


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Filters:
    """Which runs are meant.

    Attributes:
        workflow: Only this workflow; "name@version" for one version of it.
        status: Only these: running, waiting, needs-attention, completed, failed, cancelled, terminated. May be repeated.
        tag: Only runs with this tag: customer=42. May be repeated: with all of them.
        error: Only runs that failed with an error of this class, or retry a step that did.
        retrying: Only open runs with a step that has failed and is tried again.
        waiting: Only open runs that wait for a worker that has their workflow, or a step.
        attention: Only open runs that a person must look at.
        since: Only runs started since: "1h", "2d", or a time like 2026-11-22T10:00.
        until: Only runs started before; written in the same way.
    """

    workflow: str | None = None
    status: Annotated[list[str] | None, Parameter(negative="", consume_multiple=False)] = None
    tag: TagOption = None
    error: str | None = None
    retrying: Annotated[bool, Parameter(negative="")] = False
    waiting: Annotated[bool, Parameter(negative="")] = False
    attention: Annotated[bool, Parameter(negative="")] = False
    since: str | None = None
    until: str | None = None

    def of_client(self) -> RunFilters:
        """Return them as the client takes them.

        Raises:
            ConfigError: A tag or a time is not written as it should be.
        """
        flags = (("retrying", self.retrying), ("waiting", self.waiting), ("attention", self.attention))
        return {
            "workflow": self.workflow,
            "status": self.status or (),
            "tags": read_tags(self.tag),
            "error": self.error,
            "trouble": [name for name, wanted in flags if wanted],
            "since": parse_since(self.since) if self.since is not None else None,
            "until": parse_since(self.until, "--until") if self.until is not None else None,
        }


async def list_runs(
    *,
    filters: Filters | None = None,
    count: Annotated[bool, Parameter(negative="")] = False,
    limit: int = 50,
    output: OutputOption = "table",
    connection: Connection | None = None,
) -> int:
    """List runs, newest first.

    Parameters
    ----------
    count
        Only how many there are.
    limit
        At most this many.
    """
    from treadle.cli.draw import status_text, tags_text
    from treadle.cli.output import emit, table
    from treadle.cli.plain import plain_run
    from treadle.client.progress import duration_text, failure_text
    from treadle.client.views import RunInfo
    from treadle.protocol.tags import code_name

    filters, connection = filters or Filters(), connection or Connection()
    if count:
        return await count_runs(filters=filters, output=output, connection=connection)
    async with connection.client() as client:
        runs = [run async for run in client.list(limit=limit, **filters.of_client())]
    now = datetime.now(UTC)
    tagged = any(run.tags for run in runs)

    def row(run: RunInfo) -> tuple[str, ...]:
        took = (run.duration or (now - run.created_at)) / timedelta(milliseconds=1)
        note = failure_text(run.failure, limit=80) if run.failure is not None else run.reason
        if run.retrying:
            note = f"{run.retrying} retrying · {note}".removesuffix(" · ")
        created = run.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        name, tags = code_name(run.workflow, run.version), (tags_text(run),) if tagged else ()
        return run.id, name, status_text(run.status), created, duration_text(max(took, 0)), *tags, note

    columns = ("run", "workflow", "status", "started", "duration", *(("tags",) if tagged else ()), "note")
    emit((plain_run(run) for run in runs), output, lambda: table(columns, map(row, runs)))
    return 0


async def count_runs(
    *, filters: Filters | None = None, output: OutputOption = "table", connection: Connection | None = None
) -> int:
    """Count runs: how many there are, and of which status."""
    from treadle.cli.draw import status_text
    from treadle.cli.output import emit_one, note, table

    filters, connection = filters or Filters(), connection or Connection()
    async with connection.client() as client:
        found = await client.count(**filters.of_client())
    value = {
        "total": found.total,
        "at_least": found.at_least,
        "by_status": {status.value: count for status, count in found.by_status.items()},
    }
    rows = [(status_text(status), str(count)) for status, count in found.by_status.items()]
    emit_one(value, output, lambda: table(("status", "runs"), [*rows, ("total", str(found.total))]))
    if found.at_least:
        note("there are more: not all that may fit were looked at; narrow it down with --since or --workflow")
    return 0


def parse_since(text: str, option: str = "--since") -> datetime | timedelta:
    """Return the bound that --since or --until gives: a time, or a span that counts back from now.

    Raises:
        ConfigError: It is neither.
    """
    from treadle.protocol.durations import to_ms
    from treadle.protocol.errors import ConfigError

    try:
        return timedelta(milliseconds=to_ms(text, name=option))
    except ConfigError:
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            raise ConfigError(f"{option} {text!r}: write it like '1h', '2d' or '2026-11-22T10:00'") from None
        return when if when.tzinfo else when.astimezone()
