"""`treadle dev` as a person has it: real processes, embedded Valkey, kills, reload, and the other commands beside it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.kill

APP = """
import asyncio
from pathlib import Path
from treadle.worker.steps import step
from treadle.worker.workflows import workflow

@step(pool="crm")
async def greet(name: str) -> str:
    with open("pids.txt", "a") as file:
        import os
        file.write(f"{os.getpid()}\\n")
    while not Path("go").exists():
        await asyncio.sleep(0.05)
    return f"hi {name}"

@step
async def shout(text: str) -> str:
    return text.upper()

@workflow
async def hello(name: str) -> str:
    text = await greet(name)
    await asyncio.sleep(0.2)
    return await shout(text)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(what: str, condition: Callable[[], bool], *, seconds: float = 40) -> None:
    """Wait for a condition; fail by its name."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)


class Dev:
    """A folder with an app, and `treadle dev` in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.app = folder / "app.py"
        self.app.write_text(APP)
        self.port = free_port()
        self.log = folder / "dev.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def said(self) -> str:
        return self.log.read_text()

    def start(self) -> None:
        """Start it, in a process group of its own, and wait until it serves."""
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "treadle.cli", "dev", "app.py", "--port", str(self.port)],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until("the banner", lambda: "gRPC" in self.said or self.process is None or self.process.poll() is not None)
        assert self.process.poll() is None, self.said

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal to the whole group, as Ctrl-C does; returns the exit code."""
        assert self.process is not None
        os.killpg(self.process.pid, number)
        return self.process.wait(30)

    def treadle(self, *words: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Run another command beside it."""
        return subprocess.run(
            [sys.executable, "-m", "treadle.cli", *words],
            cwd=self.folder,
            env=os.environ | {"TREADLE_SERVER": f"127.0.0.1:{self.port}", "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def pids(self) -> list[int]:
        """Processes in which `greet` began, in order."""
        path = self.folder / "pids.txt"
        return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Dev]:
    scene = Dev(tmp_path)
    scene.start()
    yield scene
    if scene.process is not None and scene.process.poll() is None:
        try:
            scene.stop()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(scene.process.pid, signal.SIGKILL)


def test_a_killed_worker_is_replaced_and_the_attempt_is_marked_lost(dev: Dev) -> None:
    started = dev.treadle("run", "start", "hello", "-i", '{"name": "Ada"}', "--id", "r1", "--pool", "default")
    assert (started.returncode, started.stdout) == (0, "r1\n")
    until("the step began", lambda: len(dev.pids()) == 1)
    os.kill(dev.pids()[0], signal.SIGKILL)
    until("another worker began it again", lambda: len(dev.pids()) == 2)
    (dev.folder / "go").touch()
    watched = dev.treadle("run", "watch", "r1", "--timeout", "40s")
    assert watched.returncode == 0, watched.stderr
    assert "⚡ greet" in watched.stdout
    assert 'result "HI ADA"' in watched.stdout
    steps = json.loads(dev.treadle("run", "show", "r1", "-o", "json").stdout)["steps"]
    assert [(step["name"], step["state"]) for step in steps] == [
        ("greet", "completed"),
        ("sleep", "completed"),
        ("shout", "completed"),
    ]
    assert [attempt["outcome"] for attempt in steps[0]["attempts"]] == ["lost", "completed"]
    assert re.search(r"⚡ 1 lost .*its worker died", dev.treadle("run", "show", "r1").stdout)
    until("dev showed it too", lambda: "✓ COMPLETED" in dev.said)
    assert "⚡ greet" in dev.said
    pools = json.loads(dev.treadle("pools", "-o", "json").stdout)
    assert {pool["name"] for pool in pools} == {"crm", "default"}
    assert dev.treadle("doctor").returncode == 0


def test_a_kill_of_the_whole_group_loses_nothing(dev: Dev) -> None:
    dev.treadle("run", "start", "hello", "-i", '{"name": "Bob"}', "--id", "r2", "--pool", "default")
    until("the step began", lambda: len(dev.pids()) == 1)
    dev.stop(signal.SIGKILL)
    (dev.folder / "go").touch()
    dev.start()
    watched = dev.treadle("run", "watch", "r2", "--timeout", "60s", seconds=90)
    assert watched.returncode == 0, watched.stdout + watched.stderr + dev.said
    assert 'result "HI BOB"' in watched.stdout
    assert dev.stop() == 0
    assert "run hello goes on" in dev.said


def test_workers_follow_the_code_and_survive_a_syntax_error(dev: Dev) -> None:
    (dev.folder / "go").touch()

    def hello() -> str:
        words = ("run", "start", "hello", "-i", '{"name": "Cy"}', "--pool", "default", "--wait", "--timeout", "40s")
        return dev.treadle(*words).stdout

    assert hello() == '"HI CY"\n'
    dev.app.write_text(APP + "\ndef (\n")
    until("the mistake was told", lambda: "the old worker goes on" in dev.said)
    assert re.search(r"app\.py:\d+: invalid syntax", dev.said)
    assert hello() == '"HI CY"\n'
    dev.app.write_text(APP.replace("text.upper()", 'text.upper() + "!"'))
    until("the change is there", lambda: hello() == '"HI CY!"\n', seconds=90)


def test_what_cannot_start_says_why(tmp_path: Path) -> None:
    scene = Dev(tmp_path)
    scene.app.write_text("def (\n")
    broken = scene.treadle("dev", "app.py", "--port", str(scene.port))
    assert broken.returncode == 2
    assert "app.py" in broken.stderr
    missing = scene.treadle("dev", "gone.py", "--port", str(scene.port))
    assert missing.returncode == 2
    assert "gone.py" in missing.stderr
    scene.app.write_text(APP)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", scene.port))
        taken.listen()
        refused = scene.treadle("dev", "app.py", "--port", str(scene.port))
    assert refused.returncode == 2
    assert f"port {scene.port} is taken" in refused.stderr
