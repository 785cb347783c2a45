"""Finds in the code of a workflow, before it runs, what would come out differently in a replay.

A scan of the function's bytecode, its inner functions included: chains of attributes that begin at a global or closure
variable are resolved and compared with what is forbidden. What is called through a variable, or in another function, is
not seen; the audit hook of `treadle.worker.loop.guard` catches the worst of that while it runs.
"""

from __future__ import annotations

import asyncio
import builtins
import datetime
import dis
import inspect
import os
import random
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any, Final
from weakref import WeakSet

from treadle.protocol.errors import NotDeterministic

__all__ = ("check_workflow",)

_CLOCK: Final = "use treadle.worker.now(), or asyncio's loop.time()"
_SLEEP: Final = "write `await asyncio.sleep(...)`, which is durable"
_RANDOM: Final = "use treadle.worker.random()"
_UUID: Final = "use treadle.worker.uuid4()"
_STEP: Final = "do it in a @step"
_THREAD: Final = "do it in a @step; a sync one runs in a thread"
_AWAIT: Final = "await it; a workflow runs in its own event loop already"

_FUNCTIONS: Final[list[tuple[Any, str]]] = [
    (time.sleep, _SLEEP),
    *((getattr(time, n), _CLOCK) for n in ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "gmtime")),
    *((getattr(time, n), _CLOCK) for n in ("perf_counter_ns", "process_time", "localtime", "ctime")),
    (uuid.uuid1, _UUID),
    (uuid.uuid4, _UUID),
    (os.urandom, _RANDOM),
    (os.getpid, _STEP),
    (os.system, _STEP),
    (os.popen, _STEP),
    (asyncio.to_thread, _THREAD),
    (asyncio.run, _AWAIT),
    (asyncio.new_event_loop, _AWAIT),
    (asyncio.open_connection, _STEP),
    (asyncio.start_server, _STEP),
    (asyncio.create_subprocess_exec, _STEP),
    (asyncio.create_subprocess_shell, _STEP),
    (asyncio.run_coroutine_threadsafe, _THREAD),
    (threading.Thread, _THREAD),
    (threading.Timer, _THREAD),
    (socket.socket, _STEP),
    (socket.create_connection, _STEP),
    (random.SystemRandom, _RANDOM),
    (builtins.input, _STEP),
    *((getattr(subprocess, n), _STEP) for n in ("Popen", "run", "call", "check_call", "check_output", "getoutput")),
]
_BY_ID: Final[dict[int, str]] = {id(thing): instead for thing, instead in _FUNCTIONS}
_KEEP: Final = _FUNCTIONS  # ids stay valid while the objects live

_METHODS: Final[dict[tuple[Any, str], str]] = {
    (datetime.datetime, "now"): _CLOCK,
    (datetime.datetime, "utcnow"): _CLOCK,
    (datetime.datetime, "today"): _CLOCK,
    (datetime.date, "today"): _CLOCK,
}
_HTTP: Final = {
    "requests": frozenset(("get", "post", "put", "patch", "delete", "head", "options", "request", "Session")),
    "httpx": frozenset(("get", "post", "put", "patch", "delete", "head", "request", "stream", "Client", "AsyncClient")),
    "aiohttp": frozenset(("ClientSession", "request")),
    "urllib.request": frozenset(("urlopen", "urlretrieve")),
}
_MISSING: Final = object()
_CLEAN: Final[WeakSet[Callable[..., Any]]] = WeakSet()
"""Functions in which nothing was found: each test has a registry of its own, and a scan takes half a millisecond."""


def check_workflow(name: str, function: Callable[..., Any]) -> None:
    """Check a workflow's function.

    Raises:
        NotDeterministic: It calls what only a step may call; says where and what to use instead.
    """
    if function in _CLEAN:
        return
    found = sorted(set(_findings(function)))
    if found:
        lines = "\n".join(f"  {place}: {what}: {instead}" for place, what, instead in found)
        raise NotDeterministic(
            f"workflow {name} does what would come out differently when it is replayed, or be done twice:\n{lines}"
        )
    _CLEAN.add(function)


def _findings(function: Callable[..., Any]) -> Iterator[tuple[str, str, str]]:
    target = inspect.unwrap(function)
    code: CodeType = target.__code__
    closure = {
        name: cell.cell_contents
        for name, cell in zip(code.co_freevars, target.__closure__ or (), strict=True)
        if _is_filled(cell)
    }
    scope = {**vars(builtins), **target.__globals__, **closure}
    for inner in _codes(code):
        yield from _scan(inner, scope)


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not _MISSING
    except ValueError:
        return False


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _scan(code: CodeType, scope: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    line = code.co_firstlineno
    value: Any = _MISSING
    chain = ""
    imported: dict[str, Any] = {}
    for op in dis.get_instructions(code):
        line = _line_of(op, line)
        name = op.argval
        if op.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FAST"):
            value, chain = imported.get(name, _MISSING), str(name)
            if value is _MISSING and op.opname != "LOAD_FAST":
                value = scope.get(name, _MISSING)
        elif op.opname == "IMPORT_NAME":
            value, chain = sys.modules.get(name, _MISSING), str(name)
        elif op.opname in ("STORE_FAST", "STORE_DEREF", "STORE_NAME"):
            if value is not _MISSING and inspect.ismodule(value):
                imported[name] = value
            value = _MISSING
            continue
        elif op.opname in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM") and value is not _MISSING:
            instead = _instead_of_attribute(value, name)
            chain = f"{chain}.{name}"
            if instead:
                yield f"{code.co_filename}:{line}", f"{chain}()", instead
                value = _MISSING
                continue
            value = (
                inspect.getattr_static(value, name, _MISSING)
                if not inspect.ismodule(value)
                else vars(value).get(name, _MISSING)
            )
        elif op.opname in ("PRECALL", "CACHE", "PUSH_NULL", "RESUME", "NOP", "EXTENDED_ARG"):
            continue
        else:
            value = _MISSING
            continue
        instead = _instead_of(value)
        if instead:
            yield f"{code.co_filename}:{line}", f"{chain}()", instead
            value = _MISSING


def _line_of(op: Any, line: int) -> int:
    number = getattr(op, "line_number", None)  # from 3.13 on
    if number is None and not isinstance(op.starts_line, bool):
        number = op.starts_line
    return number or line


def _instead_of(value: Any) -> str | None:
    """What to use instead of a forbidden function or class; None when it is allowed."""
    if value is _MISSING:
        return None
    instead = _BY_ID.get(id(value)) or _BY_ID.get(id(getattr(value, "__wrapped__", None)))
    if instead is not None:
        return instead
    module = getattr(value, "__module__", None)
    if module == "secrets" and callable(value):
        return _RANDOM
    if getattr(value, "__self__", None) is random._inst:
        return _RANDOM
    name = getattr(value, "__name__", "")
    for package, names in _HTTP.items():
        if isinstance(module, str) and (module == package or module.startswith(package + ".")) and name in names:
            return _STEP
    return None


def _instead_of_attribute(value: Any, name: str) -> str | None:
    """The same for an attribute that is bound anew each time it is read (datetime.now)."""
    for (owner, method), instead in _METHODS.items():
        if name == method and isinstance(value, type) and issubclass(value, owner):
            return instead
    return None
