"""Prefect 3: a local server on SQLite; flows run in the measuring process. In small sizes: it is slow."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks import drive
from benchmarks.measure import Probe
from benchmarks.peers.stage import Stage, options
from benchmarks.processes import free_port, kill_tree, spawn, wait_for_port
from benchmarks.sizes import ORDER


def start_server(stage: Stage) -> int:
    """Start the server and point this process at it; returns its pid."""
    port = free_port()
    os.environ.update(
        PREFECT_API_URL=f"http://127.0.0.1:{port}/api",
        PREFECT_HOME=str(stage.folder / "prefect"),
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        PREFECT_LOGGING_LEVEL="ERROR",
        PREFECT_LOGGING_TO_API_ENABLED="false",
        DO_NOT_TRACK="1",
    )
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port]
    server = spawn(command, stage.log("server"))
    stage.cleanup.callback(kill_tree, server, signal.SIGTERM)
    wait_for_port(port, server, 120)
    return server.pid


def bench(stage: Stage) -> None:
    """One workload, in small."""
    pid = start_server(stage)
    from prefect import flow, task  # reads the environment

    @task
    async def step(x: dict[str, Any]) -> dict[str, Any]:
        return {**x, "n": x["n"] + 1}

    @flow
    async def chain(length: int, x: dict[str, Any]) -> dict[str, Any]:
        for _ in range(length):
            x = await step(x)
        return x

    @flow
    async def fan(width: int, x: dict[str, Any]) -> int:
        return len(await asyncio.gather(*(step(x) for _ in range(width))))

    def call(length: int) -> Callable[[int], Awaitable[Any]]:
        return lambda _: chain(length, dict(ORDER))

    def series(workload: str, steps: int, work: Callable[[], Any]) -> None:
        def measured(_probe: Probe) -> drive.Metrics:
            found: drive.Metrics = asyncio.run(work())
            return found

        stage.series("sqlite", workload, {"server": lambda: [pid]}, measured, steps=steps)

    asyncio.run(chain(2, dict(ORDER)))
    sizes = stage.sizes
    if stage.part == "W1":
        runs = sizes.of(40)
        series("W1a", runs * sizes.steps, lambda: ten_at_once(call(sizes.steps), runs, sizes.steps))
    elif stage.part == "W2":
        runs = sizes.of(30)
        series("W2a", runs, lambda: drive.latency(call(1), runs))
        series("W2a-chain", 2 * sizes.chain, lambda: drive.chains(call(sizes.chain), 2, sizes.chain))
    else:
        series(
            "W3a-100", sizes.of(100), lambda: drive.fan_out(lambda _: fan(sizes.of(100), dict(ORDER)), sizes.of(100))
        )


async def ten_at_once(call: Callable[[int], Awaitable[Any]], runs: int, steps: int) -> drive.Metrics:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await drive.bounded(runs, 10, call)
    wall = loop.time() - began
    return {"steps_per_s": round(runs * steps / wall, 2), "wall_s": round(wall, 3), "runs": runs}


if __name__ == "__main__":
    with options("prefect") as stage:
        bench(stage)
        stage.cleanup.close()
    sys.stdout.flush()
    os._exit(0)  # the client would go on sending its events to the server that is gone
