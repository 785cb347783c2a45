"""Hot reload: a worker in a child process that is started again when it is asked for, or when it was killed.

A worker that cannot start waits for the next restart. The child is asked to drain (SIGTERM) and killed when it takes
too long.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

__all__ = ("PARENT_VARIABLE", "Supervisor", "python_changes", "syntax_error", "tie_to_parent", "watched_folder")

DEBOUNCE_MS: Final = 300
"""Changes that come within this time are one change."""

DRAIN_S: Final = 2.0
"""How long the old worker may finish what runs; the rest is released and goes on in the new one."""

_KILL_AFTER_S: Final = 3.0  # beyond the drain: it hangs
_TOO_SOON_S: Final = 1.0

Say = Callable[[str], None]


def syntax_error(paths: Iterable[Path]) -> str | None:
    """Return what is wrong with the first Python file that cannot be compiled, with its place; None when all can."""
    for path in paths:
        if path.suffix != ".py" or not path.is_file():
            continue
        try:
            compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None)
            text = (getattr(error, "text", None) or "").rstrip()
            place = f"{path}:{line}" if line else str(path)
            return f"{place}: {getattr(error, 'msg', error)}" + (f"\n    {text.strip()}" if text else "")
    return None


def watched_folder(app: str) -> Path:
    """Return the folder whose Python files an app ("path/app.py", "package.module:name") is made of."""
    target = app if app.endswith(".py") else app.partition(":")[0]
    if target.endswith(".py") or "/" in target:
        return Path(target).resolve().parent
    top = Path(*target.split(".")[:1])
    return top.resolve() if top.is_dir() else Path.cwd()


async def python_changes(folder: Path, stop: asyncio.Event) -> AsyncGenerator[list[Path], None]:
    """Yield the Python files that changed, until `stop` is set."""
    from watchfiles import PythonFilter, awatch

    async for changes in awatch(folder, watch_filter=PythonFilter(), debounce=DEBOUNCE_MS, stop_event=stop):
        yield sorted({Path(path) for _, path in changes})


class Supervisor:
    """Keeps one worker process running.

    Args:
        command: Its command line; the program first.
        say: Tells a person what happens.
        name: What it is called then.
        env: Variables beside those of this process.
        drain_s: How long it may drain.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        say: Say,
        name: str = "the worker",
        env: Mapping[str, str] | None = None,
        drain_s: float = DRAIN_S,
    ) -> None:
        self._command = list(command)
        self._env = {**os.environ, **(env or {})}
        self._say = say
        self._name = name
        self._wanted = asyncio.Event()
        self._drain_s = drain_s
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the worker that runs now; None while there is none."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def run(self, stop: asyncio.Event) -> None:
        """Keep a worker running until `stop` is set; then drain it."""
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                await self._one_life(stopping)
        finally:
            stopping.cancel()
            await self._end()

    def restart(self) -> None:
        """Drain the worker and start another one."""
        self._wanted.set()

    def kill(self) -> None:
        """Kill the worker as a crash would; another one is started."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _one_life(self, stopping: asyncio.Task[bool]) -> None:
        self._wanted.clear()
        born = time.monotonic()
        self._process = await asyncio.create_subprocess_exec(
            *self._command, env=self._env, stdin=asyncio.subprocess.DEVNULL
        )
        ended = asyncio.create_task(self._process.wait())
        restart = asyncio.create_task(self._wanted.wait())
        try:
            await _first(ended, restart, stopping)
            if ended.done() and not stopping.done() and not restart.done():
                await self._after_the_end(ended.result(), time.monotonic() - born, restart, stopping)
        finally:
            await self._end()
            for task in (ended, restart):
                task.cancel()
            await asyncio.gather(ended, restart, return_exceptions=True)

    async def _after_the_end(
        self, code: int, lived_s: float, restart: asyncio.Task[bool], stopping: asyncio.Task[bool]
    ) -> None:
        """Say why the worker ended, and wait until another one makes sense."""
        if code < 0:
            name = signal.Signals(-code).name
            self._say(f"⚡ {self._name} was killed ({name}); starting it again")
            await _first(restart, stopping, timeout=max(_TOO_SOON_S - lived_s, 0))
            return
        await _first(stopping, timeout=_TOO_SOON_S)  # Ctrl-C reaches the worker too, and it may be quicker
        if not stopping.done():
            self._say(f"✗ {self._name} ended with exit code {code}; it starts again when a file changes")
            await _first(restart, stopping)

    async def _end(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._drain_s + _KILL_AFTER_S):
                await process.wait()
        except TimeoutError:
            self._say(f"✗ {self._name} does not stop; killing it")
            process.kill()
            await process.wait()


async def _first(*tasks: asyncio.Task[Any], timeout: float | None = None) -> None:
    """Wait until one of the tasks is done."""
    await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)


PARENT_VARIABLE: Final = "TREADLE_PARENT_PID"
"""Set for workers that are to end with the process that started them."""


def tie_to_parent() -> None:
    """When PARENT_VARIABLE is set: ask the kernel to kill this process when that one dies, so that no orphan stays.

    Killed, not drained: with its parent went the control plane, and there is nobody left to report to. On Linux only.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None or not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
    if os.getppid() != int(parent):  # it died before we asked
        os.kill(os.getpid(), signal.SIGKILL)
