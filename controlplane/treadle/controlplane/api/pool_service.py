"""PoolService: pools with their demand, worker processes, and the checks of `treadle doctor`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from treadle.controlplane.api import checks
from treadle.controlplane.api.errors import Context
from treadle.controlplane.api.fleet import PoolFleet, sum_up, worker_state
from treadle.controlplane.api.pages import Cursor, page_size, read_token, write_token
from treadle.controlplane.broker.port import Broker
from treadle.controlplane.store.port import CheckResult, Store
from treadle.protocol.errors import TreadleError, Unavailable
from treadle.protocol.topology import Queue
from treadle.v1 import pool_service_pb2 as pb
from treadle.v1.job_pb2 import JOB_KIND_RUN, JOB_KIND_STEP
from treadle.v1.pool_service_pb2_grpc import PoolServiceServicer
from treadle.v1.state_pb2 import WorkerRecord

__all__ = ("PoolService",)

T = TypeVar("T")
_ASIDE_LOOK: Final = 100
_PROBE: Final = ("default", "default")  # the pool whose queue tells whether the broker answers, when there is none yet


class PoolService(PoolServiceServicer):
    """See the module.

    Args:
        store, broker: Asked at each call; nothing is kept.
        outbox_max: From so many entries on, the health check complains.
        unroutable: Tells whether the last publication into (namespace, pool) was returned.
    """

    def __init__(
        self,
        store: Store,
        broker: Broker,
        *,
        outbox_max: int = 100_000,
        unroutable: Callable[[str, str], bool] = lambda namespace, pool: False,
    ) -> None:
        self._store = store
        self._broker = broker
        self._outbox_max = outbox_max
        self._unroutable = unroutable

    async def ListPools(self, request: pb.ListPoolsRequest, context: Context) -> pb.ListPoolsResponse:
        """See pool_service.proto."""
        namespace = checks.namespace_of(request.namespace)
        names = [pool for known, pool in await self._store.pools() if known == namespace]
        shown, token = _page(names, str, request.page_token, request.page_size, ("pools", namespace))
        registry = await self._store.registry(namespace)
        fleets = sum_up(await self._store.workers(namespace), await self._store.now())
        workflows: dict[str, list[str]] = {}
        for workflow, pool in registry.items():
            workflows.setdefault(pool, []).append(workflow)
        pools = await asyncio.gather(*(self._pool(namespace, name, fleets.get(name, PoolFleet())) for name in shown))
        for pool_view in pools:
            pool_view.workflows.extend(sorted(workflows.get(pool_view.name, ())))
        return pb.ListPoolsResponse(pools=pools, next_page_token=token)

    async def ListWorkers(self, request: pb.ListWorkersRequest, context: Context) -> pb.ListWorkersResponse:
        """See pool_service.proto."""
        namespace = checks.namespace_of(request.namespace)
        pool = checks.pool_of(request.pool)
        records = [record for record in await self._store.workers(namespace) if pool in ("", record.pool)]
        records.sort(key=_worker_key)
        shown, token = _page(records, _worker_key, request.page_token, request.page_size, ("workers", namespace, pool))
        now_ms = await self._store.now()
        return pb.ListWorkersResponse(workers=[_worker(record, now_ms) for record in shown], next_page_token=token)

    async def CheckHealth(self, request: pb.CheckHealthRequest, context: Context) -> pb.CheckHealthResponse:
        """See pool_service.proto."""
        found = [*await self._check_store(), await self._check_broker()]
        return pb.CheckHealthResponse(
            checks=[
                pb.Check(name=check.name, ok=check.ok, detail=check.detail, remedy="" if check.ok else check.remedy)
                for check in found
            ]
        )

    async def _pool(self, namespace: str, name: str, fleet: PoolFleet) -> pb.Pool:
        steps = await self._ready(Queue(namespace, name, JOB_KIND_STEP))
        runs = await self._ready(Queue(namespace, name, JOB_KIND_RUN))
        return pb.Pool(
            name=name,
            steps_ready=steps or 0,
            runs_ready=runs or 0,
            workers=fleet.workers,
            step_slots=fleet.step_slots,
            steps_running=fleet.steps_running,
            run_slots=fleet.run_slots,
            runs_open=fleet.runs_open,
            unroutable=self._unroutable(namespace, name),
        )

    async def _ready(self, queue: Queue) -> int | None:
        """Return the jobs that wait in a queue; None when it is not there or the broker is away."""
        try:
            return (await self._broker.depth(queue)).ready
        except Unavailable:
            return None

    async def _check_store(self) -> list[CheckResult]:
        try:
            found = list(await self._store.check())
            size = await self._store.outbox_size()
            aside = [len(await self._store.aside(kind, _ASIDE_LOOK)) for kind in ("unknown", "garbage")]
        except Unavailable as error:
            return [CheckResult("redis", ok=False, detail=str(error), remedy=error.remedy or "start Redis")]
        found.append(
            CheckResult(
                "outbox",
                ok=size < self._outbox_max,
                detail=f"{size:,} jobs wait for the broker's confirmation",
                remedy="see whether RabbitMQ is up and not blocked",
                fatal=False,
            )
        )
        for kind, count in zip(("unknown", "garbage"), aside, strict=True):
            more = "or more " if count == _ASIDE_LOOK else ""
            found.append(
                CheckResult(
                    f"{kind} jobs",
                    ok=count == 0,
                    detail=f"{count} {more}kept aside",
                    remedy="find who publishes into Treadle's queues"
                    if kind == "garbage"
                    else "runs that Redis no longer knows: was it restored from an older state?",
                    fatal=False,
                )
            )
        return found

    async def _check_broker(self) -> CheckResult:
        """Look at a queue that exists for certain, because it is declared first (idempotent)."""
        try:
            pools = await self._store.pools()
            namespace, pool = pools[0] if pools else _PROBE
            queue = Queue(namespace, pool, JOB_KIND_RUN)
            await self._broker.declare(queue)
            depth = await self._broker.depth(queue)
        except TreadleError as error:
            remedy = getattr(error, "remedy", "")
            return CheckResult("broker", ok=False, detail=str(error), remedy=remedy or "start RabbitMQ")
        return CheckResult("broker", ok=True, detail=f"answers; {queue.name}: {depth.ready} ready")


def _worker(record: WorkerRecord, now_ms: int) -> pb.Worker:
    return pb.Worker(
        worker_id=record.worker_id,
        pool=record.pool,
        state=worker_state(record, now_ms),
        host=record.host,
        last_beat_ms=record.last_beat_ms,
        step_slots=record.step_slots,
        steps_running=record.steps_running,
        run_slots=record.run_slots,
        runs_open=record.runs_open,
        loop_lag_ms=record.loop_lag_ms,
        workflows=record.workflows,
        steps=record.steps,
    )


def _worker_key(record: WorkerRecord) -> str:
    return f"{record.pool}\x1f{record.worker_id}"


def _page(
    items: Sequence[T], key: Callable[[T], str], token: str, size: int, filters: tuple[str, ...]
) -> tuple[Sequence[T], str]:
    """Return the page of a sorted list that `token` names, and the token of the next one."""
    cursor = read_token(token, *filters)
    rest = [item for item in items if cursor is None or key(item) > cursor.member]
    shown = rest[: page_size(size)]
    more = len(rest) > len(shown)
    return shown, write_token(Cursor(0, key(shown[-1])), *filters) if more else ""
