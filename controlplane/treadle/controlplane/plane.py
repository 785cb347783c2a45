"""One replica of the control plane, put together from a store and a broker that are connected already."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import structlog

from treadle.client.blobs import open_store
from treadle.controlplane.api.admission import Admission
from treadle.controlplane.api.blob_service import told
from treadle.controlplane.api.event_service import EventService
from treadle.controlplane.api.pool_service import PoolService
from treadle.controlplane.api.run_service import RunService
from treadle.controlplane.api.schedule_service import ScheduleService
from treadle.controlplane.api.server import ApiServer
from treadle.controlplane.api.step_service import StepService
from treadle.controlplane.broker.port import Broker
from treadle.controlplane.config import ServerConfig
from treadle.controlplane.counters import DecisionCounter
from treadle.controlplane.duties.blobs import BlobDuty
from treadle.controlplane.duties.gauges import GaugeDuty
from treadle.controlplane.duties.leases import LeaseChecker
from treadle.controlplane.duties.leftovers import LeftoverDuty
from treadle.controlplane.duties.outbox import OutboxDuty
from treadle.controlplane.duties.queues import QueueWatch
from treadle.controlplane.duties.silence import SilenceDuty
from treadle.controlplane.duties.timers import TimerDuty
from treadle.controlplane.engine import Engine
from treadle.controlplane.lanes import Lanes
from treadle.controlplane.machine.env import Settings
from treadle.controlplane.sessions import WorkerService
from treadle.controlplane.steady import steady
from treadle.controlplane.store.port import Store
from treadle.controlplane.telemetry import Metrics
from treadle.controlplane.tracing.exporter import SpanSink
from treadle.controlplane.tracing.projector import TraceProjector
from treadle.protocol.errors import Unavailable
from treadle.protocol.topology import Queue
from treadle.v1.job_pb2 import JOB_KIND_RUN, JOB_KIND_STEP

__all__ = ("ControlPlane",)

_log = structlog.stdlib.get_logger(__name__)


class ControlPlane:
    """See the module. `engine` is what the broker must be started with as its listener.

    Args:
        config: Settings.
        store, broker: Adapters; who connects them closes them.
        metrics: Where to count.
        measure: True: gauges are measured too, because somebody reads them.
        spans: Where the traces of runs go; None: nowhere, and nothing is done for them.

    Raises:
        ConfigError: The tokens file has a wrong line.
    """

    def __init__(
        self,
        config: ServerConfig,
        store: Store,
        broker: Broker,
        metrics: Metrics | None = None,
        *,
        measure: bool = False,
        spans: SpanSink | None = None,
    ) -> None:
        self._config = config
        self._metrics = metrics or Metrics()
        count = DecisionCounter(self._metrics) if measure else None
        settings = Settings(retention_ms=config.retention_ms, cleanup_ms=config.cleanup_ms)
        self.engine = Engine(store, broker, settings, config.replica_id, count)
        leases = LeaseChecker(self.engine)
        timers = TimerDuty(self.engine, leases, QueueWatch(self.engine))
        lanes = Lanes(self.engine)
        self._work: list[Callable[[], Coroutine[None, None, None]]] = [
            self.engine.run,
            lanes.run,
            timers.run,
            OutboxDuty(self.engine, timers).run,
            SilenceDuty(self.engine, leases, timers).run,
            LeftoverDuty(self.engine).run,
        ]
        if config.blobs:
            every_s = config.blob_sweep_ms / 1000
            self._work.append(BlobDuty(self.engine, timers, open_store(config.blobs), every_s=every_s).run)
        if measure:
            self._work.append(GaugeDuty(self.engine, self._metrics).run)
        if spans is not None:
            self._work.append(TraceProjector(self.engine, timers, spans, self._metrics).run)
        self._workers = WorkerService(
            self.engine,
            leases,
            lanes,
            amqp_url=config.worker_amqp_url,
            max_payload_bytes=config.max_payload_bytes,
            blobs=told(config),
        )
        self.runs = RunService(
            self.engine,
            store,
            self.engine.hub,
            max_payload_bytes=config.max_payload_bytes,
            outbox_max=config.outbox_max,
            metrics=self._metrics,
        )
        admission = Admission(store, config.outbox_max)
        self.engine.code_of, self._workers.codes_of = admission.code_of, admission.codes_of
        self.engine.triggers.versions = admission
        self._work.append(self.runs.run)
        self._api = ApiServer(
            config,
            runs=self.runs,
            pools=PoolService(store, broker, outbox_max=config.outbox_max, unroutable=self._is_unroutable),
            steps=StepService(self.engine, max_payload_bytes=config.max_payload_bytes),
            schedules=ScheduleService(self.engine, store, admission),
            events=EventService(self.engine, store, self.engine.triggers, outbox_max=config.outbox_max),
            workers=self._workers,
            metrics=self._metrics,
        )

    async def run(self, stop: asyncio.Event, ready: Callable[[str], None]) -> None:
        """Serve until `stop` is set, then let present calls end within the grace.

        Args:
            stop: Set by who wants it to end.
            ready: Called once, with the address that is listened on.

        Raises:
            ConfigError: The port is taken, or a TLS file is wrong.
        """
        await self.engine.prepare()
        await self._declare_known()
        address = await self._api.start()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(steady(work.__qualname__, work), name=work.__qualname__) for work in self._work
                ]
                _log.info("serving", address=address, replica_id=self.engine.replica_id)
                ready(address)
                await stop.wait()
                await self._shut()
                for task in tasks:
                    task.cancel()
        finally:
            await self._api.stop(0)
            await self._flush()

    async def _shut(self) -> None:
        """Send workers to other replicas, then refuse new calls and wait for the present ones."""
        self.engine.hub.close()
        _log.info("stopping", grace_s=self._config.shutdown_grace_s)
        await self._workers.going_away()
        await self._api.stop(self._config.shutdown_grace_s)

    async def _declare_known(self) -> None:
        """Declare the queues of all known pools, so that no first job is returned. A broker that is away does it later."""
        try:
            for namespace, pool in await self.engine.store.pools():
                await self.engine.declare(namespace, pool)
        except Unavailable as error:
            _log.warning("queues_not_declared", error=str(error))

    async def _flush(self) -> None:
        try:
            await self.engine.flush_confirmed()
        except Unavailable as error:  # the jobs will be published once more, and found stale
            _log.warning("confirmed_jobs_kept", error=str(error))

    def _is_unroutable(self, namespace: str, pool: str) -> bool:
        return any(Queue(namespace, pool, kind) in self.engine.unroutable for kind in (JOB_KIND_STEP, JOB_KIND_RUN))
