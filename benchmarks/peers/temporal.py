"""Temporal: the dev server of its CLI, its Python SDK.

Variants: "disk": activities, SQLite in a file; "disk-local": local activities; "mem", "mem-local": in memory, not durable.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client as TemporalClient
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    from benchmarks.drive import append_line
    from benchmarks.peers import home
    from benchmarks.peers.stage import STEP_LOG_VARIABLE, Connection, Stage, Team, crashed, measure, options, reach
    from benchmarks.processes import free_port, kill_tree, spawn, wait_for_port
    from benchmarks.sizes import ORDER, SLOW_STEP_S

QUEUE = "bench"
VARIANTS = ["disk", "disk-local"]
TIMEOUT = dt.timedelta(seconds=10)


@activity.defn
async def step(x: dict[str, Any]) -> dict[str, Any]:
    x["n"] += 1
    return x


@activity.defn
async def slow_step(run: int, index: int) -> int:
    append_line(os.environ[STEP_LOG_VARIABLE], run, index)
    await asyncio.sleep(SLOW_STEP_S)
    return index


def execute(local: bool) -> Any:
    return workflow.execute_local_activity if local else workflow.execute_activity


@workflow.defn
class Chain:
    @workflow.run
    async def run(self, local: bool, length: int) -> int:
        x = dict(ORDER)
        for _ in range(length):
            x = await execute(local)(step, x, start_to_close_timeout=TIMEOUT)
        return int(x["n"])


@workflow.defn
class Fan:
    @workflow.run
    async def run(self, local: bool, width: int) -> int:
        calls = (execute(local)(step, dict(ORDER), start_to_close_timeout=TIMEOUT) for _ in range(width))
        return len(await asyncio.gather(*calls))


@workflow.defn
class Sleeper:
    @workflow.run
    async def run(self, local: bool, due: float) -> float:
        await asyncio.sleep(max(due - workflow.now().timestamp(), 0))
        with workflow.unsafe.sandbox_unrestricted():
            return time.time() - due


@workflow.defn
class Slow:
    @workflow.run
    async def run(self, local: bool, run: int, length: int) -> int:
        for index in range(length):
            await workflow.execute_activity(slow_step, args=[run, index], start_to_close_timeout=TIMEOUT)
        return length


WORKFLOWS: dict[str, Any] = {"chain": Chain, "fan": Fan, "sleeper": Sleeper, "slow": Slow}


class Client:
    """Starts workflows by name."""

    def __init__(self, client: TemporalClient, local: bool) -> None:
        self._client, self._local = client, local

    async def start(self, name: str, *arguments: Any) -> Any:
        given = [self._local, *arguments]
        return await self._client.start_workflow(WORKFLOWS[name].run, args=given, id=uuid.uuid4().hex, task_queue=QUEUE)

    async def result(self, handle: Any) -> Any:
        return await handle.result()

    async def call(self, name: str, *arguments: Any) -> Any:
        return await self.result(await self.start(name, *arguments))


@asynccontextmanager
async def connect(port: int, local: bool) -> AsyncIterator[Connection]:
    yield Client(await TemporalClient.connect(f"127.0.0.1:{port}"), local)


async def work(port: int, activities: int) -> None:
    """Be the worker."""
    client = await TemporalClient.connect(f"127.0.0.1:{port}")
    limit = {"max_concurrent_activities": activities} if activities else {}
    workflows = list(WORKFLOWS.values())
    async with Worker(client, task_queue=QUEUE, workflows=workflows, activities=[step, slow_step], **limit):
        await asyncio.Event().wait()


def bench(stage: Stage, variant: str) -> None:
    """One workload with a fresh server."""
    port, crash, local = free_port(), stage.part == "W5", variant.endswith("local")
    command: list[object] = [
        home() / "venv-temporal/bin/temporal",
        "server",
        "start-dev",
        "--port",
        port,
        "--ip",
        "127.0.0.1",
    ]
    command += ["--headless", "--log-level", "error"]
    if variant.startswith("disk"):
        command += ["--db-filename", stage.folder / f"{variant}.db"]
    server = spawn(command, stage.log(f"server-{variant}"), {"HOME": str(stage.folder)})
    team = Team(
        [sys.executable, "-m", "benchmarks.peers.temporal", "worker", port, stage.sizes.crash_slots if crash else 0],
        stage.log(f"worker-{variant}"),
        {STEP_LOG_VARIABLE: str(stage.step_log.path)},
        Path.cwd(),
    )
    try:
        wait_for_port(port, server)
        time.sleep(2)  # its parts come up behind the port
        team.start()
        groups = {"server": lambda: [server.pid], "worker": team.pids}
        open_client = partial(connect, port, local)
        if crash:
            crashed(stage, variant, groups, open_client, team)
        else:
            size = reach(stage.sizes, runs=300, latency=200, chains=5)
            measure(stage, variant, "a" if local else "b", groups, open_client, size)
    finally:
        team.stop()
        kill_tree(server, signal.SIGTERM)


def main() -> None:
    with options("temporal") as stage:
        for variant in stage.variants or VARIANTS:
            if variant == "disk" or stage.part not in ("W4", "W5"):
                bench(stage, variant)


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        asyncio.run(work(int(sys.argv[2]), int(sys.argv[3])))
    else:
        main()
