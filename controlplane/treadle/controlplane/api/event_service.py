"""EventService: events from clients, and what is known of events and triggers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from treadle.controlplane.api import checks
from treadle.controlplane.api.admission import Admission
from treadle.controlplane.api.errors import Context
from treadle.controlplane.api.pages import Cursor, page_size, read_token, write_token
from treadle.controlplane.api.starts import Engine, run_reply
from treadle.controlplane.events.triggers import Triggers
from treadle.controlplane.machine.event_requests import AcceptEvent, DropTrigger
from treadle.controlplane.machine.event_routers import record_of
from treadle.controlplane.machine.events import TRIGGERS
from treadle.controlplane.machine.indexes import events_index
from treadle.controlplane.store.port import Store, Want
from treadle.protocol.errors import FieldInvalid
from treadle.protocol.events import EVENTS_A_CALL, check_event, check_event_name
from treadle.protocol.ids import SHARDS, RunKey
from treadle.v1 import event_service_pb2 as pb
from treadle.v1.common_pb2 import NamedEvent
from treadle.v1.event_service_pb2_grpc import EventServiceServicer
from treadle.v1.state_pb2 import RunHead, StartByEvent

__all__ = ("EventService",)

_READ_AT_ONCE: Final = 200
_READS: Final = 10
"""So often one call looks for more events of a name; the next page goes on behind them."""


class EventService(EventServiceServicer):
    """See the module.

    Args:
        engine: Decides and commits.
        store: Read for lists.
        triggers: Which workflows events start.
        outbox_max: From so many entries on, events are refused.
    """

    def __init__(self, engine: Engine, store: Store, triggers: Triggers, *, outbox_max: int = 100_000) -> None:
        self._engine, self._store, self._triggers = engine, store, triggers
        self._admission = Admission(store, outbox_max)

    async def SendEvents(self, request: pb.SendEventsRequest, context: Context) -> pb.SendEventsResponse:
        """See event_service.proto. All events are looked at before the first is accepted."""
        namespace = checks.namespace_of(request.namespace)
        events = request.events
        if not 1 <= len(events) <= EVENTS_A_CALL:
            raise FieldInvalid(f"events: give 1 to {EVENTS_A_CALL:,}, not {len(events):,}", field="events")
        for event in events:
            check_event(event)
        await self._admission.check_outbox()
        starts = await self._triggers.starts(namespace, events)
        asked = (self._send(namespace, event, mine) for event, mine in zip(events, starts, strict=True))
        return pb.SendEventsResponse(events=await asyncio.gather(*asked))

    async def _send(self, namespace: str, event: NamedEvent, starts: Sequence[StartByEvent]) -> pb.SentEvent:
        sent = NamedEvent(event_id=event.event_id, name=event.name, data=event.data)
        sent.caller.CopyFrom(checks.caller_of(event.caller))
        asked = AcceptEvent(sent, starts)
        reply = run_reply(asked, await self._engine.ask(RunKey(namespace, record_of(event.event_id)), asked))
        known = reply.head.event
        return pb.SentEvent(
            event_id=event.event_id, duplicate=not reply.started, time_ms=known.time_ms, starts=known.starts
        )

    async def ListEvents(self, request: pb.ListEventsRequest, context: Context) -> pb.ListEventsResponse:
        """See event_service.proto."""
        namespace = checks.namespace_of(request.namespace)
        name = check_event_name(request.name) if request.name else ""
        cursor = read_token(request.page_token, namespace, name)
        size = min(page_size(request.page_size), _READ_AT_ONCE)
        found: list[pb.EventInfo] = []
        for _ in range(_READS):
            heads, more = await self._behind(namespace, cursor)
            for head in heads:
                cursor = Cursor(head.created_ms, head.run_id)
                if not name or head.event.name == name:
                    found.append(_info(head))
                    if len(found) == size:
                        return pb.ListEventsResponse(events=found, next_page_token=write_token(cursor, namespace, name))
            if not more:
                return pb.ListEventsResponse(events=found)
        assert cursor is not None, "more than one page was read"
        return pb.ListEventsResponse(events=found, next_page_token=write_token(cursor, namespace, name))

    async def _behind(self, namespace: str, cursor: Cursor | None) -> tuple[list[RunHead], bool]:
        """Return the next accepted events behind the cursor, newest first, and whether there are more."""
        high = cursor.score + 1 if cursor is not None else 2**62
        limit = _READ_AT_ONCE + 1
        while True:
            entries = await self._store.index(events_index(namespace), range(SHARDS), high=high, limit=limit)
            behind = [e for e in entries if cursor is None or (e.score, e.member) < (cursor.score, cursor.member)]
            if len(behind) > _READ_AT_ONCE or len(entries) < limit:
                break
            limit *= 2  # many events of one millisecond, all of them shown before
        shown = behind[:_READ_AT_ONCE]
        loaded = await self._store.load([Want(RunKey(namespace, e.member)) for e in shown]) if shown else []
        heads = [RunHead.FromString(found.head) for found in loaded if found.head]
        return [head for head in heads if head.HasField("event")], len(behind) > len(shown)

    async def ListTriggers(self, request: pb.ListTriggersRequest, context: Context) -> pb.ListTriggersResponse:
        """See event_service.proto."""
        known = await self._triggers.in_force(checks.namespace_of(request.namespace))
        return pb.ListTriggersResponse(
            triggers=[pb.TriggerInfo(workflow=t.workflow, pool=t.pool, trigger=t.trigger) for t in known]
        )

    async def DeleteTrigger(self, request: pb.DeleteTriggerRequest, context: Context) -> pb.DeleteTriggerResponse:
        """See event_service.proto."""
        asked = DropTrigger(checks.workflow_of(request.workflow))
        record = RunKey(checks.namespace_of(request.namespace), TRIGGERS)
        reply = run_reply(asked, await self._engine.ask(record, asked))
        return pb.DeleteTriggerResponse(deleted=reply.started)


def _info(head: RunHead) -> pb.EventInfo:
    known = head.event
    return pb.EventInfo(
        event_id=known.event_id,
        name=known.name,
        time_ms=known.time_ms,
        data_bytes=known.data_bytes,
        starts=known.starts,
    )
