"""`treadle pools`: demand, slots and workers."""

from __future__ import annotations

import time
from typing import Any

from treadle.cli.options import Connection, OutputOption

__all__ = ("list_pools",)


async def list_pools(
    pool: str | None = None,
    /,
    *,
    output: OutputOption = "table",
    connection: Connection | None = None,
) -> int:
    """List pools with their demand and slots, and the workers in them.

    Parameters
    ----------
    pool
        Only this pool.
    """
    from treadle.cli.output import emit
    from treadle.cli.plain import plain

    connection = connection or Connection()
    async with connection.client() as client:
        pools = [one for one in await client.pools() if pool is None or one.name == pool]
        if pool is not None and not pools:
            from treadle.protocol.errors import NotFound

            raise NotFound(f"no pool {pool!r} in namespace {connection.namespace!r}", reason="POOL_NOT_FOUND")
        workers = await client.workers(pool)
    members = {one.name: [w for w in workers if w.pool == one.name] for one in pools}
    values = ({**plain(one), "worker_list": [plain(w) for w in members[one.name]]} for one in pools)
    emit(values, output, lambda: _draw(pools, workers))
    return 0


def _draw(pools: Any, workers: Any) -> None:
    from treadle.cli.output import table

    table(
        ("pool", "steps ready", "runs ready", "steps", "runs", "workers", "workflows"),
        (
            (
                one.name + ("  ⚠ no queue" if one.unroutable else ""),
                str(one.steps_ready),
                str(one.runs_ready),
                f"{one.steps_running}/{one.step_slots}",
                f"{one.runs_open}/{one.run_slots}",
                str(one.workers),
                ", ".join(one.workflows),
            )
            for one in pools
        ),
    )
    if workers:
        table(("worker", "pool", "state", "host", "steps", "runs", "last beat"), map(_worker_row, workers))


def _worker_row(worker: Any) -> tuple[str, ...]:
    from treadle.client.progress import duration_text
    from treadle.v1.pool_service_pb2 import WorkerState

    state = WorkerState.Name(worker.state).removeprefix("WORKER_STATE_").lower()
    mark = {"live": "✓", "draining": "↩", "silent": "◷", "gone": "✗"}.get(state, "·")
    ago = max(time.time() * 1000 - worker.last_beat_ms, 0)
    return (
        worker.worker_id,
        worker.pool,
        f"{mark} {state}",
        worker.host,
        f"{worker.steps_running}/{worker.step_slots}",
        f"{worker.runs_open}/{worker.run_slots}",
        f"{duration_text(ago)} ago",
    )
