"""A consumer of one queue that outlives its channel, on a channel of its own.

It consumes again after a reconnect, after the broker cancelled it (a deleted queue is declared again), and when a look
at the queue says that the broker has forgotten it. Verdicts are collected and written at once. A delivery whose
channel is gone needs no verdict: the broker delivers it again. (The library is told to consume; what is delivered then
does not pass through it, see `treadle.protocol.amqp_frames`.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, cast

import structlog
from aiormq import Channel
from aiormq.abc import AbstractConnection, DeliveredMessage
from aiormq.exceptions import ChannelNotFoundEntity
from google.protobuf.message import DecodeError
from pamqp import commands as spec

from treadle.controlplane.broker.link import AWAY, RPC_TIMEOUT, Link, while_open
from treadle.controlplane.broker.port import Delivery
from treadle.protocol.amqp_deliveries import Deliveries
from treadle.protocol.errors import TreadleError
from treadle.protocol.topology import Queue
from treadle.v1.job_pb2 import Job

__all__ = ("Subscription",)

LOOK_EVERY: Final = 10.0
"""Seconds between two looks at whether the broker still knows this consumer."""

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 2.0
_log = structlog.stdlib.get_logger(__name__)


class Subscription:
    """Implements `Consumer` over RabbitMQ. `run` must run for it to do anything.

    Args:
        link: The connection; consumers share one, apart from the publisher's.
        queue: What to consume.
        prefetch: Unacknowledged deliveries at a time, 1 or more.
        deliver: Called with each delivery; an awaitable that it returns is awaited.
        missing: Called when the queue does not exist; declares it.
        look_every: Seconds between two looks at whether the broker still knows this consumer.
    """

    def __init__(
        self,
        link: Link,
        queue: Queue,
        prefetch: int,
        deliver: Callable[[Delivery], Awaitable[None] | None],
        *,
        missing: Callable[[Queue], Awaitable[None]],
        look_every: float = LOOK_EVERY,
    ) -> None:
        self._link = link
        self._queue = queue
        self._prefetch = prefetch
        self._deliver = deliver
        self._missing = missing
        self._look_every = look_every
        self._wanted = True
        self._consumer_tag: str | None = None
        self._deliveries: Deliveries | None = None
        self._tasks: set[asyncio.Future[None]] = set()
        self._event = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._fresh = False
        self._suspicion = 0
        self._pause = _FIRST_PAUSE

    async def cancel(self) -> None:
        """Stop taking; deliveries that still arrive are given back. What is out stays with its delivery."""
        self._wanted = False
        self._event.set()
        await self._idle.wait()

    async def run(self) -> None:
        """Consume until cancelled and everything that was delivered is settled."""
        while self._wanted:
            try:
                connection = await self._link.wait()
                await while_open(connection, self._session(connection))
            except ChannelNotFoundEntity:
                await self._declare_missing()
            except AWAY as error:
                _log.info("consumer_interrupted", queue=self._queue.name, error=str(error))
            if self._wanted:
                await asyncio.sleep(self._pause)
                self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    async def _declare_missing(self) -> None:
        try:
            await self._missing(self._queue)
        except TreadleError as error:
            _log.error("declare_failed", queue=self._queue.name, error=str(error))

    async def _session(self, connection: AbstractConnection) -> None:
        channel = cast(Channel, await connection.channel(publisher_confirms=False, timeout=RPC_TIMEOUT))
        channel.on_consumer_cancel_callbacks.add(self._cancelled_by_broker)
        try:
            self._deliveries = deliveries = Deliveries(self._link.filter_of(connection), channel.number, self._take)
            await while_open(channel, self._serve(channel, deliveries))
        finally:
            self._gone()
            if not channel.is_closed and connection.is_opened:
                await channel.close(timeout=RPC_TIMEOUT)

    async def _serve(self, channel: Channel, deliveries: Deliveries) -> None:
        loop = asyncio.get_running_loop()
        await channel.basic_qos(prefetch_count=self._prefetch, timeout=RPC_TIMEOUT)
        deliveries.prefetch = self._prefetch
        look_at = loop.time() + self._look_every
        timer = loop.call_at(look_at, self._event.set)
        try:
            while True:
                self._event.clear()
                await self._steer(channel)
                if not self._wanted and not len(deliveries):
                    return
                await self._event.wait()
                if loop.time() >= look_at:
                    await self._look(channel, deliveries)
                    look_at = loop.time() + self._look_every
                    timer = loop.call_at(look_at, self._event.set)
        finally:
            timer.cancel()

    async def _steer(self, channel: Channel) -> None:
        """Have a consumer, or none, as is wanted."""
        if self._wanted and self._consumer_tag is None:
            await self._consume(channel)
        elif not self._wanted and self._consumer_tag is not None:
            await self._unconsume(channel)

    async def _consume(self, channel: Channel) -> None:
        async with self._link.declaring:
            ok = await channel.basic_consume(self._queue.name, _never, timeout=RPC_TIMEOUT)
        self._consumer_tag = str(ok.consumer_tag)
        self._link.consuming[self._queue.name] += 1
        self._idle.clear()
        self._pause = _FIRST_PAUSE

    async def _unconsume(self, channel: Channel) -> None:
        tag = self._consumer_tag
        self._not_consuming()
        if tag is not None:
            await channel.basic_cancel(tag, timeout=RPC_TIMEOUT)
        self._idle.set()

    def _take(self, found: Sequence[tuple[int, bytes]]) -> None:
        deliveries = self._deliveries
        assert deliveries is not None
        self._fresh = True
        for tag, body in found:
            if not self._wanted:
                deliveries.give_back(tag)
                continue
            delivery = _Delivery(self, deliveries, tag, body)
            try:
                result = self._deliver(delivery)
            except Exception:
                _log.exception("deliver_failed", queue=self._queue.name, dispatch_id=delivery.dispatch_id)
                continue
            if result is not None:
                task = asyncio.ensure_future(self._finish(result, delivery))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _finish(self, result: Awaitable[None], delivery: _Delivery) -> None:
        try:
            await result
        except Exception:
            _log.exception("deliver_failed", queue=self._queue.name, dispatch_id=delivery.dispatch_id)

    async def _look(self, channel: Channel, deliveries: Deliveries) -> None:
        """Consume again when the broker counts fewer consumers than this process has, or leaves messages lying."""
        if self._consumer_tag is None:
            return
        side = await channel.connection.channel(publisher_confirms=False, timeout=RPC_TIMEOUT)
        try:
            seen = await side.queue_declare(self._queue.name, passive=True, timeout=RPC_TIMEOUT)
        finally:
            if not side.is_closed:
                await side.close()
        starving = bool(seen.message_count) and len(deliveries) < self._prefetch and not self._fresh
        missing = (seen.consumer_count or 0) < self._link.consuming[self._queue.name]
        self._suspicion = self._suspicion + 1 if starving or missing else 0
        self._fresh = False
        if missing or self._suspicion > 1:
            _log.warning("deaf_consumer", queue=self._queue.name, consumers=seen.consumer_count)
            self._suspicion = 0
            await self._unconsume(channel)
            await self._consume(channel)

    async def _cancelled_by_broker(self, frame: spec.Basic.Cancel) -> None:
        if frame.consumer_tag == self._consumer_tag:
            self._not_consuming()
            self._event.set()

    def _not_consuming(self) -> None:
        if self._consumer_tag is not None:
            self._consumer_tag = None
            self._link.consuming[self._queue.name] -= 1

    def _gone(self) -> None:
        """The channel is closed, or is to be: nothing that came over it can be settled any more."""
        self._not_consuming()
        deliveries, self._deliveries = self._deliveries, None
        if deliveries is not None:
            deliveries.release()
        for task in self._tasks:
            task.cancel()
        self._idle.set()

    def settled(self) -> None:
        """A delivery has its verdict."""
        if not self._wanted:
            self._event.set()  # it may have been the last


class _Delivery:
    __slots__ = ("_body", "_deliveries", "_job", "_subscription", "_tag")

    def __init__(self, subscription: Subscription, deliveries: Deliveries, tag: int, body: bytes) -> None:
        self._subscription = subscription
        self._deliveries = deliveries
        self._tag = tag
        self._body = body
        self._job = _decode(body)

    @property
    def dispatch_id(self) -> str | None:
        return self._job.dispatch_id if self._job is not None else None

    @property
    def job(self) -> Job | None:
        return self._job

    @property
    def body(self) -> bytes:
        return self._body

    def ack(self) -> None:
        if self._deliveries.ack(self._tag):
            self._subscription.settled()

    def give_back(self) -> None:
        if self._deliveries.give_back(self._tag):
            self._subscription.settled()


def _decode(body: bytes) -> Job | None:
    """Return the job. Bytes that happen to parse without naming a dispatch, a run and a pool are no job."""
    try:
        job = Job.FromString(body)
    except DecodeError:
        return None
    return job if job.dispatch_id and job.run_id and job.pool and job.kind else None


async def _never(message: DeliveredMessage) -> None:
    """What the library would call: deliveries do not reach it, they are taken before it sees them."""
    raise RuntimeError(f"delivery {message.delivery_tag} came to the AMQP library")
