"""`treadle run cancel`, `terminate` and `accept`: what a person may do to a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from treadle.cli.options import Connection, Output, OutputOption

if TYPE_CHECKING:
    from treadle.client import RunInfo

__all__ = ("accept", "cancel", "terminate")


async def cancel(
    run: str,
    /,
    *,
    reason: str = "",
    output: OutputOption = "table",
    connection: Connection | None = None,
) -> int:
    """Ask a run to stop; its code may clean up.

    Parameters
    ----------
    run
        Id of the run.
    reason
        Why; shown in the history.
    """
    connection = connection or Connection()
    async with connection.client() as client:
        return _told(await client.run(run).cancel(reason), "was asked to stop", output)


async def terminate(
    run: str,
    /,
    *,
    reason: str = "",
    output: OutputOption = "table",
    connection: Connection | None = None,
) -> int:
    """End a run at once, without asking its code.

    Parameters
    ----------
    run
        Id of the run.
    reason
        Why; shown in the history.
    """
    connection = connection or Connection()
    async with connection.client() as client:
        return _told(await client.run(run).terminate(reason), "is terminated", output)


async def accept(
    run: str,
    /,
    *,
    reason: str = "",
    output: OutputOption = "table",
    connection: Connection | None = None,
) -> int:
    """Let a run that needs attention go on with today's code.

    Parameters
    ----------
    run
        Id of the run.
    reason
        Why; shown in the history.
    """
    connection = connection or Connection()
    async with connection.client() as client:
        return _told(await client.run(run).accept(reason), "goes on", output)


def _told(run: RunInfo, what: str, output: Output) -> int:
    from treadle.cli.output import emit_one, note
    from treadle.cli.plain import plain_run

    emit_one(plain_run(run), output, lambda: note(f"run {run.id} {what}"))
    return 0
