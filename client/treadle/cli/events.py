"""`treadle events`: sending events, and looking at them and at what they start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from treadle.cli.json_input import read_value
from treadle.cli.options import Connection, OutputOption

if TYPE_CHECKING:
    from treadle.client import SentEvent

__all__ = ("forget", "list_events", "send", "triggers")

Value = Annotated[str, Parameter(name=["--input", "-i"])]


async def send(
    name: str,
    /,
    *,
    input: Value = "null",
    id: str | None = None,
    output: OutputOption = "table",
    connection: Connection | None = None,
) -> int:
    """Send an event: it starts workflows, and runs that wait for it go on.

    Parameters
    ----------
    name
        What it is ("order.paid").
    input
        Its data as JSON; @FILE reads a file, @- stdin.
    id
        Sent again under the same id within 24 h, it is nothing new. One is made otherwise.
    """
    from treadle.cli.output import emit_one, note

    data = read_value(input)
    connection = connection or Connection()
    async with connection.client() as client:
        sent: SentEvent = await client.send(name, data, id=id)
    value = {"id": sent.id, "duplicate": sent.duplicate, "time": sent.time.isoformat(), "starts": sent.starts}
    told = "was sent before; nothing was done" if sent.duplicate else f"starts {sent.starts} runs"
    emit_one(value, output, lambda: note(f"event {sent.id} {told}"))
    return 0


async def list_events(
    *,
    name: str | None = None,
    limit: int = 50,
    output: OutputOption = "table",
    connection: Connection | None = None,
) -> int:
    """List the events of the last 24 hours, newest first.

    Parameters
    ----------
    name
        Only events of this name.
    limit
        At most this many.
    """
    from treadle.cli.output import emit, table
    from treadle.cli.plain import plain
    from treadle.client.progress import duration_text

    connection = connection or Connection()
    async with connection.client() as client:
        found = [event async for event in client.events(name=name, limit=limit)]

    def draw() -> None:
        import time

        now_ms = time.time() * 1000
        rows = (
            (e.name, e.event_id, str(e.starts), f"{e.data_bytes:,}", f"{duration_text(max(now_ms - e.time_ms, 0))} ago")
            for e in found
        )
        table(("name", "id", "starts", "bytes", "sent"), rows)

    emit((plain(event) for event in found), output, draw)
    return 0


async def triggers(*, output: OutputOption = "table", connection: Connection | None = None) -> int:
    """List the workflows that events start."""
    from treadle.cli.output import emit, table
    from treadle.cli.plain import plain

    connection = connection or Connection()
    async with connection.client() as client:
        found: tuple[Any, ...] = await client.triggers()
    rows = ((one.workflow, one.pool, ", ".join(one.trigger.names), one.trigger.condition) for one in found)
    emit((plain(one) for one in found), output, lambda: table(("workflow", "pool", "on", "when"), rows))
    return 0


async def forget(workflow: str, /, *, connection: Connection | None = None) -> int:
    """Make events start a workflow no longer, until a worker registers it again.

    Parameters
    ----------
    workflow
        Its name.
    """
    from treadle.cli.output import note
    from treadle.protocol.errors import NotFound

    connection = connection or Connection()
    async with connection.client() as client:
        if not await client.delete_trigger(workflow):
            raise NotFound(
                f"no event starts workflow {workflow!r} in namespace {connection.namespace!r}",
                reason="TRIGGER_NOT_FOUND",
                remedy="see `treadle events triggers`",
            )
    note(f"events start {workflow!r} no longer")
    return 0
