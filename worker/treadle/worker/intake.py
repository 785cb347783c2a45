"""The AMQP lane: consumers on the pool's two queues, as the core wants them, and verdicts on what they delivered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import urlsplit

from treadle.protocol.topology import Queue
from treadle.v1.job_pb2 import JOB_KIND_STEP, JobKind
from treadle.worker.amqp import Delivered, QueueConsumer
from treadle.worker.amqp_link import AmqpLink
from treadle.worker.clock import monotonic_ms
from treadle.worker.core.port import WorkerCorePort

__all__ = ("Intake", "broker_address")

_PORTS: Final = {"amqp": 5672, "amqps": 5671}


def broker_address(url: str) -> tuple[str, int]:
    """Host and port of an AMQP URL."""
    parts = urlsplit(url)
    return parts.hostname or "localhost", parts.port or _PORTS.get(parts.scheme, 5672)


class Intake:
    """Has a consumer on a queue while the core wants one.

    Args:
        url: The broker.
        core: Told every delivery, and which are void.
        changed: Called after the core was told something.
        namespace, pool: Whose queues.
        slots: Pool steps at the same time.
        short: Whether pool steps are short here: then twice the slots are prefetched, else what is free.
    """

    def __init__(
        self,
        url: str,
        core: WorkerCorePort,
        changed: Callable[[], None],
        *,
        namespace: str,
        pool: str,
        slots: int,
        short: Callable[[], bool],
    ) -> None:
        self._link = AmqpLink(url, name=f"treadle-worker {namespace}/{pool}")
        self._core = core
        self._changed = changed
        self._namespace = namespace
        self._pool = pool
        self._slots = slots
        self._short = short
        self._was_short = False
        self._consumers: dict[int, QueueConsumer] = {}
        self._wanted: set[int] = set()

    @property
    def address(self) -> str:
        """Where the broker is, without the password."""
        return self._link.address

    def hang_up(self) -> None:
        """Let the broker give to others what was delivered here and not acked. For any thread."""
        self._link.hang_up()

    def consume(self, kind: JobKind.ValueType, on: bool) -> None:
        """Have a consumer, or none."""
        consumer = self._consumers.get(kind)
        if not on:
            self._wanted.discard(kind)
            if consumer is not None:
                consumer.pause()
            return
        self._wanted.add(kind)
        if consumer is None:
            consumer = self._consumers[kind] = self._make(kind)
            consumer.start()
        else:
            consumer.resume(self._prefetch(kind))

    def look(self) -> None:
        """Change the prefetch when pool steps have become short, or long. Call it now and then."""
        if self._short() != self._was_short:
            self._was_short = not self._was_short
            if JOB_KIND_STEP in self._wanted:
                self._consumers[JOB_KIND_STEP].resume(self._prefetch(JOB_KIND_STEP))

    def ack(self, tag: int) -> None:
        for consumer in self._consumers.values():
            if consumer.ack(tag):
                return

    def give_back(self, tag: int) -> None:
        for consumer in self._consumers.values():
            if consumer.give_back(tag):
                return

    async def close(self) -> None:
        """Write the verdicts that were said and end; what has none goes back."""
        for consumer in self._consumers.values():
            await consumer.stop()
        await self._link.close()

    def _prefetch(self, kind: JobKind.ValueType) -> int:
        if kind == JOB_KIND_STEP:
            return 2 * self._slots if self._short() else max(1, self._slots - self._core.counts()[0])
        return max(1, self._core.free_run_slots())

    def _make(self, kind: JobKind.ValueType) -> QueueConsumer:
        def delivered(found: Sequence[Delivered]) -> None:
            now = monotonic_ms()
            for tag, job, body in found:
                self._core.delivered(tag, job, body, now)
            self._changed()

        def lost(tags: Sequence[int]) -> None:
            self._core.channel_lost(kind, tags, monotonic_ms())
            self._changed()

        queue = Queue(self._namespace, self._pool, kind)
        return QueueConsumer(self._link, queue.name, self._prefetch(kind), delivered, lost)
