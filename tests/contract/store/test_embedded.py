"""The embedded server: it keeps what was acknowledged, and never runs twice on one folder."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.store.cases import change, commit, load
from treadle.controlplane.store.embedded import EmbeddedRedis, server_binary
from treadle.controlplane.store.port import Loaded, Outcome
from treadle.controlplane.store.redis import RedisStore
from treadle.protocol.errors import ConfigError, Unavailable

pytestmark = pytest.mark.redis

HOST = """
import asyncio, sys
from pathlib import Path
from treadle.controlplane.store.embedded import EmbeddedRedis
async def main():
    server = EmbeddedRedis(Path(sys.argv[1]))
    print(await server.start(), server.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def running(pid: int) -> bool:
    try:
        return b"appendonly" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.fixture
def host(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """A process that runs the embedded server on tmp_path: (process, URL, server's process id)."""
    with subprocess.Popen([sys.executable, "-c", HOST, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url, pid = process.stdout.readline().rsplit(" ", 1)
            yield process, url, int(pid)
        finally:
            process.kill()


async def write(url: str, expect: int) -> None:
    store = RedisStore(url)
    await store.start()
    assert await commit(store, change(expect=expect, revision=expect + 1)) == [Outcome.OK]
    await store.stop()


async def read(url: str) -> Loaded:
    store = RedisStore(url)
    await store.start()
    try:
        assert all(result.ok for result in await store.check())
        return await load(store)
    finally:
        await store.stop()


def test_data_stay_over_a_restart_and_a_kill(tmp_path: Path) -> None:
    async def main() -> None:
        server = EmbeddedRedis(tmp_path)
        url = await server.start()
        assert url.startswith("unix://")
        await write(url, 0)
        await server.stop()
        url = await server.start()
        await write(url, 1)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await server.stop()
        url = await server.start()
        assert (await read(url)).revision == 2
        await server.stop()

    asyncio.run(main())


@pytest.mark.kill
def test_it_ends_with_its_parent(host: tuple[subprocess.Popen[str], str, int], tmp_path: Path) -> None:
    process, url, pid = host

    async def main() -> None:
        await write(url, 0)
        with pytest.raises(ConfigError, match="in use by another Treadle"):
            await EmbeddedRedis(tmp_path).start()
        process.kill()
        server = EmbeddedRedis(tmp_path)
        process.wait()
        again = await server.start()
        assert not running(pid)
        assert (await read(again)).revision == 1
        await server.stop()

    asyncio.run(main())


@pytest.mark.kill
def test_a_server_that_was_left_over_is_ended_first(tmp_path: Path) -> None:
    async def main() -> None:
        command = [server_binary(), "--port", "0", "--dir", str(tmp_path), "--appendonly", "yes"]
        with subprocess.Popen([*command, "--set-proc-title", "no"], stdout=subprocess.DEVNULL) as left_over:
            (tmp_path / "server.pid").write_text(str(left_over.pid))
            waiting = asyncio.create_task(asyncio.to_thread(left_over.wait))
            server = EmbeddedRedis(tmp_path)
            await server.start()
            await asyncio.wait_for(waiting, 20)
            await server.stop()

    asyncio.run(main())


def test_the_process_id_of_another_is_left_alone(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "server.pid").write_text(str(os.getpid()))
        server = EmbeddedRedis(tmp_path)
        await server.start()
        await server.stop()

    asyncio.run(main())


def test_a_path_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    async def main() -> None:
        server = EmbeddedRedis(tmp_path / ("d" * 120))
        url = await server.start()
        assert (await read(url)).revision == 0
        await server.stop()

    asyncio.run(main())


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").write_text("not a folder")

    async def main() -> None:
        server = EmbeddedRedis(tmp_path)
        with pytest.raises(Unavailable, match="ended at once"):
            await server.start()
        (tmp_path / "appendonlydir").unlink()
        await server.start()  # the lock was given back
        await server.stop()

    asyncio.run(main())
