"""Runs driven by hand through an engine, and the projector of their traces, as often as a test wants it to die."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.servers.otlp_receiver import OtlpReceiver
from treadle.controlplane.broker.memory import MemoryBroker
from treadle.controlplane.duties.leases import LeaseChecker
from treadle.controlplane.duties.queues import QueueWatch
from treadle.controlplane.duties.timers import TimerDuty
from treadle.controlplane.engine import Engine
from treadle.controlplane.machine.requests import Asked, Claimed, Reported, Request, RunReply, StartRun, TerminateRun
from treadle.controlplane.store.cursors import RIPE_MS
from treadle.controlplane.store.port import Store, Want
from treadle.controlplane.tracing.exporter import SpanExporter
from treadle.controlplane.tracing.projector import TraceProjector
from treadle.protocol.ids import SHARDS, RunKey
from treadle.v1.common_pb2 import Payload, TraceContext
from treadle.v1.job_pb2 import JOB_KIND_RUN, JOB_KIND_STEP, Job
from treadle.v1.run_service_pb2 import CONFLICT_POLICY_ALLOW_CLOSED
from treadle.v1.state_pb2 import CommandRow, RunHead
from treadle.v1.worker_service_pb2 import (
    ANSWER_OK,
    REPORT_KIND_COMPLETED,
    VERDICT_GO,
    AttemptReport,
    ClaimItem,
    ClaimVerdict,
    Command,
    CompleteRun,
    Grant,
    OwnerAnswer,
    OwnerRequest,
    ReportAnswer,
    ScheduleStep,
)

__all__ = ("ALL", "CALLER", "Killed", "World", "world")

ALL = range(SHARDS)
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Killed(Exception):
    """The process of a projector ended here."""


class DyingExporter(SpanExporter):
    """Dies after the spans were taken, before anybody heard of it."""

    async def export(self, request: bytes, spans: int) -> bool:
        assert await super().export(request, spans)
        raise Killed


class World:
    """An engine over a store, and a receiver."""

    def __init__(self, store: Store, engine: Engine, receiver: OtlpReceiver, timers: TimerDuty) -> None:
        self.store, self.engine, self.receiver, self.timers = store, engine, receiver, timers
        self._numbers = 0

    # --- runs --------------------------------------------------------------------------------------------------------
    async def ask(self, run_id: str, request: Request) -> object:
        return await self.engine.ask(RunKey("default", run_id), request)

    async def start(self, run_id: str, *, sampled: bool = True) -> None:
        self._numbers += 1
        request = StartRun(
            "orders",
            "flows",
            Payload(data=b'["secret"]'),
            f"q{self._numbers}",
            CONFLICT_POLICY_ALLOW_CLOSED,
            TraceContext(traceparent=CALLER),
            sampled=sampled,
        )
        reply = await self.ask(run_id, request)
        assert isinstance(reply, RunReply)
        assert reply.started

    async def terminate(self, run_id: str) -> None:
        self._numbers += 1
        await self.ask(run_id, TerminateRun(f"q{self._numbers}", "enough"))

    async def claim(self, job: Job) -> Grant:
        self._numbers += 1
        verdict = await self.ask(job.run_id, Claimed(ClaimItem(claim_id=self._numbers, sent_ms=1, job=job), "w1", "r1"))
        assert isinstance(verdict, ClaimVerdict)
        assert verdict.verdict == VERDICT_GO
        return verdict.grant

    async def head(self, run_id: str) -> RunHead:
        """Return the record of a run that was started."""
        loaded = (await self.store.load([Want(RunKey("default", run_id))]))[0]
        assert loaded.head, f"there is no run {run_id}"
        return RunHead.FromString(loaded.head)

    async def open(self, run_id: str) -> OwnerRequest:
        """Claim the queued run; returns what its owner may say."""
        head = await self.head(run_id)
        job = Job(
            namespace="default",
            run_id=run_id,
            incarnation=head.incarnation,
            kind=JOB_KIND_RUN,
            pool=head.pool,
            name=head.workflow,
            dispatch_id=head.wake_dispatch_id,
        )
        grant = await self.claim(job)
        return OwnerRequest(run_id=run_id, incarnation=head.incarnation, token=grant.token)

    async def say(self, owner: OwnerRequest) -> None:
        """Send a request of the owner, who has seen everything."""
        events, length = await self.engine.events(RunKey("default", owner.run_id), 0)
        owner.seq += 1
        owner.sent_ms += 1
        owner.seen = owner.told = length
        owner.told_revision = events[-1].revision
        answer = await self.ask(owner.run_id, Asked(owner, "w1", "r1"))
        assert isinstance(answer, OwnerAnswer)
        assert answer.answer == ANSWER_OK
        del owner.commands[:]

    async def step(self, owner: OwnerRequest, name: str) -> Grant:
        """Call a pool step and have it done; returns what its worker was granted."""
        command_id = f"0/{name}#1"
        spec = ScheduleStep(name=name, pool="crm", input=Payload(data=b'["secret"]'))
        owner.commands.append(Command(command_id=command_id, schedule_step=spec))
        await self.say(owner)
        run = RunKey("default", owner.run_id)
        (loaded,) = await self.store.load([Want(run, fields=[f"c:{command_id}"])])
        row = CommandRow.FromString(loaded.fields[f"c:{command_id}"])
        job = Job(
            namespace="default",
            run_id=run.run_id,
            incarnation=owner.incarnation,
            kind=JOB_KIND_STEP,
            pool=row.pool,
            name=name,
            dispatch_id=row.dispatch_id,
            command_id=command_id,
            try_number=row.try_number,
        )
        grant = await self.claim(job)
        report = AttemptReport(
            run_id=run.run_id,
            incarnation=owner.incarnation,
            command_id=command_id,
            token=grant.token,
            kind=REPORT_KIND_COMPLETED,
            result=Payload(data=b'"secret"'),
        )
        answer = await self.ask(run.run_id, Reported(report))
        assert isinstance(answer, ReportAnswer)
        assert answer.answer == ANSWER_OK
        return grant

    async def complete(self, owner: OwnerRequest) -> None:
        owner.complete.CopyFrom(CompleteRun(result=Payload(data=b'"secret"')))
        await self.say(owner)

    async def whole(self, run_id: str) -> None:
        """A run of one step, from start to end: three spans."""
        await self.start(run_id)
        owner = await self.open(run_id)
        await self.step(owner, "charge")
        await self.complete(owner)

    # --- traces ------------------------------------------------------------------------------------------------------
    @asynccontextmanager
    async def projector(self, *, dies: bool = False, timeout_s: float = 5.0) -> AsyncIterator[TraceProjector]:
        """A projector that remembers nothing of those before it."""
        kind = DyingExporter if dies else SpanExporter
        exporter = kind(self.receiver.endpoint, timeout_s=timeout_s)
        try:
            yield TraceProjector(self.engine, self.timers, exporter)
        finally:
            await exporter.close()

    async def settle(self, projector: TraceProjector) -> None:
        """Take turns until nothing is noted; what is not due yet, too."""
        for _ in range(100):
            await projector.turn(ALL, RIPE_MS)
            if not await self.store.unprojected(ALL, 1, RIPE_MS):
                return
        raise AssertionError("the projector does not come to an end")


@asynccontextmanager
async def world(store: Store, *, duties: bool = False) -> AsyncIterator[World]:
    """An engine over a started store while inside; `duties`: its timer duty holds the shards."""
    async with OtlpReceiver() as receiver:
        broker = MemoryBroker()
        engine = Engine(store, broker)
        await broker.start(engine)
        await engine.prepare()
        timers = TimerDuty(engine, LeaseChecker(engine), QueueWatch(engine))
        store.trace()
        tasks = [asyncio.create_task(engine.run())]
        if duties:
            tasks.append(asyncio.create_task(timers.run()))
        try:
            yield World(store, engine, receiver, timers)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await broker.stop()
