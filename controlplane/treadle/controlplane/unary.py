"""Small workers without a session: claim, complete, fail, one call each.

Such a worker registers with a session id of its own choice and beats; a job comes to it from RabbitMQ, or it asks here for
the next one of its pool. The rules are those of every worker: nothing starts without GO, the token proves the holder.
"""

from __future__ import annotations

import asyncio

from treadle.controlplane.broker.port import Delivery
from treadle.controlplane.engine import Engine
from treadle.controlplane.machine.requests import Claimed, Reported
from treadle.protocol.errors import FieldInvalid
from treadle.protocol.ids import RunKey, check_name
from treadle.protocol.topology import Queue
from treadle.v1.job_pb2 import JOB_KIND_STEP, Job
from treadle.v1.worker_service_pb2 import (
    VERDICT_GO,
    Answer,
    AttemptReport,
    ClaimItem,
    ClaimRequest,
    ClaimResponse,
    ClaimVerdict,
    ReportAnswer,
)

__all__ = ("UnaryWorkers",)

_LONGEST_WAIT_MS = 30_000
_SHORTEST_WAIT_MS = 100
"""What is there needs a moment to be delivered."""


class UnaryWorkers:
    """See the module."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def claim(self, request: ClaimRequest) -> ClaimResponse:
        """Answer a claim of a job that the worker has, or find it the next one of its pool.

        Raises:
            FieldInvalid: Worker, question or pool is not named.
        """
        if not request.worker_id or not request.claim_id:
            raise FieldInvalid("worker_id and claim_id: give both", field="claim_id")
        if request.HasField("job"):
            return await self._verdict(request, request.job)
        namespace = check_name("namespace", request.namespace or "default")
        queue = Queue(namespace, check_name("pool", request.pool or "default"), JOB_KIND_STEP)
        await self._engine.declare(queue.namespace, queue.pool)
        return await self._next(request, queue)

    async def _next(self, request: ClaimRequest, queue: Queue) -> ClaimResponse:
        """Take deliveries until one is answered with GO; each is acked on its verdict."""
        wait_ms = min(max(request.wait_ms, _SHORTEST_WAIT_MS), _LONGEST_WAIT_MS)
        until = asyncio.get_running_loop().time() + wait_ms / 1000
        names = await self._names(request.worker_id)
        arrived: asyncio.Queue[Delivery] = asyncio.Queue()
        consumer = await self._engine.broker.consume(queue, 1, arrived.put_nowait)
        try:
            while True:
                try:
                    async with asyncio.timeout_at(until):  # what has come is asked about: a GO must not be lost
                        delivery = await arrived.get()
                except TimeoutError:
                    return ClaimResponse()
                if delivery.job is None:
                    self._engine.keep_garbage(queue, delivery.body, delivery.ack)
                    continue
                known = names is None or delivery.job.name in names
                try:
                    found = await asyncio.shield(self._verdict(request, delivery.job, unregistered=not known))
                except BaseException:
                    delivery.give_back()
                    raise
                delivery.ack()
                if found.verdict == VERDICT_GO:
                    if not found.grant.HasField("job"):
                        found.grant.job.CopyFrom(delivery.job)
                    return found
        finally:
            await consumer.cancel()
            while not arrived.empty():
                arrived.get_nowait().give_back()

    async def _names(self, worker_id: str) -> frozenset[str] | None:
        """The steps that the worker registered; None: it has not, or is long forgotten."""
        record = (await self._engine.store.view_workers([worker_id]))[0].record
        return frozenset(record.steps) if record is not None else None

    async def _verdict(self, request: ClaimRequest, job: Job, *, unregistered: bool = False) -> ClaimResponse:
        item = ClaimItem(claim_id=request.claim_id, sent_ms=request.sent_ms, job=job, unregistered=unregistered)
        claimed = Claimed(item, request.worker_id, self._engine.replica_id)
        reply = await self._engine.ask(RunKey(job.namespace, job.run_id), claimed)
        assert isinstance(reply, ClaimVerdict)
        grant = reply.grant if reply.HasField("grant") else None
        return ClaimResponse(verdict=reply.verdict, grant=grant)

    async def report(self, namespace: str, report: AttemptReport) -> Answer.ValueType:
        """Take a report; the answer is that of the machine."""
        reply = await self._engine.ask(RunKey(namespace or "default", report.run_id), Reported(report))
        assert isinstance(reply, ReportAnswer)
        return reply.answer
