"""A whole deployment of real processes: Redis, RabbitMQ (or none), servers, workers, a client, and the ledger of steps.

    with House(tmp_path, lane="amqp", rabbit=rabbit) as house:
        house.server()
        flows, steps = house.worker("flows"), house.worker("steps")
        house.ready()
        house.start("r1", "one", n=3, gate="g")
        begun = house.until_starts(1, step="square")
        steps.kill()
        house.worker("steps")
        house.open("g")
        house.check({"r1": 9})

When a test fails inside, what each process said last is printed, and how its runs stand (`house` and `build` of conftest.py
see to it too).
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from tests.kill.ledger import Entry, check_ledger, read_ledger
from tests.kill.process import DEADLINE_S, Process, until
from tests.kill.record import WINDOWS
from tests.kill.staff import DevProcess, ServerProcess, WorkerProcess
from tests.servers.rabbit_server import RabbitServer
from tests.servers.redis_server import RedisServer, free_port
from treadle.client.sync import SyncClient, SyncRunHandle
from treadle.protocol.errors import TreadleError, Unavailable
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.pool_service_pb2 import WORKER_STATE_LIVE

__all__ = ("DevProcess", "House", "Lane", "ServerProcess", "WorkerProcess")

Lane = Literal["amqp", "session", "auto"]
"""How step jobs come to the workers; "auto": from RabbitMQ, and down the session while slots are free."""

APP = Path(__file__).with_name("app.py")
_SHOWN = 6_000
_RUNS_SHOWN, _EVENTS_SHOWN = 20, 10


class House:
    """See the module. Use it as a context: leaving it ends everything.

    Args:
        folder: For logs, gates and the ledger.
        lane: "amqp": over RabbitMQ; "session": over the session.
        rabbit: The node to use; None: the servers run on the broker in memory (session lane, one server).
        redis: A started server to use; it is left alone at the end. None: one of its own, AOF with fsync always.
        embedded: True: neither Redis nor servers nor workers, but `dev`.

    Attributes:
        redis: The Redis of this house.
        servers, workers: All of them, in the order in which they were made.
        others: Further processes of a test, which end with the house.
        namespace: Of this house alone, so that queues on a shared node do not mix.
        gates: Folder of gates: a step that waits for a gate goes on once a file of that name is there.
        ledger_path: What step bodies write to.
        windows: Starts after the outcome that `check` found allowed, by window ("W1" to "W4").
    """

    def __init__(
        self,
        folder: Path,
        *,
        lane: Lane = "amqp",
        rabbit: RabbitServer | None = None,
        redis: RedisServer | None = None,
        embedded: bool = False,
    ) -> None:
        assert lane == "session" or rabbit is not None, "the AMQP lane needs a RabbitMQ node"
        self.folder, self.lane, self.rabbit = folder, lane, rabbit
        self.namespace = f"k{secrets.token_hex(4)}"
        self._own_redis = redis is None and not embedded
        self.redis = redis or RedisServer()
        self.servers: list[ServerProcess] = []
        self.workers: list[WorkerProcess] = []
        self.others: list[Process] = []
        self.windows: dict[str, int] = {}
        self.gates = folder / "gates"
        self.ledger_path = folder / "ledger.jsonl"
        self._clients: dict[str, SyncClient] = {}

    def __enter__(self) -> House:
        self.gates.mkdir()
        self.ledger_path.touch()
        if self._own_redis:
            self.redis.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                self.show()
        finally:
            self._end()

    def _end(self) -> None:
        try:
            for client in self._clients.values():
                client.close()
            for process in self.processes():
                process.send_kill()
            for process in self.processes():
                process.kill()
        finally:
            if self._own_redis:
                self.redis.stop()

    # --- building ------------------------------------------------------------------------------------------------------
    def server(
        self, *, redis_url: str = "", amqp_url: str = "", otlp: str = "", wait: bool = True, **settings: str
    ) -> ServerProcess:
        """Start a control plane on a port of its own and wait until it serves.

        Args:
            redis_url, amqp_url: Instead of the house's own: the addresses of a relay, for example.
            otlp: Where traces go; "": nowhere.
            wait: False: do not wait.
            settings: Further TREADLE_* variables, as LOG_LEVEL="debug".
        """
        port = free_port()
        memory = "memory" if self.rabbit is None else self.rabbit.url
        env = self._env(
            TREADLE_LISTEN=f"127.0.0.1:{port}",
            TREADLE_REDIS_URL=redis_url or self.redis.url,
            TREADLE_AMQP_URL=amqp_url or memory,
            TREADLE_SHUTDOWN_GRACE="1s",
            **({"OTEL_EXPORTER_OTLP_ENDPOINT": otlp} if otlp else {}),
            **{f"TREADLE_{name}": value for name, value in settings.items()},
        )
        name = f"server{len(self.servers) + 1}"
        process = ServerProcess(name, self.folder / f"{name}.log", env, port)
        self.servers.append(process)
        process.start()
        if wait:
            process.until_ready()
        return process

    def dev(self) -> DevProcess:
        """Start `treadle dev` on a copy of the app and wait until it serves."""
        copy = self.folder / "app.py"
        copy.write_text(APP.read_text())
        process = DevProcess("dev", self.folder / "dev.log", self._env(), free_port(), copy, self.namespace)
        self.servers.append(process)
        process.start()
        process.until_ready()
        return process

    def worker(
        self,
        pool: str,
        *,
        server: str = "",
        amqp_url: str = "",
        lane: Lane | None = None,
        app: Path = APP,
        options: Iterable[str] = (),
        **env: str,
    ) -> WorkerProcess:
        """Start a worker; does not wait for it (`ready` does).

        Args:
            pool: Its pool: "flows" has the workflows of the app, "steps" its pool steps.
            server: "host:port", or several with commas; by default all servers of the house.
            amqp_url: Instead of the house's own node.
            lane: Instead of the house's.
            app: What it works on.
            options: Further arguments, as ("--slots", "4").
            env: Further environment variables.
        """
        name = f"worker{len(self.workers) + 1}-{pool}"
        server = server or ",".join(process.address for process in self.servers)
        lane = lane or self.lane
        command = [sys.executable, "-m", "treadle.worker", str(app), "--pool", pool, "--server", server]
        command += ["--namespace", self.namespace, "--lane", lane, *options]
        if lane != "session":
            assert self.rabbit is not None
            command += ["--amqp-url", amqp_url or self.rabbit.url]
        process = WorkerProcess(name, command, self.folder / f"{name}.log", self._env(**env), pool)
        self.workers.append(process)
        process.start()
        return process

    def ready(self, *workers: WorkerProcess, seconds: float = DEADLINE_S) -> None:
        """Wait until these workers (all by default) are live at the servers."""
        wanted = workers or tuple(worker for worker in self.workers if worker.running)

        def live() -> bool:
            for worker in wanted:
                assert worker.running, f"{worker.name} ended with {worker.exit_code()}:\n{worker.said}"
            hosts = {w.host for w in self.client.workers() if w.state == WORKER_STATE_LIVE}
            return all(worker.host in hosts for worker in wanted)

        until(f"live: {', '.join(worker.name for worker in wanted)}", lambda: self._tried(live), seconds=seconds)

    def _env(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TREADLE_", "OTEL_"))}
        own = {"PYTHONHASHSEED": "0", "KILL_LEDGER": str(self.ledger_path), "KILL_GATES": str(self.gates)}
        return kept | own | more

    @staticmethod
    def _tried(condition: Any) -> bool:
        try:
            return bool(condition())
        except Unavailable:
            return False

    # --- using ---------------------------------------------------------------------------------------------------------
    @property
    def client(self) -> SyncClient:
        """Of the first server that runs."""
        running = [server for server in self.servers if server.running] or self.servers
        return self.client_of(running[0])

    def client_of(self, server: ServerProcess) -> SyncClient:
        """A client that knows this server alone; it lives as long as the house."""
        if server.address not in self._clients:
            self._clients[server.address] = SyncClient(server.address, namespace=self.namespace)
        return self._clients[server.address]

    def start(self, id: str, workflow: str, /, **arguments: Any) -> SyncRunHandle[Any]:
        """Start a run in the pool "flows", through outages: tried until it is acknowledged."""
        found: list[SyncRunHandle[Any]] = []

        def started() -> bool:
            client = self.client
            found.append(client.start(workflow, arguments, id=id, pool="flows", on_conflict="use_existing"))
            return True

        until(f"run {id} is started", lambda: self._tried(started), seconds=2 * DEADLINE_S)
        return found[0]

    def open(self, gate: str) -> None:
        """Let the steps go on that wait for this gate."""
        (self.gates / gate).touch()

    def ledger(self) -> list[Entry]:
        """What step bodies have written so far, in that order."""
        return read_ledger(self.ledger_path)

    def starts(self, run: str = "", step: str = "", *, attempt: int = 0) -> list[Entry]:
        """The starts of bodies so far; of this run, this step, this attempt where given."""
        return [
            entry
            for entry in self.ledger()
            if entry.what == "start"
            and (not run or entry.run == run)
            and (not step or entry.step == step)
            and (not attempt or entry.attempt == attempt)
        ]

    def until_starts(self, count: int, run: str = "", step: str = "", *, attempt: int = 0) -> list[Entry]:
        """Wait for so many starts; returns them."""
        what = f"{count} starts of {step or 'steps'} of {run or 'runs'}" + (f", attempt {attempt}" if attempt else "")
        until(what, lambda: len(self.starts(run, step, attempt=attempt)) >= count)
        return self.starts(run, step, attempt=attempt)

    def history(self, run: str) -> list[HistoryEvent]:
        """The whole history of a run."""
        found: list[HistoryEvent] = []

        def read() -> bool:
            found[:] = self.client.run(run).history()
            return True

        until(f"the history of {run}", lambda: self._tried(read))
        return found

    def kinds(self, run: str) -> list[str]:
        """What happened to a run, by the names of the events."""
        return [event.WhichOneof("kind") or "" for event in self.history(run)]

    def worker_of(self, entry: Entry) -> WorkerProcess:
        """The worker in whose process a body ran."""
        return next(worker for worker in self.workers if worker.pid == entry.pid)

    # --- checking ------------------------------------------------------------------------------------------------------
    def check(self, expected: Mapping[str, Any], *, windows: Iterable[str] = (), seconds: float = 60.0) -> None:
        """Wait for all runs; check results, histories and the ledger, and that nothing is left behind.

        Args:
            expected: Run id -> what its workflow returns.
            windows: Which of W1 to W4 this test may meet; they are counted, and printed at the end of the session.
        """
        deadline = f"{seconds:g}s"
        wrong = {}
        for run, value in expected.items():
            result = self.client.run(run).result(timeout=deadline)
            if result != value:
                wrong[run] = (result, value)
        assert not wrong, f"wrong results (got, expected): {wrong}"
        histories = {run: self.history(run) for run in expected}
        self.windows = check_ledger(self.ledger(), histories, windows)
        WINDOWS.update(self.windows)
        self.until_nothing_waits()

    def until_nothing_waits(self, *, seconds: float = DEADLINE_S) -> None:
        """Wait until no job waits, no worker is busy and no run of this namespace is open."""

        left: list[object] = []

        def idle() -> bool:
            pools = self.client.pools()
            busy = [p for p in pools if p.steps_ready or p.runs_ready or p.steps_running or p.runs_open]
            left[:] = busy
            left.extend(self.client.list(status=("running", "waiting", "needs-attention"), limit=3))
            return not left

        try:
            until("nothing waits or runs any more", lambda: self._tried(idle), seconds=seconds)
        except AssertionError as error:
            error.add_note(f"left, when it was asked last: {left}")
            self.show()
            raise

    def kill_all(self) -> None:
        """SIGKILL everything at once: servers, workers, Redis, and RabbitMQ."""
        for process in self.processes():
            process.send_kill()
        self.redis.kill()
        for process in self.processes():
            process.kill()
        if self.rabbit is not None:
            self.rabbit.kill()

    def start_all(self) -> None:
        """Start everything again that `kill_all` has ended, and wait until it is there."""
        if self._own_redis:
            self.redis.start()
        if self.rabbit is not None:
            self.rabbit.start()
        for process in self.processes():
            process.start()
        for server in self.servers:
            server.until_ready()
        self.ready()

    def processes(self) -> Iterator[Process]:
        """Servers, workers and others."""
        yield from self.servers
        yield from self.workers
        yield from self.others

    def show(self) -> None:
        """Print how the runs stand, what each process said last, and the ledger's end."""
        print("--- runs ---", *self._runs_stand(), sep="\n")  # noqa: T201
        for process in self.processes():
            print(f"--- {process.name} ---\n{process.said_ever[-_SHOWN:]}")  # noqa: T201
        print(f"--- ledger ---\n{self.ledger_path.read_text()[-_SHOWN:]}")  # noqa: T201

    def _runs_stand(self) -> Iterator[str]:
        """A run that has failed, or that needs attention, says nothing by itself. The first call without an answer ends it."""
        if not any(server.running for server in self.servers):
            return
        try:
            for info in self.client.list(limit=_RUNS_SHOWN):
                events = list(self.client.run(info.id).history())[-_EVENTS_SHOWN:]
                last = ", ".join(f"{event.time_ms} {event.WhichOneof('kind')}" for event in events)
                yield f"{info.id}: {info.status} {info.reason} {info.failure or ''} of {info.length} events: {last}"
        except TreadleError as error:
            yield f"not known: {error}"
