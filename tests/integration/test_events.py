"""Events from clients to workflows, over real sockets, an embedded store and a worker in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.api_host import api_host
from treadle.client import Client, FieldInvalid, NewEvent, PayloadError, Refused, RunHandle, SyncClient
from treadle.controlplane.embedded import embedded
from treadle.protocol.errors import ConfigError, TreadleError
from treadle.worker import Event, step, workflow
from treadle.worker.app import collect
from treadle.worker.config import WorkerConfig
from treadle.worker.runtime import Worker

DEADLINE_S = 20.0


@dataclass
class Upload:
    """What an event brings."""

    file: str
    rows: int = 0


@step
def count(upload: Upload) -> str:
    return f"{upload.file}: {upload.rows}"


@workflow(on="contacts.uploaded")
async def import_contacts(upload: Upload) -> str:
    return await count(upload)


@workflow(on=["contacts.*", "people.added"])
async def audit(event: Event[dict[str, Any]]) -> list[Any]:
    return [event.id, event.name, event.time.tzinfo is not None, event.data]


@workflow(on="contacts.uploaded", when="event.data.rows > 100")
async def big_ones(upload: Upload) -> int:
    return upload.rows


@workflow(on="tick")
async def without_data() -> str:
    return "ticked"


EVERYTHING = [count, import_contacts, audit, big_ones, without_data]


@asynccontextmanager
async def scene(folder: Path, app: list[Any], **settings: Any) -> AsyncIterator[Client]:
    async with embedded(folder, 0) as address:
        worker = Worker(WorkerConfig(app="x", server=address, pool="default", **settings), collect(app))
        working = asyncio.create_task(worker.run())
        try:
            async with Client(address) as client:
                await until(lambda: registered(client, app))
                yield client
        finally:
            worker.drain()
            await working


async def registered(client: Client, app: list[Any]) -> bool:
    names = {one.name for one in app if getattr(one, "trigger", None) is not None}
    return names <= {trigger.workflow for trigger in await client.triggers()}


async def until(said: Callable[[], Any]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not await said():
            await asyncio.sleep(0.01)


async def results(client: Client, count: int) -> dict[str, Any]:
    """Wait for so many runs; returns the result of each workflow."""
    found: dict[str, Any] = {}

    async def all_there() -> bool:
        return len([run async for run in client.list()]) >= count

    await until(all_there)
    async for run in client.list():
        handle: RunHandle[Any] = client.run(run.id)
        found[run.workflow] = await handle.result(timeout=DEADLINE_S)
    return found


def test_an_event_starts_all_workflows_that_say_so_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path, EVERYTHING) as client:
            sent = await client.send("contacts.uploaded", Upload("a.csv", 250), id="u1")
            assert (sent.id, sent.duplicate, sent.starts) == ("u1", False, 3)
            again = await client.send("contacts.uploaded", Upload("other.csv"), id="u1")
            assert again.duplicate and again.time == sent.time
            found = await results(client, 3)
            data = {"file": "a.csv", "rows": 250}
            assert found == {
                "import_contacts": "a.csv: 250",
                "audit": ["u1", "contacts.uploaded", True, data],
                "big_ones": 250,
            }
            small = await client.send("contacts.uploaded", Upload("b.csv", 1))
            assert small.starts == 2
            await results(client, 5)
            assert (await client.send("nobody.listens")).starts == 0
            assert (await client.send("tick", {"more": 1})).starts == 1
            assert (await results(client, 6))["without_data"] == "ticked"
            listed = [event async for event in client.events()]
            assert [event.name for event in listed] == ["tick", "nobody.listens", *["contacts.uploaded"] * 2]
            assert [event.event_id async for event in client.events(name="contacts.uploaded", limit=1)] == [small.id]

    asyncio.run(main())


def test_two_thousand_at_once_and_a_wrong_one_among_them(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path, [without_data]) as client:
            many = [NewEvent("bulk", {"n": n}, id=f"e{n}") for n in range(2_000)]
            sent = await client.send_many(many)
            assert [one.id for one in sent] == [f"e{n}" for n in range(2_000)]
            assert not any(one.duplicate for one in sent)
            assert all(one.duplicate for one in await client.send_many(many[:10]))
            with pytest.raises(FieldInvalid, match="event name"):
                await client.send_many([NewEvent("fine"), NewEvent("not a name")])
            with pytest.raises(PayloadError, match="limit of 65,"):
                await client.send("large", "x" * 70_000)
            listed = [event.event_id async for event in client.events(name="bulk")]
            assert sorted(listed) == sorted(f"e{n}" for n in range(2_000))
            assert [event async for event in client.events(name="fine")] == []

    asyncio.run(main())


def test_a_blocking_client_sends_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path, [without_data]) as client:

            def blocking() -> None:
                with SyncClient(client.target) as sync:
                    assert sync.send("tick", id="t1").starts == 1
                    assert [one.duplicate for one in sync.send_many([NewEvent("tick", id="t1")])] == [True]
                    assert [event.event_id for event in sync.events()] == ["t1"]
                    assert [trigger.workflow for trigger in sync.triggers()] == ["without_data"]
                    assert sync.delete_trigger("without_data") and not sync.delete_trigger("without_data")
                    assert sync.send("tick", id="t2").starts == 0

            await asyncio.to_thread(blocking)

    asyncio.run(main())


def test_events_are_refused_while_the_outbox_is_full() -> None:
    async def main() -> None:
        async with api_host(outbox_max=1) as host, Client(host.address) as client:
            await client.start("wf", pool="nobody")
            with pytest.raises(Refused) as refused:
                for _ in range(200):  # what is known of the outbox is a second old at most
                    await client.send("x")
                    await asyncio.sleep(0.02)
            assert refused.value.reason == "OUTBOX_FULL"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("when", "told"),
    [("event.data.rows >", "line 1, column 18"), ("oder.x == 1", "'oder' is not known")],
)
def test_a_worker_with_a_wrong_condition_is_refused(tmp_path: Path, when: str, told: str) -> None:
    @workflow(name="wrong", on="x", when=when)
    async def wrong() -> None: ...

    async def main() -> None:
        async with embedded(tmp_path, 0) as address:
            worker = Worker(WorkerConfig(app="x", server=address, pool="default"), collect([wrong]))
            with pytest.raises(FieldInvalid, match="workflow 'wrong'") as refused:
                await worker.run()
            assert told in str(refused.value)

    asyncio.run(main())


def test_what_the_decorator_refuses() -> None:
    async def two(a: int, b: int) -> None: ...

    async def one(a: int) -> None: ...

    for function, options in (
        (two, {"on": "x"}),
        (one, {"when": "true"}),
        (one, {"on": "not a name"}),
        (one, {"on": []}),
    ):
        with pytest.raises(ConfigError):
            workflow(**options)(function)
    with pytest.raises(TreadleError, match="on='x\\*'"):
        workflow(on="x*")(one)


def test_an_event_starts_the_newest_version_though_an_older_one_registered_last(tmp_path: Path) -> None:
    @workflow(name="bill", version="1", on="order.paid")
    async def older() -> str:
        return "1"

    @workflow(name="bill", version="2", on="order.paid")
    async def newer() -> str:
        return "2"

    async def main() -> None:
        async with embedded(tmp_path, 0) as address, Client(address) as client, asyncio.TaskGroup() as group:
            workers = []
            for flow in (older, newer, older):  # its worker comes again
                workers.append(Worker(WorkerConfig(app="x", server=address, pool="default"), collect([flow])))
                group.create_task(workers[-1].run())

                async def all_live(count: int = len(workers)) -> bool:
                    return len(await client.workers()) == count

                await until(all_live)
            assert (await client.send("order.paid")).starts == 1
            assert await results(client, 1) == {"bill": "2"}
            assert [trigger.workflow for trigger in await client.triggers()] == ["bill"]
            for worker in workers:
                worker.drain()

    asyncio.run(main())
