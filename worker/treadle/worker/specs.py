"""What a worker tells the control plane of its workflows besides their names."""

from __future__ import annotations

from collections.abc import Iterable

from treadle.v1.worker_service_pb2 import WorkflowSpec
from treadle.worker.app import Registry

__all__ = ("specs_of",)


def specs_of(registry: Registry, names: Iterable[str]) -> list[WorkflowSpec]:
    """Return the specs of those workflows that there is something to say of."""
    found = []
    for name in names:
        workflow = registry.workflows[name]
        spec = WorkflowSpec(name=name, on=workflow.trigger, schedule=workflow.schedule)
        if len(spec.ListFields()) > 1:
            found.append(spec)
    return found
