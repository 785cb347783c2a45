"""Hot reload: a worker in a child process, started again when the code changes.

A file with a syntax error keeps the old worker; a worker that is killed is started again at once; one that cannot start
waits for the next change. The child is asked to drain (SIGTERM) and killed when it takes too long.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

__all__ = ("Supervisor", "syntax_error", "watched_folder")

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
        env: Variables beside those of this process.
        say: Tells a person what happens.
        drain_s: How long it may drain.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        say: Say,
        env: Mapping[str, str] | None = None,
        drain_s: float = DRAIN_S,
    ) -> None:
        self._command = list(command)
        self._env = {**os.environ, **(env or {})}
        self._say = say
        self._drain_s = drain_s
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the worker that runs now; None while there is none."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def run(self, changes: AsyncIterator[list[Path]] | None, stop: asyncio.Event) -> None:
        """Keep a worker running until `stop` is set; then drain it.

        Args:
            changes: Batches of files that changed (see `python_changes`); None: no reload.
            stop: Set it to end.
        """
        change, stopping = asyncio.Event(), asyncio.create_task(stop.wait())
        watching = asyncio.create_task(self._watch(changes, change)) if changes is not None else None
        try:
            while not stop.is_set():
                await self._one_life(change, stopping, watching)
        finally:
            await self._end()
            for task in (stopping, watching):
                if task is not None:
                    task.cancel()
            await asyncio.gather(*(t for t in (stopping, watching) if t is not None), return_exceptions=True)

    def kill(self) -> None:
        """Kill the worker as a crash would; another one is started."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _watch(self, changes: AsyncIterator[list[Path]], change: asyncio.Event) -> None:
        async for paths in changes:
            broken = syntax_error(paths)
            if broken is not None:
                self._say(f"✗ {broken}\n  the old worker goes on")
                continue
            self._say(f"⟳ {', '.join(sorted({path.name for path in paths}))} changed")
            change.set()

    async def _one_life(
        self,
        change: asyncio.Event,
        stopping: asyncio.Task[bool],
        watching: asyncio.Task[None] | None,
    ) -> None:
        change.clear()
        born = time.monotonic()
        self._process = await asyncio.create_subprocess_exec(
            *self._command, env=self._env, stdin=asyncio.subprocess.DEVNULL
        )
        ended = asyncio.create_task(self._process.wait())
        changed = asyncio.create_task(change.wait())
        try:
            await _first(ended, changed, stopping, watching)
            if ended.done() and not stopping.done() and not changed.done():
                await self._told_of_end(ended.result(), time.monotonic() - born, changed, stopping, watching)
        finally:
            await self._end()
            for task in (ended, changed):
                task.cancel()
            await asyncio.gather(ended, changed, return_exceptions=True)

    async def _told_of_end(
        self,
        code: int,
        lived_s: float,
        changed: asyncio.Task[bool],
        stopping: asyncio.Task[bool],
        watching: asyncio.Task[None] | None,
    ) -> None:
        if code < 0:
            self._say(f"⚡ the worker was killed ({signal.Signals(-code).name}); starting it again")
            if lived_s < _TOO_SOON_S:
                await _first(changed, stopping, watching, timeout=_TOO_SOON_S - lived_s)
            return
        await _first(stopping, timeout=_TOO_SOON_S)  # Ctrl-C reaches the worker too, and it may be quicker
        if stopping.done():
            return
        self._say(f"✗ the worker ended with exit code {code}; it starts again when a file changes")
        await _first(changed, stopping, watching)

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
            self._say("✗ the worker does not stop; killing it")
            process.kill()
            await process.wait()


async def _first(*tasks: asyncio.Task[Any] | None, timeout: float | None = None) -> None:
    """Wait until one of the tasks is done; an error of a task that must not end is raised."""
    present = [task for task in tasks if task is not None]
    done, _ = await asyncio.wait(present, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        if (error := task.exception()) is not None:
            raise error


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies (Linux), so that `kill -9` of it leaves no orphan.

    Elsewhere the orphan ends when its session cannot be opened again.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died in between
        os.kill(os.getpid(), signal.SIGTERM)
