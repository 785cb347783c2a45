"""The RabbitMQ broker: a connection for publishing, one for consuming, and what declares the queues."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import structlog
from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

from treadle.controlplane.broker.link import AWAY, RPC_TIMEOUT, Link, end, while_open
from treadle.controlplane.broker.port import Consumer, Delivery, Listener, QueueDepth
from treadle.controlplane.broker.publisher import Publisher
from treadle.controlplane.broker.subscription import LOOK_EVERY, Subscription
from treadle.protocol.errors import ConfigError, TreadleError, Unavailable
from treadle.protocol.topology import EXCHANGE, QUEUE_ARGUMENTS, Queue, queue_of
from treadle.v1.job_pb2 import Job

__all__ = ("RabbitBroker",)

_T = TypeVar("_T")
_log = structlog.stdlib.get_logger(__name__)
_REDECLARE_PAUSE = 1.0


class RabbitBroker:
    """Implements `Broker` on RabbitMQ 3.10 or later.

    Args:
        url: amqp:// or amqps://, with user, password and vhost.
        name: Prefix of the connections' names in RabbitMQ's lists. Default "treadle-server".
        window: Unconfirmed messages at a time. Default 1,000.
        max_jobs, max_bytes: What waits to be published, at most; beyond it jobs are dropped, and their outbox
            entries bring them again. Default 10,000 and 64 MiB.
        look_every: Seconds between two looks for consumers that the broker has forgotten. Default 10.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "treadle-server",
        window: int = 1000,
        max_jobs: int = 10_000,
        max_bytes: int = 64 << 20,
        look_every: float = LOOK_EVERY,
    ) -> None:
        self._publishing = Link(url, f"{name} publish")
        self._consuming = Link(url, f"{name} consume")
        self._publisher = Publisher(
            self._publishing,
            on_confirmed=self._confirmed,
            on_returned=self._returned,
            window=window,
            max_jobs=max_jobs,
            max_bytes=max_bytes,
        )
        self._look_every = look_every
        self._listener: Listener | None = None
        self._unroutable: set[Queue] = set()
        self._repair = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, listener: Listener) -> None:
        """Connect and declare the exchange.

        Raises:
            Unavailable: Nothing answers; the error names the address (password masked).
            ConfigError: The login is refused, or the exchange exists with another type.
        """
        self._listener = listener
        try:
            await self._publishing.open()
            await self._with_channel(self._declare_exchange)
        except BaseException:
            await self.stop()
            raise
        self._spawn(self._publisher.run())
        self._spawn(self._redeclare())

    async def stop(self) -> None:
        """Close both connections; what was not confirmed is in the outbox, what was not acked goes back."""
        self._listener = None
        await end(*self._tasks)
        await self._publishing.close()
        await self._consuming.close()

    async def declare(self, queue: Queue) -> None:
        """Declare a queue and bind it. Idempotent.

        Raises:
            ConfigError: It exists with other arguments; the error names the argument and the repair.
            Unavailable: The broker is away; a queue that is published to is declared when it is back.
        """

        # RabbitMQ 3.10 closes the connection with INTERNAL_ERROR when a quorum queue that is just being made is
        # declared again or asked for a consumer. So one at a time; another process may still do it, hence again.
        async with self._consuming.declaring:
            try:
                await self._declare(queue)
            except Unavailable:
                await self._declare(queue)

    async def _declare(self, queue: Queue) -> None:
        async def act(channel: AbstractChannel) -> None:
            await channel.queue_declare(queue.name, durable=True, arguments=dict(QUEUE_ARGUMENTS), timeout=RPC_TIMEOUT)
            await channel.queue_bind(queue.name, EXCHANGE, queue.name, timeout=RPC_TIMEOUT)

        try:
            await self._with_channel(act)
        except ChannelPreconditionFailed as error:
            raise _inequivalent(f"queue {queue.name!r}", str(error), self._remedy(queue)) from error
        except ChannelNotFoundEntity:  # the exchange: the broker came back without its data
            await self._with_channel(self._declare_exchange)
            await self._with_channel(act)

    def publish(self, jobs: Sequence[Job]) -> None:
        self._publisher.publish(jobs)

    async def depth(self, queue: Queue) -> QueueDepth:
        """Look at a queue.

        Raises:
            Unavailable: The broker is away, or the queue does not exist.
        """

        async def act(channel: AbstractChannel) -> QueueDepth:
            seen = await channel.queue_declare(queue.name, passive=True, timeout=RPC_TIMEOUT)
            return QueueDepth(ready=seen.message_count or 0, consumers=seen.consumer_count or 0)

        try:
            return await self._with_channel(act)
        except ChannelNotFoundEntity as error:
            raise Unavailable(f"queue {queue.name!r} does not exist: declare it first") from error

    async def consume(
        self, queue: Queue, prefetch: int, deliver: Callable[[Delivery], Awaitable[None] | None]
    ) -> Consumer:
        """Take deliveries from now on. Returns at once; while the broker is away it waits in the background.

        Raises:
            ConfigError: `prefetch` is below 1 (0 would mean unlimited).
        """
        if prefetch < 1:
            raise ConfigError(f"prefetch {prefetch} on {queue.name!r}: give 1 or more")
        subscription = Subscription(
            self._consuming,
            queue,
            prefetch,
            deliver,
            missing=self.declare,
            look_every=self._look_every,
        )
        self._spawn(subscription.run())
        return subscription

    def has(self, dispatch_id: str) -> bool | None:
        """Return None: RabbitMQ cannot be asked for one message."""
        return None

    def _confirmed(self, jobs: Sequence[Job]) -> None:
        if self._listener is not None:
            self._listener.confirmed(jobs)

    def _returned(self, jobs: Sequence[Job]) -> None:
        self._unroutable.update(queue_of(job) for job in jobs)
        self._repair.set()
        if self._listener is not None:
            self._listener.returned(jobs)

    async def _redeclare(self) -> None:
        """Declare the queues of returned jobs. What cannot be declared is tried again when it is returned again."""
        while True:
            await self._repair.wait()
            self._repair.clear()
            while self._unroutable:
                queue = self._unroutable.pop()
                try:
                    await self.declare(queue)
                    _log.warning("queue_declared_again", queue=queue.name)
                except TreadleError as error:
                    _log.error("declare_failed", queue=queue.name, error=str(error))
                    await asyncio.sleep(_REDECLARE_PAUSE)

    @staticmethod
    async def _declare_exchange(channel: AbstractChannel) -> None:
        try:
            await channel.exchange_declare(EXCHANGE, exchange_type="direct", durable=True, timeout=RPC_TIMEOUT)
        except ChannelPreconditionFailed as error:
            remedy = f"delete it with: rabbitmqadmin delete exchange name={EXCHANGE}"
            raise _inequivalent(f"exchange {EXCHANGE!r}", str(error), remedy) from error

    async def _with_channel(self, act: Callable[[AbstractChannel], Awaitable[_T]]) -> _T:
        """Ask on a channel of its own (an error closes it), on the connection that alarms do not block."""
        try:
            connection = await self._consuming.open()
            return await while_open(connection, _on_channel(connection, act))
        except (ChannelPreconditionFailed, ChannelNotFoundEntity):
            raise
        except AWAY as error:
            raise Unavailable(f"RabbitMQ at {self._consuming.address} went away: {error}") from error

    def _remedy(self, queue: Queue) -> str:
        return (
            f"delete it with: rabbitmqctl --vhost '{self._consuming.vhost}' delete_queue {queue.name}"
            " (it is declared again, and its jobs are dispatched again from Redis)"
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("broker_task_failed", exc_info=error)


async def _on_channel(connection: AbstractConnection, act: Callable[[AbstractChannel], Awaitable[_T]]) -> _T:
    channel = await connection.channel(publisher_confirms=False, timeout=RPC_TIMEOUT)
    try:
        return await act(channel)
    finally:
        if not channel.is_closed and connection.is_opened:
            await channel.close()


def _inequivalent(what: str, text: str, remedy: str) -> ConfigError:
    """Make the refusal of a declaration readable: "inequivalent arg 'x' for …: received … but current is …"."""
    found = re.search(r"inequivalent arg '([^']+)'.*?(received .*)", text)
    detail = f"argument {found[1]!r} differs: {found[2]}" if found else text
    return ConfigError(f"{what} exists and does not fit: {detail}; {remedy}")
