"""The app of the schedule kill tests: a workflow that declares a schedule, and one that others are made of."""

from __future__ import annotations

from treadle.worker import Occurrence, step, workflow


@step
async def seen(at: str) -> str:
    return at


@workflow(pool="flows", every="1s", overlap="queue-all")
async def declared(occurrence: Occurrence) -> str:
    """Return when it was due."""
    return await seen(occurrence.scheduled_at.isoformat())


@workflow(pool="flows")
async def tick(name: str, occurrence: Occurrence | None = None) -> str:
    """Return its argument, and when it was due."""
    return f"{name} {await seen(occurrence.scheduled_at.isoformat() if occurrence else '')}"
