"""Publishes jobs: persistent, mandatory, confirms streamed. The buffer is bounded; the outbox is what remembers.

`publish` only appends. In the next turn of the event loop all that is there, as far as the window of unconfirmed messages
allows, is written at once. An unroutable message is *returned and then confirmed*; only the return counts. A message whose
fate is unknown when the connection breaks is published again; one that stays unconfirmed is forgotten, and its outbox entry
brings it again.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, cast

import structlog
from aiormq import Channel
from aiormq.abc import AbstractConnection

from treadle.controlplane.broker.confirms import Outgoing, Unconfirmed
from treadle.controlplane.broker.link import AWAY, RPC_TIMEOUT, Link, while_open
from treadle.protocol.amqp_filter import FrameFilter
from treadle.protocol.amqp_frames import HotChannel, message_frames, message_properties, publish_frame
from treadle.protocol.topology import EXCHANGE, Queue
from treadle.v1.job_pb2 import Job, JobKind

__all__ = ("Publisher",)

CONFIRM_TIMEOUT: Final = 15.0
"""Seconds after which an unconfirmed message is forgotten (not while the broker says that it blocks)."""

_LOOK_EVERY = 1.0
_BATCH_BYTES = 1 << 20
_WINDOW_BYTES = 16 << 20
_SHORT_STRING = 255
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 5.0
_log = structlog.stdlib.get_logger(__name__)


class Publisher:
    """Writes jobs to one connection of its own (a memory or disk alarm blocks a publishing connection whole).

    Args:
        link: The connection.
        on_confirmed, on_returned: Called on the event loop with what became of jobs, in batches.
        window: Unconfirmed messages at a time (and 16 MiB of them, or one).
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
        self._known: dict[str, Outgoing] = {}
        """By dispatch id: what waits and what is unconfirmed."""
        self._waiting: deque[Outgoing] = deque()
        self._bytes = 0
        self._unconfirmed = Unconfirmed()
        self._between: FrameFilter | None = None
        self._channel: HotChannel | None = None
        self._scheduled = False
        self._dropped = 0
        self._pause = _FIRST_PAUSE

    def publish(self, jobs: Sequence[Job]) -> None:
        """Append to the buffer. A dispatch that is in the buffer or unconfirmed is left alone."""
        known = self._known
        for job in jobs:
            if job.dispatch_id not in known:
                self._append(Outgoing(job, _queue_name(job.namespace, job.pool, job.kind), job.SerializeToString()))
        self._wake()

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
                _log.info("publish_interrupted", error=str(error), unconfirmed=self._unconfirmed.count)
                await asyncio.sleep(self._pause)  # a channel error on a living connection must not spin
                self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    async def _serve(self, connection: AbstractConnection) -> None:
        channel = cast(Channel, await connection.channel(publisher_confirms=True, timeout=RPC_TIMEOUT))
        try:
            await channel.exchange_declare(EXCHANGE, durable=True, timeout=RPC_TIMEOUT)
            between = self._link.filter_of(connection)
            await while_open(channel, self._write(between, between.open(channel.number, self)))
        finally:
            if not channel.is_closed and connection.is_opened:
                await channel.close(timeout=RPC_TIMEOUT)

    async def _write(self, between: FrameFilter, hot: HotChannel) -> None:
        """Have a channel, for as long as this runs; look whether what was written is read and confirmed."""
        self._between, self._channel = between, hot
        self._wake()
        stuck = 0.0
        try:
            while stuck < RPC_TIMEOUT:
                await asyncio.sleep(_LOOK_EVERY)
                if not between.blocked:
                    self._forget_unconfirmed(time.monotonic())
                stuck = stuck + _LOOK_EVERY if between.paused and not between.blocked else 0.0
            raise TimeoutError(f"no room on the socket for {RPC_TIMEOUT:.0f} s")
        finally:
            between.release(hot)
            self._between = self._channel = None
            self._take_back()

    # --- the channel's owner ---------------------------------------------------------------------------------------
    def writable(self) -> None:
        self._wake()

    def arrived(self) -> None:
        """Hear what became of messages. The return of one comes before its confirm."""
        channel = self._channel
        if channel is None:
            return
        for dispatch_id in channel.returned:
            about = self._known.get(dispatch_id)
            if about is not None and about.written:
                about.returned = True
        confirms = channel.confirms
        channel.returned, channel.confirms = [], []
        confirmed: list[Job] = []
        returned: list[Job] = []
        for number, multiple, acked in confirms:
            for outgoing in self._unconfirmed.settle(number, multiple):
                del self._known[outgoing.job.dispatch_id]
                if not acked:
                    _log.warning("publish_refused", dispatch_id=outgoing.job.dispatch_id, queue=outgoing.name)
                elif outgoing.returned:
                    returned.append(outgoing.job)
                else:
                    confirmed.append(outgoing.job)
        self._pause = _FIRST_PAUSE
        if self._waiting:
            self._wake()
        if confirmed:
            self._on_confirmed(confirmed)
        if returned:
            self._on_returned(returned)

    # --- writing ---------------------------------------------------------------------------------------------------
    def _wake(self) -> None:
        """Write in the next turn of the loop: what is published until then goes with it."""
        if self._channel is not None and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._write_waiting)

    def _write_waiting(self) -> None:
        self._scheduled = False
        between, channel = self._between, self._channel
        if between is None or channel is None:
            return
        while self._waiting and between.writable and not channel.closed:
            frames = self._frames(channel.number, between.frame_max)
            if not frames:
                return
            between.write(b"".join(frames))

    def _frames(self, channel: int, frame_max: int) -> list[bytes]:
        """Move what the window admits, up to a batch of bytes, from waiting to unconfirmed; return its frames."""
        frames: list[bytes] = []
        waiting, unconfirmed = self._waiting, self._unconfirmed
        written_at, now, size = time.monotonic(), int(time.time()), 0
        while waiting and size < _BATCH_BYTES:
            if unconfirmed.count >= self._window or unconfirmed.bytes >= _WINDOW_BYTES:
                break
            outgoing = waiting.popleft()
            size += len(outgoing.body)
            try:
                begin, properties = _begin(channel, EXCHANGE, outgoing.name), _properties(outgoing.job, now)
                encoded = message_frames(begin, channel, properties, outgoing.body, frame_max)
            except ValueError as error:  # it must not be counted: confirms name messages by their number
                del self._known[outgoing.job.dispatch_id]
                _log.error("job_not_encodable", queue=outgoing.name, run=outgoing.job.run_id, error=str(error))
                continue
            frames.append(encoded)
            outgoing.written, outgoing.at = True, written_at
            unconfirmed.append(outgoing)
        self._bytes -= size
        return frames

    def _forget_unconfirmed(self, now: float) -> None:
        late = self._unconfirmed.forget_before(now - CONFIRM_TIMEOUT)
        for outgoing in late:
            del self._known[outgoing.job.dispatch_id]
        if late:
            queues = sorted({outgoing.name for outgoing in late})
            _log.warning("unconfirmed", jobs=len(late), queues=queues, after_s=CONFIRM_TIMEOUT)
            self._wake()

    def _take_back(self) -> None:
        """The channel is gone: what was in flight may or may not have arrived. Publish it again, before the rest."""
        again, rest = self._unconfirmed.take_all(), self._waiting
        self._unconfirmed, self._waiting, self._bytes, self._known = Unconfirmed(), deque(), 0, {}
        for outgoing in (*again, *rest):
            outgoing.written = outgoing.returned = False
            self._append(outgoing)

    def _append(self, outgoing: Outgoing) -> None:
        size = len(outgoing.body)
        if len(self._waiting) >= self._max_jobs or self._bytes + size > self._max_bytes:
            self._dropped += 1
            if self._dropped.bit_count() == 1:  # 1, 2, 4, 8, …: seldom enough for a log
                _log.warning("publish_buffer_full", dropped=self._dropped, remedy="the outbox brings them again")
            return
        self._waiting.append(outgoing)
        self._known[outgoing.job.dispatch_id] = outgoing
        self._bytes += size


_begin = lru_cache(maxsize=4096)(publish_frame)


@lru_cache(maxsize=4096)
def _queue_name(namespace: str, pool: str, kind: JobKind.ValueType) -> str:
    return Queue(namespace, pool, kind).name


def _properties(job: Job, now: int) -> bytes:
    headers: dict[str, str] = {}
    trace = job.trace
    if trace.traceparent:
        headers["traceparent"] = trace.traceparent
    if trace.tracestate:
        headers["tracestate"] = trace.tracestate
    return message_properties(
        content_type="application/protobuf",
        headers=headers,
        correlation_id=_short(job.run_id),
        message_id=job.dispatch_id,
        timestamp=now,
        type=_short(job.name),
        app_id="treadle",
    )


def _short(text: str) -> str:
    """Cut to what an AMQP short string holds: 255 bytes. (The body has it whole.)"""
    return text if len(text) < 64 else text.encode()[:_SHORT_STRING].decode(errors="ignore")
