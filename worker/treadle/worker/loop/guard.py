"""Stops workflow code from doing what only a step may do, while it does it: a hook on the interpreter's audit events.

The hook is installed once by the worker process, and looks only while a durable turn runs on the thread. What it cannot see
(reading a clock, drawing a random number) `treadle.worker.loop.scan` finds in the code before.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections.abc import Callable
from threading import get_ident
from typing import Any, Final, ParamSpec, TypeVar

from treadle.protocol.errors import NotDeterministic

__all__ = ("install", "turn_begins", "turn_ends")

P = ParamSpec("P")
R = TypeVar("R")

_THREADS: set[int] = set()
_INSTALLED: list[bool] = []

_FORBIDDEN: Final[dict[str, str]] = {
    "socket.__new__": "opening a socket",
    "socket.connect": "connecting a socket",
    "socket.bind": "binding a socket",
    "socket.getaddrinfo": "looking up a host name",
    "socket.gethostbyname": "looking up a host name",
    "socket.sendto": "sending to a socket",
    "_thread.start_new_thread": "starting a thread",
    "_thread.start_joinable_thread": "starting a thread",
    "subprocess.Popen": "starting a process",
    "os.system": "starting a process",
    "os.exec": "starting a process",
    "os.fork": "starting a process",
    "os.forkpty": "starting a process",
    "os.posix_spawn": "starting a process",
    "os.spawn": "starting a process",
    "os.remove": "deleting a file",
    "os.rename": "renaming a file",
    "os.mkdir": "making a folder",
    "os.rmdir": "deleting a folder",
    "shutil.rmtree": "deleting a folder",
    "urllib.Request": "requesting a URL",
}
_WRITE_FLAGS: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def turn_begins() -> None:
    """Workflow code runs on this thread from now on."""
    _THREADS.add(get_ident())


def turn_ends() -> None:
    """It does no longer."""
    _THREADS.discard(get_ident())


def install() -> None:
    """Install the hook for the rest of the process. Idempotent."""
    if _INSTALLED:
        return
    _INSTALLED.append(True)
    sys.addaudithook(_audit)
    if sys.version_info < (3, 13):  # these two tell nobody before
        time.sleep = _audited(time.sleep, "time.sleep")
        threading.Thread.start = _audited(threading.Thread.start, "_thread.start_new_thread")  # type: ignore[method-assign]


def _audited(function: Callable[P, R], event: str) -> Callable[P, R]:
    @functools.wraps(function)
    def audited(*args: P.args, **kwargs: P.kwargs) -> R:
        _audit(event, args)
        return function(*args, **kwargs)

    return audited


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if not _THREADS or get_ident() not in _THREADS:
        return
    if event == "open":
        _check_open(args)
    elif event == "time.sleep":
        raise NotDeterministic("time.sleep() inside a workflow: write `await asyncio.sleep(...)`, which is durable")
    elif event in _FORBIDDEN:
        if event in ("os.rename", "os.remove", "os.mkdir") and "__pycache__" in str(args[0]):
            return
        raise NotDeterministic(f"{_FORBIDDEN[event]} inside a workflow: a replay would do it again; do it in a @step")


def _check_open(args: tuple[Any, ...]) -> None:
    path, mode, flags = args
    writes = any(c in mode for c in "wax+") if isinstance(mode, str) else bool((flags or 0) & _WRITE_FLAGS)
    if writes and "__pycache__" not in str(path):  # an import inside the workflow may write its bytecode
        raise NotDeterministic(
            f"opening {str(path)[:200]!r} for writing inside a workflow: a replay would write again; do it in a @step"
        )
