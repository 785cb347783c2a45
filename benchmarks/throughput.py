"""Throughput and latency of one server, one worker and one client, as processes of their own.

    python -m benchmarks.throughput [--runs 1000] [--mode services|embedded]

`services`: Redis with `appendfsync always` and RabbitMQ with quorum queues, private servers; `embedded`: Valkey and the
session lane. Prints steps a second, CPU a process and step, and the latency of one-step runs; JSON on the last line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.servers.rabbit_server import RabbitServer
from tests.servers.redis_server import RedisServer, free_port

from benchmarks.app import local_chain, pool_chain
from benchmarks.sizes import ORDER
from treadle.client import Client

_TICKS = os.sysconf("SC_CLK_TCK")


def _cpu(pid: int) -> float:
    """CPU seconds of a process and what it waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(fields[i]) for i in (11, 12)) / _TICKS


@contextlib.contextmanager
def _process(*command: str, log: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=out, stderr=out, env={**os.environ, **env})
        try:
            yield process
        finally:
            process.terminate()
            process.wait(20)


async def _many(client: Client, workflow: Any, runs: int, in_flight: int) -> float:
    gate = asyncio.Semaphore(in_flight)

    async def one() -> None:
        async with gate:
            run = await client.start(workflow, 5, ORDER)
            assert await run.result(timeout=120) == 5

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(runs)))
    return time.perf_counter() - began


async def _latency(client: Client, workflow: Any, times: int) -> list[float]:
    took = []
    for _ in range(times):
        began = time.perf_counter()
        run = await client.start(workflow, 1, ORDER)
        await run.result(timeout=60)
        took.append((time.perf_counter() - began) * 1000)
    return sorted(took)


async def _measure(address: str, pids: dict[str, int], runs: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    async with Client(address) as client:
        for workflow in (local_chain, pool_chain):
            await _many(client, workflow, 100, 50)
            before = {name: _cpu(pid) for name, pid in pids.items()}
            took = await _many(client, workflow, runs, 100)
            steps = runs * 5
            cpu = {name: round((_cpu(pid) - before[name]) / steps * 1e6) for name, pid in pids.items()}
            latency = await _latency(client, workflow, 200)
            found[workflow.name] = {
                "steps_per_second": round(steps / took),
                "cpu_us_per_step": cpu,
                "one_step_ms": {
                    "p50": round(statistics.median(latency), 2),
                    "p99": round(latency[int(len(latency) * 0.99)], 2),
                },
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--mode", choices=("services", "embedded"), default="services")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="treadle-bench-"))
    listen = f"127.0.0.1:{free_port()}"
    with contextlib.ExitStack() as stack:
        pids = {"client": os.getpid()}
        env = {"TREADLE_LISTEN": listen, "PYTHONHASHSEED": "0"}
        redis = stack.enter_context(RedisServer())
        pids["redis"] = redis.pid
        env["TREADLE_REDIS_URL"] = redis.url
        env["TREADLE_AMQP_URL"] = "memory"
        if options.mode == "services":
            rabbit = RabbitServer()
            rabbit.start()
            stack.callback(rabbit.stop)
            assert rabbit.pid is not None
            pids["rabbitmq"] = rabbit.pid
            env["TREADLE_AMQP_URL"] = rabbit.url
            env["TREADLE_WORKER_AMQP_URL"] = rabbit.url
        server = stack.enter_context(_process("treadle.controlplane", log=folder / "server.log", **env))
        worker = stack.enter_context(
            _process("treadle.worker", "benchmarks/app.py", "--server", listen, log=folder / "worker.log", **env)
        )
        pids |= {"server": server.pid, "worker": worker.pid}
        print(f"logs in {folder}", file=sys.stderr)
        found = asyncio.run(_wait_and_measure(listen, pids, options.runs))
    for name, numbers in found.items():
        print(f"{name:12} {numbers['steps_per_second']:>6} steps/s   CPU us/step {numbers['cpu_us_per_step']}")
        print(f"{'':12} one step: {numbers['one_step_ms']} ms")
    print(json.dumps({"mode": options.mode, **found}))


async def _wait_and_measure(listen: str, pids: dict[str, int], runs: int) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    async with Client(listen) as client:
        while True:
            try:
                run = await client.start(local_chain, 1, ORDER)
                await run.result(timeout=30)
                break
            except Exception:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.2)
    return await _measure(listen, pids, runs)


if __name__ == "__main__":
    main()
