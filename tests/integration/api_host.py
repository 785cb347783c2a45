"""A gRPC API in this process, over the in-memory store and broker: real calls over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from grpc import aio

from treadle.controlplane.api.run_service import RunService
from treadle.controlplane.api.server import MESSAGE_BYTES
from treadle.controlplane.broker.memory import MemoryBroker
from treadle.controlplane.config import ServerConfig
from treadle.controlplane.engine import Engine
from treadle.controlplane.machine.requests import Asked, Claimed
from treadle.controlplane.plane import ControlPlane
from treadle.controlplane.store.memory import MemoryStore
from treadle.controlplane.store.port import Want
from treadle.controlplane.telemetry import Metrics
from treadle.protocol.ids import RunKey
from treadle.v1.common_pb2 import Failure, Payload
from treadle.v1.job_pb2 import JOB_KIND_RUN, Job
from treadle.v1.pool_service_pb2_grpc import PoolServiceStub
from treadle.v1.run_service_pb2_grpc import RunServiceStub
from treadle.v1.state_pb2 import RunHead
from treadle.v1.worker_service_pb2 import (
    ANSWER_OK,
    VERDICT_GO,
    ClaimItem,
    ClaimVerdict,
    CompleteRun,
    FailRun,
    OwnerAnswer,
    OwnerRequest,
)

if TYPE_CHECKING:  # these exist for the type checker only
    from treadle.v1.pool_service_pb2_grpc import PoolServiceAsyncStub
    from treadle.v1.run_service_pb2_grpc import RunServiceAsyncStub

__all__ = ("ApiHost", "api_host")

DEADLINE_S = 30.0


@dataclass
class ApiHost:
    """What a test drives: stubs of a client, the store below, and a worker by hand."""

    config: ServerConfig
    store: MemoryStore
    engine: Engine
    run_service: RunService
    metrics: Metrics
    stop: asyncio.Event
    address: str
    channel: aio.Channel
    runs: RunServiceAsyncStub
    pools: PoolServiceAsyncStub
    _claims: int = field(default=0)

    def head(self, run_id: str, namespace: str = "default") -> RunHead:
        """Return the head of a run as it is stored."""
        (loaded,) = self.store.load_now([Want(RunKey(namespace, run_id))])
        return RunHead.FromString(loaded.head)

    async def open(self, run_id: str) -> OwnerRequest:
        """Claim a queued run as worker w1; returns what its owner says first."""
        head = self.head(run_id)
        self._claims += 1
        job = Job(
            namespace=head.namespace,
            run_id=run_id,
            incarnation=head.incarnation,
            kind=JOB_KIND_RUN,
            pool=head.pool,
            name=head.workflow,
            dispatch_id=head.wake_dispatch_id,
        )
        item = ClaimItem(claim_id=self._claims, sent_ms=1, job=job)
        verdict = await self.engine.ask(RunKey(head.namespace, run_id), Claimed(item, "w1", "r1"))
        assert isinstance(verdict, ClaimVerdict)
        assert verdict.verdict == VERDICT_GO
        last = verdict.grant.run.events[-1]
        return OwnerRequest(
            run_id=run_id,
            incarnation=head.incarnation,
            token=verdict.grant.token,
            seq=1,
            seen=last.position,
            told=last.position,
            told_revision=last.revision,
            sent_ms=2,
        )

    async def finish(self, run_id: str, result: bytes | None = None, error: str = "") -> None:
        """Open a queued run and return `result` from it, or raise ValueError(`error`)."""
        owner = await self.open(run_id)
        if result is not None:
            owner.complete.CopyFrom(CompleteRun(result=Payload(data=result)))
        else:
            owner.fail.CopyFrom(FailRun(failure=Failure(type="ValueError", message=error, traceback="tb")))
        answer = await self.engine.ask(RunKey("default", run_id), Asked(owner, "w1", "r1"))
        assert isinstance(answer, OwnerAnswer)
        assert answer.answer == ANSWER_OK


@asynccontextmanager
async def api_host(config: ServerConfig | None = None, **settings: object) -> AsyncIterator[ApiHost]:
    """Run a control plane on a free port of loopback while inside. `settings` go into ServerConfig."""
    if config is None:
        config = ServerConfig(listen="127.0.0.1:0", amqp_url="", shutdown_grace_s=0.5, **settings)  # type: ignore[arg-type]
    store, broker, metrics = MemoryStore(), MemoryBroker(), Metrics()
    plane = ControlPlane(config, store, broker, metrics)
    await broker.start(plane.engine)
    stop = asyncio.Event()
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(plane.run(stop, address.set_result))
    options = [("grpc.max_receive_message_length", MESSAGE_BYTES), ("grpc.max_send_message_length", MESSAGE_BYTES)]
    try:
        waited: list[asyncio.Future[Any]] = [serving, address]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if address.done():
            async with aio.insecure_channel(address.result(), options=options) as channel:
                runs, pools = RunServiceStub(channel), PoolServiceStub(channel)
                yield ApiHost(
                    config, store, plane.engine, plane.runs, metrics, stop, address.result(), channel, runs, pools
                )
    finally:
        stop.set()
        address.cancel()
        await serving
        await broker.stop()
