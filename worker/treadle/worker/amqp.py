"""The AMQP lane of a worker: takes one queue's deliveries, hands them over, and carries the verdicts back.

A worker never declares a queue; it waits until the control plane has. Deliveries are known by numbers of the link, not
by AMQP's delivery tags, which begin again on every channel: a verdict on a delivery whose channel is gone is void, and
cannot hit another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, cast

import structlog
from aiormq import Channel
from aiormq.abc import AbstractConnection, DeliveredMessage
from aiormq.exceptions import ChannelNotFoundEntity
from google.protobuf.message import DecodeError
from pamqp import commands as spec

from treadle.protocol.amqp_deliveries import Deliveries
from treadle.v1.job_pb2 import Job
from treadle.worker.amqp_link import AWAY, RPC_TIMEOUT, AmqpLink, end, while_open

__all__ = ("Delivered", "QueueConsumer")

Delivered = tuple[int, Job | None, bytes]
"""A delivery: its tag, which is unique over the link, the job (None when the body is no job), and the body."""

LOOK_EVERY: Final = 10.0
"""Seconds between two looks at whether the broker still knows this consumer."""

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 2.0
_log = structlog.stdlib.get_logger(__name__)


class QueueConsumer:
    """Consumes one queue on a channel of its own, through reconnects, for as long as it is wanted.

    `start`, `pause`, `resume`, `ack` and `give_back` return at once and never raise; the broker follows.

    Args:
        link: The connection; the consumers of a process share one.
        queue: Name of the queue.
        prefetch: Unacknowledged deliveries at a time, 1 or more.
        on_delivered: Called on the event loop with what came at once. What is no job needs a verdict like any other.
        on_lost: Called with the tags that are void because the channel was lost; the broker delivers them again.
        look_every: Seconds between two looks at whether the broker still knows this consumer. Default 10.

    Raises:
        ValueError: `prefetch` is below 1 (0 would mean unlimited).
    """

    def __init__(
        self,
        link: AmqpLink,
        queue: str,
        prefetch: int,
        on_delivered: Callable[[Sequence[Delivered]], None],
        on_lost: Callable[[Sequence[int]], None],
        *,
        look_every: float = LOOK_EVERY,
    ) -> None:
        self._link = link
        self.queue = queue
        self._prefetch = _checked(prefetch, queue)
        self._on_delivered = on_delivered
        self._on_lost = on_lost
        self._look_every = look_every
        self._wanted = False
        self._ending = False
        self._consumer_tag: str | None = None
        self._deliveries: Deliveries | None = None
        self._first_tag = 0
        self._event = asyncio.Event()
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._pause_s = _FIRST_PAUSE
        self._prefetch_in_use = 0
        self._task: asyncio.Task[None] | None = None
        self._fresh = False
        self._suspicion = 0

    @property
    def consuming(self) -> bool:
        """Whether the broker has confirmed a consumer."""
        return self._consumer_tag is not None

    @property
    def unsettled(self) -> int:
        """Deliveries that have no verdict yet."""
        return len(self._deliveries) if self._deliveries is not None else 0

    def start(self) -> None:
        """Begin to consume. Call it on the event loop, once."""
        assert self._task is None, f"the consumer of {self.queue!r} is started already"
        self._wanted = True
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(self._ended)

    def pause(self) -> None:
        """Have no consumer; deliveries that still arrive are given back. Verdicts can still be said."""
        self._wanted = False
        self._event.set()

    def resume(self, prefetch: int | None = None) -> None:
        """Have a consumer again, with another prefetch if one is given."""
        if prefetch is not None:
            self._prefetch = _checked(prefetch, self.queue)
        self._wanted = True
        self._event.set()

    async def wait_consuming(self, wanted: bool = True) -> None:
        """Wait until the broker has confirmed the consumer, or its cancellation."""
        while self.consuming is not wanted:
            self._changed.clear()
            await self._changed.wait()

    async def stop(self) -> None:
        """Cancel the consumer, write the verdicts that were said, close the channel. What has none goes back."""
        self._wanted = False
        self._ending = True
        self._event.set()
        self._stopping.set()
        if self._task is None:
            return
        if not self.consuming and not self._link.up:
            self._task.cancel()  # it waits for a broker that is away
        await asyncio.wait({self._task}, timeout=RPC_TIMEOUT)
        await end(self._task)

    def ack(self, tag: int) -> bool:
        """Settle a delivery. A tag that is void, or has its verdict, changes nothing; False then."""
        return self._deliveries is not None and self._deliveries.ack(tag - self._first_tag)

    def give_back(self, tag: int) -> bool:
        """Put a delivery back into the queue (nack, requeue). A tag that is void changes nothing; False then."""
        return self._deliveries is not None and self._deliveries.give_back(tag - self._first_tag)

    async def _run(self) -> None:
        while not self._ending:
            try:
                connection = await self._link.wait()
                await while_open(connection, self._session(connection))
            except ChannelNotFoundEntity:
                if self._pause_s == _FIRST_PAUSE:
                    _log.warning("queue_awaited", queue=self.queue, reason="the control plane has not declared it yet")
            except AWAY as error:
                _log.info("consumer_interrupted", queue=self.queue, error=str(error) or type(error).__name__)
            await self._rest()

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(self._pause_s):
                await self._stopping.wait()
        except TimeoutError:
            self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE)

    async def _session(self, connection: AbstractConnection) -> None:
        channel = cast(Channel, await connection.channel(publisher_confirms=False, timeout=RPC_TIMEOUT))
        channel.on_consumer_cancel_callbacks.add(self._cancelled_by_broker)
        try:
            self._first_tag = self._link.first_tag()
            self._deliveries = deliveries = Deliveries(self._link.filter_of(connection), channel.number, self._take)
            await while_open(channel, self._serve(channel, deliveries))
        finally:
            self._gone()
            if not channel.is_closed and connection.is_opened:
                await channel.close(timeout=RPC_TIMEOUT)

    async def _serve(self, channel: Channel, deliveries: Deliveries) -> None:
        loop = asyncio.get_running_loop()
        look_at = loop.time() + self._look_every
        timer = loop.call_at(look_at, self._event.set)
        try:
            while True:
                self._event.clear()
                await self._steer(channel, deliveries)
                if self._ending:
                    return
                await self._event.wait()
                if loop.time() >= look_at:
                    await self._look(channel, deliveries)
                    look_at = loop.time() + self._look_every
                    timer = loop.call_at(look_at, self._event.set)
        finally:
            timer.cancel()

    async def _steer(self, channel: Channel, deliveries: Deliveries) -> None:
        """Have a consumer, or none, as is wanted."""
        if self._wanted and self._consumer_tag is None:
            await self._consume(channel, deliveries)
        elif not self._wanted and self._consumer_tag is not None:
            await self._unconsume(channel)
        elif self._wanted and self._prefetch != self._prefetch_in_use:
            await self._unconsume(channel)
            await self._consume(channel, deliveries)

    async def _consume(self, channel: Channel, deliveries: Deliveries) -> None:
        # The prefetch reaches only consumers that are made after it.
        prefetch = deliveries.prefetch = self._prefetch
        await channel.basic_qos(prefetch_count=prefetch, timeout=RPC_TIMEOUT)
        ok = await channel.basic_consume(self.queue, _never, timeout=RPC_TIMEOUT)
        self._consumer_tag = str(ok.consumer_tag)
        self._prefetch_in_use = prefetch
        self._pause_s = _FIRST_PAUSE
        self._changed.set()

    async def _unconsume(self, channel: Channel) -> None:
        tag = self._consumer_tag
        if tag is not None:
            await channel.basic_cancel(tag, timeout=RPC_TIMEOUT)
        self._consumer_tag = None
        self._changed.set()

    def _take(self, found: Sequence[tuple[int, bytes]]) -> None:
        deliveries = self._deliveries
        assert deliveries is not None
        self._fresh = True
        if self._wanted:
            first = self._first_tag
            self._on_delivered([(first + tag, _decode(body), body) for tag, body in found])
        else:
            for tag, _ in found:
                deliveries.give_back(tag)

    async def _look(self, channel: Channel, deliveries: Deliveries) -> None:
        """Consume again when the broker knows no consumer of the queue, or leaves messages lying before a free one."""
        if self._consumer_tag is None:
            return
        side = await channel.connection.channel(publisher_confirms=False, timeout=RPC_TIMEOUT)
        try:
            seen = await side.queue_declare(self.queue, passive=True, timeout=RPC_TIMEOUT)
        finally:
            if not side.is_closed:
                await side.close()
        starving = bool(seen.message_count) and len(deliveries) < self._prefetch and not self._fresh
        self._suspicion = self._suspicion + 1 if starving else 0
        self._fresh = False
        if not seen.consumer_count or self._suspicion > 1:
            _log.warning("deaf_consumer", queue=self.queue, consumers=seen.consumer_count)
            self._suspicion = 0
            await self._unconsume(channel)
            if self._wanted:
                await self._consume(channel, deliveries)

    async def _cancelled_by_broker(self, frame: spec.Basic.Cancel) -> None:
        if frame.consumer_tag == self._consumer_tag:
            self._consumer_tag = None
            self._changed.set()
            self._event.set()

    def _gone(self) -> None:
        """The channel is closed, or is to be: nothing that came over it can be settled any more."""
        self._consumer_tag = None
        self._fresh = False
        deliveries, self._deliveries = self._deliveries, None
        self._changed.set()
        if deliveries is None:
            return
        void = [self._first_tag + tag for tag in deliveries.open]
        deliveries.release()
        if void and not self._ending:
            self._on_lost(void)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("consumer_failed", queue=self.queue, exc_info=error)


def _checked(prefetch: int, queue: str) -> int:
    if prefetch < 1:
        raise ValueError(f"prefetch {prefetch} on {queue!r}: give 1 or more")
    return prefetch


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
