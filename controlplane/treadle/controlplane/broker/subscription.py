"""A consumer of one queue that outlives its channel, on a channel of its own.

It consumes again after a reconnect, after the broker cancelled it (a deleted queue is declared again), and when a look
at the queue says that the broker has forgotten it. Verdicts are collected and written at once. A delivery whose
channel is gone needs no verdict: the broker delivers it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, cast

import structlog
from aiormq import Channel
from aiormq.abc import AbstractConnection, ChannelFrame, DeliveredMessage
from aiormq.exceptions import ChannelNotFoundEntity
from google.protobuf.message import DecodeError
from pamqp import commands as spec

from treadle.controlplane.broker.link import AWAY, RPC_TIMEOUT, Link, while_open
from treadle.controlplane.broker.port import Delivery
from treadle.protocol.delivery_tags import DeliveryTags
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
        self._tags = DeliveryTags()
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
            finally:
                self._gone()
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
            await while_open(channel, self._serve(channel))
        finally:
            if not channel.is_closed and connection.is_opened:
                await channel.close(timeout=RPC_TIMEOUT)

    async def _serve(self, channel: Channel) -> None:
        loop = asyncio.get_running_loop()
        await channel.basic_qos(prefetch_count=self._prefetch, timeout=RPC_TIMEOUT)
        look_at = loop.time() + self._look_every
        timer = loop.call_at(look_at, self._event.set)
        try:
            while True:
                self._event.clear()
                await self._steer(channel)
                await self._settle(channel)
                if not self._wanted and not len(self._tags):
                    return
                await self._event.wait()
                if loop.time() >= look_at:
                    await self._look(channel)
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
            ok = await channel.basic_consume(self._queue.name, self._receiver(), timeout=RPC_TIMEOUT)
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

    def _receiver(self) -> Callable[[DeliveredMessage], Coroutine[Any, Any, None]]:
        tags = self._tags

        async def receive(message: DeliveredMessage) -> None:
            tag = message.delivery_tag or 0
            if tags is not self._tags:
                return  # its channel is gone
            tags.delivered(tag)
            self._fresh = True
            if not self._wanted:
                tags.give_back(tag)
                self._event.set()
                return
            try:
                result = self._deliver(_Delivery(self, tags, tag, message.body))
                if result is not None:
                    await result
            except Exception:
                _log.exception("deliver_failed", queue=self._queue.name, message_id=_message_id(message))

        return receive

    async def _settle(self, channel: Channel) -> None:
        frames: list[spec.Basic.Ack | spec.Basic.Nack] = [
            spec.Basic.Ack(verdict.tag, verdict.multiple) if verdict.ack else spec.Basic.Nack(verdict.tag, False, True)
            for verdict in self._tags.take()
        ]
        if frames:
            await channel.write_queue.put(ChannelFrame.marshall(channel.number, frames))

    async def _look(self, channel: Channel) -> None:
        """Consume again when the broker counts fewer consumers than this process has, or leaves messages lying."""
        if self._consumer_tag is None:
            return
        side = await channel.connection.channel(publisher_confirms=False, timeout=RPC_TIMEOUT)
        try:
            seen = await side.queue_declare(self._queue.name, passive=True, timeout=RPC_TIMEOUT)
        finally:
            if not side.is_closed:
                await side.close()
        starving = bool(seen.message_count) and len(self._tags) < self._prefetch and not self._fresh
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
        self._not_consuming()
        self._tags = DeliveryTags()
        self._idle.set()

    def settle(self, tags: DeliveryTags, tag: int, *, ack: bool) -> None:
        """Take the verdict on a delivery; one of a channel that is gone is void."""
        decided = tags.ack(tag) if ack else tags.give_back(tag)
        if decided and tags is self._tags:
            self._event.set()


class _Delivery:
    __slots__ = ("_body", "_job", "_subscription", "_tag", "_tags")

    def __init__(self, subscription: Subscription, tags: DeliveryTags, tag: int, body: bytes) -> None:
        self._subscription = subscription
        self._tags = tags
        self._tag = tag
        self._body = body
        self._job = _decode(body)

    @property
    def job(self) -> Job | None:
        return self._job

    @property
    def body(self) -> bytes:
        return self._body

    def ack(self) -> None:
        self._subscription.settle(self._tags, self._tag, ack=True)

    def give_back(self) -> None:
        self._subscription.settle(self._tags, self._tag, ack=False)


def _decode(body: bytes) -> Job | None:
    """Return the job. Bytes that happen to parse without naming a dispatch, a run and a pool are no job."""
    try:
        job = Job.FromString(body)
    except DecodeError:
        return None
    return job if job.dispatch_id and job.run_id and job.pool and job.kind else None


def _message_id(message: DeliveredMessage) -> str | None:
    return message.header.properties.message_id
