"""Where a process spends its time: py-spy, when it is on PATH, writes folded stacks while a workload is measured."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ("profiled", "spy")

_RATE = 500


def spy() -> str:
    """Return py-spy's path.

    Raises:
        SystemExit: It is not there.
    """
    found = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if found is None:
        raise SystemExit("--profile needs py-spy on PATH: `pip install py-spy`")
    return found


@contextlib.contextmanager
def profiled(pids: list[int], output: Path) -> Iterator[None]:
    """Sample the processes 500 times a second; each gets a file of folded stacks, `output` with its number behind."""
    samplers = []
    for number, pid in enumerate(pids):
        file = output.with_name(f"{output.name}-{number}.folded")
        command = [spy(), "record", "-r", str(_RATE), "-f", "raw", "-d", "3600", "-o", str(file), "-p", str(pid)]
        samplers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
    try:
        yield
    finally:
        for sampler in samplers:
            sampler.send_signal(signal.SIGINT)  # it writes its file then
            words = sampler.communicate(timeout=60)[1].decode(errors="replace").strip()
            if sampler.returncode != 0:
                sys.stderr.write(f"py-spy: {words}\n")
        sys.stderr.write(f"profiles: {output}-*.folded\n")
