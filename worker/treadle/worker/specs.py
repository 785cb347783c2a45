"""What a worker tells the control plane of its workflows besides their names."""

from __future__ import annotations

from collections.abc import Iterable

from treadle.v1.common_pb2 import FailureHandler
from treadle.v1.worker_service_pb2 import WorkflowSpec
from treadle.worker.app import Registry

__all__ = ("handlers_of", "specs_of")


def specs_of(registry: Registry, names: Iterable[str]) -> list[WorkflowSpec]:
    """Return the specs of those workflows that there is something to say of."""
    found = []
    for name in names:
        workflow = registry.workflows[name]
        spec = WorkflowSpec(name=name, on=workflow.trigger, schedule=workflow.schedule)
        hook = workflow.on_failure
        if hook is not None:
            spec.on_failure.workflow, spec.on_failure.pool = hook.code, hook.pool
        if len(spec.ListFields()) > 1:
            found.append(spec)
    return found


def handlers_of(specs: Iterable[WorkflowSpec]) -> dict[str, FailureHandler]:
    """Return, by workflow, what handles the failures of its runs, where something does."""
    return {spec.name: spec.on_failure for spec in specs if spec.HasField("on_failure")}
