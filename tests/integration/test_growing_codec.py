"""A codec that makes values larger: what is over the bound only then is stored like any other, beside the event loop."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Iterator

import pytest

from tests.integration.api_host import api_host
from tests.servers.s3_server import S3Server
from treadle.client import Client
from treadle.client.blobs import MemoryStore
from treadle.client.vault import Vault
from treadle.protocol.sealing import FROM_RUN, Place
from treadle.v1.common_pb2 import Payload
from treadle.worker import publish_state, step, workflow
from treadle.worker.app import collect
from treadle.worker.config import WorkerConfig
from treadle.worker.runtime import Worker

GROWS = "a" * (60 << 10)
"""Under the bound of 64 KiB, and over it in base64."""


class Base64:
    errors = False

    def encode(self, payload: Payload, place: Place) -> Payload:
        return Payload(data=base64.b64encode(payload.data), encoding="base64")

    def decode(self, payload: Payload, place: Place) -> Payload:
        return Payload(data=base64.b64decode(payload.data))


@step(pool="default")
async def grown() -> str:
    return GROWS


@workflow
async def shows() -> int:
    publish_state(GROWS)
    return 1


@workflow
async def returns() -> str:
    return GROWS


@workflow
async def loads() -> int:
    return len(await grown())


@workflow
async def small() -> str:
    return "small"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with S3Server() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.mark.parametrize(("name", "result"), [("shows", 1), ("returns", GROWS), ("loads", len(GROWS))])
def test_the_worker_goes_on_while_such_a_value_is_stored(s3: S3Server, name: str, result: object) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), api_host(blobs=s3.url) as host:
            config = WorkerConfig(app="here", server=host.address, codec=f"{__name__}:Base64")
            worker = Worker(config, collect([grown, shows, returns, loads, small]))
            working = asyncio.create_task(worker.run())
            s3.hold.set()
            net = threading.Timer(10, s3.hold.clear)  # a loop that waits for the store could not
            net.start()
            try:
                async with Client(host.address, codec=Base64()) as client:
                    run = await client.start(name, id="r", pool="default")
                    while not s3.held:
                        await asyncio.sleep(0.01)
                    other = await client.start("small", id="s", pool="default")
                    assert await other.result() == "small"
                    assert s3.hold.is_set(), "the loop waited for the store"
                    s3.hold.clear()
                    assert await run.result() == result
            finally:
                net.cancel()
                worker.drain()
                await working

    asyncio.run(main())


class Refusing(MemoryStore):
    def put(self, key: str, data: bytes) -> None:
        raise AssertionError("what is sealed on an event loop is never stored there")


@pytest.mark.parametrize("size", [1, 60 << 10, 1 << 20])
@pytest.mark.parametrize("codec", [None, Base64()])
def test_what_is_sealed_at_once_is_never_stored(codec: Base64 | None, size: int) -> None:
    vault = Vault("default", codec=codec, store=Refusing())
    payload, place = Payload(data=b"x" * size), Place("default", "r", FROM_RUN)
    here = vault.seal_here(payload, place, ["default/r/1"])
    assert (here is None) is (size > 1 and (codec is not None or size > 64 << 10))
    stays = vault.seal_here(payload, place, [])
    assert stays is not None and vault.open(stays, place) == payload
