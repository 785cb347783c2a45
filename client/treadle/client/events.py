"""Events on their way to the control plane: those that are sent at the same time go in one call."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from treadle.client.calls import caller_context
from treadle.protocol.events import EVENT_DATA_BYTES, EVENTS_A_CALL, check_event_id, check_event_name
from treadle.protocol.payloads import encode
from treadle.v1.common_pb2 import NamedEvent
from treadle.v1.event_service_pb2 import SendEventsRequest, SendEventsResponse

__all__ = ("EventSender", "NewEvent", "SentEvent", "named_event")

_CALL_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to be sent.

    Attributes:
        name: What it is ("contacts.uploaded").
        data: Any JSON-like value, dataclass or model, at most 64 KiB.
        id: Sent again under the same id within 24 h, it is nothing new; None: one is made.
    """

    name: str
    data: Any = None
    id: str | None = None


@dataclass(frozen=True, slots=True)
class SentEvent:
    """An event that was sent; it is durable.

    Attributes:
        id: Its id.
        duplicate: It was sent before under this id; nothing was done.
        time: When it was accepted.
        starts: Runs that it starts.
    """

    id: str
    duplicate: bool
    time: datetime
    starts: int


def named_event(event: NewEvent) -> NamedEvent:
    """Return an event as it goes over the wire.

    Raises:
        FieldInvalid: Its name or id is not allowed.
        PayloadError: Its data cannot be encoded, or is larger than 64 KiB.
    """
    name = check_event_name(event.name)
    data = encode(event.data, what=f"event {name!r}", limit=EVENT_DATA_BYTES - 64)
    event_id = os.urandom(12).hex() if event.id is None else check_event_id(event.id)
    return NamedEvent(event_id=event_id, name=name, data=data, caller=caller_context())


class EventSender:
    """See the module. While a call is under way the next events collect.

    Args:
        call: Makes one call.
        namespace: Of the events.
    """

    def __init__(self, call: Callable[[SendEventsRequest], Awaitable[SendEventsResponse]], namespace: str) -> None:
        self._call, self._namespace = call, namespace
        self._waiting: deque[tuple[NamedEvent, asyncio.Future[SentEvent]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def send(self, events: Iterable[NewEvent]) -> list[SentEvent]:
        """Send events; returns when all are durable.

        Raises:
            FieldInvalid, PayloadError: One of them is not allowed; none was sent.
            RequestError: The control plane refused them, or (Unavailable) did not answer: some may have been taken.
        """
        made = [named_event(event) for event in events]
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in made]
        self._waiting.extend(zip(made, futures, strict=True))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        results = await asyncio.gather(*futures, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [result for result in results if isinstance(result, SentEvent)]

    async def close(self) -> None:
        """Cut off what is under way. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        while self._waiting:
            part = self._next()
            request = SendEventsRequest(namespace=self._namespace, events=[event for event, _ in part])
            try:
                answer = await self._call(request)
            except BaseException as error:
                if isinstance(error, Exception):
                    for _, future in part:
                        _fail(future, error)
                    continue
                for future in [*(future for _, future in part), *(future for _, future in self._waiting)]:
                    future.cancel()
                self._waiting.clear()
                raise
            for (_, future), sent in zip(part, answer.events, strict=True):
                if not future.done():
                    time = datetime.fromtimestamp(sent.time_ms / 1000, UTC)
                    future.set_result(SentEvent(sent.event_id, sent.duplicate, time, sent.starts))

    def _next(self) -> Sequence[tuple[NamedEvent, asyncio.Future[SentEvent]]]:
        """Take what goes into one call."""
        part: list[tuple[NamedEvent, asyncio.Future[SentEvent]]] = []
        size = 0
        while self._waiting and len(part) < EVENTS_A_CALL:
            size += self._waiting[0][0].ByteSize()
            if part and size > _CALL_BYTES:
                break
            part.append(self._waiting.popleft())
        return part


def _fail(future: asyncio.Future[SentEvent], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
