"""The processes of Treadle in a house: servers, workers, and `treadle dev`, which is both."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.kill.process import DEADLINE_S, Process

__all__ = ("DevProcess", "ServerProcess", "WorkerProcess")


class ServerProcess(Process):
    """A control plane.

    Attributes:
        port: Of its gRPC server; the same after a restart.
        banner: What it says when it serves.
    """

    banner = "listening on "

    def __init__(self, name: str, log: Path, env: Mapping[str, str], port: int) -> None:
        super().__init__(name, [sys.executable, "-m", "treadle.controlplane"], log, env)
        self.port = port

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def until_ready(self, *, seconds: float = DEADLINE_S) -> None:
        """Wait until it serves."""
        self.until_said(self.banner, seconds=seconds)

    def restart(self) -> None:
        """Start it again, after SIGKILL when it still runs, and wait until it serves."""
        self.kill()
        self.start()
        self.until_ready()


class DevProcess(ServerProcess):
    """`treadle dev`: a control plane, and as its children the store and the workers of all pools."""

    banner = "gRPC"

    def __init__(self, name: str, log: Path, env: Mapping[str, str], port: int, app: Path, namespace: str) -> None:
        super().__init__(name, log, env, port)
        self.command = [sys.executable, "-m", "treadle.cli", "dev", str(app), "--port", str(port)]
        self.command += ["--namespace", namespace]

    def send_kill(self) -> None:
        """SIGKILL the children first: the store would otherwise be told to end, and end in good order."""
        if self.running:
            for pid in _children(self.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        super().send_kill()


def _children(pid: int) -> list[int]:
    """By what each process says of its parent: the lists of a parent's threads go with the threads."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


class WorkerProcess(Process):
    """A worker of one pool."""

    def __init__(self, name: str, command: list[str], log: Path, env: Mapping[str, str], pool: str) -> None:
        super().__init__(name, command, log, env)
        self.pool = pool

    @property
    def host(self) -> str:
        """How ListWorkers names it."""
        return f"{socket.gethostname()}:{self.pid}"
