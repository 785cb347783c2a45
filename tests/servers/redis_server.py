"""Private Redis servers: free port, own data, AOF with fsync before each answer; killed and restarted at will."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import redis

__all__ = ("RedisCluster", "RedisServer", "external_url", "free_port", "redis_binary")

DEADLINE_S = 20.0


def external_url() -> str | None:
    """Return TREADLE_TEST_REDIS_URL: a server to use where none may be started."""
    return os.environ.get("TREADLE_TEST_REDIS_URL") or None


def redis_binary() -> str:
    """Return the path of redis-server (or valkey-server). Fails with what to do when there is none."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        raise AssertionError(
            "no redis-server on PATH: `apt-get install redis-server`, or start one and set TREADLE_TEST_REDIS_URL"
        )
    return found


def free_port() -> int:
    """Return a TCP port of the loopback that is free now, and whose cluster bus port (+ 10000) is too."""
    while True:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            if port > 55_000:
                continue
            with socket.socket() as bus, contextlib.suppress(OSError):
                bus.bind(("127.0.0.1", port + 10_000))
                return port


class RedisServer:
    """One server process.

    Args:
        binary: Server to start; the one on PATH unless given.
        cluster: True: it is a node of a cluster.
        settings: More settings, as on the command line ("appendfsync", "everysec").

    Attributes:
        port: Where it listens on 127.0.0.1; the same after a restart.
    """

    def __init__(self, *, binary: str | None = None, cluster: bool = False, **settings: str) -> None:
        self.port = free_port()
        self._binary = binary or redis_binary()
        self._folder = Path(tempfile.mkdtemp(prefix="treadle-redis-"))
        self._settings = {
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory-policy": "noeviction",
            **({"cluster-enabled": "yes", "cluster-node-timeout": "2000"} if cluster else {}),
            **{name.replace("_", "-"): value for name, value in settings.items()},
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not started"
        return self._process.pid

    @property
    def data(self) -> Path:
        """Where its append-only file is."""
        return self._folder

    def start(self) -> RedisServer:
        """Start it and wait until it answers, its log loaded."""
        command = [self._binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        for name, value in self._settings.items():
            command += [f"--{name}", value]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + DEADLINE_S
        while True:
            if self._process.poll() is not None:
                raise AssertionError(f"{self._binary} ended: {(self._folder / 'log').read_text()[-800:]}")
            try:
                with self.client() as client:
                    client.ping()
                return self
            except redis.exceptions.ConnectionError as error:  # BusyLoadingError is one
                if time.monotonic() > deadline:
                    raise AssertionError(f"{self._binary} does not answer on port {self.port}") from error
                time.sleep(0.01)

    def client(self) -> redis.Redis:
        """Return a synchronous client; close it."""
        return redis.Redis(host="127.0.0.1", port=self.port, socket_timeout=DEADLINE_S)

    def kill(self) -> None:
        """SIGKILL it and wait until it is gone; the data stay."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Start it again on its data; SIGKILL first when it still runs."""
        self.kill()
        self.start()

    def stop(self) -> None:
        """End it and remove its data."""
        self._end(signal.SIGTERM)
        shutil.rmtree(self._folder, ignore_errors=True)

    def pause(self) -> None:
        """SIGSTOP: it accepts connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Undo `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(number)
        try:
            process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> RedisServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class RedisCluster:
    """Three primaries without replicas that share the slots."""

    def __init__(self, *, nodes: int = 3, binary: str | None = None) -> None:
        self.nodes = [RedisServer(binary=binary, cluster=True) for _ in range(nodes)]

    @property
    def url(self) -> str:
        return self.nodes[0].url

    def start(self) -> RedisCluster:
        """Start the nodes, share out the slots, and wait until all of them see the cluster as complete."""
        for node in self.nodes:
            node.start()
        bounds = [16384 * i // len(self.nodes) for i in range(len(self.nodes) + 1)]
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(node.client()) for node in self.nodes]
            for i, client in enumerate(clients):
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[i], bounds[i + 1] - 1)
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            for client in clients[1:]:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
            deadline = time.monotonic() + DEADLINE_S
            while not all(self._complete(client) for client in clients):
                assert time.monotonic() < deadline, "the cluster does not come together"
                time.sleep(0.05)
        return self

    def _complete(self, client: redis.Redis) -> bool:
        info = client.execute_command("CLUSTER", "INFO")  # type: ignore[no-untyped-call]
        text = info if isinstance(info, dict) else dict(_pairs(info))
        return (
            text["cluster_state"] == "ok"
            and text["cluster_known_nodes"] == str(len(self.nodes))
            and text["cluster_slots_assigned"] == "16384"
        )

    def stop(self) -> None:
        """End all nodes and remove their data."""
        for node in self.nodes:
            node.stop()

    def __enter__(self) -> RedisCluster:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _pairs(info: bytes | str) -> Iterator[tuple[str, str]]:
    text = info.decode() if isinstance(info, bytes) else info
    for line in text.splitlines():
        name, found, value = line.partition(":")
        if found:
            yield name, value
