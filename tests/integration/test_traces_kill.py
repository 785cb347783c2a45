"""A server that is killed while its spans are on their way: the next one sends the same spans, and nothing is missing."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from grpc import aio

from tests.servers.otlp_receiver import OtlpReceiver
from tests.servers.redis_server import RedisServer
from treadle.v1.common_pb2 import TraceContext
from treadle.v1.run_service_pb2 import StartRunRequest, TerminateRunRequest
from treadle.v1.run_service_pb2_grpc import RunServiceStub

DEADLINE_S = 30.0
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@asynccontextmanager
async def server(redis_url: str, endpoint: str) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """Run a server that exports traces; yields its address."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TREADLE_", "OTEL_"))}
    env = kept | {
        "TREADLE_LISTEN": "127.0.0.1:0",
        "TREADLE_AMQP_URL": "memory",
        "TREADLE_REDIS_URL": redis_url,
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint,
        "OTEL_METRICS_EXPORTER": "none",
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "treadle.controlplane", env=env, stderr=PIPE)
    assert process.stderr is not None
    said = ""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while "listening on " not in said.rpartition("\n")[2]:
                line = (await process.stderr.readline()).decode().rstrip("\n")
                assert line, f"the server ended:\n{said}"
                said += f"\n{line}"
        reading = asyncio.create_task(process.stderr.read())  # so that it never waits for its log to be read
        yield said.split()[-1], process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    await reading


@pytest.mark.redis
@pytest.mark.kill
def test_a_killed_server_loses_no_span_and_changes_none() -> None:
    async def main(redis_url: str) -> None:
        async with OtlpReceiver() as receiver:
            receiver.hold.clear()  # spans arrive, but the server never hears that they did
            async with (
                server(redis_url, receiver.endpoint) as (address, process),
                aio.insecure_channel(address) as channel,
            ):
                runs = RunServiceStub(channel)
                for n in range(5):
                    await runs.StartRun(_start(n), timeout=DEADLINE_S)
                await runs.TerminateRun(TerminateRunRequest(run_id="order-0", request_id="t"), timeout=DEADLINE_S)
                await receiver.until(lambda: len(receiver.spans) >= 1)
                process.send_signal(signal.SIGKILL)
                await process.wait()
            before = {span.span_id: span.SerializeToString() for span in receiver.spans}
            receiver.requests.clear()
            receiver.hold.set()
            async with server(redis_url, receiver.endpoint):
                await receiver.until(lambda: len(receiver.spans) >= 6)
            after = {span.span_id: span.SerializeToString() for span in receiver.spans}
            assert len(receiver.spans) == len(after) == 6
            assert sorted(receiver.names()) == ["execute orders"] + ["run orders"] * 5
            assert before.items() <= after.items(), "what came twice is the same to the byte"
            assert all(span.links[0].trace_id.hex() in CALLER for span in receiver.spans if not span.parent_span_id)

    with RedisServer() as redis:
        asyncio.run(main(redis.url))


def _start(number: int) -> StartRunRequest:
    return StartRunRequest(
        workflow="orders",
        pool="flows",
        run_id=f"order-{number}",
        request_id=f"s{number}",
        trace=TraceContext(traceparent=CALLER),
    )
