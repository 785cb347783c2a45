"""The session lane: jobs of the broker go down the session to workers that state credits for them.

For each queue there is a consumer while a session of this replica has a credit for it; a job that found none for 0.25 s is
given back, and a job whose name no session here knows is said to be unregistered.
"""

from __future__ import annotations

import asyncio
from collections import deque

import structlog

from treadle.controlplane.broker.port import Consumer, Delivery
from treadle.controlplane.clock import monotonic_ms
from treadle.controlplane.engine import Engine
from treadle.controlplane.machine import Credit
from treadle.controlplane.machine.requests import Claimed, PushedGrant, Reply
from treadle.controlplane.steady import steady
from treadle.protocol.errors import RequestError, TreadleError
from treadle.protocol.ids import RunKey
from treadle.protocol.topology import Queue
from treadle.v1.job_pb2 import JOB_KIND_RUN, JOB_KIND_STEP, Job
from treadle.v1.worker_service_pb2 import LANE_SESSION, VERDICT_GO, ClaimItem, ClaimVerdict

__all__ = ("Lanes",)

_log = structlog.stdlib.get_logger(__name__)

_PREFETCH = 100
_IDLE_S = 0.25
_AGAIN_S = 1.0
_PRESS_S = 1.0
_BUSY_MS = 2_000


class Lanes:
    """One pump a queue."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pumps: dict[Queue, _Pump] = {}
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Work for ever."""
        async with asyncio.TaskGroup() as self._tasks:
            for pump in self._pumps.values():
                self._tasks.create_task(steady(pump.name, pump.run))
            await self._press()

    def stated(self, namespace: str, pool: str) -> None:
        """A session of this pool stated credits."""
        for kind in (JOB_KIND_STEP, JOB_KIND_RUN):
            queue = Queue(namespace, pool, kind)
            pump = self._pumps.get(queue)
            if pump is None:
                pump = self._pumps[queue] = _Pump(self._engine, queue)
                if self._tasks is not None:
                    self._tasks.create_task(steady(pump.name, pump.run))
            pump.turn()

    async def _press(self) -> None:
        """Where all run slots are taken and a run job waits, workers are told so as long as it is true (R9)."""
        while True:
            await asyncio.sleep(_PRESS_S)
            for queue, pump in list(self._pumps.items()):
                if queue.kind != JOB_KIND_RUN or not pump.full:
                    continue
                try:
                    depth = await self._engine.broker.depth(queue)
                except RequestError:
                    continue  # its queue, or the broker, is not there: nothing can be said
                if depth.ready:
                    self._engine.replica.run_job_waits(queue.namespace, queue.pool)


