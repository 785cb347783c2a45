"""`treadle run retry`: closed runs go on, one by its id or many by a filter."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from treadle.cli.exits import Exit
from treadle.cli.json_input import read_object
from treadle.cli.options import Connection, OutputOption

if TYPE_CHECKING:
    from treadle.cli.options import Output
    from treadle.client import Client, RunInfo

__all__ = ("retry",)

_AT_ONCE = 16
"""So many runs are asked for at a time."""
_SHOWN = 10
"""So many refusals are told one by one."""


async def retry(
    run: str | None = None,
    /,
    *,
    from_step: Annotated[str | None, Parameter(name="--from")] = None,
    input: Annotated[str | None, Parameter(name=["--input", "-i"])] = None,
    reason: str = "",
    workflow: str | None = None,
    status: Annotated[list[str] | None, Parameter(negative="", consume_multiple=False)] = None,
    since: str | None = None,
    limit: int = 10_000,
    yes: Annotated[bool, Parameter(name=["--yes", "-y"], negative="")] = False,
    output: OutputOption = "table",
    connection: Connection | None = None,
) -> int:
    """Let closed runs go on with today's code: one by its id, or all that a filter finds, after asking.

    What completed is kept; what failed, was cancelled or was open runs again.

    Parameters
    ----------
    run
        Id of the run. Without it, the filter says which.
    from_step
        Name of a step, or one call of it ("0/validate#1"): it and everything recorded behind it run again.
    input
        Arguments as a JSON object; @FILE reads a file, @- stdin. The run starts over with them; nothing is kept.
    reason
        Why; shown in the history.
    workflow
        Filter: only this workflow.
    status
        Filter: only these; failed by default. May be repeated.
    since
        Filter: only runs started since: "1h", "2d", or a time like 2026-11-22T10:00.
    limit
        Filter: at most this many, the newest first.
    yes
        Do not ask.
    """
    from treadle.cli.output import emit_one, note
    from treadle.cli.plain import plain_run
    from treadle.protocol.errors import ConfigError

    filtered = workflow is not None or status is not None or since is not None
    if (run is None) is not filtered:
        raise ConfigError("treadle run retry: give the id of a run, or a filter: --workflow, --status, --since")
    arguments = read_object(input) if input is not None else None
    asked: dict[str, Any] = {"from_step": from_step, "input": arguments, "reason": reason}
    connection = connection or Connection()
    async with connection.client() as client:
        if run is not None:
            info: RunInfo = await client.run(run).retry(**asked)
            emit_one(plain_run(info), output, lambda: note(f"run {run} goes on"))
            return Exit.OK
        runs = await _found(client, workflow, status or ["failed"], since, limit)
        if not runs:
            note("no run fits the filter")
            return Exit.OK
        if not yes and not _agreed(len(runs), more=len(runs) == limit):
            note("nothing was changed")
            return Exit.FAILED
        return await _retry_all(client, runs, asked, output)


async def _found(client: Client, workflow: str | None, status: list[str], since: str | None, limit: int) -> list[str]:
    from treadle.cli.run_list import parse_since

    bound = parse_since(since) if since is not None else None
    listed = client.list(workflow=workflow, status=status, since=bound, limit=limit)
    return [info.id async for info in listed if info.status.closed]


def _agreed(count: int, *, more: bool) -> bool:
    """Ask a person.

    Raises:
        ConfigError: There is nobody to ask.
    """
    import sys

    from treadle.protocol.errors import ConfigError

    what = f"{count} {'run' if count == 1 else 'runs'}" + (" (there may be more: see --limit)" if more else "")
    if not sys.stdin.isatty():
        raise ConfigError(f"treadle run retry: {what} would go on: say --yes, there is no terminal to ask at")
    print(f"Let {what} go on? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


async def _retry_all(client: Client, runs: list[str], asked: dict[str, Any], output: Output) -> int:
    from treadle.cli.output import emit_one, note
    from treadle.protocol.errors import RequestError

    refused: dict[str, RequestError] = {}
    waiting = iter(runs)

    async def work() -> None:
        for run in waiting:
            try:
                await client.run(run).retry(**asked)
            except RequestError as error:
                refused[run] = error

    async with asyncio.TaskGroup() as group:
        for _ in range(min(_AT_ONCE, len(runs))):
            group.create_task(work())

    def tell() -> None:
        for run, error in list(refused.items())[:_SHOWN]:
            note(f"  {run}: {error}")
        if len(refused) > _SHOWN:
            reasons = ", ".join(f"{count} {reason}" for reason, count in reasons_of.most_common())
            note(f"  … {len(refused) - _SHOWN} more; in all: {reasons}")
        note(f"{len(runs) - len(refused)} of {len(runs)} runs go on")

    reasons_of = Counter(error.reason for error in refused.values())
    value = {
        "found": len(runs),
        "retried": len(runs) - len(refused),
        "refused": [{"id": run, "reason": e.reason, "message": str(e)} for run, e in refused.items()],
    }
    emit_one(value, output, tell)
    return Exit.FAILED if refused else Exit.OK
