"""`treadle steps quarantined` and `treadle run release`: steps that killed too many workers."""

from __future__ import annotations

from treadle.cli.options import Connection, OutputOption

__all__ = ("quarantined", "release")


async def quarantined(*, output: OutputOption = "table", connection: Connection | None = None) -> int:
    """List steps that killed too many workers and wait for a person, the oldest first."""
    from treadle.cli.output import emit, table
    from treadle.cli.plain import plain
    from treadle.client.progress import failure_text
    from treadle.client.views import from_ms
    from treadle.v1.run_service_pb2 import QuarantinedStep

    connection = connection or Connection()
    async with connection.client() as client:
        steps = await client.quarantined()

    def row(step: QuarantinedStep) -> tuple[str, ...]:
        since = from_ms(step.since_ms).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        error = failure_text(step.last_failure, limit=80) if step.HasField("last_failure") else ""
        return step.run_id, step.command_id, step.pool, since, str(step.losses), error

    columns = ("run", "step", "pool", "since", "workers lost", "last error")
    emit(map(plain, steps), output, lambda: table(columns, map(row, steps)))
    return 0


async def release(
    run: str,
    step: str = "",
    /,
    *,
    reason: str = "",
    output: OutputOption = "table",
    connection: Connection | None = None,
) -> int:
    """Let quarantined steps of a run go on.

    Parameters
    ----------
    run
        Id of the run.
    step
        Name of the step, or one call of it ("0/validate#1"); all that are quarantined otherwise.
    reason
        Why; shown in the history.
    """
    from treadle.cli.output import emit_one, note

    connection = connection or Connection()
    async with connection.client() as client:
        released = await client.run(run).release(step, reason=reason)
    value = {"run": run, "released": list(released)}
    emit_one(value, output, lambda: note(f"run {run}: {', '.join(released)} may start again"))
    return 0
