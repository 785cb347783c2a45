"""taskiq on RabbitMQ: bare tasks, no workflows: one confirmed, persistent message per step, with an asyncio worker.

W1 here are single tasks (as many as W1 has steps), W2 is one task at a time. BENCH_QUEUE: the type of the queue ("quorum").
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from taskiq_aio_pika import AioPikaBroker, Queue, QueueType
from taskiq_redis import RedisAsyncResultBackend

from benchmarks import drive
from benchmarks.measure import Probe
from benchmarks.peers.stage import Connection, Stage, Team, asynchronous, options, services
from benchmarks.sizes import ORDER

QUEUE = os.environ.get("BENCH_QUEUE", "quorum")


def make_broker() -> Any:
    """Return the broker over the services that were started for this script."""
    given = services()
    queue = Queue(name=f"tq-{QUEUE}", type=QueueType(QUEUE), durable=True)
    backend = RedisAsyncResultBackend(redis_url=given["redis"]["url"], result_ex_time=3600)
    return AioPikaBroker(given["rabbitmq"]["url"], qos=100).with_queue(queue).with_result_backend(backend)


broker = make_broker()


@broker.task(task_name="step")
async def step(x: dict[str, Any]) -> dict[str, Any]:
    x["n"] += 1
    return x


class Client:
    """Sends single tasks; `call` polls for the result every millisecond."""

    async def start(self, name: str, *arguments: Any) -> Any:
        return await step.kiq(dict(ORDER))

    async def result(self, handle: Any) -> Any:
        return await handle.wait_result(check_interval=0.02, timeout=120)

    async def call(self, name: str, *arguments: Any) -> Any:
        return await (await self.start(name)).wait_result(check_interval=0.001, timeout=60)


@asynccontextmanager
async def connect() -> AsyncIterator[Connection]:
    broker.is_worker_process = False
    await broker.startup()
    try:
        yield Client()
    finally:
        await broker.shutdown()


async def warm(client: Connection) -> drive.Metrics:
    await drive.bounded(100, 50, lambda _: client.call("step"))
    return {}


def bench(stage: Stage) -> None:
    """One worker process below taskiq's manager."""
    command: list[object] = [sys.executable, "-m", "taskiq", "worker", "benchmarks.peers.taskiq:broker", "--workers", 1]
    command += ["--ack-type", "when_saved", "--max-async-tasks", 100]
    team = Team(command, stage.log("worker"), {}, Path.cwd())
    team.start()
    stage.cleanup.callback(team.stop)
    groups = {**stage.service_groups(), "worker": team.pids}
    asynchronous(connect, warm)(Probe({}))
    tasks, runs = stage.sizes.runs * stage.sizes.steps, stage.sizes.latency

    def single(_: int) -> Any:
        return step.kiq(dict(ORDER))

    if stage.part == "W1":
        work = asynchronous(connect, lambda client: drive.throughput(single, client.result, tasks, 1))
        stage.series(QUEUE, "W1b", groups, work, steps=tasks)
        work = asynchronous(connect, lambda client: drive.in_flight(single, client.result, tasks, 1))
        stage.series(QUEUE, "W1b-flight", groups, work, steps=tasks)
    else:
        work = asynchronous(connect, lambda client: drive.latency(lambda _: client.call("step"), runs))
        stage.series(QUEUE, "W2b", groups, work, steps=runs)


if __name__ == "__main__":
    with options("taskiq") as stage:
        bench(stage)
