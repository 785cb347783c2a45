"""`python -m treadle.controlplane` as a process: what it waits for, what it refuses, how it ends; and embedded mode."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from grpc import StatusCode, aio

from tests.servers.redis_server import RedisServer, free_port
from treadle.client.status import from_rpc_error
from treadle.controlplane.embedded import embedded
from treadle.controlplane.serve import Refusal, judge_checks
from treadle.controlplane.store.embedded import EmbeddedRedis
from treadle.controlplane.store.port import CheckResult
from treadle.protocol.errors import ConfigError, Unavailable
from treadle.v1.run_service_pb2 import GetRunRequest, ListRunsRequest, StartRunRequest, WatchRunRequest
from treadle.v1.run_service_pb2_grpc import RunServiceStub

DEADLINE_S = 30.0
T = TypeVar("T")


class Server:
    """A running server and what it has said."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.said: list[str] = []

    async def until(self, text: str) -> str:
        """Return the first line with `text`, waiting for it."""
        assert self.process.stderr is not None
        async with asyncio.timeout(DEADLINE_S):
            while True:
                line = (await self.process.stderr.readline()).decode()
                assert line, f"ended without {text!r}:\n" + "".join(self.said)
                self.said.append(line)
                if text in line:
                    return line

    async def end(self) -> int:
        """Wait for its end; returns the exit code."""
        assert self.process.stderr is not None
        async with asyncio.timeout(DEADLINE_S):
            self.said.append((await self.process.stderr.read()).decode())
            return await self.process.wait()

    async def terminate(self) -> int:
        """Send SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await self.end()


@asynccontextmanager
async def server(**settings: str) -> AsyncIterator[Server]:
    """Run a server with these TREADLE_* settings; killed at the end if it still runs."""
    defaults = {"LISTEN": "127.0.0.1:0", "AMQP_URL": "memory", "SHUTDOWN_GRACE": "1s"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TREADLE_", "OTEL_"))}
    env = kept | {f"TREADLE_{name}": value for name, value in (defaults | settings).items()}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "treadle.controlplane", env=env, stderr=PIPE)
    try:
        yield Server(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def test_it_waits_for_redis_serves_and_ends_on_sigterm(tmp_path: Path) -> None:
    async def main() -> None:
        port = free_port()
        redis = EmbeddedRedis(tmp_path, port=port)
        try:
            async with server(REDIS_URL=f"redis://:secret@127.0.0.1:{port}/0") as running:
                down = await running.until("dependency_down")
                assert f"127.0.0.1:{port}" in down
                assert "Redis" in down
                assert "secret" not in "".join(running.said)
                assert await running.terminate() == 0, "it can be ended while it waits"
            async with server(REDIS_URL=f"redis://127.0.0.1:{port}/0") as running:
                await running.until("dependency_down")
                await redis.start()
                address = (await running.until("listening on ")).split()[-1]
                async with aio.insecure_channel(address) as channel:
                    listed = await RunServiceStub(channel).ListRuns(ListRunsRequest(), timeout=DEADLINE_S)
                    assert not listed.runs
                assert await running.terminate() == 0
        finally:
            await redis.stop()

    asyncio.run(main())


def test_it_waits_for_rabbitmq_and_names_it(tmp_path: Path) -> None:
    async def main() -> None:
        redis = EmbeddedRedis(tmp_path)
        try:
            url, port = await redis.start(), free_port()
            async with server(REDIS_URL=url, AMQP_URL=f"amqp://me:secret@127.0.0.1:{port}/") as running:
                down = await running.until("dependency_down")
                assert "RabbitMQ" in down
                assert f"127.0.0.1:{port}" in down
                assert "secret" not in "".join(running.said)
                assert await running.terminate() == 0
        finally:
            await redis.stop()

    asyncio.run(main())


def test_settings_and_ports_are_refused_with_what_to_do(tmp_path: Path) -> None:
    async def main() -> None:
        async with server(LISTEN="0.0.0.0:7430") as running:
            assert await running.end() == 2
            assert "--insecure" in "".join(running.said)
        redis = EmbeddedRedis(tmp_path)
        try:
            url = await redis.start()
            with socket.create_server(("127.0.0.1", 0)) as taken:
                port = taken.getsockname()[1]
                async with server(REDIS_URL=url, LISTEN=f"127.0.0.1:{port}") as running:
                    assert await running.end() == 2
                    assert f"port {port} is taken" in "".join(running.said)
        finally:
            await redis.stop()

    asyncio.run(main())


@pytest.mark.redis
def test_a_redis_that_forgets_is_refused_unless_allowed() -> None:
    async def main(url: str) -> None:
        async with server(REDIS_URL=url) as running:
            assert await running.end() == 2
            said = "".join(running.said)
            assert "appendonly no" in said
            assert "CONFIG SET" in said
            assert "--allow-volatile" in said
        async with server(REDIS_URL=url, ALLOW_VOLATILE="1") as running:
            await running.until("listening on ")
            assert await running.terminate() == 0

    with RedisServer(appendonly="no") as redis:
        asyncio.run(main(redis.url))


@pytest.mark.kill
def test_a_redis_that_is_killed_and_comes_back_is_survived() -> None:
    async def main(redis: RedisServer) -> None:
        async with server(REDIS_URL=redis.url) as running:
            address = (await running.until("listening on ")).split()[-1]
            async with aio.insecure_channel(address) as channel:
                runs = RunServiceStub(channel)
                start = StartRunRequest(run_id="r1", request_id="q", workflow="hello", pool="crm")
                await runs.StartRun(start, timeout=DEADLINE_S)
                watch = aiter(runs.WatchRun(WatchRunRequest(run_id="r1")))
                assert (await anext(watch)).run.run_id == "r1"
                redis.kill()
                with pytest.raises(aio.AioRpcError) as caught:
                    await runs.GetRun(GetRunRequest(run_id="r1"), timeout=DEADLINE_S)
                refused = from_rpc_error(caught.value)
                assert isinstance(refused, Unavailable)
                assert f"127.0.0.1:{redis.port}" in str(refused)
                redis.start()
                got = await answered(lambda: runs.GetRun(GetRunRequest(run_id="r1"), timeout=DEADLINE_S))
                assert got.run.workflow == "hello"
                start.run_id = start.request_id = "r2"
                assert (await answered(lambda: runs.StartRun(start, timeout=DEADLINE_S))).started
            assert await running.terminate() == 0

    with RedisServer() as redis:
        asyncio.run(main(redis))


async def answered(call: Callable[[], Awaitable[T]]) -> T:
    """Call until it is not refused as unavailable."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                return await call()
            except aio.AioRpcError as error:
                if error.code() != StatusCode.UNAVAILABLE:
                    raise


