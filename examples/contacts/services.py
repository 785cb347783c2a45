"""The processes of the demo: started with a log each, watched, and stopped whatever happens."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from treadle.controlplane.store.embedded import EmbeddedRedis

__all__ = ("DemoError", "Processes", "Servers", "embedded_state", "real_servers", "until")

START_S = 60.0
STOP_S = 10.0
RABBIT_CONFIG = """\
listeners.tcp.1 = 127.0.0.1:{port}
log.file.level = warning
disk_free_limit.absolute = 10MB
"""


class DemoError(Exception):
    """The demo cannot go on; says what to do."""


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the control plane keeps and sends what it has. `amqp_url` "memory": it is its own broker."""

    redis_url: str
    amqp_url: str


class Processes:
    """Child processes by name, in the order they were started; stopped in the reverse order.

    Args:
        logs: Folder for what they say.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, command: Sequence[str], environment: dict[str, str]) -> int:
        """Start a process and return its id. It does not see the Ctrl-C of the terminal."""
        with (self._logs / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        return self._running[name].pid

    def kill(self, name: str) -> int:
        """SIGKILL it and return its id: no goodbye, no cleaning up."""
        process = self._running.pop(name)
        process.kill()
        process.wait()
        return process.pid

    def said(self, name: str) -> str:
        """Return what a process has said so far."""
        return (self._logs / f"{name}.log").read_text(errors="replace")

    def check(self) -> None:
        """Raise DemoError when one of them has ended."""
        for name, process in self._running.items():
            if process.poll() is not None:
                end = self.said(name)[-2000:]
                raise DemoError(
                    f"{name} ended with exit code {process.returncode}; see {self._logs}/{name}.log:\n{end}"
                )

    def stop(self) -> None:
        """Stop all of them, the last one first: SIGTERM, and SIGKILL for those that do not end."""
        while self._running:
            _, process = self._running.popitem()
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def until(what: str, found: Callable[[], Awaitable[bool]], processes: Processes) -> None:
    """Wait until `found` says True; raise DemoError after a minute, or when a process has ended."""
    deadline = time.monotonic() + START_S
    while not await found():
        processes.check()
        if time.monotonic() > deadline:
            raise DemoError(f"{what} did not come within {START_S:.0f} s")
        await asyncio.sleep(0.05)


@asynccontextmanager
async def embedded_state(folder: Path, processes: Processes) -> AsyncIterator[Servers]:
    """A Valkey of our own, and no broker: nothing is installed but Treadle."""
    state = EmbeddedRedis(folder)
    try:
        yield Servers(await state.start(), "memory")
    finally:
        await state.stop()


@asynccontextmanager
async def real_servers(folder: Path, processes: Processes) -> AsyncIterator[Servers]:
    """TREADLE_REDIS_URL and TREADLE_AMQP_URL where they are set; private servers on free ports where not."""
    home = Path(tempfile.mkdtemp(prefix="treadle-demo-"))  # Erlang wants short paths
    epmd = free_port()
    try:
        redis_url, amqp_url = os.environ.get("TREADLE_REDIS_URL"), os.environ.get("TREADLE_AMQP_URL")
        redis_port, amqp_port = free_port(), free_port()
        if not redis_url:
            start_redis(processes, folder, redis_port)
        if not amqp_url:
            start_rabbitmq(processes, home, amqp_port, epmd)
        if not redis_url:
            await until("Redis", lambda: answers(redis_port, b"PING\r\n", b"+"), processes)
        if not amqp_url:
            await until("RabbitMQ", lambda: answers(amqp_port, b"AMQP\x00\x00\x09\x01", b"\x01"), processes)
        yield Servers(
            redis_url or f"redis://127.0.0.1:{redis_port}/0",
            amqp_url or f"amqp://guest:guest@127.0.0.1:{amqp_port}/",
        )
    finally:
        processes.stop()
        stop_port_mapper(epmd)
        shutil.rmtree(home, ignore_errors=True)


def start_redis(processes: Processes, folder: Path, port: int) -> None:
    """Start a Redis that has what it acknowledged on disk."""
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        raise DemoError("there is no redis-server: `apt-get install redis-server`, or set TREADLE_REDIS_URL")
    folder.mkdir(parents=True, exist_ok=True)
    settings = f"--port {port} --bind 127.0.0.1 --appendonly yes --appendfsync always --maxmemory-policy noeviction"
    processes.start("redis", [binary, "--dir", str(folder), *settings.split(), "--save", ""], dict(os.environ))


def start_rabbitmq(processes: Processes, home: Path, port: int, epmd: int) -> None:
    """Start a RabbitMQ node with its own data, plugins (none) and Erlang port mapper."""
    places = [*sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin/rabbitmq-server"))]
    binary = str(places[-1]) if places else shutil.which("rabbitmq-server")  # Debian's one on PATH switches the user
    if binary is None:
        raise DemoError("there is no rabbitmq-server: `apt-get install rabbitmq-server`, or set TREADLE_AMQP_URL")
    (home / "rabbitmq.conf").write_text(RABBIT_CONFIG.format(port=port))
    (home / "enabled_plugins").write_text("[].\n")
    cookie = home / ".erlang.cookie"
    cookie.write_text(secrets.token_hex(10))
    cookie.chmod(0o400)
    environment = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",  # not the system's
        "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
        "RABBITMQ_LOG_BASE": str(home / "log"),
        "RABBITMQ_NODENAME": f"t{secrets.token_hex(4)}@localhost",
        "RABBITMQ_ALLOW_INPUT": "1",  # the script becomes the node instead of watching over it
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-noinput -kernel inet_dist_use_interface {127,0,0,1}",
        "RABBITMQ_DIST_PORT": str(free_port()),
        "ERL_EPMD_PORT": str(epmd),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
    }
    processes.start("rabbitmq", [binary], environment)


def stop_port_mapper(port: int) -> None:
    """Stop Erlang's port mapper, which outlives the nodes that it knows."""
    if (binary := shutil.which("epmd")) is not None:
        subprocess.run([binary, "-port", str(port), "-kill"], capture_output=True, timeout=20, check=False)


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def answers(port: int, question: bytes, answer: bytes) -> bool:
    """Whether a server on this port answers so."""
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(question)
                return await reader.read(1) == answer
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
