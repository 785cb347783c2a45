"""What the broker tests share: a listener that remembers, a taker of deliveries, jobs, and waiting with a deadline."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence

from treadle.controlplane.broker.port import Delivery
from treadle.protocol.topology import Queue
from treadle.v1.common_pb2 import TraceContext
from treadle.v1.job_pb2 import JOB_KIND_STEP, Job

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def fresh_queue() -> Queue:
    """A queue that no other test has: tests share one server."""
    return Queue(f"t{secrets.token_hex(5)}", "csv", JOB_KIND_STEP)


def job(queue: Queue, dispatch_id: str) -> Job:
    return Job(
        namespace=queue.namespace,
        run_id="upload-42",
        incarnation=7,
        kind=queue.kind,
        pool=queue.pool,
        name="validate",
        dispatch_id=dispatch_id,
        command_id="1",
        try_number=1,
        trace=TraceContext(traceparent=TRACEPARENT),
    )


def jobs(queue: Queue, ids: Sequence[str]) -> list[Job]:
    return [job(queue, dispatch_id) for dispatch_id in ids]


async def until(condition: Callable[[], bool], *, seconds: float = 15.0, what: str = "") -> None:
    """Return when the condition holds; fail when it does not by the deadline."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not condition():
        assert loop.time() < deadline, f"not within {seconds:.0f} s: {what or condition}"
        await asyncio.sleep(0.005)


class Ear:
    """A `Listener` that remembers ids in the order in which it heard them."""

    def __init__(self) -> None:
        self.confirmed_ids: list[str] = []
        self.returned_ids: list[str] = []

    def confirmed(self, jobs: Sequence[Job]) -> None:
        self.confirmed_ids += [job.dispatch_id for job in jobs]

    def returned(self, jobs: Sequence[Job]) -> None:
        self.returned_ids += [job.dispatch_id for job in jobs]


class Taker:
    """Takes deliveries; with `ack` it acks each at once."""

    def __init__(self, *, ack: bool = False) -> None:
        self.ack = ack
        self.deliveries: list[Delivery] = []

    def __call__(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)
        if self.ack:
            delivery.ack()

    @property
    def ids(self) -> list[str]:
        return [d.job.dispatch_id if d.job is not None else "" for d in self.deliveries]

    async def wait(self, count: int) -> None:
        await until(lambda: len(self.deliveries) >= count, what=f"{count} deliveries, got {len(self.deliveries)}")
