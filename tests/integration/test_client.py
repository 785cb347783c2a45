"""The client against the real API over a real socket; runs are moved on by a worker by hand."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from tests.integration.api_host import ApiHost, api_host
from treadle.client import (
    Client,
    ConfigError,
    FieldInvalid,
    NotFound,
    PayloadError,
    Refused,
    ResultTimeout,
    RunCancelled,
    RunClosed,
    RunFailed,
    RunHandle,
    RunIdConflict,
    RunStatus,
    RunTerminated,
    SyncClient,
    Tls,
    Unavailable,
)
from treadle.client.config import is_loopback
from treadle.controlplane.api.pool_service import PoolService
from treadle.controlplane.api.server import ApiServer
from treadle.controlplane.broker.memory import MemoryBroker
from treadle.worker.workflows import workflow


@dataclass(frozen=True)
class Parcel:
    """An argument with a type."""

    to: str
    grams: int


@workflow(pool="crm")
async def ship(parcel: Parcel, express: bool = False) -> Parcel:
    """A workflow whose result is its argument."""
    return parcel


@asynccontextmanager
async def scene() -> AsyncIterator[tuple[ApiHost, Client]]:
    """An API, and a client of it."""
    async with api_host() as host, Client(host.address) as client:
        yield host, client


def test_a_run_started_by_function_has_a_typed_result() -> None:
    async def main() -> None:
        async with scene() as (host, client):
            run = await client.start(ship, Parcel("Ada", 5), id="p1")
            assert (run.id, run.existed) == ("p1", False)
            assert host.head("p1").pool == "crm", "the function's own pool"
            waiting = asyncio.create_task(run.result(timeout="20s"))
            await host.finish("p1", result=b'{"to":"Ada","grams":5}')
            assert await waiting == Parcel("Ada", 5)
            info = await run.get()
            assert (info.status, info.workflow, info.length) == (RunStatus.COMPLETED, "ship", 3)
            assert info.duration is not None
            later = client.run("p1", ship)
            assert (await later.result()).grams == 5

    asyncio.run(main())


def test_a_run_started_by_name_speaks_json() -> None:
    async def main() -> None:
        async with scene() as (host, client):
            first = await client.start("ship", {"parcel": {"to": "B", "grams": 1}}, pool="crm")
            second = await client.start("ship", parcel={"to": "B", "grams": 1}, pool="crm")
            assert first.id.startswith("ship-")
            assert first.id < second.id, "ids sort by time"
            for run in (first, second):
                events = [event async for event in run.history()]
                assert events[0].run_started.input.data == b'{"parcel":{"to":"B","grams":1}}'
            await host.finish(first.id, result=b'{"a":[1]}')
            assert await first.result(timeout=20) == {"a": [1]}

    asyncio.run(main())


def test_outcomes_that_are_errors() -> None:
    async def main() -> None:
        async with scene() as (host, client):
            failed = await client.start(ship, Parcel("A", 1), id="f")
            await host.finish("f", error="boom")
            with pytest.raises(RunFailed, match="boom") as caught:
                await failed.result()
            assert caught.value.run_id == "f"
            assert caught.value.failure is not None
            assert caught.value.failure.type == "ValueError"
            assert "ValueError: boom" in str(caught.value.__cause__)

            ended = await client.start(ship, Parcel("A", 1), id="t")
            assert (await ended.terminate("no more")).status is RunStatus.TERMINATED
            with pytest.raises(RunTerminated, match="no more"):
                await ended.result()
            with pytest.raises(RunClosed):
                await ended.terminate("again")

            cancelled = await client.start(ship, Parcel("A", 1), id="c")
            info = await cancelled.cancel("changed my mind")
            if info.status.closed:  # nobody held it: there was no code to ask
                with pytest.raises(RunCancelled):
                    await cancelled.result()
            else:
                assert info.cancel_requested
                with pytest.raises(ResultTimeout):
                    await cancelled.result(timeout="200ms")

    asyncio.run(main())


def test_what_to_do_when_the_id_is_taken() -> None:
    async def main() -> None:
        async with scene() as (host, client):
            first = await client.start(ship, Parcel("A", 1), id="p")
            with pytest.raises(RunIdConflict):
                await client.start(ship, Parcel("A", 1), id="p")
            same = await client.start(ship, Parcel("A", 1), id="p", on_conflict="use_existing")
            assert (same.existed, same.incarnation) == (True, first.incarnation)
            anew = await client.start(ship, Parcel("A", 1), id="p", on_conflict="terminate_existing")
            assert anew.incarnation != first.incarnation
            await host.finish("p", result=b'{"to":"A","grams":1}')
            with pytest.raises(RunTerminated, match="replaced by a new start"):
                await first.result(timeout=20)
            late: RunHandle[Parcel] = RunHandle(client, "p", incarnation=first.incarnation)
            for timeout in (20, 0):
                with pytest.raises(NotFound, match="started anew"):
                    await late.result(timeout=timeout)
            with pytest.raises(FieldInvalid, match="on_conflict"):
                await client.start(ship, Parcel("A", 1), on_conflict=cast("Any", "replace"))

    asyncio.run(main())


def test_bad_input_is_refused_where_it_was_made() -> None:
    async def main() -> None:
        async with scene() as (_, client):
            wrong = cast("Any", {"to": "A", "grams": "many"})
            with pytest.raises(PayloadError, match="grams"):
                await client.start(ship, wrong)
            with pytest.raises(TypeError, match="parcel"):
                await cast("Any", client).start(ship)
            with pytest.raises(PayloadError, match=r"1,048,5\d\d"):
                await client.start(ship, Parcel("x" * (1 << 20), 1))
            with pytest.raises(ConfigError, match="names"):
                await client.start("ship", 1, 2)
            with pytest.raises(ConfigError, match="@workflow"):
                await client.start(cast("Any", scene))
            with pytest.raises(NotFound):
                await client.start("nobody-has-this")
            with pytest.raises(NotFound) as caught:
                await client.run("no-such-run").get()
            assert caught.value.reason == "RUN_NOT_FOUND"
            with pytest.raises(NotFound):
                await client.run("no-such-run").result(timeout=5)
            with pytest.raises(FieldInvalid):
                await client.start(ship, Parcel("A", 1), id="\n")

    asyncio.run(main())


def test_lists_come_in_pages_newest_first() -> None:
    async def main() -> None:
        async with scene() as (host, client):
            for number in range(5):
                await client.start(ship, Parcel("A", number), id=f"r{number}")
                async with asyncio.timeout(20):
                    while host.engine.clock.now() < host.head(f"r{number}").created_ms + 3:
                        await asyncio.sleep(0.001)  # runs of one millisecond are in no order
            await host.finish("r2", result=b"{}")
            assert [run.id async for run in client.list(limit=3)] == ["r4", "r3", "r2"]
            assert [run.id async for run in client.list(status="completed")] == ["r2"]
            assert len([run async for run in client.list(workflow="ship", since=timedelta(hours=1))]) == 5
            assert [run async for run in client.list(workflow="other")] == []
            page = await client.list_page(size=2)
            assert page.next_token
            rest = await client.list_page(size=10, token=page.next_token)
            assert [run.id for run in page.runs + rest.runs] == ["r4", "r3", "r2", "r1", "r0"]
            with pytest.raises(FieldInvalid, match="nonsense"):
                await client.list_page(status="nonsense")

    asyncio.run(main())


def test_watch_is_live_and_ends_with_the_run() -> None:
    async def main() -> None:
        async with scene() as (host, client):
            run = await client.start(ship, Parcel("A", 1), id="p")
            kinds: list[str] = []
            async with asyncio.timeout(20), aclosing(run.watch()) as events:
                async for event in events:
                    kinds.append(event.WhichOneof("kind") or "")
                    if kinds == ["run_started"]:
                        await host.finish("p", result=b"{}")
            assert kinds == ["run_started", "run_opened", "run_completed"]
            async with aclosing(client.run("gone").watch()) as events:
                with pytest.raises(NotFound):
                    await anext(events)

    asyncio.run(main())


def test_result_and_watch_survive_a_restart_of_the_api() -> None:
    async def main() -> None:
        async with api_host() as host:

            def server(listen: str) -> ApiServer:
                config = replace(host.config, listen=listen)
                pools = PoolService(host.store, MemoryBroker(), outbox_max=config.outbox_max)
                return ApiServer(config, runs=host.run_service, pools=pools)

            first = server("127.0.0.1:0")
            address = await first.start()
            async with Client(address) as client:
                run = await client.start(ship, Parcel("A", 1), id="p")
                result = asyncio.create_task(run.result(timeout=30))
                seen: list[int] = []
                watching = asyncio.create_task(watch(run, seen))
                async with asyncio.timeout(20):
                    while not seen:
                        await asyncio.sleep(0.01)
                await first.stop(0)
                await host.finish("p", result=b'{"to":"A","grams":9}')
                second = server(address)
                await second.start()
                try:
                    assert (await result).grams == 9
                    await asyncio.wait_for(watching, 20)
                    assert seen == [1, 2, 3], "each event once, in order"
                finally:
                    await second.stop(0)

    asyncio.run(main())


async def watch(run: RunHandle[Any], seen: list[int]) -> None:
    """Note the positions of a run's events until it is closed."""
    async with aclosing(run.watch()) as events:
        async for event in events:
            seen.append(event.position)  # noqa: PERF401 - it is read while it grows


