"""`treadle run watch`: follow a run, line by line."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from treadle.cli.options import Connection, OutputOption

if TYPE_CHECKING:
    from treadle.client import RunHandle, RunInfo

__all__ = ("follow", "outcome_exit", "watch")


async def watch(
    run: str,
    /,
    *,
    timeout: str | None = None,
    output: OutputOption = "table",
    connection: Connection | None = None,
) -> int:
    """Show what a run did and does, until it is closed. The exit code is its outcome.

    Parameters
    ----------
    run
        Id of the run.
    timeout
        How long to watch at most ("90s", "5m"); the exit code is 5 then.
    """
    from treadle.cli.output import emit_one
    from treadle.cli.plain import dumps, plain, plain_run

    connection = connection or Connection()
    async with connection.client() as client:
        handle = client.run(run)
        await handle.get()  # a wrong id or address is told at once; after that, outages are waited out
        if output == "jsonl":
            async with aclosing(handle.watch()) as events:
                async for event in events:
                    print(dumps(plain(event)), flush=True)
        else:
            await follow(handle, timeout=timeout, to_stdout=output == "table")
        info = await handle.wait(timeout)
        if output == "json":
            emit_one(plain_run(info), output, lambda: None)
        return outcome_exit(info)


async def follow(run: RunHandle[Any], *, timeout: str | None, to_stdout: bool = False) -> None:
    """Print a line for each event worth one, until the run is closed.

    Raises:
        ResultTimeout: The timeout is over; the run goes on.
        NotFound: There is no such run.
    """
    from treadle.cli.output import note
    from treadle.client.progress import progress_line
    from treadle.client.timeline import Timeline
    from treadle.protocol.durations import to_ms
    from treadle.protocol.errors import ResultTimeout

    timeline = Timeline()
    try:
        async with asyncio.timeout(None if timeout is None else to_ms(timeout, name="--timeout") / 1000):
            async with aclosing(run.watch()) as events:
                async for event in events:
                    line = progress_line(run.id, timeline, event)
                    if line is None:
                        continue
                    if to_stdout:
                        print(line, flush=True)
                    else:
                        note(line)
    except TimeoutError:
        raise ResultTimeout(f"run {run.id} has no outcome after {timeout}; it goes on") from None


def outcome_exit(run: RunInfo) -> int:
    """Return the exit code that stands for how a closed run ended."""
    from treadle.cli.exits import Exit
    from treadle.client import RunStatus

    return Exit.OK if run.status is RunStatus.COMPLETED else Exit.FAILED
