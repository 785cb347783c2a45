"""Calls of the client that must type-check, with the types that they must have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_type

from treadle.client import Client, RunHandle, RunInfo, SyncClient, SyncRunHandle
from treadle.worker.workflows import workflow


@dataclass
class Upload:
    """An argument."""

    path: str


@workflow
async def imports(upload: Upload, dry: bool = False) -> int:
    """Two parameters, one with a default."""
    return 0


@workflow
async def nightly() -> None:
    """None at all."""


async def uses(client: Client) -> None:
    """The asynchronous client."""
    run = await client.start(imports, Upload("x"), id="a", on_conflict="use_existing")
    assert_type(run, RunHandle[int])
    assert_type(await run.result(timeout="5m"), int)
    assert_type(await client.start(imports, Upload("x"), True, pool="p"), RunHandle[int])
    assert_type(await client.start(imports, Upload("x"), dry=True), RunHandle[int])
    assert_type(await client.start(nightly, id="n"), RunHandle[None])
    assert_type(await client.start("imports", upload={"path": "x"}, id="b"), RunHandle[Any])
    assert_type(await client.run("a", imports).result(), int)
    assert_type([one async for one in client.list(status="failed")], list[RunInfo])


def blocks(client: SyncClient) -> None:
    """The blocking client."""
    run = client.start(imports, Upload("x"), id="a")
    assert_type(run, SyncRunHandle[int])
    assert_type(run.result(), int)
    assert_type(client.start(imports, upload=Upload("x")), SyncRunHandle[int])
    assert_type(list(client.list()), list[RunInfo])
