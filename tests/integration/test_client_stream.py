"""The client's stream of runs against the real API: many starts, room, deadlines, cancellation, a line that is cut."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from tests.integration.api_host import ApiHost, api_host
from tests.kill.relay import Relay
from treadle.client import Client, NotFound, ResultTimeout, Unavailable
from treadle.client import stream as stream_module
from treadle.controlplane.machine.requests import StartRun
from treadle.protocol.ids import RunKey
from treadle.worker.workflows import workflow

T = 20


@workflow(pool="crm")
async def double(n: int) -> int:
    """A workflow."""
    return 2 * n


@asynccontextmanager
async def scene() -> AsyncIterator[tuple[ApiHost, Client]]:
    async with api_host() as host, Client(host.address) as client:
        yield host, client


async def until(condition: Any) -> None:
    async with asyncio.timeout(T):
        while not condition():
            await asyncio.sleep(0.005)


def test_more_starts_than_there_is_room_for_all_come_through() -> None:
    async def main() -> None:
        async with scene() as (host, client):
            most = 0
            submit = host.engine.submit

            def counted(*args: Any) -> None:
                nonlocal most
                most = max(most, host.engine.committer._backlog.runs)
                submit(*args)

            host.engine.submit = counted  # type: ignore[method-assign, assignment]
            starts = [asyncio.create_task(client.start(double, n, id=f"r{n}")) for n in range(6_000)]
            bad = asyncio.create_task(client.start(double, cast("int", "x")))
            last = asyncio.create_task(client.start(double, 1, id="last"))
            await asyncio.sleep(0)
            for task in starts[5_000::10]:
                task.cancel()  # in their turn, or while they wait for it
            done = await asyncio.wait_for(asyncio.gather(*starts, bad, last, return_exceptions=True), 60)
            failed = [found for found in done if isinstance(found, BaseException)]
            assert len(failed) == 101, "the cancelled ones, and the one of a wrong type"
            assert (await last).id == "last"
            assert most <= 2_300, "the server does not read on while so many are undecided"

    asyncio.run(main())


def test_starts_of_one_turn_share_frames_and_results_need_no_further_call(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with scene() as (host, client):
            runs = await asyncio.gather(*(client.start(double, n, id=f"r{n}") for n in range(150)))
            waiting = [asyncio.create_task(run.result(timeout=T)) for run in runs[:50]]
            for n in range(100):
                await host.finish(f"r{n}", result=b"%d" % n)
            assert await asyncio.gather(*waiting) == list(range(50))
            await until(lambda: len(host.run_service.ends) == 50)
            monkeypatch.setattr(host.run_service.ends, "look", None)  # nothing may be read for these
            assert [await run.result(timeout=T) for run in runs[50:100]] == list(range(50, 100))
            monkeypatch.undo()
            assert await runs[0].result() == 0, "a second time it is asked for"
            assert (await runs[1].wait()).closed_at is not None
            with pytest.raises(ResultTimeout):
                await runs[120].result(timeout="50ms")
            with pytest.raises(ResultTimeout):
                await runs[120].result(timeout=0.6)
            host.engine.hub.on_end = None
            assert await client.run("r3", double).result(timeout=0) == 3, "closed is told however short the timeout is"

    asyncio.run(main())


def test_who_waits_no_longer_leaves_no_watch_behind() -> None:
    async def main() -> None:
        async with scene() as (host, client):
            await client.start(double, 1, id="r")
            async with Client(host.address) as other:
                tasks = [asyncio.create_task(other.run("r").result()) for _ in range(3)]
                await until(lambda: len(host.run_service.ends._of(RunKey("default", "r"))) == 4)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await until(lambda: len(host.run_service.ends._of(RunKey("default", "r"))) == 1)
                with pytest.raises(NotFound):
                    await other.run("gone").result()
            await host.finish("r", result=b"2")
            await until(lambda: not len(host.run_service.ends))

    asyncio.run(main())


def test_closing_a_client_cancels_who_waits() -> None:
    async def main() -> None:
        async with api_host() as host:
            client = Client(host.address)
            run = await client.start(double, 1, id="r")
            waiting = asyncio.create_task(run.result())
            await asyncio.sleep(0)
            await client.close()
            await asyncio.wait([waiting], timeout=T)
            assert waiting.cancelled()
            await until(lambda: not len(host.run_service.ends))

    asyncio.run(main())


def test_nobody_there_is_told_soon_and_with_the_address() -> None:
    async def main() -> None:
        async with Client("127.0.0.1:1") as client:
            began = time.monotonic()
            found = await asyncio.gather(*(client.start(double, n) for n in range(3)), return_exceptions=True)
            assert all(isinstance(error, Unavailable) and "127.0.0.1:1" in str(error) for error in found)
            assert len({id(error) for error in found}) == 3, "each raises its own"
            assert time.monotonic() - began < 8

    asyncio.run(main())


def test_a_start_over_a_silent_line_is_given_up_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "CALL_TIMEOUT_S", 1.0)

    async def main() -> None:
        async with api_host() as host:
            with Relay(int(host.address.rpartition(":")[2])) as relay:
                async with Client(relay.address) as client:
                    await client.start(double, 1, id="before")
                    await asyncio.to_thread(relay.stall, "down")
                    starts = [client.start(double, n, id=f"r{n}") for n in range(3)]
                    for error in await asyncio.gather(*starts, return_exceptions=True):
                        assert isinstance(error, Unavailable) and error.reason == "DEADLINE_EXCEEDED"
                    assert _there(host, "r2"), "it may have had its effect all the same"
                    await asyncio.to_thread(relay.heal)
                    assert (await client.start(double, 1, id="s")).id == "s", "what comes too late harms nobody"

    asyncio.run(main())


def test_over_a_line_that_was_cut_everything_unanswered_is_asked_again() -> None:
    async def main() -> None:
        async with api_host() as host:
            with Relay(int(host.address.rpartition(":")[2])) as relay:
                async with Client(relay.address) as client:
                    runs = await asyncio.gather(*(client.start(double, n, id=f"r{n}") for n in range(20)))
                    results = [asyncio.create_task(run.result(timeout=T)) for run in runs]
                    await asyncio.to_thread(relay.stall, "down")
                    again = asyncio.create_task(client.start(double, 1, id="again"))
                    await until(lambda: _there(host, "again"))
                    await asyncio.to_thread(relay.cut)
                    for n in range(20):
                        await host.finish(f"r{n}", result=b"%d" % n)  # nobody hears of it
                    await asyncio.to_thread(relay.heal)
                    assert await asyncio.gather(*results) == list(range(20))
                    assert not (await again).existed
                    assert host.head("again").length == 1, "sent twice, started once"

    asyncio.run(main())


def _there(host: ApiHost, run_id: str) -> bool:
    return host.head(run_id).length > 0


def test_what_is_away_for_a_moment_is_tried_again() -> None:
    async def main() -> None:
        async with scene() as (host, client):
            submit, left = host.engine.submit, 2

            def away(run: Any, request: Any, settle: Any) -> None:
                nonlocal left
                if isinstance(request, StartRun) and left:
                    left -= 1
                    settle(Unavailable("Redis does not answer"))
                else:
                    submit(run, request, settle)

            host.engine.submit = away  # type: ignore[method-assign]
            assert (await client.start(double, 1, id="r")).id == "r"
            left = 100
            with pytest.raises(Unavailable, match="Redis"):
                await client.start(double, 1, id="s")

    asyncio.run(main())
