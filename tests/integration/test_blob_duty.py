"""What the control plane deletes from the blob store: the values of deleted runs and of earlier starts, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest

from tests.integration.shell_rig import house, until
from tests.servers.s3_server import S3Server
from treadle.client.blobs import home_of, open_store
from treadle.controlplane.duties.blobs import BlobDuty
from treadle.controlplane.machine.env import Settings
from treadle.controlplane.machine.requests import TerminateRun
from treadle.controlplane.store.port import Want
from treadle.protocol.ids import RunKey

DAY = timedelta(days=1)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with S3Server() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield server


def test_values_go_when_nobody_can_need_them(s3: S3Server) -> None:
    async def main() -> None:
        async with house(settings=Settings(retention_ms=1)) as here:
            store = open_store(s3.url)
            duty = BlobDuty(here.engine, here.timers, store)
            for run in ("open", "gone", "again"):
                await here.start(run)
            incarnation = {run: here.head(run).incarnation for run in ("open", "gone", "again")}
            kept = [
                f"{home_of('default', 'open', None)}/a",
                f"{home_of('default', 'open', incarnation['open'])}/b",
                f"{home_of('default', 'again', None)}/c",
                f"{home_of('default', 'again', incarnation['again'])}/d",
                f"{home_of('default', 'unknown', None)}/e",
                "somebody/elses",
            ]
            dead = [
                f"{home_of('default', 'gone', None)}/f",
                f"{home_of('default', 'gone', incarnation['gone'])}/g",
                f"{home_of('default', 'again', incarnation['again'] ^ 1)}/h",
            ]
            for key in (*kept, *dead):
                store.put(key, b"x")
            gone = RunKey("default", "gone")
            await here.engine.ask(gone, TerminateRun("q", ""))
            await until(lambda: here.store.load_now([Want(gone)])[0].tombstone is not None)
            assert (await duty.sweep(), sorted(blob.key for blob in store.list())) == (0, sorted([*kept, *dead])), (
                "young ones may belong to a start that is on its way"
            )
            s3.age(DAY)
            assert await duty.sweep() == len(dead)
            assert sorted(blob.key for blob in store.list()) == sorted(kept)
            assert await duty.sweep() == 0

    asyncio.run(main())


def test_a_sweep_that_comes_often_leaves_a_start_the_time_that_it_needs(s3: S3Server) -> None:
    async def main() -> None:
        async with house() as here:
            store, in_s = open_store(s3.url), 600.0
            duty = BlobDuty(here.engine, here.timers, store, every_s=60, clock=lambda: time.time() + in_s)
            head = await here.start("r")
            store.put(f"{home_of('default', 'r', head.incarnation ^ 1)}/a", b"x")
            assert await duty.sweep() == 0
            in_s = 3700.0
            assert await duty.sweep() == 1

    asyncio.run(main())
