"""`treadle run signal`, `ask` and `state`: what a run is told from outside, and what it shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from treadle.cli.json_input import read_value
from treadle.cli.options import Connection, OutputOption

if TYPE_CHECKING:
    from treadle.client import RunInfo

__all__ = ("ask", "signal", "state")

Value = Annotated[str, Parameter(name=["--input", "-i"])]


async def signal(
    run: str,
    name: str,
    /,
    *,
    input: Value = "null",
    id: str | None = None,
    output: OutputOption = "table",
    connection: Connection | None = None,
) -> int:
    """Send a run a signal; its code receives it by name.

    Parameters
    ----------
    run
        Id of the run.
    name
        What the code receives it by.
    input
        The value as JSON; @FILE reads a file, @- stdin.
    id
        Of the signal: sent again under the same id, it changes nothing. One is made otherwise.
    """
    from treadle.cli.output import emit_one, note
    from treadle.cli.plain import plain_run

    value = read_value(input)
    connection = connection or Connection()
    async with connection.client() as client:
        info: RunInfo = await client.run(run).signal(name, value, id=id)
    emit_one(plain_run(info), output, lambda: note(f"run {run} has signal {name!r}"))
    return 0


async def ask(
    run: str,
    name: str,
    /,
    *,
    input: Value = "null",
    id: str | None = None,
    timeout: str | None = None,
    connection: Connection | None = None,
) -> int:
    """Ask a run a question and print the answer of its code as JSON.

    Parameters
    ----------
    run
        Id of the run.
    name
        What the code receives it by.
    input
        The value as JSON; @FILE reads a file, @- stdin.
    id
        Of the question: who asks again under the same id gets the same answer. One is made otherwise.
    timeout
        How long to wait at most ("90s", "5m"); the exit code is 5 then.
    """
    from treadle.cli.plain import dumps

    value = read_value(input)
    connection = connection or Connection()
    async with connection.client() as client:
        print(dumps(await client.run(run).ask(name, value, id=id, timeout=timeout)))
    return 0


async def state(run: str, /, *, connection: Connection | None = None) -> int:
    """Print the state that a run shows, as JSON; null if it has shown none.

    Parameters
    ----------
    run
        Id of the run.
    """
    from treadle.cli.plain import dumps

    connection = connection or Connection()
    async with connection.client() as client:
        print(dumps(await client.run(run).state()))
    return 0
