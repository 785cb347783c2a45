"""Workers that follow the code, on real child processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from treadle.cli.dev_workers import Workers, pools_of
from treadle.cli.reload import python_changes, syntax_error, watched_folder
from treadle.protocol.errors import ConfigError

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
    """Workers, what was said, and the pids of the processes that were started."""

    def __init__(self, folder: Path, code: str = CHILD) -> None:
        self.said: list[str] = []
        self.ledger = folder / "pids.txt"
        self.ledger.touch()
        self.pools = ["default"]
        self.mistake = ""
        self.changes: asyncio.Queue[list[Path]] = asyncio.Queue()
        self.stop = asyncio.Event()
        self.workers = Workers(
            "app.py",
            lambda pool: [str(self.ledger), pool],
            say=self.said.append,
            find_pools=self.find_pools,
            program=[sys.executable, "-c", code],
        )

    async def find_pools(self, app: str) -> list[str]:
        if self.mistake:
            raise ConfigError(self.mistake)
        return self.pools

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
    """Run workers while the script acts on them, then stop them."""

    async def main() -> Scene:
        scene = Scene(folder, code)
        running = asyncio.create_task(scene.workers.run(scene.feed(), scene.stop))
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
        assert scene.workers.pids == {"default": scene.pids()[0]}

    scene = play(tmp_path, script)
    assert len(scene.pids()) == 1
    assert f"{bad}:1" in scene.said[0]
    assert "the old worker goes on" in scene.said[0]


def test_an_app_that_cannot_be_loaded_keeps_the_old_worker(tmp_path: Path) -> None:
    good = tmp_path / "app.py"
    good.write_text("x = 1\n")

    async def script(scene: Scene) -> None:
        await scene.until(lambda: len(scene.pids()) == 1)
        scene.mistake = "two steps are named 'a'"
        scene.changes.put_nowait([good])
        await scene.until(lambda: len(scene.said) == 2)
        assert scene.workers.pids == {"default": scene.pids()[0]}

    scene = play(tmp_path, script)
    assert scene.said[1] == "✗ two steps are named 'a'\n  the old worker goes on"


def test_each_pool_has_its_worker_and_pools_come_and_go(tmp_path: Path) -> None:
    good = tmp_path / "app.py"
    good.write_text("x = 1\n")

    async def script(scene: Scene) -> None:
        scene.pools[:] = ["a", "b"]
        await scene.until(lambda: len(scene.pids()) == 2)
        old = scene.workers.pids
        scene.pools[:] = ["b", "c"]
        scene.changes.put_nowait([good])
        await scene.until(lambda: len(scene.pids()) == 4)
        assert set(scene.workers.pids) == {"b", "c"}
        assert gone(old["a"] or 0)
        assert scene.workers.pids["b"] != old["b"]

    assert all(gone(pid) for pid in play(tmp_path, script).pids())


def test_the_pools_of_an_app_are_what_its_code_names(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text(
        "from treadle.worker.steps import step\nfrom treadle.worker.workflows import workflow\n"
        "print('imported')\n"
        "@step(pool='csv')\nasync def a() -> None: ...\n"
        "@step\nasync def b() -> None: ...\n"
        "@workflow(pool='flows')\nasync def w() -> None: ...\n"
    )
    assert asyncio.run(pools_of(str(app))) == ["csv", "flows"]
    app.write_text("import nonsense_that_is_not_there\n")
    with pytest.raises(ConfigError, match="nonsense_that_is_not_there"):
        asyncio.run(pools_of(str(app)))


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
