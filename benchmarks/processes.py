"""Processes of a benchmark: started in a session of their own, found with their children, ended by their ids."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

__all__ = ("descendants", "free_port", "kill_tree", "spawn", "tail", "wait_for_port")


def spawn(
    command: Sequence[object], log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a command whose output goes to the end of `log`; `env` is added to ours."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,
        )


def descendants(roots: Iterable[int]) -> list[int]:
    """Return the living processes of the trees under `roots`, the roots included."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in found and Path(f"/proc/{pid}").exists():
            found.append(pid)
        waiting += children.get(pid, [])
    return found


def kill_tree(process: subprocess.Popen[bytes], number: int = signal.SIGKILL, patience: float = 15.0) -> None:
    """End a process that we started, and its children: SIGKILL to all of them, or another signal to the process first."""
    if process.poll() is not None:
        return
    pids = descendants([process.pid])
    if number != signal.SIGKILL:
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(patience)


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes], patience: float = 90.0) -> float:
    """Wait until something listens; returns after how many seconds.

    Raises:
        RuntimeError: The process ended, or nothing listens in time.
    """
    began = time.perf_counter()
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return time.perf_counter() - began
        except OSError:
            if process.poll() is not None:
                raise RuntimeError(f"{process.args!r} ended with {process.returncode}") from None
            if time.perf_counter() - began > patience:
                raise RuntimeError(f"nothing listens on port {port} after {patience:.0f} s: {process.args!r}") from None
            time.sleep(0.02)


def tail(log: Path, characters: int = 1500) -> str:
    """Return the end of a log, for the message about what failed."""
    return log.read_text(errors="replace")[-characters:] if log.exists() else ""
