"""Each line that ends in `# wrong` must be a type error; no other line may be one."""

from __future__ import annotations

from tests.typing.right_client import Upload, imports, nightly
from treadle.client import Client, SyncClient


def takes_text(text: str) -> None:
    """Wants no int."""


async def wrong(client: Client) -> None:
    await client.start(imports, "x")  # wrong
    await client.start(imports, "x", id="a")  # wrong
    await client.start(imports)  # wrong
    await client.start(imports, id="a")  # wrong
    await client.start(imports, Upload("x"), 5)  # wrong
    await client.start(imports, Upload("x"), True, None)  # wrong
    await client.start(imports, Upload("x"), dyr=True)  # wrong
    await client.start(imports, Upload("x"), id=5)  # wrong
    await client.start(imports, Upload("x"), on_conflict="replace")  # wrong
    await client.start(nightly, 1)  # wrong
    await client.start(wrong, client)  # wrong
    takes_text(await (await client.start(imports, Upload("x"))).result())  # wrong


def wrong_too(client: SyncClient) -> None:
    client.start(imports, "x")  # wrong
    client.start(imports, Upload("x"), True, 3)  # wrong
    takes_text(client.start(imports, Upload("x")).result())  # wrong
