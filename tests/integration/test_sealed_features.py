"""Encrypted values through every feature that carries them: nothing can be read in Redis, and everything arrives."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from treadle.client import Client, RunFailed, RunTimedOut
from treadle.client.encryption import AesGcm, new_key
from treadle.controlplane.embedded import embedded
from treadle.worker import (
    Deferred,
    Retry,
    StepError,
    continue_as_new,
    defer,
    last_progress,
    progress,
    receive,
    step,
    workflow,
)
from treadle.worker.app import collect
from treadle.worker.config import WorkerConfig
from treadle.worker.hooks import FailedRun
from treadle.worker.runtime import Worker

SECRET = "oysters-and-butter"
LARGE = SECRET * 6_000
tokens: asyncio.Queue[str] = asyncio.Queue()
handled: asyncio.Queue[FailedRun] = asyncio.Queue()


@step(pool="default", retry=Retry(attempts=2, initial="0.01s"))
async def load() -> str:
    """Says how far it is, fails once, and returns what it said."""
    said = last_progress(str)
    if said is None:
        progress(SECRET)
        raise ValueError(SECRET)
    return said


@step(pool="default", retry=Retry(attempts=1))
async def decide() -> str:
    tokens.put_nowait(defer())
    raise Deferred


@workflow
async def deciding() -> str:
    decided = await decide()
    try:
        await decide()
    except StepError as error:
        return f"{decided[:8]} {len(decided)} {error.message}"
    return "accepted"


@workflow
async def parts(left: int, kept: str) -> str:
    """Goes on as new with what it keeps, while large signals wait."""
    if left:
        continue_as_new(left - 1, kept)
    return kept + await receive("more", str) + await receive("more", str)


@workflow
async def told(text: str) -> str:
    return text


@step
async def handle(failed: FailedRun) -> None:
    handled.put_nowait(failed)


@workflow(on_failure=handle)
async def failing(text: str) -> str:
    if text != "well":
        raise ValueError(text)
    return await load()


@workflow(timeout="0.2s", on_failure=handle)
async def deaf(text: str) -> None:
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await load()


async def _use(client: Client) -> None:
    run = await client.start(parts, 0, SECRET, id="short")
    await run.signal("more", "!")
    await run.signal("more", LARGE)
    assert await run.result("30s") == f"{SECRET}!{LARGE}"

    run = await client.start(parts, 3, LARGE, id="long")
    await run.signal("more", LARGE)
    await run.signal("more", SECRET)
    assert await run.result("30s") == LARGE * 2 + SECRET

    decided = await client.start(deciding)
    await client.complete_step(await tokens.get(), LARGE)
    await client.fail_step(await tokens.get(), SECRET)
    assert await decided.result("30s") == f"oysters- {len(LARGE)} {SECRET}"

    await client.schedules.create("often", told, SECRET, every="1h")
    scheduled = await client.schedules.trigger("often")
    assert await scheduled.result("30s") == SECRET

    await client.schedules.create("nightly", failing, SECRET, every="1h")
    again = await client.schedules.trigger("nightly")
    with pytest.raises(RunFailed, match=SECRET):
        await again.result("30s")
    assert (await handled.get()).input == {"text": SECRET}
    await again.retry(input={"text": "well"})
    assert await again.result("30s") == SECRET

    wrong = await client.start(failing, SECRET, id="failing")
    with pytest.raises(RunFailed, match=SECRET):
        await wrong.result("30s")
    failed = await handled.get()
    assert (failed.error.message, failed.input) == (SECRET, {"text": SECRET})
    for text in (SECRET, LARGE):
        endless = await client.start(deaf, text)
        with pytest.raises(RunTimedOut):
            await endless.result("30s")
        failed = await handled.get()
        assert (failed.id, failed.error.type, failed.input) == (endless.id, "RunTimedOut", {"text": text})
    await wrong.retry(input={"text": "well"})
    assert await wrong.result("30s") == SECRET


def test_nothing_is_readable_and_everything_arrives(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(new_key("k"))

    async def main() -> None:
        registry = collect([load, decide, deciding, parts, told, handle, failing, deaf])
        async with embedded(tmp_path / "state", 0, cleanup_ms=500) as address:
            config = WorkerConfig(app="here", server=address, keys_file=str(keys), always_replay=True)
            worker = Worker(config, registry)
            working = asyncio.create_task(worker.run())
            try:
                async with asyncio.timeout(60), Client(address, codec=AesGcm.from_file(keys)) as client:
                    await _use(client)
            finally:
                worker.drain()
                await working

    asyncio.run(main())
    files = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert any("blobs" in path.parts for path in files)
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
