"""`treadle run watch`: follow a run, line by line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from treadle.cli.options import Connection, OutputOption

if TYPE_CHECKING:
    from treadle.client import RunHandle, RunInfo
    from treadle.v1.history_pb2 import HistoryEvent

__all__ = ("follow", "outcome_exit", "progress_printer", "progress_teller", "watch")


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
    from treadle.cli.output import emit_one, note
    from treadle.cli.plain import dumps, plain, plain_run

    connection = connection or Connection()
    async with connection.client() as client:
        handle = client.run(run)
        await handle.get()  # a wrong id or address is told at once; after that, outages are waited out
        if output == "jsonl":
            await follow(handle, timeout, lambda event: print(dumps(plain(event)), flush=True))
        else:
            say = print if output == "table" else note
            await follow(handle, timeout, progress_printer(run, say), told=progress_teller(say))
        info = await handle.get()
        if output == "json":
            emit_one(plain_run(info), output, lambda: None)
        return outcome_exit(info)


async def follow(
    run: RunHandle[Any],
    timeout: str | None,
    take: Callable[[HistoryEvent], None],
    *,
    told: Callable[[RunInfo], None] | None = None,
) -> None:
    """Give each event to `take` until the run is closed; to `told`, how it stands.

    Raises:
        ResultTimeout: The timeout is over; the run goes on.
        NotFound: There is no such run.
    """
    from treadle.protocol.durations import to_ms
    from treadle.protocol.errors import ResultTimeout

    limit = None if timeout is None else to_ms(timeout, name="--timeout") / 1000
    try:
        async with asyncio.timeout(limit), aclosing(run.watch(told=told)) as events:
            async for event in events:
                take(event)
    except TimeoutError:
        raise ResultTimeout(f"run {run.id} has no outcome after {timeout}; it goes on") from None


def progress_printer(run_id: str, say: Callable[[str], None]) -> Callable[[HistoryEvent], None]:
    """Return what tells a run's events as lines, as they come."""
    from treadle.client.progress import progress_line
    from treadle.client.timeline import Timeline

    timeline = Timeline()

    def tell(event: HistoryEvent) -> None:
        line = progress_line(run_id, timeline, event)
        if line is not None:
            say(line)

    return tell


def progress_teller(say: Callable[[str], None]) -> Callable[[RunInfo], None]:
    """Return what tells, as lines, how far steps are: each time that they said something new."""
    from treadle.client.progress import said_line

    known: dict[str, bytes] = {}

    def tell(info: RunInfo) -> None:
        for said in info.progress:
            if known.get(said.command_id) != said.payload.data:
                known[said.command_id] = said.payload.data
                say(said_line(said.step, said.payload))

    return tell


def outcome_exit(run: RunInfo) -> int:
    """Return the exit code that stands for how a closed run ended."""
    from treadle.cli.exits import Exit
    from treadle.client import RunStatus

    return Exit.OK if run.status is RunStatus.COMPLETED else Exit.FAILED
