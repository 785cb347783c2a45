"""How far the open steps of a run are, as clients see it."""

from __future__ import annotations

from treadle.controlplane.store.port import Store, Want
from treadle.protocol.ids import RunKey
from treadle.v1.run_service_pb2 import Run, StepProgress
from treadle.v1.state_pb2 import CommandRow, RunHead

__all__ = ("add_progress",)


async def add_progress(store: Store, head: RunHead, run: Run) -> None:
    """Add what the steps said last. One that is settled meanwhile is left out."""
    fields = [f"c:{command_id}" for command_id in head.progressing]
    (loaded,) = await store.load([Want(RunKey(head.namespace, head.run_id), fields=fields)])
    for field in fields:
        data = loaded.fields.get(field)
        row = CommandRow.FromString(data) if data else CommandRow()
        if row.progress_number:
            run.progress.append(
                StepProgress(command_id=row.command_id, name=row.name, value=row.progress, time_ms=row.progress_ms)
            )
