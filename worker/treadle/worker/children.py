"""Child processes for attempts: a fresh one for each attempt that runs alone, a few kept for `executor="process"`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from treadle.protocol.errors import ConfigError
from treadle.worker.child_wire import HEADER_BYTES, Cancel, Ended, Ready, Run, Said, ToChild, ToParent, pack, unpack

__all__ = ("Child", "ChildDied", "Children")

IMPORT_S: Final = 60.0
"""How long a child may take to import the app."""

KEEP: Final = 4
"""Idle children that are kept."""

_log = structlog.stdlib.get_logger(__name__)


class ChildDied(Exception):
    """The process ended without an answer; says how ("was killed by SIGKILL")."""


class Child:
    """One process, which runs one attempt at a time. `used`: it has run user code."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.used = False

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def ready(self) -> None:
        """Wait until it has imported the app.

        Raises:
            ConfigError: It cannot import the app; says why.
            ChildDied: It ended, or took too long.
        """
        try:
            async with asyncio.timeout(IMPORT_S):
                message = await self._hear()
        except TimeoutError:
            self.kill()
            raise ChildDied(f"had not imported the app after {IMPORT_S:g} s") from None
        assert isinstance(message, Ready), "the first word of a child is Ready"
        if message.error:
            raise ConfigError(message.error)

    async def run(self, run: Run, heard: Callable[[Said], None]) -> Ended:
        """Run an attempt and return how it ended; `heard` is told what its code says meanwhile.

        Raises:
            ChildDied: It died of it.
        """
        self.used = True
        await self._say(run)
        while isinstance(message := await self._hear(), Said):
            heard(message)
        assert isinstance(message, Ended), "the answer to a run is its end"
        return message

    async def cancel(self, reason: str) -> None:
        """Ask it to cut off what it runs; what is blocked in C code does not listen."""
        try:
            await self._say(Cancel(reason))
        except ChildDied as error:
            _log.debug("child_gone", how=str(error))  # whoever waits in `run` is told

    def kill(self) -> None:
        if self.alive:
            self._process.kill()

    async def close(self) -> None:
        """End it: by the end of its input if it is idle, by force if it runs something or does not listen."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(1):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()

    async def _say(self, message: ToChild) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(pack(message))
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise ChildDied(await self._how()) from None

    async def _hear(self) -> ToParent:
        assert self._process.stdout is not None
        try:
            header = await self._process.stdout.readexactly(HEADER_BYTES)
            body = await self._process.stdout.readexactly(int.from_bytes(header, "big"))
        except (asyncio.IncompleteReadError, ConnectionResetError):
            raise ChildDied(await self._how()) from None
        message = unpack(body)
        assert isinstance(message, Ready | Said | Ended), "a child says nothing else"
        return message

    async def _how(self) -> str:
        status = await self._process.wait()
        if status >= 0:
            return f"exited with status {status}"
        try:
            return f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"was killed by signal {-status}"


class Children:
    """Starts children and keeps idle ones.

    Args:
        app: What they import.
        arguments: Further arguments of `python -m treadle.worker.child`.
        keep: Idle ones that are kept.
    """

    def __init__(self, app: str, arguments: Sequence[str] = (), *, keep: int = KEEP) -> None:
        self._command = (sys.executable, "-m", "treadle.worker.child", app, *arguments)
        self._keep = keep
        self._idle: list[Child] = []
        self._all: set[Child] = set()

    async def take(self, *, alone: bool) -> Child:
        """Return a child that has imported the app. `alone`: one that has run nothing before.

        Raises:
            ConfigError: The app cannot be imported any more.
            ChildDied: It ended while it imported the app.
            OSError: No process can be started.
        """
        for child in reversed(self._idle):
            if not (alone and child.used):
                self._idle.remove(child)
                if child.alive:
                    return child
                await self._discard(child)
        return await self._start()

    async def give_back(self, child: Child, *, fit: bool = True) -> None:
        """Keep it for the next attempt; end it if it is not fit for one, or enough are kept."""
        if fit and child.alive and len(self._idle) < self._keep:
            self._idle.append(child)
        else:
            await self._discard(child)

    async def close(self) -> None:
        """End all of them."""
        self._idle.clear()
        await asyncio.gather(*(self._discard(child) for child in tuple(self._all)))

    async def _start(self) -> Child:
        environment = {**os.environ, "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED", "0")}
        process = await asyncio.create_subprocess_exec(*self._command, stdin=PIPE, stdout=PIPE, env=environment)
        child = Child(process)
        self._all.add(child)
        try:
            await child.ready()
        except BaseException:
            child.kill()
            await self._discard(child)
            raise
        return child

    async def _discard(self, child: Child) -> None:
        await child.close()  # one that is interrupted here is still known, and ended by `close`
        self._all.discard(child)
