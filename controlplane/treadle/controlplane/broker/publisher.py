"""Publishes jobs: persistent, mandatory, confirms streamed. The buffer is bounded; the outbox is what remembers.

`publish` only appends. A writer takes all that is there, as far as the window of unconfirmed messages allows, and
writes it at once. An unroutable message is *returned and then confirmed*; only the return counts. A message whose
fate is unknown when the connection breaks is published again; one that stays unconfirmed is forgotten, and its
outbox entry brings it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, cast

import structlog
from aiormq import Channel
from aiormq.abc import AbstractConnection, ChannelFrame, DeliveredMessage, FrameType
from pamqp import commands as spec
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from treadle.controlplane.broker.link import AWAY, RPC_TIMEOUT, Link, while_open
from treadle.protocol.topology import EXCHANGE, queue_of
from treadle.v1.job_pb2 import Job

__all__ = ("Publisher",)

CONFIRM_TIMEOUT: Final = 15.0
"""Seconds after which an unconfirmed message is forgotten (not while the broker says that it blocks)."""

_BATCH_BYTES = 1 << 20
_SHORT_STRING = 255
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 5.0
_log = structlog.stdlib.get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Sent:
    job: Job
    size: int
    at: float


class Publisher:
    """Writes jobs to one connection of its own (a memory or disk alarm blocks a publishing connection whole).

    Args:
        link: The connection.
        on_confirmed, on_returned: Called on the event loop with what became of jobs, in batches.
        window: Unconfirmed messages at a time.
        max_jobs, max_bytes: Bound of what waits to be written; beyond it jobs are dropped.
    """

    def __init__(
        self,
        link: Link,
        *,
        on_confirmed: Callable[[Sequence[Job]], None],
        on_returned: Callable[[Sequence[Job]], None],
        window: int = 1000,
        max_jobs: int = 10_000,
        max_bytes: int = 64 << 20,
    ) -> None:
        self._link = link
        self._on_confirmed = on_confirmed
        self._on_returned = on_returned
        self._window = window
        self._max_jobs = max_jobs
        self._max_bytes = max_bytes
        self._waiting: dict[str, _Sent] = {}
        self._in_flight: dict[str, _Sent] = {}
        self._bytes = 0
        self._wake = asyncio.Event()
        self._confirmed: list[Job] = []
        self._returned: list[Job] = []
        self._dropped = 0
        self._pause = _FIRST_PAUSE

    def publish(self, jobs: Sequence[Job]) -> None:
        """Append to the buffer. A dispatch that is in the buffer or unconfirmed is left alone."""
        for job in jobs:
            if job.dispatch_id in self._waiting or job.dispatch_id in self._in_flight:
                continue
            self._append(_Sent(job, job.ByteSize(), 0.0))
        self._wake.set()

    async def run(self) -> None:
        """Write for ever, over as many connections as it takes."""
        while True:
            try:
                connection = await self._link.wait()
                await while_open(connection, self._serve(connection))
            except TimeoutError:
                _log.warning("publish_timeout", address=self._link.address)
                await self._link.discard(connection)
            except AWAY as error:
                _log.info("publish_interrupted", error=str(error), unconfirmed=len(self._in_flight))
                await asyncio.sleep(self._pause)  # a channel error on a living connection must not spin
                self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            finally:
                self._take_back()

    async def _serve(self, connection: AbstractConnection) -> None:
        channel = cast(
            Channel,
            await connection.channel(publisher_confirms=True, on_return_raises=False, timeout=RPC_TIMEOUT),
        )
        try:
            await channel.exchange_declare(EXCHANGE, durable=True, timeout=RPC_TIMEOUT)
            await while_open(channel, self._write(channel))
        finally:
            if not channel.is_closed and connection.is_opened:
                await channel.close(timeout=RPC_TIMEOUT)

    async def _write(self, channel: Channel) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._something_to_write(channel)
            await channel.connection.ready()  # waits while the broker blocks publishers
            drained: asyncio.Future[None] = loop.create_future()
            frames = self._frames(channel, loop.time())
            await channel.write_queue.put(ChannelFrame.marshall(channel.number, frames, drained))
            while not drained.done():
                await asyncio.wait({drained}, timeout=RPC_TIMEOUT)
                if not drained.done() and not _blocked(channel.connection):
                    raise TimeoutError(f"no room on the socket for {RPC_TIMEOUT:.0f} s")

    async def _something_to_write(self, channel: Channel) -> None:
        loop = asyncio.get_running_loop()
        while not self._waiting or len(self._in_flight) >= self._window:
            self._wake.clear()
            timer = loop.call_later(1.0, self._wake.set) if self._in_flight else None
            try:
                await self._wake.wait()
            finally:
                if timer is not None:
                    timer.cancel()
            if not _blocked(channel.connection):
                self._forget_unconfirmed(loop.time())

    def _frames(self, channel: Channel, now: float) -> list[FrameType]:
        """Move what the window admits from waiting to in flight; return its frames."""
        frames: list[FrameType] = []
        size = 0
        while self._waiting and len(self._in_flight) < self._window and size < _BATCH_BYTES:
            dispatch_id = next(iter(self._waiting))
            sent = self._waiting.pop(dispatch_id)
            self._bytes -= sent.size
            size += sent.size
            sent.at = now
            self._in_flight[dispatch_id] = sent
            self._expect(channel, sent)
            frames += _message(sent.job, channel.max_content_size)
        return frames

    def _expect(self, channel: Channel, sent: _Sent) -> None:
        """Register the next sequence number of the channel for this message."""
        channel.delivery_tag += 1
        tag, dispatch_id = channel.delivery_tag, sent.job.dispatch_id
        fate: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        channel.confirmations[tag] = fate
        channel.message_id_delivery_tag[dispatch_id] = tag  # how the library finds what a return is about

        def settled(fate: asyncio.Future[Any]) -> None:
            if channel.message_id_delivery_tag.get(dispatch_id) == tag:
                del channel.message_id_delivery_tag[dispatch_id]
            self._settle(sent, fate)

        fate.add_done_callback(settled)

    def _settle(self, sent: _Sent, fate: asyncio.Future[Any]) -> None:
        dispatch_id = sent.job.dispatch_id
        error = fate.exception()
        if self._in_flight.get(dispatch_id) is not sent:
            return  # forgotten meanwhile: a newer message speaks for this dispatch
        del self._in_flight[dispatch_id]
        if not (self._confirmed or self._returned):
            asyncio.get_running_loop().call_soon(self._tell)
        if error is not None:
            _log.warning("publish_refused", dispatch_id=dispatch_id, queue=queue_of(sent.job).name)
        elif isinstance(fate.result(), DeliveredMessage):
            self._returned.append(sent.job)
        else:
            self._confirmed.append(sent.job)

    def _tell(self) -> None:
        confirmed, self._confirmed = self._confirmed, []
        returned, self._returned = self._returned, []
        self._wake.set()
        self._pause = _FIRST_PAUSE
        if confirmed:
            self._on_confirmed(confirmed)
        if returned:
            self._on_returned(returned)

    def _forget_unconfirmed(self, now: float) -> None:
        late = [sent for sent in self._in_flight.values() if now - sent.at > CONFIRM_TIMEOUT]
        for sent in late:
            del self._in_flight[sent.job.dispatch_id]
        if late:
            queues = sorted({queue_of(sent.job).name for sent in late})
            _log.warning("unconfirmed", jobs=len(late), queues=queues, after_s=CONFIRM_TIMEOUT)

    def _take_back(self) -> None:
        """The channel is gone: what was in flight may or may not have arrived. Publish it again, before the rest."""
        again, rest = self._in_flight, self._waiting
        self._in_flight, self._waiting, self._bytes = {}, {}, 0
        for sent in (*again.values(), *rest.values()):
            self._append(sent)
        self._wake.set()

    def _append(self, sent: _Sent) -> None:
        if len(self._waiting) >= self._max_jobs or self._bytes + sent.size > self._max_bytes:
            self._dropped += 1
            if self._dropped.bit_count() == 1:  # 1, 2, 4, 8, …: seldom enough for a log
                _log.warning("publish_buffer_full", dropped=self._dropped, remedy="the outbox brings them again")
            return
        self._waiting[sent.job.dispatch_id] = sent
        self._bytes += sent.size


def _message(job: Job, max_content: int) -> list[FrameType]:
    body = job.SerializeToString()
    key = queue_of(job).name
    headers: dict[str, Any] = {}
    if job.trace.traceparent:
        headers["traceparent"] = job.trace.traceparent
    if job.trace.tracestate:
        headers["tracestate"] = job.trace.tracestate
    properties = spec.Basic.Properties(
        content_type="application/protobuf",
        delivery_mode=2,
        message_id=job.dispatch_id,
        correlation_id=_short(job.run_id),
        message_type=_short(job.name),
        app_id="treadle",
        timestamp=datetime.now(UTC),
        headers=headers,
    )
    publish = spec.Basic.Publish(exchange=EXCHANGE, routing_key=key, mandatory=True)
    parts = [ContentBody(body[at : at + max_content]) for at in range(0, len(body), max_content)]
    return [publish, ContentHeader(body_size=len(body), properties=properties), *parts]


def _short(text: str) -> str:
    """Cut to what an AMQP short string holds: 255 bytes. (The body has it whole.)"""
    return text if len(text) < 64 else text.encode()[:_SHORT_STRING].decode(errors="ignore")


def _blocked(connection: AbstractConnection) -> bool:
    """Whether the broker said connection.blocked. `ready()` ends without suspending exactly when it did not."""
    probe = connection.ready()
    try:
        probe.send(None)
    except StopIteration:
        return False
    probe.close()
    return True
