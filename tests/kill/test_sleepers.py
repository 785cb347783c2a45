"""Many runs that sleep until about one instant, and a server that dies when they wake."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.kill.conftest import Build
from tests.kill.house import Lane
from treadle.client import Client
from treadle.v1.history_pb2 import HistoryEvent

pytestmark = [pytest.mark.kill, pytest.mark.redis, pytest.mark.rabbitmq]

RUNS = 300
SLEEP_S = 10.0


def timer_of(history: list[HistoryEvent]) -> tuple[int, list[int]]:
    """Return when the run's only timer was due, and when it fired: by the clock of Redis."""
    kinds = [(event, event.WhichOneof("kind")) for event in history]
    (due,) = [event.timer_started.fire_at_ms for event, kind in kinds if kind == "timer_started"]
    return due, [event.time_ms for event, kind in kinds if kind == "timer_fired"]


@pytest.mark.parametrize("lane", ["amqp", "session"])
def test_sleepers_wake_once_and_never_early_though_a_server_dies_in_the_storm(
    build: Build, lane: Lane, request: pytest.FixtureRequest
) -> None:
    house = build(lane, rabbit=request.getfixturevalue("rabbit"))
    first, second = house.server(), house.server()
    house.worker("flows", server=f"{first.address},{second.address}")
    house.worker("steps", server=f"{second.address},{first.address}")
    house.ready()
    until = time.monotonic() + SLEEP_S

    async def begin() -> None:
        async with Client(second.address, namespace=house.namespace) as client:

            async def one(n: int) -> None:
                given = {"n": n, "seconds": until - time.monotonic()}
                await client.start("sleeper", given, id=f"r{n}", pool="flows")

            await asyncio.gather(*(one(n) for n in range(RUNS)))

    asyncio.run(begin())
    assert time.monotonic() < until - 5, "they were all to be parked"
    house.until_starts(20, step="square")
    first.kill()  # its session is the owner's, and the timers are its duty
    assert len(house.starts(step="square")) < RUNS, "all were awake before the server died"
    house.check({f"r{n}": 2 * n * n for n in range(RUNS)})
    parked = 0
    for n in range(RUNS):
        history = house.history(f"r{n}")
        due, fired = timer_of(history)
        assert len(fired) == 1 and fired[0] >= due, f"r{n}: due {due}, fired {fired}"
        parked += any(event.HasField("run_parked") for event in history)
    assert parked > 0.9 * RUNS
