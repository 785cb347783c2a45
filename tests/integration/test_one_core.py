"""The threads of a real server share a core while it is calm, and have all of them when it is not."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest
from grpc import aio

from tests.servers.redis_server import RedisServer
from treadle.v1.run_service_pb2 import StartRunRequest
from treadle.v1.run_service_pb2_grpc import RunServiceStub

from .test_serve import server

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs Linux and two cores"
)

_HOG = "while True: pass"


def _cores(pid: int) -> set[frozenset[int]]:
    """Where the threads of a process may run; one entry if all may run on the same cores."""
    found = set()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            found.add(frozenset(os.sched_getaffinity(int(thread.name))))
        except ProcessLookupError:
            continue
    return found


async def _until(pid: int, cores: int) -> frozenset[int]:
    """Wait until all threads share so many cores; returns them."""
    async with asyncio.timeout(30):
        while True:
            found = _cores(pid)
            if len(found) == 1 and len(next(iter(found))) == cores:
                return found.pop()
            await asyncio.sleep(0.02)


async def _start_runs(address: str) -> None:
    """Start runs for ever, some at once: nobody executes them."""
    async with aio.insecure_channel(address) as channel:
        stub = RunServiceStub(channel)

        async def start() -> None:
            while True:
                run_id = secrets.token_hex(8)
                await stub.StartRun(StartRunRequest(run_id=run_id, request_id=run_id, workflow="w", pool="p"))

        await asyncio.gather(*(start() for _ in range(20)))


def _hogs(core: int) -> list[subprocess.Popen[bytes]]:
    """Programs that want a core for themselves, and no other."""
    hogs = [subprocess.Popen([sys.executable, "-c", _HOG]) for _ in range(2)]
    for hog in hogs:
        os.sched_setaffinity(hog.pid, {core})
    return hogs


def test_it_is_bound_while_it_is_calm_and_free_while_it_is_busy() -> None:
    everywhere = frozenset(os.sched_getaffinity(0))

    async def main() -> None:
        with RedisServer() as redis:
            async with server(REDIS_URL=redis.url) as running:
                line = await running.until("listening on")
                pid = running.process.pid
                (core,) = await _until(pid, 1)
                hogs = _hogs(core)
                try:
                    load = asyncio.create_task(_start_runs(line.split()[-1]))
                    assert await _until(pid, len(everywhere)) == everywhere
                    assert not load.done()
                    load.cancel()
                    await asyncio.wait([load])
                finally:
                    for hog in hogs:
                        hog.kill()
                        hog.wait()
                await _until(pid, 1)
                assert await running.terminate() == 0

    asyncio.run(main())


def test_it_may_be_told_not_to_be() -> None:
    everywhere = frozenset(os.sched_getaffinity(0))

    async def main() -> None:
        with RedisServer() as redis:
            async with server(REDIS_URL=redis.url, ONE_CORE="0") as told, server(REDIS_URL=redis.url) as not_told:
                await told.until("listening on")
                await _until(not_told.process.pid, 1)
                assert _cores(told.process.pid) == {everywhere}

    asyncio.run(main())
