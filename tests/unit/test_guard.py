from __future__ import annotations

import asyncio
import datetime
import os
import random
import secrets
import socket
import subprocess
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from random import choice
from time import monotonic
from typing import Any

import pytest

from treadle.protocol.errors import NotDeterministic
from treadle.worker.loop import guard
from treadle.worker.loop.scan import check_workflow


async def reads_clock() -> None:
    time.time()


async def reads_imported_clock() -> None:
    monotonic()


async def sleeps() -> None:
    time.sleep(1)


async def reads_date() -> None:
    datetime.datetime.utcnow()


async def reads_today() -> None:
    datetime.date.today()


async def draws() -> None:
    random.random()


async def draws_imported() -> None:
    choice([1])


async def makes_uuid() -> None:
    uuid.uuid4()


async def reads_urandom() -> None:
    os.urandom(3)


async def draws_secret() -> None:
    secrets.token_hex()


async def uses_thread() -> None:
    await asyncio.to_thread(print)


async def starts_thread() -> None:
    threading.Thread(target=print).start()


async def connects() -> None:
    await asyncio.open_connection("localhost", 1)


async def opens_socket() -> None:
    socket.socket()


async def runs_process() -> None:
    subprocess.run(["true"])


async def opens_url() -> None:
    urllib.request.urlopen("http://localhost")


async def imports_inside() -> None:
    import time as clock

    clock.time()


async def imports_name_inside() -> None:
    from uuid import uuid4 as new_id

    new_id()


async def inner_function() -> None:
    async def inner() -> float:
        return max(time.time() for _ in range(1))

    await inner()


async def allowed() -> None:
    random.Random(3).random()
    datetime.datetime(2026, 1, 1).isoformat()
    datetime.datetime.fromisoformat("2026-01-01")
    uuid.UUID(int=3)
    os.path.join("a", "b")
    time.strftime("%Y", (2026, 1, 1, 0, 0, 0, 0, 0, 0))
    await asyncio.sleep(1)
    loop = asyncio.get_running_loop()
    loop.time()


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (reads_clock, "time.time(): use treadle.worker.now()"),
        (reads_imported_clock, "monotonic(): use treadle.worker.now()"),
        (sleeps, "time.sleep(): write `await asyncio.sleep(...)`"),
        (reads_date, "datetime.datetime.utcnow(): use treadle.worker.now()"),
        (reads_today, "datetime.date.today(): use treadle.worker.now()"),
        (draws, "random.random(): use treadle.worker.random()"),
        (draws_imported, "choice(): use treadle.worker.random()"),
        (makes_uuid, "uuid.uuid4(): use treadle.worker.uuid4()"),
        (reads_urandom, "os.urandom(): use treadle.worker.random()"),
        (draws_secret, "secrets.token_hex(): use treadle.worker.random()"),
        (uses_thread, "asyncio.to_thread(): do it in a @step"),
        (starts_thread, "threading.Thread(): do it in a @step"),
        (connects, "asyncio.open_connection(): do it in a @step"),
        (opens_socket, "socket.socket(): do it in a @step"),
        (runs_process, "subprocess.run(): do it in a @step"),
        (opens_url, "urllib.request.urlopen(): do it in a @step"),
        (imports_inside, "clock.time(): use treadle.worker.now()"),
        (imports_name_inside, "uuid.uuid4(): use treadle.worker.uuid4()"),
        (inner_function, "time.time(): use treadle.worker.now()"),
    ],
)
def test_what_would_differ_in_a_replay_is_found(function: Callable[..., Any], found: str) -> None:
    with pytest.raises(NotDeterministic) as caught:
        check_workflow("w", function)
    assert found in str(caught.value)
    line = int(str(caught.value).split("test_guard.py:")[1].split(":")[0])
    first = function.__code__.co_firstlineno
    assert first < line <= first + 5


def test_the_rest_is_allowed() -> None:
    check_workflow("w", allowed)


@pytest.fixture
def turn() -> Iterator[None]:
    guard.install()
    guard.turn_begins()
    try:
        yield
    finally:
        guard.turn_ends()


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: socket.socket(), "opening a socket"),
        (lambda: threading.Thread(target=print).start(), "starting a thread"),
        (lambda: subprocess.Popen(["true"]), "starting a process"),
        (lambda: os.system("true"), "starting a process"),
        (lambda: time.sleep(0.001), "asyncio.sleep"),
        (lambda: Path("/nonexistent/x").write_text("x"), "opening '/nonexistent/x' for writing"),
        (lambda: os.open("/nonexistent/x", os.O_WRONLY), "for writing"),
        (lambda: socket.getaddrinfo("localhost", 1), "looking up a host name"),
    ],
)
@pytest.mark.usefixtures("turn")
def test_actions_are_stopped_while_a_turn_runs(action: Callable[[], Any], message: str) -> None:
    with pytest.raises(NotDeterministic) as caught:
        action()
    assert message in str(caught.value)


@pytest.mark.usefixtures("turn")
def test_reading_is_allowed_while_a_turn_runs() -> None:
    with open(__file__, encoding="utf-8") as file:
        assert file.readline()


def test_nothing_is_stopped_outside_turns() -> None:
    guard.install()
    guard.install()
    time.sleep(0)
    socket.socket().close()


def test_other_threads_are_left_alone() -> None:
    guard.install()
    entered, leave, done = threading.Event(), threading.Event(), []

    def other() -> None:
        entered.set()
        leave.wait(10)
        socket.socket().close()
        done.append(True)

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(10)
    guard.turn_begins()
    try:
        leave.set()
        thread.join(10)
    finally:
        guard.turn_ends()
    assert done == [True]
