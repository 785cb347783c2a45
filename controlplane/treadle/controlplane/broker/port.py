"""What the control plane asks of its broker. RabbitMQ and the in-memory twin implement it; `tests/contract` pins both.

A broker transports jobs and decides nothing. The outbox in the store owns a job until the broker has confirmed it:
RabbitMQ confirms when it is on disk, the in-memory broker when it is acked, because the outbox is its disk.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from treadle.protocol.topology import Queue
from treadle.v1.job_pb2 import Job

__all__ = ("Broker", "Consumer", "Delivery", "Listener", "QueueDepth")


class Listener(Protocol):
    """Hears what became of published jobs. Called on the event loop; must not block."""

    def confirmed(self, jobs: Sequence[Job]) -> None:
        """These may leave the outbox, each by exactly its dispatch id."""
        ...

    def returned(self, jobs: Sequence[Job]) -> None:
        """These found no queue. The broker declares it again; the entries stay in the outbox."""
        ...


class Delivery(Protocol):
    """One message of a queue, not yet acknowledged."""

    @property
    def job(self) -> Job | None:
        """The job; None when the body is no job."""
        ...

    @property
    def body(self) -> bytes:
        """The body as it came."""
        ...

    def ack(self) -> None:
        """Settle it. Never waits; a failure means that it will be delivered again."""
        ...

    def give_back(self) -> None:
        """Put it back into its queue (nack, requeue)."""
        ...


class Consumer(Protocol):
    """A subscription to one queue. Survives reconnects; a watchdog finds it when the broker has forgotten it."""

    async def cancel(self) -> None:
        """Stop taking; deliveries that still arrive are given back."""
        ...


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """ready: messages that wait for a consumer. consumers: how many there are."""

    ready: int
    consumers: int


class Broker(Protocol):
    """The port."""

    async def start(self, listener: Listener) -> None:
        """Connect and declare the exchange. Raises Unavailable naming the address when nothing answers."""
        ...

    async def stop(self) -> None:
        """Close all connections; what was not confirmed stays in the outbox."""
        ...

    async def declare(self, queue: Queue) -> None:
        """Declare a queue and bind it. Idempotent; raises ConfigError on inequivalent arguments, with the remedy."""
        ...

    def publish(self, jobs: Sequence[Job]) -> None:
        """Publish: persistent, mandatory, confirms streamed. Never waits and never raises.

        While the broker is away or blocked, jobs beyond a bound are dropped here: their outbox entries bring them again.
        """
        ...

    async def depth(self, queue: Queue) -> QueueDepth:
        """Look at a queue (passive declare). Raises Unavailable."""
        ...

    async def consume(
        self, queue: Queue, prefetch: int, deliver: Callable[[Delivery], Awaitable[None] | None]
    ) -> Consumer:
        """Take up to `prefetch` unacknowledged messages of a queue at a time."""
        ...

    def has(self, dispatch_id: str) -> bool | None:
        """Whether a copy of the dispatch is here. None: this broker cannot tell."""
        ...