def test_only_loss_of_work_can_be_allowed() -> None:
    version = CheckResult("version", ok=False, detail="r is Redis 5.0", remedy="upgrade")
    volatile = CheckResult("persistence", ok=False, detail="appendonly no", remedy="set it")
    warning = CheckResult("persistence", ok=False, detail="everysec", fatal=False)
    judge_checks([warning, CheckResult("clock", ok=True, detail="fine")], allow_volatile=False)
    judge_checks([volatile], allow_volatile=True)
    with pytest.raises(Refusal, match=r"appendonly no\. set it\n.*--allow-volatile"):
        judge_checks([volatile], allow_volatile=False)
    with pytest.raises(Refusal, match=r"Redis 5\.0\. upgrade$"):
        judge_checks([volatile, version], allow_volatile=True)


def test_embedded_runs_outlive_the_process(tmp_path: Path) -> None:
    async def main() -> None:
        async with embedded(tmp_path, 0) as address, aio.insecure_channel(address) as channel:
            start = StartRunRequest(run_id="r1", request_id="q", workflow="hello", pool="crm")
            assert (await RunServiceStub(channel).StartRun(start, timeout=DEADLINE_S)).started
            with pytest.raises(ConfigError, match="in use by another"):
                async with embedded(tmp_path, 0):
                    pass
        async with embedded(tmp_path, 0) as address, aio.insecure_channel(address) as channel:
            got = await RunServiceStub(channel).GetRun(GetRunRequest(run_id="r1"), timeout=DEADLINE_S)
            assert got.run.workflow == "hello"
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(ConfigError, match=f"port {port} is taken"):
                async with embedded(tmp_path, port):
                    pass

    asyncio.run(main())
