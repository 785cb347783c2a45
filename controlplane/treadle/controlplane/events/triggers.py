"""Which workflows an event starts: read from the namespace's record of triggers, anew for each batch of events.

What a worker registered before an event was sent is seen by it: the record is read after the event came. What is registered
at the same time may be seen or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Protocol

import structlog

from treadle.controlplane.api.fresh import Fresh
from treadle.controlplane.events.conditions import compiled, seen
from treadle.controlplane.machine.events import TRIGGERS
from treadle.controlplane.store.port import RunStore, Want
from treadle.protocol.errors import FieldInvalid
from treadle.protocol.events import pattern_fits
from treadle.protocol.ids import RunKey
from treadle.v1.common_pb2 import NamedEvent
from treadle.v1.state_pb2 import RegisteredTrigger, RunHead, StartByEvent

__all__ = ("Triggers", "Versions", "starts_of")

_log = structlog.stdlib.get_logger(__name__)

_NAMESPACES = 1_000


class Versions(Protocol):
    """Knows which versions of workflows there are, and which are alive."""

    async def codes_of(self, namespace: str, workflows: Iterable[str], *, fresh: bool = True) -> Mapping[str, str]:
        """Return what starts of these names mean now. Raises Unavailable."""
        ...


class Triggers:
    """See the module.

    Args:
        store: Has the record.
        now_ms: The store's clock: what conditions see as the time of an event that is being sent.

    Attributes:
        versions: Which version of a workflow an event starts; None: each that says so.
    """

    def __init__(self, store: RunStore, now_ms: Callable[[], int]) -> None:
        self._store, self._now_ms = store, now_ms
        self.versions: Versions | None = None
        self._known: dict[str, Fresh[Sequence[RegisteredTrigger]]] = {}

    async def of(self, namespace: str) -> Sequence[RegisteredTrigger]:
        """Return the triggers of a namespace as they are now, by workflow, of all versions. Raises Unavailable."""
        known = self._known.get(namespace)
        if known is None:
            if len(self._known) >= _NAMESPACES:
                self._known.clear()
            known = self._known[namespace] = Fresh(partial(self._read, namespace))
        return await known.get(since=monotonic())

    async def starts(self, namespace: str, events: Sequence[NamedEvent]) -> list[list[StartByEvent]]:
        """Return, for each event, what it starts. Raises Unavailable."""
        triggers, now_ms = await self.of(namespace), self._now_ms()
        starts = [starts_of(triggers, event, now_ms) for event in events]
        codes = dict.fromkeys(start.workflow for mine in starts for start in mine)
        meant = await self._meant(namespace, [trigger for trigger in triggers if trigger.code in codes])
        return [[start for start in mine if start.workflow in meant] for mine in starts]

    async def in_force(self, namespace: str) -> list[RegisteredTrigger]:
        """Return the triggers that count now: of several versions of a workflow, those of the one that a start means."""
        triggers = await self.of(namespace)
        meant = await self._meant(namespace, triggers)
        return [trigger for trigger in triggers if trigger.code in meant]

    async def _meant(self, namespace: str, triggers: Sequence[RegisteredTrigger]) -> set[str]:
        """Return which of these workflows and versions a start by the name of their workflow means now, as a schedule does.

        That there are versions at all of a workflow that said nothing of one is known after a second.
        """
        if self.versions is None or not triggers:
            return {trigger.code for trigger in triggers}
        names = dict.fromkeys(trigger.workflow for trigger in triggers)
        fresh = any(trigger.code != trigger.workflow for trigger in triggers)
        return set((await self.versions.codes_of(namespace, names, fresh=fresh)).values())

    async def _read(self, namespace: str) -> Sequence[RegisteredTrigger]:
        (loaded,) = await self._store.load([Want(RunKey(namespace, TRIGGERS))])
        return RunHead.FromString(loaded.head).event_triggers.triggers if loaded.head else ()


def starts_of(triggers: Sequence[RegisteredTrigger], event: NamedEvent, now_ms: int) -> list[StartByEvent]:
    """Return the starts of workflows that are triggered by this event, which is accepted now."""
    starts: list[StartByEvent] = []
    view = None
    for known in triggers:
        trigger = known.trigger
        if not any(pattern_fits(pattern, event.name) for pattern in trigger.names):
            continue
        if trigger.condition:
            view = view or seen(event, now_ms)
            try:
                holds = compiled(trigger.condition).holds(view)
            except FieldInvalid as error:  # it was understood where it was registered, and is not here
                _log.error("condition_not_evaluated", workflow=known.workflow, error=str(error), remedy=error.remedy)
                continue
            if not holds:
                continue
        starts.append(
            StartByEvent(workflow=known.code, pool=known.pool, parameter=trigger.parameter, whole=trigger.whole)
        )
    return starts
