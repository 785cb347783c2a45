"""What a client has under way when servers die or its connection is cut: no start is lost or doubled, every result comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.kill.conftest import Build
from tests.kill.house import House
from tests.kill.process import until
from tests.kill.relay import Relay, Side
from tests.servers.rabbit_server import RabbitServer
from treadle.client import Client, RunHandle
from treadle.protocol.errors import NotFound, Unavailable

pytestmark = [pytest.mark.kill, pytest.mark.redis]

RUNS = 100
GATE = "go"


def staffed(house: House) -> House:
    """Bring its workers."""
    house.worker("flows")
    house.worker("steps")
    house.ready()
    return house


def started(house: House, run: str) -> bool:
    """Whether the run is there, asked directly."""
    try:
        return bool(house.client.run(run).get())
    except (NotFound, Unavailable):
        return False


async def start(client: Client, run: str) -> RunHandle[Any]:
    """Start a run whose only step waits for the gate. Its id may not be taken: a second effect would be an error."""
    return await client.start("one", {"n": 3, "gate": GATE}, id=run, pool="flows")


async def all_results(client: Client, house: House, strike: Callable[[], None]) -> None:
    """Await many runs, strike, let them go on: every result must come."""
    runs = await asyncio.gather(*(start(client, f"r{n}") for n in range(RUNS)))
    results = asyncio.gather(*(run.result(timeout="60s") for run in runs))
    await asyncio.to_thread(house.until_starts, 1, step="square")
    await asyncio.to_thread(strike)
    assert await results == [9] * RUNS


def test_a_start_whose_answer_was_lost_with_the_server_takes_effect_once(build: Build) -> None:
    house = build("session")
    server = house.server()
    staffed(house)

    async def main() -> None:
        with Relay(server.port) as relay:
            async with Client(relay.address, namespace=house.namespace) as client:
                await start(client, "before")
                relay.stall("down")
                starts = asyncio.gather(*(start(client, f"r{n}") for n in range(20)))

                def strike() -> None:
                    until("the runs are there", lambda: all(started(house, f"r{n}") for n in range(20)))
                    server.kill()
                    relay.cut()
                    assert not starts.done(), "nobody told the client"
                    server.start()
                    server.until_ready()
                    relay.heal()

                await asyncio.to_thread(strike)
                assert all(not run.existed for run in await starts)

    asyncio.run(main())
    house.open(GATE)
    house.check({"before": 9} | {f"r{n}": 9 for n in range(20)})


def test_starts_on_their_way_when_the_server_dies_take_effect_once(build: Build) -> None:
    house = build("session")
    server = house.server()
    staffed(house)
    house.open(GATE)

    async def main() -> None:
        async with Client(server.address, namespace=house.namespace) as client:
            await start(client, "before")
            starts = [asyncio.create_task(start(client, f"r{n}")) for n in range(300)]
            while not any(task.done() for task in starts):
                await asyncio.sleep(0)
            await asyncio.to_thread(server.restart)
            runs = await asyncio.gather(*starts)
            assert await asyncio.gather(*(run.result(timeout="60s") for run in runs[:RUNS])) == [9] * RUNS

    asyncio.run(main())
    house.check({"before": 9} | {f"r{n}": 9 for n in range(300)})


def test_results_that_are_awaited_come_after_the_server_is_back(build: Build) -> None:
    house = build("session")
    server = house.server()
    staffed(house)

    def strike() -> None:
        server.kill()
        house.open(GATE)
        server.start()
        server.until_ready()

    async def main() -> None:
        async with Client(server.address, namespace=house.namespace) as client:
            await all_results(client, house, strike)

    asyncio.run(main())


@pytest.mark.rabbitmq
@pytest.mark.parametrize("politely", [True, False])
def test_results_that_are_awaited_come_from_the_other_server(
    build: Build, rabbit: RabbitServer, politely: bool
) -> None:
    house = build("session", rabbit=rabbit)
    first, second = house.server(), house.server()
    house.worker("flows", server=second.address)
    house.worker("steps", server=second.address)
    house.ready()

    def strike() -> None:
        if politely:
            assert first.stop() == 0
        else:
            first.kill()
        house.open(GATE)

    async def main() -> None:
        both = f"ipv4:{first.address},{second.address}"
        async with Client(both, namespace=house.namespace, insecure=True) as client:
            await all_results(client, house, strike)

    asyncio.run(main())


@pytest.mark.parametrize("side", ["client", "server", "both"])
def test_a_stream_that_is_cut_goes_on(build: Build, side: Side) -> None:
    house = build("session")
    server = house.server()
    staffed(house)

    async def main() -> None:
        with Relay(server.port) as relay:

            def strike() -> None:
                assert relay.cut(side) > 0
                house.open(GATE)
                until("all runs are done", lambda: not list(house.client.list(status="running", limit=1)))
                relay.heal()

            async with Client(relay.address, namespace=house.namespace) as client:
                await all_results(client, house, strike)

    asyncio.run(main())
