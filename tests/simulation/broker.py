"""A simulated RabbitMQ: at-least-once, requeues what a lost connection held, confirms later, may lose a message."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from treadle.protocol.topology import Queue, queue_of
from treadle.v1.job_pb2 import Job, JobKind

from .clock import Schedule

__all__ = ("Connection", "SimBroker")


@dataclass
class Connection:
    """A worker's connection: who takes deliveries, what it consumes, what it holds."""

    deliver: Callable[[int, Job], None]
    lost: Callable[[JobKind.ValueType, list[int]], None]
    prefetch: int
    alive: bool = True
    consuming: set[Queue] = field(default_factory=set)
    unacked: dict[int, tuple[Queue, bytes]] = field(default_factory=dict)


class SimBroker:
    """Queues, connections, and the faults of a broker."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._queues: dict[Queue, deque[bytes]] = {}
        self._connections: list[Connection] = []
        self._tags = 0
        self.empty_since: dict[Queue, int] = {}

    def publish(self, jobs: list[Job], confirmed: Callable[[list[Job]], None]) -> None:
        """Take jobs after a while; confirm them after another one."""
        for job in jobs:
            body = job.SerializeToString()
            self._schedule.later(self._schedule.network_ms(), partial(self._put, body, job))
            self._schedule.later(self._schedule.network_ms() + 3, partial(confirmed, [job]))

    def _put(self, body: bytes, job: Job) -> None:
        queue = queue_of(job)
        self._queues.setdefault(queue, deque()).append(body)
        self._deliver(queue)

    def connect(self, connection: Connection) -> None:
        self._connections.append(connection)

    def consume(self, connection: Connection, queue: Queue, on: bool) -> None:
        if on:
            connection.consuming.add(queue)
            self._deliver(queue)
        else:
            connection.consuming.discard(queue)

    def _deliver(self, queue: Queue) -> None:
        waiting = self._queues.setdefault(queue, deque())
        takers = [c for c in self._connections if c.alive and queue in c.consuming]
        self._schedule.rng.shuffle(takers)
        for connection in takers:
            held = sum(1 for q, _ in connection.unacked.values() if q == queue)
            while waiting and held < connection.prefetch:
                body = waiting.popleft()
                held += 1
                self._tags += 1
                tag = self._tags
                connection.unacked[tag] = (queue, body)
                self._schedule.later(self._schedule.network_ms(), partial(self._arrive, connection, tag, body))

    def _arrive(self, connection: Connection, tag: int, body: bytes) -> None:
        if connection.alive and tag in connection.unacked:
            connection.deliver(tag, Job.FromString(body))

    def ack(self, connection: Connection, tag: int) -> None:
        queue, _ = connection.unacked.pop(tag, (None, b""))
        if queue is not None:
            self._deliver(queue)

    def give_back(self, connection: Connection, tag: int) -> None:
        queue, body = connection.unacked.pop(tag, (None, b""))
        if queue is not None:
            self._queues[queue].appendleft(body)
            self._schedule.later(1, lambda: self._deliver(queue))

    def cut(self, connection: Connection) -> None:
        """A connection breaks: what it held goes to others, then its worker notices."""
        if not connection.alive:
            return
        connection.alive = False
        self._connections.remove(connection)
        held, connection.unacked = connection.unacked, {}
        tags: dict[JobKind.ValueType, list[int]] = {}
        for tag, (queue, body) in held.items():
            self._queues[queue].append(body)
            tags.setdefault(queue.kind, []).append(tag)
        for queue in {queue for queue, _ in held.values()}:
            self._deliver(queue)
        for kind, lost in tags.items():
            connection.lost(kind, lost)

    def lose_one(self) -> bool:
        """The broker loses a message that waits in a queue."""
        filled = [queue for queue, waiting in self._queues.items() if waiting]
        if not filled:
            return False
        self._queues[self._schedule.rng.choice(filled)].popleft()
        return True

    def copies(self, dispatch_id: str) -> int:
        """How many copies of a dispatch are here."""
        held = [body for c in self._connections for _, body in c.unacked.values()]
        waiting = [body for queue in self._queues.values() for body in queue]
        return sum(1 for body in held + waiting if Job.FromString(body).dispatch_id == dispatch_id)
