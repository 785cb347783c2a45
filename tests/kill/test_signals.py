"""Signals and questions while workers and the control plane are killed."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.kill.conftest import Build
from tests.kill.house import House, Lane, ServerProcess
from treadle.client import Client, Unavailable

pytestmark = [pytest.mark.kill, pytest.mark.redis, pytest.mark.rabbitmq]

RUNS = 3
SIGNALS = 12
KILLS = 4


async def _send(client: Client, run: str) -> int:
    """One sender: each signal again under its id until it is acknowledged, and only then the next. Returns the answer."""
    handle = client.run(run)
    for number in range(SIGNALS):
        while True:
            try:
                await handle.signal("number", number, id=f"n{number}")
                break
            except Unavailable:
                continue
    while True:
        try:
            return await handle.ask("sum", 1, returns=int, id="the-sum", timeout="60s")
        except Unavailable:
            continue


def senders(house: House, server: ServerProcess, runs: list[str]) -> list[int]:
    """Two senders of each run, which do the same under the same ids."""

    async def main() -> list[int]:
        async with Client(server.address, namespace=house.namespace) as client:
            return await asyncio.gather(*(_send(client, run) for run in runs * 2))

    return asyncio.run(main())


@pytest.mark.parametrize("lane", ["amqp", "session"])
def test_so_it_is_over_the_parts_of_a_run_that_continues_as_new(
    build: Build, lane: Lane, request: pytest.FixtureRequest
) -> None:
    house = build(lane, rabbit=request.getfixturevalue("rabbit"))
    server = house.server()
    owners = [house.worker("flows"), house.worker("flows", options=("--always-replay",))]
    house.worker("steps")
    house.ready()
    runs = [f"r{n}" for n in range(RUNS)]
    handles = [house.start(run, "volumes", n=SIGNALS) for run in runs]
    with ThreadPoolExecutor(1) as pool:
        sent: Future[list[int]] = pool.submit(senders, house, server, runs)
        for kill in range(KILLS):
            house.until_starts(RUNS * SIGNALS * (kill + 1) // (KILLS + 1), step="square")
            victim = owners[kill % 2]
            victim.kill()
            if kill % 2:
                server.kill()
                server.restart()
            victim.start()
        answers = sent.result(120)
    assert [handle.result(timeout="60s") for handle in handles] == [list(range(SIGNALS))] * RUNS
    assert answers == [1 + sum(range(SIGNALS))] * len(answers)
    assert [house.client.run(run).get().part for run in runs] == [SIGNALS // 2] * RUNS
    assert [house.client.run(run).state() for run in runs] == [SIGNALS - 2] * RUNS
    house.until_nothing_waits()


@pytest.mark.parametrize("lane", ["amqp", "session"])
def test_each_signal_is_received_once_and_in_order_whoever_dies(
    build: Build, lane: Lane, request: pytest.FixtureRequest
) -> None:
    house = build(lane, rabbit=request.getfixturevalue("rabbit"))
    server = house.server()
    owners = [house.worker("flows"), house.worker("flows", options=("--always-replay",))]
    house.worker("steps")
    house.ready()
    runs = [f"r{n}" for n in range(RUNS)]
    for run in runs:
        house.start(run, "mailbox", n=SIGNALS)
    with ThreadPoolExecutor(1) as pool:
        sent: Future[list[int]] = pool.submit(senders, house, server, runs)
        for kill in range(KILLS):
            house.until_starts(RUNS * SIGNALS * (kill + 1) // (KILLS + 1), step="square")
            victim = owners[kill % 2]
            victim.kill()
            if kill % 2:
                server.kill()
                server.restart()
            victim.start()
        answers = sent.result(120)
    house.check({run: list(range(SIGNALS)) for run in runs})
    assert answers == [1 + sum(range(SIGNALS))] * len(answers), "all who ask under one id get the one answer"
    client = house.client
    assert [client.run(run).state() for run in runs] == [SIGNALS] * RUNS
    for run in runs:
        history = house.history(run)
        received = [event.signal_received.signal_id for event in history if event.HasField("signal_received")]
        assert received == [*(f"n{number}" for number in range(SIGNALS)), "the-sum"]
        assert house.kinds(run).count("signal_answered") == 1
