"""One real process of a test: started, killed, frozen and started again, with all that it said in one file."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

__all__ = ("DEADLINE_S", "Process", "until")

DEADLINE_S = 30.0
"""How long anything may take before the test fails: generous, for machines that do other things too."""

_LOOK_S = 0.01


def until(what: str, condition: Callable[[], bool], *, seconds: float = DEADLINE_S) -> None:
    """Return when the condition holds; fail by its name when it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(_LOOK_S)


class Process:
    """A command that can be run again and again.

    Args:
        name: What logs call it.
        command: What is run.
        log: File that gets its output, all starts one behind the other.
        env: Its environment.

    Attributes:
        name: As given.
        env: Changes count from the next start.
        command: Likewise.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.command = list(command)
        self.env = dict(env)
        self._log = log
        self._from = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<{self.name} {self._process.pid if self._process else '-'}>"

    @property
    def pid(self) -> int:
        """Of the running process, or of the last one."""
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def said(self) -> str:
        """What it said since its last start."""
        with self._log.open("rb") as log:
            log.seek(self._from)
            return log.read().decode(errors="replace")

    @property
    def said_ever(self) -> str:
        """What it said in all its starts."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self) -> None:
        """Start it, in a process group of its own; does not wait for it to be ready."""
        assert not self.running, f"{self.name} runs already"
        with self._log.open("ab") as log:
            self._from = log.tell()
            self._process = subprocess.Popen(
                self.command,
                env=self.env,
                cwd=self._log.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def until_said(self, text: str, *, seconds: float = DEADLINE_S) -> None:
        """Wait until it says `text`; fails at once when it ends without."""
        until(f"{self.name} says {text!r}", lambda: text in self.said or not self.running, seconds=seconds)
        assert text in self.said, f"{self.name} ended with {self.exit_code()} without saying {text!r}:\n{self.said}"

    def kill(self) -> float:
        """SIGKILL the process group and wait until it is gone. Returns when it was sent (CLOCK_BOOTTIME, seconds)."""
        sent = time.clock_gettime(time.CLOCK_BOOTTIME)
        if self._process is not None:
            self.send_kill()
            self._process.wait(DEADLINE_S)
        return sent

    def send_kill(self) -> None:
        """SIGKILL the process group without waiting; `kill` then waits."""
        if self.running:
            os.killpg(self.pid, signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM; does not wait."""
        assert self._process is not None
        self._process.terminate()

    def stop(self, *, seconds: float = DEADLINE_S) -> int:
        """SIGTERM, and wait for the end; returns the exit code."""
        self.terminate()
        return self.exit_code(seconds=seconds)

    def exit_code(self, *, seconds: float = DEADLINE_S) -> int:
        """Wait for the end; returns the exit code."""
        assert self._process is not None
        return self._process.wait(seconds)

    def freeze(self) -> float:
        """SIGSTOP it. Returns when it was sent (CLOCK_BOOTTIME, seconds)."""
        sent = time.clock_gettime(time.CLOCK_BOOTTIME)
        os.kill(self.pid, signal.SIGSTOP)
        return sent

    def thaw(self) -> float:
        """SIGCONT it. Returns when it was sent (CLOCK_BOOTTIME, seconds)."""
        sent = time.clock_gettime(time.CLOCK_BOOTTIME)
        os.kill(self.pid, signal.SIGCONT)
        return sent
