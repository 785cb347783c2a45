"""The large values of a run that goes on for years under one id: what it needs is kept, what it left behind is deleted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.integration.api_host import ApiHost, api_host
from treadle.client import Client
from treadle.client.blobs import BlobStore, open_store
from treadle.controlplane.duties.blobs import BlobDuty
from treadle.controlplane.duties.leases import LeaseChecker
from treadle.controlplane.duties.queues import QueueWatch
from treadle.controlplane.duties.timers import TimerDuty
from treadle.worker import continue_as_new, publish_state, receive, receive_question, workflow
from treadle.worker.app import collect
from treadle.worker.config import WorkerConfig
from treadle.worker.runtime import Worker

HOUR_S, WEEK_S = 3600.0, 7 * 86_400.0
STATE, ANSWER, CARRIED, KEPT = (letter * 80_000 for letter in "sack")


@workflow
async def entity(part: int, kept: str) -> str:
    if part == 1:
        publish_state(STATE)
    if part == 3:
        question = await receive_question("what", str)
        question.answer(ANSWER)
    if part < 4:
        continue_as_new(part + 1, kept)
    await receive("end", int)
    return kept + await receive("more", str)


@workflow
async def waits(text: str) -> str:
    return text + await receive("end", str)


class Deployment:
    """A control plane and a worker in this process, and the sweep, which is done at times that a test names."""

    def __init__(self, host: ApiHost, client: Client, store: BlobStore) -> None:
        self.host, self.client, self.store = host, client, store

    def keys(self) -> set[str]:
        return {blob.key for blob in self.store.list()}

    async def sweep(self, in_s: float) -> int:
        engine = self.host.engine
        timers = TimerDuty(engine, LeaseChecker(engine), QueueWatch(engine))
        return await BlobDuty(engine, timers, self.store, clock=lambda: time.time() + in_s).sweep()

    async def until(self, fact: Callable[[], Any]) -> None:
        while not fact():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def deployment(folder: Path) -> AsyncIterator[Deployment]:
    url = (folder / "blobs").absolute().as_uri()
    async with asyncio.timeout(60), api_host(blobs=url) as host:
        worker = Worker(WorkerConfig(app="here", server=host.address), collect([entity, waits]))
        working = asyncio.create_task(worker.run())
        try:
            async with Client(host.address) as client:
                yield Deployment(host, client, open_store(url))
        finally:
            worker.drain()
            await working


def test_a_later_part_keeps_what_is_known_of_the_first_one_and_nothing_else(tmp_path: Path) -> None:
    async def main() -> None:
        async with deployment(tmp_path) as here:
            run = await here.client.start(entity, 1, KEPT, id="e")
            await run.signal("more", CARRIED)
            assert await run.ask("what", "?" * 80_000, id="q", returns=str) == ANSWER
            await here.until(lambda: here.host.head("e").part == 4)
            before = here.keys()
            assert await here.sweep(in_s=WEEK_S + HOUR_S) == len(before) - 4, "inputs of former parts, and the question"
            assert await here.sweep(in_s=WEEK_S + HOUR_S) == 0
            assert await run.state() == STATE
            assert await run.ask("what", "?" * 80_000, id="q", returns=str) == ANSWER
            await run.signal("end", 1)
            assert await run.result() == KEPT + CARRIED

    asyncio.run(main())


def test_inputs_that_a_run_never_took_and_those_of_former_starts_are_deleted_after_a_week(tmp_path: Path) -> None:
    async def main() -> None:
        async with deployment(tmp_path) as here:
            first = await here.client.start(waits, "first " * 20_000, id="r", on_conflict="use_existing")
            await first.signal("end", "")
            await first.result()
            again = await here.client.start(waits, KEPT, id="r", on_conflict="allow_closed")
            await again.signal("other", CARRIED)
            for _ in range(3):
                await here.client.start(waits, "not taken" * 10_000, id="r", on_conflict="use_existing")
            assert len(here.keys()) == 7
            assert await here.sweep(in_s=2 * HOUR_S) == 1, (
                "the result of the first start; a letter may still bring the others"
            )
            assert await here.sweep(in_s=WEEK_S + HOUR_S) == 4
            await again.signal("end", CARRIED)
            assert await again.result() == KEPT + CARRIED

    asyncio.run(main())
