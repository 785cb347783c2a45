"""PoolService over a real socket: pools, workers, health checks."""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.api_host import DEADLINE_S, ApiHost, api_host
from treadle.controlplane.duties.gauges import GaugeDuty
from treadle.controlplane.store.port import CheckResult
from treadle.controlplane.telemetry import Metrics
from treadle.protocol.errors import Unavailable
from treadle.v1 import pool_service_pb2 as pb
from treadle.v1.run_service_pb2 import StartRunRequest
from treadle.v1.state_pb2 import WorkerRecord

T = DEADLINE_S


async def add_worker(host: ApiHost, worker_id: str, pool: str, **more: object) -> None:
    """Register a worker with the workflow "hello" and open its session."""
    await host.store.register("default", pool, ["hello"], ["greet"])
    record = WorkerRecord(
        worker_id=worker_id,
        namespace="default",
        pool=pool,
        session_id=f"s-{worker_id}",
        session_sent_ms=1,
        workflows=["hello"],
        steps=["greet"],
        step_slots=4,
        run_slots=10,
    )
    record.MergeFrom(WorkerRecord(**more))  # type: ignore[arg-type]
    assert await host.store.open_session(record)


def test_pools_show_demand_and_slots() -> None:
    async def main() -> None:
        async with api_host() as host:
            await add_worker(host, "w1", "crm", steps_running=3)
            await add_worker(host, "w2", "crm", runs_open=2)
            await host.store.register("default", "empty", [], ["lonely"])
            await host.store.register("prod", "elsewhere", [], [])
            for number in range(3):
                request = StartRunRequest(run_id=f"r{number}", request_id=f"q{number}", workflow="hello")
                run = (await host.runs.StartRun(request, timeout=T)).run
                assert (run.pool, run.reason) == ("crm", ""), "the pool where the workflow is registered"
            listed = await host.pools.ListPools(pb.ListPoolsRequest(), timeout=T)
            crm, empty = listed.pools
            assert (crm.name, crm.workers, crm.step_slots, crm.steps_running) == ("crm", 2, 8, 3)
            assert (crm.run_slots, crm.runs_open, list(crm.workflows), crm.unroutable) == (20, 2, ["hello"], False)
            assert (crm.runs_ready, crm.steps_ready) == (3, 0)
            assert (empty.name, empty.workers, empty.runs_ready) == ("empty", 0, 0)
            first = await host.pools.ListPools(pb.ListPoolsRequest(page_size=1), timeout=T)
            assert [pool.name for pool in first.pools] == ["crm"]
            rest = pb.ListPoolsRequest(page_size=1, page_token=first.next_page_token)
            second = await host.pools.ListPools(rest, timeout=T)
            assert ([pool.name for pool in second.pools], second.next_page_token) == (["empty"], "")

    asyncio.run(main())


def test_workers_are_listed_by_pool_with_their_state() -> None:
    async def main() -> None:
        async with api_host() as host:
            for worker_id, pool in (("w2", "crm"), ("w1", "crm"), ("w3", "csv")):
                await add_worker(host, worker_id, pool)
            await host.store.close_session("w2", "s-w2", drained=True)
            found: list[tuple[str, str, int]] = []
            token = ""
            while True:
                request = pb.ListWorkersRequest(page_size=2, page_token=token)
                answer = await host.pools.ListWorkers(request, timeout=T)
                found += [(worker.pool, worker.worker_id, worker.state) for worker in answer.workers]
                token = answer.next_page_token
                if not token:
                    break
            live, gone = pb.WORKER_STATE_LIVE, pb.WORKER_STATE_GONE
            assert found == [("crm", "w1", live), ("crm", "w2", gone), ("csv", "w3", live)]
            only = await host.pools.ListWorkers(pb.ListWorkersRequest(pool="csv"), timeout=T)
            (worker,) = only.workers
            assert (worker.worker_id, list(worker.workflows), list(worker.steps)) == ("w3", ["hello"], ["greet"])

    asyncio.run(main())


def test_gauges_show_what_pools_show() -> None:
    async def main() -> None:
        async with api_host() as host:
            await add_worker(host, "w1", "crm", steps_running=3)
            request = StartRunRequest(run_id="r", request_id="q", workflow="hello")
            await host.runs.StartRun(request, timeout=T)
            metrics = Metrics()
            await GaugeDuty(host.engine, metrics).measure()
            labels = {"namespace": "default", "pool": "crm"}
            assert metrics.value("treadle.pool.slots_used", **labels) == 3
            assert metrics.value("treadle.pool.workers", **labels) == 1
            assert metrics.value("treadle.pool.ready", **labels, kind="run") == 1
            assert metrics.value("treadle.pool.ready", **labels, kind="step") == 0
            assert metrics.value("treadle.outbox.size") == 1

    asyncio.run(main())


def test_health_names_what_is_wrong_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with api_host() as host:
            answer = await host.pools.CheckHealth(pb.CheckHealthRequest(), timeout=T)
            by_name = {check.name: check for check in answer.checks}
            assert list(by_name) == ["persistence", "outbox", "unknown jobs", "garbage jobs", "broker"]
            assert not by_name["persistence"].ok
            assert by_name["persistence"].remedy
            assert by_name["broker"].ok
            assert not by_name["broker"].remedy

            await host.store.put_aside(3, "garbage", b"???")
            answer = await host.pools.CheckHealth(pb.CheckHealthRequest(), timeout=T)
            garbage = next(check for check in answer.checks if check.name == "garbage jobs")
            assert (garbage.ok, garbage.detail) == (False, "1 kept aside")

            async def away() -> list[CheckResult]:
                raise Unavailable("Redis at r:6379 does not answer")

            monkeypatch.setattr(host.store, "check", away)
            answer = await host.pools.CheckHealth(pb.CheckHealthRequest(), timeout=T)
            redis = answer.checks[0]
            assert (redis.name, redis.ok, redis.detail) == ("redis", False, "Redis at r:6379 does not answer")

    asyncio.run(main())
