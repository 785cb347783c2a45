"""The supervisor of the reloading worker, on real child processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from treadle.cli.reload import Supervisor, python_changes, syntax_error, watched_folder

# Appends its pid to a file, then waits for SIGTERM.
CHILD = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()}\\n")
while True:
    signal.pause()
"""


class Scene:
    """A supervisor, what it said, and the pids of the workers it started."""

    def __init__(self, folder: Path, code: str = CHILD) -> None:
        self.said: list[str] = []
        self.ledger = folder / "pids.txt"
        self.ledger.touch()
        self.changes: asyncio.Queue[list[Path]] = asyncio.Queue()
        self.stop = asyncio.Event()
        command = [sys.executable, "-c", code, str(self.ledger)]
        self.supervisor = Supervisor(command, say=self.said.append, drain_s=1)

    async def feed(self) -> AsyncIterator[list[Path]]:
        while True:
            yield await self.changes.get()

    def pids(self) -> list[int]:
        return [int(line) for line in self.ledger.read_text().splitlines()]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.01)


def play(folder: Path, script: Callable[[Scene], Awaitable[None]], code: str = CHILD) -> Scene:
    """Run a supervisor while the script acts on it, then stop it."""

    async def main() -> Scene:
        scene = Scene(folder, code)
        running = asyncio.create_task(scene.supervisor.run(scene.feed(), scene.stop))
        try:
            await script(scene)
        finally:
            scene.stop.set()
            await asyncio.wait_for(running, 20)
        return scene

    return asyncio.run(main())


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_change_starts_a_new_worker_and_stops_the_old_one(tmp_path: Path) -> None:
    good = tmp_path / "app.py"
    good.write_text("x = 1\n")

    async def script(scene: Scene) -> None:
        await scene.until(lambda: len(scene.pids()) == 1)
        scene.changes.put_nowait([good])
        await scene.until(lambda: len(scene.pids()) == 2)

    scene = play(tmp_path, script)
    assert all(gone(pid) for pid in scene.pids())
    assert scene.said == ["⟳ app.py changed"]


def test_a_syntax_error_keeps_the_old_worker(tmp_path: Path) -> None:
    bad = tmp_path / "app.py"
    bad.write_text("def broken(:\n    pass\n")

    async def script(scene: Scene) -> None:
        await scene.until(lambda: len(scene.pids()) == 1)
        scene.changes.put_nowait([bad])
        await scene.until(lambda: bool(scene.said))
        assert scene.supervisor.pid == scene.pids()[0]

    scene = play(tmp_path, script)
    assert len(scene.pids()) == 1
    assert f"{bad}:1" in scene.said[0]
    assert "the old worker goes on" in scene.said[0]


def test_a_killed_worker_is_started_again(tmp_path: Path) -> None:
    async def script(scene: Scene) -> None:
        await scene.until(lambda: len(scene.pids()) == 1)
        os.kill(scene.pids()[0], signal.SIGKILL)
        await scene.until(lambda: len(scene.pids()) == 2)

    scene = play(tmp_path, script)
    assert "SIGKILL" in scene.said[0]


def test_a_worker_that_cannot_start_waits_for_a_change(tmp_path: Path) -> None:
    good = tmp_path / "app.py"
    good.write_text("x = 1\n")
    flag = tmp_path / "fixed"
    code = f"import os, sys\nif not os.path.exists({str(flag)!r}): sys.exit(2)\n{CHILD}"

    async def script(scene: Scene) -> None:
        await scene.until(lambda: bool(scene.said))
        flag.touch()
        scene.changes.put_nowait([good])
        await scene.until(lambda: len(scene.pids()) == 1)

    scene = play(tmp_path, script, code)
    assert "exit code 2" in scene.said[0]


def test_changes_of_python_files_are_seen(tmp_path: Path) -> None:
    async def main() -> list[Path]:
        stop = asyncio.Event()
        changes = python_changes(tmp_path, stop)
        first = asyncio.ensure_future(anext(changes))
        try:
            async with asyncio.timeout(20):
                while not first.done():  # the watcher tells nobody when it has begun to look
                    (tmp_path / "app.py").write_text("x = 1\n")
                    await asyncio.wait([first], timeout=0.5)
            return first.result()
        finally:
            stop.set()
            await changes.aclose()

    assert [path.name for path in asyncio.run(main())] == ["app.py"]


def test_where_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop").mkdir()
    assert watched_folder("shop/app.py") == tmp_path / "shop"
    assert watched_folder("app.py") == tmp_path
    assert watched_folder("shop.flows:app") == tmp_path / "shop"
    assert watched_folder("elsewhere.flows") == tmp_path


def test_files_that_are_gone_or_no_python_are_no_error(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("def (")
    assert syntax_error([text, tmp_path / "gone.py"]) is None
