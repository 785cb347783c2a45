"""Private RabbitMQ nodes for tests: free ports, loopback only, their own data, a process of their own to kill."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__ = ("RabbitServer", "free_port", "rabbit", "rabbit_node", "rabbit_url")

URL_VARIABLE = "TREADLE_TEST_AMQP_URL"
MISSING = (
    "RabbitMQ is not installed: `apt-get install rabbitmq-server` (tests start private nodes of it), "
    f"or start one and set {URL_VARIABLE}=amqp://user:password@host:5672/"
)
_START_SECONDS = 40.0
_CONFIG = """\
listeners.tcp.1 = 127.0.0.1:{port}
loopback_users = none
log.console = false
log.file.level = warning
vm_memory_high_watermark.relative = 0.6
disk_free_limit.absolute = 10MB
"""


class RabbitServer:
    """One node. About 4 s of one core to start, and again to restart; so share it, and use a namespace per test.

    Args:
        more: Lines of rabbitmq.conf beyond those that every node has.

    Attributes:
        url: amqp:// address with login.
        port: The AMQP port; the same after a restart.
        pid: Of the running Erlang VM; None while it is down.
    """

    def __init__(self, more: str = "") -> None:
        self.sbin = find_sbin()
        self.port = free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/"
        self._folder = Path(tempfile.mkdtemp(prefix="treadle-rabbit-"))
        self._node = f"t{secrets.token_hex(4)}@localhost"
        self._epmd_port = free_port()
        self._dist_port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._write_config(more)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def data(self) -> Path:
        """Where everything is that it keeps."""
        return self._folder

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the node and wait until it speaks AMQP."""
        if self.running:
            return
        with (self._folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [str(self.sbin / "rabbitmq-server")],
                env=self._environment(),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._wait_until_it_answers()

    def kill(self) -> None:
        """SIGKILL the Erlang VM; what was not on disk is gone.

        RabbitMQ 3.10 writes the register of its quorum queues to the file only every half second, and a queue that is
        missing there is destroyed at the next start, confirmed messages included. That is not what the tests are
        about: so this waits until the queues that exist are in the register.
        """
        if self._process is not None:
            self.wait_until_registered()
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Start the node again on the same ports and data, after `kill` (which it calls when needed)."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: the node neither answers nor closes its connections."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def ctl(self, *arguments: str) -> str:
        """Run rabbitmqctl on the node (about 1 s) and return what it printed."""
        done = subprocess.run(
            [str(self.sbin / "rabbitmqctl"), "--node", self._node, "--quiet", *arguments],
            env=self._environment(),
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"rabbitmqctl {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def stop(self) -> None:
        """Kill the node and its port mapper, and remove its data."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        epmd = shutil.which("epmd")
        if epmd is not None:
            subprocess.run([epmd, "-port", str(self._epmd_port), "-kill"], capture_output=True, timeout=20, check=False)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write_config(self, more: str) -> None:
        (self._folder / "rabbitmq.conf").write_text(_CONFIG.format(port=self.port) + more)
        (self._folder / "enabled_plugins").write_text("[].\n")
        cookie = self._folder / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(10))
        cookie.chmod(0o400)

    def _environment(self) -> dict[str, str]:
        folder = self._folder
        return {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",  # not the system's
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_ALLOW_INPUT": "1",  # the script becomes the VM instead of watching over it: our pid is its pid
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-noinput -kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    def wait_until_registered(self) -> None:
        """Wait until the queues that exist are in the register of the node's disk: see `kill`."""
        data = self._folder / "mnesia" / self._node / "quorum" / self._node
        deadline = time.monotonic() + 5
        while self.running and time.monotonic() < deadline:
            queues = [entry.name.encode() for entry in data.glob("*") if entry.is_dir()]
            registers = [(data / name).read_bytes() for name in ("names.dets", "meta.dets") if (data / name).exists()]
            if all(queue in register for queue in queues for register in registers):
                return
            time.sleep(0.05)

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if not self.running:
                break
            if _speaks_amqp(self.port):
                return
            time.sleep(0.05)
        files = [self._folder / "output", *(self._folder / "log").glob("*.log")]
        output = "\n".join(file.read_text(errors="replace")[-2000:] for file in files)
        raise RuntimeError(f"RabbitMQ did not start within {_START_SECONDS:.0f} s: {output}")


def find_sbin() -> Path:
    """Return the folder of RabbitMQ's own scripts (Debian's wrappers in PATH switch the user), or fail the test."""
    places = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin"))
    if places:
        return places[-1]
    on_path = shutil.which("rabbitmq-server")
    if on_path is not None:
        return Path(on_path).resolve().parent
    pytest.fail(MISSING, pytrace=False)


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _speaks_amqp(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as probe:
            probe.sendall(b"AMQP\x00\x00\x09\x01")
            return probe.recv(1) == b"\x01"
    except OSError:
        return False


@pytest.fixture(scope="session")
def rabbit_node() -> Iterator[RabbitServer]:
    """The node that all tests share; started at its first use."""
    server = RabbitServer()
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def rabbit(rabbit_node: RabbitServer) -> RabbitServer:
    """The shared node, up. A test may kill it; the next one finds it running."""
    rabbit_node.start()
    return rabbit_node


@pytest.fixture
def rabbit_url(request: pytest.FixtureRequest) -> str:
    """Address for a test that needs no power over the server: TREADLE_TEST_AMQP_URL, or the shared node."""
    given = os.environ.get(URL_VARIABLE)
    if given:
        return given
    server: RabbitServer = request.getfixturevalue("rabbit")
    return server.url
