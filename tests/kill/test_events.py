"""Events while workers and control planes are killed: each starts one run, ends one wait, and none is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kill.conftest import Build
from tests.kill.house import House, Lane, ServerProcess
from tests.kill.process import until
from treadle.client import Client, NewEvent, Unavailable

pytestmark = [pytest.mark.kill, pytest.mark.redis, pytest.mark.rabbitmq]

APP = Path(__file__).with_name("event_app.py")
ORDERS = 24
KILLS = 4


async def _send(client: Client, events: list[NewEvent]) -> None:
    while True:
        try:
            await client.send_many(events)
            return
        except Unavailable:
            continue


def senders(house: House, servers: list[ServerProcess]) -> None:
    """Two senders that send the same events under the same ids, one by one, each until it is taken."""

    async def main() -> None:
        async def all_of_them(client: Client) -> None:
            for n in range(ORDERS):
                parts = [NewEvent("order.paid", {"order": n, "amount": n + k}, id=f"p{n}/{k}") for k in (0, 1)]
                order = [NewEvent("order.created", n, id=f"o{n}")]
                for events in (parts[:1], order, parts[1:]) if n % 2 else (order, parts):
                    await _send(client, events)

        async with (
            Client(servers[0].address, namespace=house.namespace) as one,
            Client(servers[1].address, namespace=house.namespace) as other,
        ):
            await asyncio.gather(all_of_them(one), all_of_them(other))

    asyncio.run(main())


@pytest.mark.parametrize("lane", ["amqp", "session"])
def test_each_event_has_its_effect_once_whoever_dies(build: Build, lane: Lane, request: pytest.FixtureRequest) -> None:
    house = build(lane, rabbit=request.getfixturevalue("rabbit"))
    servers = [house.server(), house.server()]
    addresses = ",".join(server.address for server in servers)
    owners = [
        house.worker("flows", server=addresses, app=APP),
        house.worker("flows", server=addresses, app=APP, options=("--always-replay",)),
    ]
    house.ready()
    client = house.client
    until("triggers are known", lambda: len(client.triggers()) == 2)
    with ThreadPoolExecutor(1) as pool:
        sent: Future[None] = pool.submit(senders, house, servers)
        for kill in range(KILLS):
            enough = ORDERS * (kill + 1) // (KILLS + 2)
            until("runs are started", lambda enough=enough: len(list(house.client.list(workflow="fulfil"))) >= enough)  # type: ignore[misc]
            victim = owners[kill % 2]
            victim.kill()
            servers[kill % 2].kill()
            servers[kill % 2].restart()
            victim.start()
        sent.result(120)
    until("all have thanked", lambda: len(list(house.client.list(workflow="thank"))) >= ORDERS, seconds=60)
    totals: dict[str, Counter[int]] = {"fulfil": Counter(), "thank": Counter()}
    for run in house.client.list():
        totals[run.workflow][house.client.run(run.id).result("60s")] += 1
    expected = Counter(2 * n + 1 for n in range(ORDERS))
    assert totals == {"fulfil": expected, "thank": expected}
