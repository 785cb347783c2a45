"""`treadle step complete` and `treadle step fail`: finish a step from outside, by the token that it made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from treadle.cli.json_input import read_value
from treadle.cli.options import Connection
from treadle.protocol.errors import ConfigError

__all__ = ("complete", "fail")

Value = Annotated[str, Parameter(name=["--input", "-i"])]


async def complete(
    token: str,
    /,
    *,
    input: Value = "null",
    request_id: str | None = None,
    connection: Connection | None = None,
) -> int:
    """Give a step that was deferred its result.

    Parameters
    ----------
    token
        What the step made with defer(); @FILE reads a file, @- stdin, so that it is in no list of processes.
    input
        The result as JSON; @FILE reads a file, @- stdin.
    request_id
        Of the call: again under the same id, it changes nothing. One is made otherwise.
    """
    from treadle.cli.output import note

    value = read_value(input)
    connection = connection or Connection()
    async with connection.client() as client:
        run = await client.complete_step(_secret(token), value, request_id=request_id)
    note(f"the step of run {run} is completed")
    return 0


async def fail(
    token: str,
    message: str,
    /,
    *,
    final: bool = False,
    request_id: str | None = None,
    connection: Connection | None = None,
) -> int:
    """Let a step that was deferred fail: its retry policy says what follows.

    Parameters
    ----------
    token
        What the step made with defer(); @FILE reads a file, @- stdin, so that it is in no list of processes.
    message
        Why, for people.
    final
        No retry can help.
    request_id
        Of the call: again under the same id, it changes nothing. One is made otherwise.
    """
    from treadle.cli.output import note

    connection = connection or Connection()
    async with connection.client() as client:
        run = await client.fail_step(_secret(token), message, final=final, request_id=request_id)
    note(f"the step of run {run} was failed")
    return 0


def _secret(token: str) -> str:
    if not token.startswith("@"):
        return token
    where = token[1:]
    try:
        return (sys.stdin.read() if where == "-" else Path(where).read_text(encoding="utf-8")).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token: cannot read {where!r}: {error}") from error
