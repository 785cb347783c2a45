"""DBOS on PostgreSQL with initdb's durable defaults.

Variants: "queue": a client enqueues, one worker process dequeues, all defaults (both poll every second); "queue-fast": the
same, polling every 20 ms; "stepq-fast": each step is a queued workflow of its own; "inproc": the measuring process runs the
workflows itself, as a library.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from dbos import DBOS, DBOSClient

from benchmarks.drive import append_line
from benchmarks.peers.stage import (
    STEP_LOG_VARIABLE,
    Connection,
    Stage,
    Team,
    crashed,
    measure,
    options,
    reach,
    services,
)
from benchmarks.sizes import ORDER, SLOW_STEP_S

FAST_S = 0.02
VARIANTS = ["queue", "queue-fast", "stepq-fast", "inproc"]


@DBOS.step()
async def step(x: dict[str, Any]) -> dict[str, Any]:
    x["n"] += 1
    return x


@DBOS.step()
async def slow_step(run: int, index: int) -> int:
    append_line(os.environ[STEP_LOG_VARIABLE], run, index)
    await asyncio.sleep(SLOW_STEP_S)
    return index


@DBOS.workflow()
async def chain(length: int) -> int:
    x = dict(ORDER)
    for _ in range(length):
        x = await step(x)
    return int(x["n"])


@DBOS.workflow()
async def one(x: dict[str, Any]) -> dict[str, Any]:
    return await step(x)


@DBOS.workflow()
async def chainq(length: int) -> int:
    x = dict(ORDER)
    for _ in range(length):
        x = await (await DBOS.enqueue_workflow_async("steps", one, x)).get_result(polling_interval_sec=FAST_S)
    return int(x["n"])


@DBOS.workflow()
async def fan(width: int) -> int:
    return len(await asyncio.gather(*(step(dict(ORDER)) for _ in range(width))))


@DBOS.workflow()
async def fanq(width: int) -> int:
    handles = [await DBOS.enqueue_workflow_async("steps", one, dict(ORDER)) for _ in range(width)]
    return len([await handle.get_result(polling_interval_sec=FAST_S) for handle in handles])


@DBOS.workflow()
async def sleeper(due: float) -> float:
    await DBOS.sleep_async(max(due - time.time(), 0))
    return time.time() - due


@DBOS.workflow()
async def slow(run: int, length: int) -> int:
    return len([await slow_step(run, index) for index in range(length)])


WORKFLOWS: dict[str, Callable[..., Any]] = {f.__name__: f for f in (chain, chainq, fan, fanq, sleeper, slow)}


def launch(poll_s: float, concurrency: int | None) -> None:
    """Start DBOS in this process."""
    url = services()["postgres"]["url"]
    DBOS(
        config={
            "name": "bench",
            "system_database_url": url,
            "log_level": "WARNING",
            "executor_id": "bench",
            "application_version": "1",
        }
    )
    DBOS.launch()
    for queue in ("main", "steps"):
        limit = concurrency if queue == "main" else None
        DBOS.register_queue(queue, polling_interval_sec=poll_s, worker_concurrency=limit, on_conflict="always_update")


class Queued:
    """A client that enqueues, and polls for results."""

    def __init__(self, client: DBOSClient, poll_s: float, suffix: str) -> None:
        self._client, self._poll_s, self._suffix = client, poll_s, suffix

    async def start(self, name: str, *arguments: Any) -> Any:
        workflow = name + (self._suffix if name in ("chain", "fan") else "")
        return await self._client.enqueue_async({"queue_name": "main", "workflow_name": workflow}, *arguments)

    async def result(self, handle: Any) -> Any:
        return await handle.get_result(polling_interval_sec=self._poll_s)

    async def call(self, name: str, *arguments: Any) -> Any:
        return await self.result(await self.start(name, *arguments))


class Inside(Queued):
    """Starts workflows in this process."""

    def __init__(self) -> None:
        self._poll_s = FAST_S

    async def start(self, name: str, *arguments: Any) -> Any:
        return await DBOS.start_workflow_async(WORKFLOWS[name], *arguments)


@asynccontextmanager
async def connect(client: DBOSClient | None, poll_s: float, suffix: str) -> AsyncIterator[Connection]:
    yield Inside() if client is None else Queued(client, poll_s, suffix)


def start_worker(stage: Stage, poll_s: float, concurrency: int) -> Team:
    command: list[object] = [sys.executable, "-m", "benchmarks.peers.dbos", "worker", poll_s, concurrency]
    team = Team(command, stage.log("worker"), {STEP_LOG_VARIABLE: str(stage.step_log.path)}, Path.cwd())
    team.start()
    stage.cleanup.callback(team.stop)
    time.sleep(3)
    return team


def queued(stage: Stage, variant: str) -> None:
    """One workload with a worker process."""
    poll_s = 1.0 if variant == "queue" else FAST_S
    crash = stage.part == "W5"
    team = start_worker(stage, poll_s, stage.sizes.crash_slots if crash else 0)
    client = DBOSClient(system_database_url=services()["postgres"]["url"], system_database_pool_size=20)
    try:
        groups = {**stage.service_groups(), "worker": team.pids}
        each_step = variant.startswith("stepq")
        open_client = partial(connect, client, poll_s, "q" if each_step else "")
        small = {"queue": (1000, 20, 3), "stepq-fast": (300, 100, 3)}
        runs, latency, chains = small.get(variant, (1000, 200, 10))
        size = reach(stage.sizes, runs=runs, latency=latency, chains=chains, flight=variant != "queue")
        if crash:
            crashed(stage, variant, groups, open_client, team)
        else:
            measure(stage, variant, "b" if each_step else "a", groups, open_client, size, sleeper=variant == "queue")
    finally:
        client.destroy()
        team.stop()


def inproc(stage: Stage) -> None:
    launch(FAST_S, None)
    try:
        open_client = partial(connect, None, FAST_S, "")
        measure(
            stage, "inproc", "a", stage.service_groups(), open_client, reach(stage.sizes, latency=200), sleeper=False
        )
    finally:
        DBOS.destroy()


def main() -> None:
    parts = {"W4": ["queue"], "W5": ["queue-fast"]}
    with options("dbos") as stage:
        for variant in parts.get(stage.part, stage.chosen(VARIANTS)):
            if variant == "inproc":
                inproc(stage)
            else:
                queued(stage, variant)


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        launch(float(sys.argv[2]), int(sys.argv[3]) or None)
        signal.pause()
    else:
        main()
