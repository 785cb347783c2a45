"""The worker's AMQP connection: opened again when it breaks, with jitter, so that a fleet does not come back at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from itertools import count
from typing import Any, Final, TypeVar

import aio_pika
import structlog
from aiormq.abc import AbstractChannel, AbstractConnection
from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError, AMQPError
from yarl import URL

from treadle.protocol.amqp_filter import FrameFilter, open_filtered

__all__ = ("AWAY", "RPC_TIMEOUT", "AmqpLink", "end", "while_open")

RPC_TIMEOUT: Final = 10.0
"""Seconds that any single question to the broker may take."""

HEARTBEAT: Final = 10
"""Seconds; the library gives a silent connection up after 33 (its default of 60 would make that 183)."""

AWAY: Final = (AMQPError, OSError, TimeoutError, RuntimeError)
"""What a call on a connection that is breaking raises. RuntimeError: the library's "channel closed"."""

_TAG_BITS = 40
"""A channel with more deliveries would have to live for years."""

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 3.0

_T = TypeVar("_T")
_log = structlog.stdlib.get_logger(__name__)


class _Filtered(TransportFactory):
    """Connects as the library does, with a filter between socket and library, and keeps the last one."""

    def __init__(self, *, tls: bool) -> None:
        self._tls = tls
        self.between: FrameFilter | None = None

    async def create(self, url: URL, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        contexts = options.pop("ssl_context_provider")
        context = await contexts.get_context() if self._tls else None
        host, port = url.host or "localhost", url.port or (5671 if self._tls else 5672)
        try:
            reader, writer, self.between = await open_filtered(host, port, context, **options)
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        return reader, writer


class AmqpLink:
    """One connection to RabbitMQ, shared by the consumers of a worker process. It connects when it is first needed.

    Args:
        url: amqp:// or amqps://, with user, password and vhost.
        name: Shown as the connection's name in RabbitMQ's lists. Default "treadle-worker".
    """

    def __init__(self, url: str, *, name: str = "treadle-worker") -> None:
        self._url = URL(url).update_query({"heartbeat": str(HEARTBEAT)})
        self._name = name
        self._lock = asyncio.Lock()
        self._opened: aio_pika.Connection | None = None
        self._transports = _Filtered(tls=self._url.scheme == "amqps")
        self._failures = 0
        self._random = random.Random()
        self._channels = count(1)

    @property
    def address(self) -> str:
        """Where the broker is, without the password."""
        bare = self._url.with_query(None)
        return str(bare.with_password("***") if bare.password else bare)

    @property
    def up(self) -> bool:
        """Whether the connection stands."""
        return self._living() is not None

    async def wait(self) -> AbstractConnection:
        """Return the connection, waiting for the broker as long as it takes."""
        async with self._lock:
            while True:
                if living := self._living():
                    return living
                if self._failures:
                    await asyncio.sleep(self._pause())
                try:
                    return await self._connect()
                except AWAY as error:
                    if self._failures in (1, 10) or self._failures % 100 == 0:
                        _log.warning(
                            "broker_away",
                            address=self.address,
                            error=_reason(error),
                            attempts=self._failures,
                            remedy="start RabbitMQ, or correct the AMQP URL",
                        )

    def filter_of(self, connection: AbstractConnection) -> FrameFilter:
        """Return what stands between the connection's socket and its library.

        Raises:
            ConnectionError: It is not this link's connection any more.
        """
        between = self._transports.between
        if between is None or self._living() is not connection:
            raise ConnectionError("closed")
        return between

    def first_tag(self) -> int:
        """What to add to the delivery tags of one more channel, so that they are unique over all channels of this link."""
        return next(self._channels) << _TAG_BITS

    async def close(self) -> None:
        """Close the connection; the broker takes back what was not acked. Stop the consumers first."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await _close(opened)

    def hang_up(self) -> None:
        """End the connection at once; it is opened again when the event loop runs. For any thread.

        A loop that is blocked cannot give its deliveries back, and the broker would wait for two heartbeats.
        """
        last = self._transports.between
        if last is not None:
            try:
                last.hang_up()
            except OSError:
                _log.debug("broker_hung_up_already", address=self.address)

    async def discard(self, connection: AbstractConnection) -> None:
        """Give a connection up that no longer answers."""
        if self._living() is connection:
            await self.close()

    def _living(self) -> AbstractConnection | None:
        transport = self._opened.transport if self._opened is not None else None
        if transport is None or not transport.connection.is_opened:
            return None
        return transport.connection

    async def _connect(self) -> AbstractConnection:
        self._failures += 1
        await self.close()
        connection = aio_pika.Connection(self._url, client_properties={"connection_name": self._name})
        connection.kwargs["transport_factory"] = self._transports
        try:
            async with asyncio.timeout(RPC_TIMEOUT):
                await connection.connect()
        except BaseException:
            await _close(connection)
            raise
        self._opened = connection
        living = self._living()
        if living is None:
            raise ConnectionError("closed at once: see RabbitMQ's log")
        if self._failures > 1:
            _log.info("broker_back", address=self.address)
        self._failures = 0
        return living

    def _pause(self) -> float:
        bound = min(_FIRST_PAUSE * 2.0 ** min(self._failures, 10), _LONGEST_PAUSE)
        return bound * self._random.uniform(0.5, 1.0)


async def while_open(resource: AbstractConnection | AbstractChannel, work: Coroutine[Any, Any, _T]) -> _T:
    """Return what `work` returns; raise what closed the connection or channel when that happens first.

    Without it a question asked of a closing connection waits for its whole timeout.
    """
    task = asyncio.get_running_loop().create_task(work)
    closing = resource.closing
    try:
        await asyncio.wait({task, closing}, return_when=asyncio.FIRST_COMPLETED)
        if not closing.done() or (task.done() and not task.cancelled() and task.exception() is None):
            return task.result()
        error = None if closing.cancelled() else closing.exception()
        if not isinstance(error, AWAY):
            raise ConnectionError("closed")
        raise error.with_traceback(None)  # one object for all channels: tracebacks would pile up on it
    finally:
        await end(task)


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks until they have ended.

    Once is not enough: the AMQP library answers a cancellation that meets its own clean-up with an error of its own,
    which looks like a broken connection to a loop that then goes on.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        done, pending = await asyncio.wait(pending, timeout=0.2)
        for task in done:
            if not task.cancelled() and (error := task.exception()) is not None:
                _log.debug("ended_with", error=_reason(error))


async def _close(connection: aio_pika.Connection) -> None:
    try:
        async with asyncio.timeout(RPC_TIMEOUT):
            await connection.close()
    except AWAY as error:
        _log.debug("close_failed", error=_reason(error))


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
