"""The in-memory broker: what `treadle dev` runs on, and the twin that the tests of everything else use.

The outbox is its disk. It confirms a job when the job is acked, so a process that is killed loses nothing: at
the next start the outbox is published again. While it holds a dispatch, queued or unacked, publishing that
dispatch again is a no-op, so the duty that republishes what stays in the outbox makes no copies.

All of it is synchronous and deterministic: who publishes first is delivered first, consumers take turns, and
what is given back is delivered again before what was never delivered, in the order of giving back (as
RabbitMQ's quorum queues do it).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import structlog

from treadle.controlplane.broker.port import Consumer, Delivery, Listener, QueueDepth
from treadle.protocol.errors import ConfigError, Unavailable
from treadle.protocol.topology import Queue, queue_of
from treadle.v1.job_pb2 import Job

__all__ = ("MemoryBroker",)

_log = structlog.stdlib.get_logger(__name__)


class MemoryBroker:
    """Implements `Broker` in this process. Not thread-safe: one event loop, or none at all.

    `publish`, `ack` and `give_back` call `deliver` and the listener before they return; a call made from
    inside such a callback is queued and served right after it, so callbacks never nest. A queue must be
    declared before it is published to; a job that finds none is returned, and its queue is declared.
    """

    def __init__(self) -> None:
        self._listener: Listener | None = None
        self._queues: dict[str, _Queue] = {}
        self._held: set[str] = set()
        self._todo: deque[Callable[[], None]] = deque()
        self._busy = False
        self._tasks: set[asyncio.Future[None]] = set()

    async def start(self, listener: Listener) -> None:
        self._listener = listener

    async def stop(self) -> None:
        """Forget everything: what was not acked is in the outbox. Deliveries still out become inert."""
        self._listener = None
        self._queues.clear()
        self._held.clear()
        self._todo.clear()
        others = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def declare(self, queue: Queue) -> None:
        self._queue(queue)

    def publish(self, jobs: Sequence[Job]) -> None:
        self._do(lambda: self._publish(jobs))

    async def depth(self, queue: Queue) -> QueueDepth:
        found = self._queues.get(queue.name)
        if found is None:
            raise Unavailable(f"queue {queue.name!r} does not exist: declare it first")
        return QueueDepth(ready=len(found.back) + len(found.ready), consumers=len(found.consumers))

    async def consume(
        self, queue: Queue, prefetch: int, deliver: Callable[[Delivery], Awaitable[None] | None]
    ) -> Consumer:
        if prefetch < 1:
            raise ConfigError(f"prefetch {prefetch} on {queue.name!r}: give 1 or more")
        target = self._queue(queue)
        consumer = _Consumer(self, target, prefetch, deliver)
        target.consumers.append(consumer)
        self._do(lambda: self._serve(target))
        return consumer

    def has(self, dispatch_id: str) -> bool:
        return dispatch_id in self._held

    def _queue(self, queue: Queue) -> _Queue:
        return self._queues.setdefault(queue.name, _Queue(queue.name))

    def _do(self, act: Callable[[], None]) -> None:
        """Run `act` after everything that was asked for before it."""
        self._todo.append(act)
        if self._busy:
            return
        self._busy = True
        try:
            while self._todo:
                self._todo.popleft()()
        finally:
            self._busy = False

    def _publish(self, jobs: Sequence[Job]) -> None:
        returned: list[Job] = []
        touched: dict[str, _Queue] = {}
        for job in jobs:
            target = self._queues.get(queue_of(job).name)
            if target is None:
                returned.append(job)
            elif job.dispatch_id not in self._held:
                self._held.add(job.dispatch_id)
                target.ready.append(job)
                touched[target.name] = target
        for target in touched.values():
            self._serve(target)
        if returned and self._listener is not None:
            for job in returned:
                self._queue(queue_of(job))
            self._listener.returned(returned)

    def _serve(self, queue: _Queue) -> None:
        """Deliver while there is a message and a consumer with room; consumers take turns."""
        while (queue.back or queue.ready) and (consumer := queue.next_consumer()):
            job = queue.back.popleft() if queue.back else queue.ready.popleft()
            consumer.unacked += 1
            self._deliver(consumer, _Delivery(self, queue, consumer, job))

    def _deliver(self, consumer: _Consumer, delivery: _Delivery) -> None:
        try:
            result = consumer.deliver(delivery)
        except Exception:
            _log.exception("deliver_failed", queue=consumer.queue.name, dispatch_id=delivery.job.dispatch_id)
            return
        if result is not None:
            task = asyncio.ensure_future(_finish(result, delivery))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def settle(self, delivery: _Delivery, *, ack: bool) -> None:
        """Settle a delivery of this broker (called by the delivery itself, once)."""
        self._do(lambda: self._settle(delivery, ack))

    def _settle(self, delivery: _Delivery, ack: bool) -> None:
        if self._queues.get(delivery.queue.name) is not delivery.queue:
            return  # the broker was stopped since
        delivery.consumer.unacked -= 1
        if ack:
            self._held.discard(delivery.job.dispatch_id)
            if self._listener is not None:
                self._listener.confirmed((delivery.job,))
        else:
            delivery.queue.back.append(delivery.job)
        self._serve(delivery.queue)


@dataclass(slots=True)
class _Queue:
    name: str
    ready: deque[Job] = field(default_factory=deque)
    back: deque[Job] = field(default_factory=deque)
    consumers: deque[_Consumer] = field(default_factory=deque)

    def next_consumer(self) -> _Consumer | None:
        for _ in range(len(self.consumers)):
            consumer = self.consumers[0]
            self.consumers.rotate(-1)
            if consumer.unacked < consumer.prefetch:
                return consumer
        return None


class _Consumer:
    __slots__ = ("_broker", "deliver", "prefetch", "queue", "unacked")

    def __init__(
        self,
        broker: MemoryBroker,
        queue: _Queue,
        prefetch: int,
        deliver: Callable[[Delivery], Awaitable[None] | None],
    ) -> None:
        self._broker = broker
        self.queue = queue
        self.prefetch = prefetch
        self.deliver = deliver
        self.unacked = 0

    async def cancel(self) -> None:
        """Stop taking. What was delivered stays with its delivery until acked or given back. Idempotent."""
        if self in self.queue.consumers:
            self.queue.consumers.remove(self)


class _Delivery:
    __slots__ = ("_broker", "_settled", "consumer", "job", "queue")

    def __init__(self, broker: MemoryBroker, queue: _Queue, consumer: _Consumer, job: Job) -> None:
        self._broker = broker
        self._settled = False
        self.queue = queue
        self.consumer = consumer
        self.job = job

    @property
    def body(self) -> bytes:
        return self.job.SerializeToString()

    def ack(self) -> None:
        self._settle(ack=True)

    def give_back(self) -> None:
        self._settle(ack=False)

    def _settle(self, *, ack: bool) -> None:
        if not self._settled:
            self._settled = True
            self._broker.settle(self, ack=ack)


async def _finish(result: Awaitable[None], delivery: _Delivery) -> None:
    try:
        await result
    except Exception:
        _log.exception("deliver_failed", queue=delivery.queue.name, dispatch_id=delivery.job.dispatch_id)