def test_nobody_there_is_told_with_the_address() -> None:
    async def main() -> None:
        async with Client("127.0.0.1:1") as client:
            with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
                await client.run("x").get()
            with pytest.raises(ResultTimeout):
                await client.run("x").result(timeout="300ms")

    asyncio.run(main())


def test_the_blocking_client_does_the_same() -> None:
    def blocking(address: str, ready: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
        with SyncClient(address) as client:
            run = client.start(ship, Parcel("A", 1), id="s1")
            loop.call_soon_threadsafe(ready.set)
            assert run.result(timeout="20s") == Parcel("A", 1)
            assert run.get().status is RunStatus.COMPLETED
            assert [event.position for event in run.history()] == [1, 2, 3]
            assert [event.position for event in run.watch(after=1)] == [2, 3]
            assert next(iter(client.list())).id == "s1"
            assert client.list_page().runs[0].id == "s1"
            with pytest.raises(NotFound):
                client.run("nope").get()
        client.close()
        with pytest.raises(ConfigError, match="closed"):
            run.get()

    async def main() -> None:
        async with api_host() as host:
            ready = asyncio.Event()
            working = asyncio.create_task(asyncio.to_thread(blocking, host.address, ready, asyncio.get_running_loop()))
            await asyncio.wait_for(ready.wait(), 20)
            await host.finish("s1", result=b'{"to":"A","grams":1}')
            await asyncio.wait_for(working, 30)

    asyncio.run(main())


def test_a_token_proves_who_calls(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"tdl_1_secret").hexdigest()
    tokens = tmp_path / "tokens"
    tokens.write_text(f"default client {digest} never\n")

    async def main() -> None:
        async with api_host(tokens_file=tokens) as host:
            async with Client(host.address, token="tdl_1_secret") as client:
                run = await client.start(ship, Parcel("A", 1), id="p")
                with pytest.raises(Refused):
                    await run.terminate()
                async with aclosing(run.watch()) as events:
                    assert (await anext(events)).position == 1
            async with Client(host.address) as nobody:
                with pytest.raises(Refused) as caught:
                    await nobody.run("p").get()
                assert caught.value.remedy
            async with Client(host.address, token="wrong") as stranger:
                with pytest.raises(Refused):
                    await stranger.run("p").result(timeout=5)

    asyncio.run(main())


def test_settings_that_expose_or_contradict_are_refused() -> None:
    with pytest.raises(ConfigError, match="insecure=True"):
        asyncio.run(ask(Client("treadle.example:7430")))
    with pytest.raises(ConfigError, match="namespace"):
        Client(namespace="Prod_1")
    with pytest.raises(ConfigError, match="together"):
        Tls(cert="only.pem")
    with pytest.raises(ConfigError, match=r"gone\.pem"):
        asyncio.run(ask(Client("treadle.example:7430", tls=Tls(ca="gone.pem"))))
    assert is_loopback("127.0.0.2:1")
    assert is_loopback("[::1]:7430")
    assert is_loopback("unix:/tmp/x")
    assert not is_loopback("10.0.0.1:7430")


async def ask(client: Client) -> None:
    """Make one call."""
    async with client:
        await client.run("x").get()


def test_a_closed_client_says_so() -> None:
    async def main() -> None:
        async with scene() as (_, client):
            run = client.run("x")
            await client.close()
            await client.close()
            with pytest.raises(ConfigError, match="closed"):
                await run.get()

    asyncio.run(main())
