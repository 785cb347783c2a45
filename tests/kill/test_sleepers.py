"""Many runs that sleep until about one instant, and a server that dies when they wake."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.kill.conftest import Build
from tests.kill.house import House, Lane, ServerProcess
from treadle.client import Client
from treadle.v1.history_pb2 import HistoryEvent

pytestmark = [pytest.mark.kill, pytest.mark.redis, pytest.mark.rabbitmq]

RUNS = 300
SLEEP_S = 10.0
TURNS = 3


def timer_of(history: list[HistoryEvent]) -> tuple[int, list[int]]:
    """Return when the run's only timer was due, and when it fired: by the clock of Redis."""
    kinds = [(event, event.WhichOneof("kind")) for event in history]
    (due,) = [event.timer_started.fire_at_ms for event, kind in kinds if kind == "timer_started"]
    return due, [event.time_ms for event, kind in kinds if kind == "timer_fired"]


def begin(house: House, server: ServerProcess, prefix: str, runs: dict[str, int]) -> None:
    """Start the sleepers, which all wake at one instant; adds what they return."""
    until = time.monotonic() + SLEEP_S

    async def main() -> None:
        async with Client(server.address, namespace=house.namespace) as client:

            async def one(n: int) -> None:
                given = {"n": n, "seconds": until - time.monotonic()}
                await client.start("sleeper", given, id=f"{prefix}{n}", pool="flows")

            await asyncio.gather(*(one(n) for n in range(RUNS)))

    asyncio.run(main())
    assert time.monotonic() < until - 5, "they were all to be parked"
    runs.update({f"{prefix}{n}": 2 * n * n for n in range(RUNS)})


@pytest.mark.parametrize("lane", ["amqp", "session"])
def test_sleepers_wake_once_and_never_early_though_a_server_dies_in_the_storm(
    build: Build, lane: Lane, request: pytest.FixtureRequest
) -> None:
    house = build(lane, rabbit=request.getfixturevalue("rabbit"))
    first, second = house.server(), house.server()
    house.worker("flows", server=f"{first.address},{second.address}")
    house.worker("steps", server=f"{second.address},{first.address}")
    house.ready()
    runs: dict[str, int] = {}
    for turn in range(TURNS):
        victim, other = (first, second) if turn % 2 == 0 else (second, first)
        begin(house, other, f"t{turn}-", runs)
        house.until_starts(RUNS * turn + 1, step="square")
        victim.kill()  # its session is the owner's, and the timers are its duty
        among = len(house.starts(step="square")) < len(runs)
        house.check(runs)
        if among:
            break
        victim.restart()  # all of them were awake already: this machine was busy elsewhere
        house.ready()
    else:
        pytest.fail(f"in {TURNS} turns all were awake before the server died")
    parked = 0
    for run in runs:
        history = house.history(run)
        due, fired = timer_of(history)
        assert len(fired) == 1 and fired[0] >= due, f"{run}: due {due}, fired {fired}"
        parked += any(event.HasField("run_parked") for event in history)
    assert parked > 0.9 * len(runs)