class _Pump:
    def __init__(self, engine: Engine, queue: Queue) -> None:
        self._engine, self._queue = engine, queue
        self.name = f"pump {queue.name}"
        self._waiting: deque[tuple[Delivery, Job, int]] = deque()
        self._consumer: Consumer | None = None
        self._credit = asyncio.Event()

    def _credits(self) -> int:
        queue = self._queue
        return self._engine.replica.credits.total(queue.namespace, queue.pool, queue.kind, monotonic_ms())

    @property
    def full(self) -> bool:
        """Whether there are sessions of the pool, and none has a credit."""
        queue = self._queue
        sessions = self._engine.replica.sessions.values()
        there = any((s.namespace, s.pool, s.lane) == (queue.namespace, queue.pool, LANE_SESSION) for s in sessions)
        return there and not self._credits()

    async def run(self) -> None:
        """Consume while there are credits."""
        while True:
            await self._credit.wait()
            try:
                await self._engine.declare(self._queue.namespace, self._queue.pool)
                self._consumer = await self._engine.broker.consume(self._queue, _PREFETCH, self._deliver)
                await self._until_idle()
            except TreadleError as error:
                _log.warning("lane_waits_for_broker", queue=self._queue.name, error=str(error))
                await asyncio.sleep(0.2)
            finally:
                await self._stop()

    async def _until_idle(self) -> None:
        """While credits are there, or come: those that are used at once must reach what waits, too."""
        self.turn()
        while self._credits() > 0 or self._credit.is_set():
            self._credit.clear()
            await asyncio.sleep(_IDLE_S)

    async def _stop(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.cancel()
        while self._waiting:
            self._waiting.popleft()[0].give_back()

    def _deliver(self, delivery: Delivery) -> None:
        if delivery.job is None:
            self._keep_garbage(delivery)
            return
        now = monotonic_ms()
        if not self._matched(delivery, delivery.job, now, now):
            self._waiting.append((delivery, delivery.job, now))

    def turn(self) -> None:
        """Match what waits with credits. What finds none does not hold up what is behind it, nor stay for long (A3)."""
        if not self._credits():
            return
        self._credit.set()
        now = monotonic_ms()
        for _ in range(len(self._waiting)):
            if not self._waiting:
                return  # given back, and served, meanwhile
            delivery, job, since = self._waiting.popleft()
            if not self._matched(delivery, job, since, now):
                self._waiting.append((delivery, job, since))

    def _matched(self, delivery: Delivery, job: Job, since: int, now: int) -> bool:
        """Give a delivery what it waits for; False when it goes on waiting."""
        book = self._engine.replica.credits
        credit = book.offer(job.namespace, job.pool, job.kind, job.name, "", now)
        if credit is not None:
            self._claim(delivery, job, credit)
            return True
        if not book.known(job.namespace, job.pool, job.kind, job.name):
            return self._unregistered(delivery, job, now)
        if now - since < _BUSY_MS:
            return False
        delivery.give_back()  # who has the name is busy; at another replica somebody may not be
        return True

    def _unregistered(self, delivery: Delivery, job: Job, now: int) -> bool:
        session = self._engine.replica.credits.any_of(job.namespace, job.pool, job.kind, now)
        if session is None or session.knows(job.kind, job.name):
            return False
        item = ClaimItem(claim_id=session.credit_id or 1, sent_ms=session.sent_ms, job=job, unregistered=True)

        def settle(reply: Reply | Exception) -> None:
            if isinstance(reply, Exception):
                _later(delivery)
            else:
                delivery.ack()

        claimed = Claimed(item, session.worker_id, self._engine.replica_id)
        self._engine.committer.submit(RunKey(job.namespace, job.run_id), claimed, settle)
        return True

    def _claim(self, delivery: Delivery, job: Job, credit: Credit) -> None:
        run = RunKey(job.namespace, job.run_id)
        item = ClaimItem(claim_id=credit.credit_id, sent_ms=credit.sent_ms, job=job)
        replica = self._engine.replica

        def settle(reply: Reply | Exception) -> None:
            if isinstance(reply, Exception):
                replica.credits.give_back(credit, job.kind)
                _later(delivery)
                return
            delivery.ack()
            if isinstance(reply, ClaimVerdict) and reply.verdict == VERDICT_GO:
                if not reply.grant.HasField("job"):
                    reply.grant.job.CopyFrom(job)
                replica.push(run, PushedGrant(credit, reply.grant))
            else:
                replica.credits.give_back(credit, job.kind)
                self.turn()

        claimed = Claimed(item, credit.worker_id, self._engine.replica_id, credit.handler)
        self._engine.committer.submit(run, claimed, settle)

    def _keep_garbage(self, delivery: Delivery) -> None:
        """The lanes carry jobs only; anything else is counted, logged and left to the worker's or doctor's eye."""
        _log.warning("garbage_in_queue", queue=self._queue.name, size=len(delivery.body))
        self._engine.keep_garbage(self._queue, delivery.body, delivery.ack)


def _later(delivery: Delivery) -> None:
    """Give back what could not be answered, but not at once: it would come at once again."""
    asyncio.get_running_loop().call_later(_AGAIN_S, delivery.give_back)
