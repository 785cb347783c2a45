"""Treadle as processes of its own: Redis or embedded Valkey, RabbitMQ or none, servers, workers; and clients of it.

    with House("services", folder) as house:
        house.run(lambda client: client.start(...))

"services": Redis with `appendfsync always` and RabbitMQ with quorum queues and confirms, the worker as it ships: a step that
finds a free slot goes down the session, the others wait in RabbitMQ. "queued": the same with `--lane amqp`, where slots are no
credits: every step of a pool goes through RabbitMQ. "embedded": what `treadle dev` has, the embedded Valkey (`always` too)
behind a Unix socket and jobs over the session.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import redis
from tests.servers.rabbit_server import RabbitServer
from tests.servers.redis_server import RedisServer

from benchmarks.app import STEP_LOG_VARIABLE, local_chain, pool_chain
from benchmarks.catalogue import Mode
from benchmarks.drive import StepLog, bounded
from benchmarks.measure import Groups, always
from benchmarks.processes import free_port, kill_tree, spawn, tail
from benchmarks.sizes import ORDER
from treadle.client import Client, TreadleError
from treadle.controlplane.store.embedded import EmbeddedRedis

__all__ = ("House",)

T = TypeVar("T")
APP = Path(__file__).with_name("app.py")
ROOT = Path(__file__).resolve().parents[1]
_READY_S = 60.0


class House:
    """One deployment. Use it as a context.

    Args:
        mode: See the module.
        folder: For logs and the state of the embedded store.
        servers: Control planes; more than one needs RabbitMQ and Redis.
        workers: Worker processes.
        slots: Pool steps that each executes at the same time; None: the product's default.
        run_slots: Runs that each has open; None: the product's default.
        fsync: Redis' `appendfsync`; the embedded store has `always`.
        env: Further environment of servers and workers.
        runner: The event loop of the clients; None: one of its own.

    Attributes:
        step_log: Where slow steps write.
        begun_s: How long the start took.
    """

    def __init__(
        self,
        mode: Mode,
        folder: Path,
        *,
        servers: int = 1,
        workers: int = 1,
        slots: int | None = None,
        run_slots: int | None = None,
        fsync: str = "always",
        env: dict[str, str] | None = None,
        runner: asyncio.Runner | None = None,
    ) -> None:
        self.mode, self.folder = mode, folder
        self.step_log = StepLog(folder / "steps.log")
        self._ports = [free_port() for _ in range(servers)]
        self._worker_count = workers
        self._slots, self._run_slots, self._fsync = slots, run_slots, fsync
        self._env = {"TREADLE_LOG_LEVEL": "warning", STEP_LOG_VARIABLE: str(self.step_log.path), **(env or {})}
        self._servers: list[subprocess.Popen[bytes]] = []
        self._workers: list[subprocess.Popen[bytes]] = []
        self._stack = contextlib.ExitStack()
        self._runner = runner if runner is not None else self._stack.enter_context(asyncio.Runner())
        self._pids: dict[str, int] = {}
        self._redis: redis.Redis | None = None

    @property
    def addresses(self) -> list[str]:
        """Of the servers."""
        return [f"127.0.0.1:{port}" for port in self._ports]

    def groups(self) -> Groups:
        """What is measured: "server", "worker", "redis" and, unless it is embedded, "rabbitmq"."""
        services = {name: always(pid) for name, pid in self._pids.items()}
        return {
            "server": lambda: [process.pid for process in self._servers],
            "worker": lambda: [process.pid for process in self._workers],
            **services,
        }

    def used_mib(self) -> float:
        """Memory that the data take in Redis (`used_memory`), in MiB."""
        assert self._redis is not None
        return int(self._redis.info("memory")["used_memory"]) / 1024**2

    def run(self, work: Callable[[Client], Awaitable[T]]) -> T:
        """Run `work` with a new client of the first server."""

        async def inside() -> T:
            async with Client(self.addresses[0]) as client:
                return await work(client)

        return self.complete(inside())

    def measured(self, work: Callable[[Client], Awaitable[T]]) -> Callable[[object], T]:
        """Return `run` of `work` for who calls it with a probe, which is not needed."""
        return lambda _probe: self.run(work)

    def complete(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the event loop of the clients."""
        return self._runner.run(work)

    def warm_up(self, runs: int = 100) -> None:
        """Execute some runs of both kinds."""

        async def some(client: Client) -> None:
            async def one(number: int) -> int:
                return await (await client.start((local_chain, pool_chain)[number % 2], 5, ORDER)).result(timeout=120)

            await bounded(runs, 50, one)

        self.run(some)

    # --- workers ---------------------------------------------------------------------------------------------------
    def start_workers(self) -> None:
        """Start the workers; does not wait for them."""
        for number in range(self._worker_count):
            turned = number % len(self.addresses)
            servers = ",".join(self.addresses[turned:] + self.addresses[:turned])
            command: list[object] = [sys.executable, "-m", "treadle.worker", APP, "--server", servers]
            command += ["--lane", "amqp"] if self.mode == "queued" else []
            command += [] if self._slots is None else ["--slots", self._slots]
            command += [] if self._run_slots is None else ["--run-slots", self._run_slots]
            self._workers.append(spawn(command, self.folder / f"worker{number}.log", self._env, ROOT))

    def end_workers(self, number: int = signal.SIGKILL) -> None:
        """End them with this signal and wait."""
        for worker in self._workers:
            kill_tree(worker, number)
        self._workers.clear()

    def strike(self) -> None:
        """`kill -9` the workers and start them again at once."""
        self.end_workers()
        self.start_workers()

    # --- start and stop --------------------------------------------------------------------------------------------
    def __enter__(self) -> House:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            sys.stderr.write(self.last_words())
        self._stop()

    def last_words(self) -> str:
        """Return the end of each log."""
        return "".join(
            f"--- {log.name}\n{tail(log)}\n" for log in sorted(self.folder.glob("*.log")) if log.name != "steps.log"
        )

    def _start(self) -> None:
        began = time.perf_counter()
        env = self._env | (self._embedded() if self.mode == "embedded" else self._services())
        for number, port in enumerate(self._ports):
            command = [sys.executable, "-m", "treadle.controlplane"]
            log = self.folder / f"server{number}.log"
            self._servers.append(spawn(command, log, {**env, "TREADLE_LISTEN": f"127.0.0.1:{port}"}, ROOT))
        self.start_workers()
        self.run(self._until_ready)
        self.begun_s = time.perf_counter() - began
        self.warm_up(2)

    def _services(self) -> dict[str, str]:
        store = self._stack.enter_context(RedisServer(appendfsync=self._fsync))
        self._redis = self._stack.enter_context(store.client())
        rabbit = RabbitServer()
        self._stack.callback(rabbit.stop)
        rabbit.start()
        assert rabbit.pid is not None
        self._pids = {"redis": store.pid, "rabbitmq": rabbit.pid}
        return {
            "TREADLE_REDIS_URL": store.url,
            "TREADLE_AMQP_URL": rabbit.url,
            "TREADLE_WORKER_AMQP_URL": rabbit.url,
            "TREADLE_ALLOW_VOLATILE": "0" if self._fsync == "always" else "1",
        }

    def _embedded(self) -> dict[str, str]:
        store = EmbeddedRedis(self.folder / "state")
        url = self.complete(store.start())
        self._stack.callback(lambda: self.complete(store.stop()))
        assert store.pid is not None
        self._pids = {"redis": store.pid}
        self._redis = self._stack.enter_context(redis.Redis.from_url(url))
        return {"TREADLE_REDIS_URL": url, "TREADLE_AMQP_URL": "memory"}

    async def _until_ready(self, client: Client) -> None:
        end = time.monotonic() + _READY_S
        while True:
            try:
                run = await client.start(pool_chain, 1, ORDER)
                await run.result(timeout=30)
                return
            except TreadleError as error:  # the server does not listen yet, or no worker has registered
                ended = [process for process in (*self._servers, *self._workers) if process.poll() is not None]
                if ended or time.monotonic() > end:
                    raise RuntimeError(f"Treadle does not start: {error}\n{self.last_words()}") from error
                await asyncio.sleep(0.02)

    def _stop(self) -> None:
        self.end_workers()
        for server in self._servers:
            kill_tree(server)
        self._servers.clear()
        self._stack.close()


def clean_environment() -> None:
    """Settings of the caller's shell do not reach the processes that are measured."""
    for name in [name for name in os.environ if name.startswith(("TREADLE_", "OTEL_"))]:
        del os.environ[name]


def order() -> dict[str, Any]:
    """Return what a run starts with."""
    return dict(ORDER)
