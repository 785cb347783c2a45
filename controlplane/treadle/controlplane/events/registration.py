"""What a worker says at its registration about events that start its workflows."""

from __future__ import annotations

from typing import Protocol

from treadle.controlplane.events.conditions import compiled
from treadle.controlplane.machine import Request
from treadle.controlplane.machine.event_requests import SetTriggers
from treadle.controlplane.machine.events import TRIGGERS
from treadle.controlplane.machine.requests import Reply
from treadle.protocol.errors import FieldInvalid
from treadle.protocol.events import check_trigger
from treadle.protocol.ids import RunKey
from treadle.protocol.tags import split_name
from treadle.v1.state_pb2 import RegisteredTrigger
from treadle.v1.worker_service_pb2 import RegisterRequest

__all__ = ("check_triggers", "set_triggers")


class _Engine(Protocol):
    async def ask(self, run: RunKey, request: Request) -> Reply:
        """See Engine.ask."""
        ...


def check_triggers(request: RegisterRequest) -> None:
    """Refuse a worker whose workflows could not be started as they say.

    Raises:
        FieldInvalid: A name of events or a condition is wrong; names the workflow, and the place in the condition.
    """
    for spec in request.specs:
        if not spec.HasField("on"):
            continue
        try:
            check_trigger(spec.on)
            if spec.on.condition:
                compiled(spec.on.condition)
        except FieldInvalid as error:
            raise FieldInvalid(
                f"workflow {spec.name!r}: {error}", field=error.field, reason=error.reason, remedy=error.remedy
            ) from error


async def set_triggers(engine: _Engine, namespace: str, pool: str, request: RegisterRequest) -> None:
    """Make it known which events start the worker's workflows; those of which it says nothing are started by none.

    Raises:
        RequestError: There are too many, or the store is away.
    """
    if not request.workflows:
        return
    triggers: dict[str, RegisteredTrigger] = {}
    for spec in request.specs:
        if spec.HasField("on") and spec.name in request.workflows:
            name = split_name(spec.name)[0]
            triggers[spec.name] = RegisteredTrigger(workflow=name, pool=pool, trigger=spec.on, code=spec.name)
    reply = await engine.ask(RunKey(namespace, TRIGGERS), SetTriggers(request.workflows, list(triggers.values())))
    if isinstance(reply, Exception):
        raise reply
