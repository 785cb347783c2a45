"""`treadle run replay` over runs whose values are encrypted and in a blob store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.integration.api_host import ApiHost, api_host
from tests.integration.test_cli_commands import treadle
from treadle.client import Client
from treadle.client.encryption import AesGcm, new_key
from treadle.v1.history_pb2 import HistoryFile
from treadle.worker.app import load_app
from treadle.worker.config import WorkerConfig
from treadle.worker.runtime import Worker

LARGE = "large " * 20_000
MOST = 4 << 20

APP = """
from treadle.worker import PayloadError, Retry, StepError, publish_state, receive, step, workflow

@step(pool="default")
async def twice(text: str) -> str:
    return text + text

@step(pool="default", retry=Retry(attempts=1))
async def wrong() -> str:
    raise ValueError("a secret")

@workflow
async def shorter(text: str) -> str:
    return text[:3]

@workflow
async def uses(text: str) -> str:
    publish_state(text)
    both = await twice(text)
    assert await shorter(both) == "lar"
    try:
        await twice(both * {times})
    except PayloadError:
        both += "!"
    try:
        await wrong()
    except StepError as error:
        assert error.message == "a secret"
    return both + await receive("more", str)
"""


@asynccontextmanager
async def ran(folder: Path) -> AsyncIterator[ApiHost]:
    """Run `uses` as "r" to its end, with keys and a store."""
    (folder / "keys").write_text(new_key("k"))
    (folder / "app.py").write_text(APP.format(times=20))
    url = (folder / "blobs").absolute().as_uri()
    async with asyncio.timeout(60), api_host(blobs=url, max_blob_bytes=MOST) as host:
        config = WorkerConfig(app="here", server=host.address, keys_file=str(folder / "keys"))
        worker = Worker(config, load_app(str(folder / "app.py")))
        working = asyncio.create_task(worker.run())
        try:
            async with Client(host.address, codec=AesGcm.from_file(folder / "keys")) as client:
                run = await client.start("uses", {"text": LARGE}, id="r", pool="default")
                await run.signal("more", LARGE)
                assert await run.result() == LARGE * 2 + "!" + LARGE
                yield host
        finally:
            worker.drain()
            await working


def test_values_are_fetched_and_decrypted_before_they_are_replayed(tmp_path: Path) -> None:
    async def main() -> None:
        async with ran(tmp_path) as host:
            app, keys, saved = str(tmp_path / "app.py"), ["--keys-file", str(tmp_path / "keys")], tmp_path / "r.history"
            fits = await treadle(host, "run", "replay", "r", app, *keys, "-o", "json")
            assert fits.code == 0 and fits.json[0]["fits"], fits.out + fits.err
            assert (await treadle(host, "run", "history", "r", *keys, "-o", str(saved))).code == 0
            assert (await treadle(host, "run", "replay", str(saved), app)).code == 0
            (tmp_path / "other.py").write_text(APP.format(times=2))
            differs = await treadle(host, "run", "replay", str(saved), str(tmp_path / "other.py"))
            assert differs.code == 1 and "0/twice#2" in differs.err

            sealed = await treadle(host, "run", "replay", "r", app)
            assert sealed.code == 2 and "differ" not in sealed.err and "TREADLE_KEYS_FILE" in sealed.err

    asyncio.run(main())


def test_a_file_with_values_that_cannot_be_read_is_no_difference(tmp_path: Path) -> None:
    async def main() -> None:
        async with ran(tmp_path) as host, Client(host.address) as client:
            events = [event async for event in client.run("r").history()]
            file = HistoryFile(namespace="default", run_id="r", events=events)
            (tmp_path / "r.history").write_bytes(file.SerializeToString())
            told = await treadle(host, "run", "replay", str(tmp_path / "r.history"), str(tmp_path / "app.py"))
            assert told.code == 2 and "at event 1:" in told.err and "--blobs" in told.err

    asyncio.run(main())
