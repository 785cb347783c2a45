"""One deployment on which many scenes play side by side, each in a thread and in pools of its own: long waits cost once.

A scene is a generator. Up to its `yield` it starts its processes; when all of them are live, the rest of it runs.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.kill.house import House, Lane, ServerProcess, WorkerProcess
from tests.kill.ledger import Entry, check_ledger
from tests.kill.process import Process, until
from tests.kill.record import WINDOWS
from treadle.v1.history_pb2 import HistoryEvent

__all__ = ("Played", "SMALL_APP", "Scene", "Stage", "boot_s", "wall_ms")

Scene = Generator[None, None, None]
Played = dict[str, "Future[None]"]

ROOT = Path(__file__).parents[2]
APP = Path(__file__).with_name("scene_app.py")
SMALL_APP = Path(__file__).with_name("small_app.py")


class Stage:
    """A house with two servers and a worker for the runs, and what scenes need of it.

    Args:
        house: With its RabbitMQ node, and nothing started in it yet.

    Attributes:
        house: The house. Its first server is the one that workers prefer.
    """

    def __init__(self, house: House) -> None:
        self.house = house
        self._lock = threading.Lock()
        for _ in range(2):
            house.server(wait=False)
        for server in house.servers:
            server.until_ready()
            house.client_of(server)
        self.worker("flows", "amqp")

    # --- processes -------------------------------------------------------------------------------------------------
    def worker(self, pool: str, lane: Lane, *options: str, **more: str) -> WorkerProcess:
        """Start a worker of the scenes' app."""
        with self._lock:
            return self.house.worker(pool, lane=lane, app=APP, options=options, PYTHONPATH=str(ROOT), **more)

    def process(self, name: str, *command: str, **env: str) -> Process:
        """Start another Python program; it ends with the house."""
        with self._lock:
            log = self.house.folder / f"{name}.log"
            kept = self.house.workers[0].env | {"PYTHONPATH": str(ROOT)} | env
            process = Process(name, [sys.executable, *command], log, kept)
            self.house.others.append(process)
            process.start()
            return process

    def server(self, **settings: str) -> ServerProcess:
        """Start another server; does not wait for it."""
        with self._lock:
            return self.house.server(wait=False, **settings)

    def play(self, scenes: Mapping[str, Callable[[Stage], Scene]]) -> Played:
        """Start the processes of all scenes, then play them at once."""
        begun = {name: scene(self) for name, scene in scenes.items()}
        for scene in begun.values():
            next(scene)
        self.house.ready()
        pool = ThreadPoolExecutor(max_workers=max(1, len(begun)), thread_name_prefix="scene")
        played = {name: pool.submit(_rest, scene) for name, scene in begun.items()}
        pool.shutdown(wait=False)
        return played

    # --- runs ------------------------------------------------------------------------------------------------------
    def call(self, run: str, pool: str, gate: str = "", seconds: float = 0.0, blocking: float = 0.0) -> None:
        """Start a run with one step that holds."""
        self.house.start(run, "call", pool=pool, gate=gate, seconds=seconds, blocking=blocking)

    def results(self, runs: Iterable[str]) -> dict[str, Any]:
        """Wait for the results of these runs."""
        return {run: self.house.client.run(run).result(timeout="60s") for run in runs}

    def check(self, runs: Iterable[str], *, windows: Iterable[str] = ()) -> dict[str, list[HistoryEvent]]:
        """Compare the ledger of these closed runs with their histories, and return these."""
        histories = {run: self.house.history(run) for run in runs}
        entries = [entry for entry in self.house.ledger() if entry.run in histories]
        WINDOWS.update(check_ledger(entries, histories, windows))
        return histories

    def entry(self, run: str, pid: int, *, what: str = "start", seconds: float = 30.0) -> Entry:
        """Wait for the entry of a run in the ledger that this process wrote."""

        def found() -> list[Entry]:
            return [e for e in self.house.ledger() if (e.run, e.pid, e.what) == (run, pid, what)]

        until(f"{what!r} of {run} in process {pid}", lambda: bool(found()), seconds=seconds)
        return found()[0]

    def began(self, runs: Iterable[str], worker: WorkerProcess, *, seconds: float = 30.0) -> list[Entry]:
        """Wait until each of these runs has a body in this worker; returns their starts."""
        return [self.entry(run, worker.pid, seconds=seconds) for run in runs]


def wall_ms() -> float:
    """Now, comparable with the times of events and of the ledger."""
    return time.clock_gettime(time.CLOCK_REALTIME) * 1000


def boot_s() -> float:
    """Now, comparable with the ledger."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _rest(scene: Scene) -> None:
    for _ in scene:
        pass
