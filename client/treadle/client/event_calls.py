"""What both clients can do with events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import grpc

from treadle.client.events import EventSender, NewEvent, SentEvent
from treadle.v1.event_service_pb2 import (
    DeleteTriggerRequest,
    EventInfo,
    ListEventsRequest,
    ListTriggersRequest,
    TriggerInfo,
)
from treadle.v1.event_service_pb2_grpc import EventServiceStub

if TYPE_CHECKING:
    from treadle.client.aio import Client
    from treadle.client.sync import LoopThread

__all__ = ("EventCalls", "EventLink", "SyncEventCalls")

_PAGE = 200


class EventLink:
    """EventService on a client's channel.

    Attributes:
        stub: Its calls.
        sender: Puts events that are sent at the same time into one call.
    """

    def __init__(self, client: Client, channel: grpc.aio.Channel) -> None:
        self.stub = EventServiceStub(channel)
        self.sender = EventSender(lambda request: client.call(self.stub.SendEvents, request), client.namespace)


class EventCalls:
    """Of the asynchronous client."""

    if TYPE_CHECKING:
        namespace: str
        call: Any

        @property
        def event_link(self) -> EventLink:
            """EventService on this client's channel, and what goes there together."""
            ...

    async def send(self, name: str, data: Any = None, *, id: str | None = None) -> SentEvent:
        """Send an event: it starts the workflows that say so (`@workflow(on=…)`), and runs that wait for it go on.

        When this returns, the event is durable: all of that happens whatever dies. Events that are sent at the same time go
        in one call.

        Args:
            name: What it is ("contacts.uploaded"): letters, digits and "_.:/-".
            data: Any JSON-like value, dataclass or model, at most 64 KiB.
            id: Sent again under the same id within 24 h, it is nothing new; None: one is made.

        Raises:
            FieldInvalid: The name or id is not allowed.
            PayloadError: The data cannot be encoded, or is too large.
            Refused: A limit of the control plane is reached, or the token does not allow it.
            Unavailable: The control plane does not answer; the event may have been taken. Send it again under its id.
        """
        (sent,) = await self.event_link.sender.send([NewEvent(name, data, id)])
        return sent

    async def send_many(self, events: Iterable[NewEvent]) -> tuple[SentEvent, ...]:
        """Send many events, up to 1,000 in one call; see `send`. What became of each is told in their order.

        Raises:
            FieldInvalid, PayloadError: One of them is not allowed; none was sent.
            Unavailable: The control plane does not answer; some may have been taken.
        """
        return tuple(await self.event_link.sender.send(events))

    async def events(self, *, name: str | None = None, limit: int | None = None) -> AsyncGenerator[EventInfo, None]:
        """Yield the events of the last 24 h, newest first, without their data.

        Args:
            name: Only events of this name.
            limit: At most this many; None: all.
        """
        token, left = "", limit
        while left is None or left > 0:
            request = ListEventsRequest(
                namespace=self.namespace, name=name or "", page_size=_PAGE if left is None else min(left, _PAGE)
            )
            request.page_token = token
            page = await self.call(self.event_link.stub.ListEvents, request)
            for event in page.events:
                yield event
            token = page.next_page_token
            left = None if left is None else left - len(page.events)
            if not token:
                return

    async def triggers(self) -> tuple[TriggerInfo, ...]:
        """Return the workflows that events start, by name."""
        request = ListTriggersRequest(namespace=self.namespace)
        return tuple((await self.call(self.event_link.stub.ListTriggers, request)).triggers)

    async def delete_trigger(self, workflow: str) -> bool:
        """Make events start a workflow no longer, until a worker registers it again; returns whether they did."""
        request = DeleteTriggerRequest(namespace=self.namespace, workflow=workflow)
        return bool((await self.call(self.event_link.stub.DeleteTrigger, request)).deleted)


class SyncEventCalls:
    """Of the blocking client."""

    if TYPE_CHECKING:
        _client: Client
        _thread: LoopThread

    def send(self, name: str, data: Any = None, *, id: str | None = None) -> SentEvent:
        """See Client.send."""
        return self._thread.run(self._client.send(name, data, id=id))

    def send_many(self, events: Iterable[NewEvent]) -> tuple[SentEvent, ...]:
        """See Client.send_many."""
        return self._thread.run(self._client.send_many(events))

    def events(self, *, name: str | None = None, limit: int | None = None) -> Iterator[EventInfo]:
        """See Client.events."""
        return self._thread.iterate(self._client.events(name=name, limit=limit))

    def triggers(self) -> tuple[TriggerInfo, ...]:
        """See Client.triggers."""
        return self._thread.run(self._client.triggers())

    def delete_trigger(self, workflow: str) -> bool:
        """See Client.delete_trigger."""
        return self._thread.run(self._client.delete_trigger(workflow))
