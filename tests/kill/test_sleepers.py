"""Many runs that sleep: what they cost, that all wake at their instant, and a server that dies when they do.

`TREADLE_TEST_SLEEPERS=10000` has so many wake in one second instead of 500.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from tests.kill.conftest import Build
from tests.kill.house import House, Lane, ServerProcess
from tests.kill.process import until
from treadle.client import Client
from treadle.v1.history_pb2 import HistoryEvent

pytestmark = [pytest.mark.kill, pytest.mark.redis, pytest.mark.rabbitmq]

APP = Path(__file__).with_name("time_app.py")
PATH = os.pathsep.join(filter(None, (str(APP.parents[2]), os.environ.get("PYTHONPATH"))))
YEAR_S = 365 * 86_400
RESTING = 1_000
AWAKE = int(os.environ.get("TREADLE_TEST_SLEEPERS", "500"))
RUNS = 300
SLEEP_S = 10.0
TURNS = 3


def timer_of(history: list[HistoryEvent]) -> tuple[int, list[int]]:
    """Return when the run's only timer was due, and when it fired: by the clock of Redis."""
    kinds = [(event, event.WhichOneof("kind")) for event in history]
    (due,) = [event.timer_started.fire_at_ms for event, kind in kinds if kind == "timer_started"]
    return due, [event.time_ms for event, kind in kinds if kind == "timer_fired"]


def set_alarms(house: House, due: float, runs: dict[str, int]) -> None:
    """Start a run for each that sleeps until `due` and then returns its number."""

    async def main() -> None:
        async with Client(house.servers[0].address, namespace=house.namespace) as client:
            names = iter(runs.items())

            async def lane() -> None:
                for name, n in names:
                    await client.start("alarm", {"n": n, "due": due}, id=name, pool="flows")

            await asyncio.gather(*(lane() for _ in range(200)))

    asyncio.run(main())


def used_bytes(house: House) -> int:
    """What the data take in Redis."""
    with house.redis.client() as client:
        client.memory_purge()
        return int(client.info("memory")["used_memory"])


def all_parked(house: House) -> bool:
    """Whether nothing is open at any worker, nor on its way."""
    return all(pool.runs_open == 0 and pool.runs_ready == 0 for pool in house.client.pools())


def test_a_run_that_sleeps_for_a_year_is_a_row_and_no_more(build: Build) -> None:
    """No worker, no coroutine, and under 2 KiB in Redis; here it is a little over 1 KiB, input included."""
    house = build("session")
    house.server()
    worker = house.worker("flows", app=APP, PYTHONPATH=PATH)
    house.ready()
    set_alarms(house, time.time(), {"first": 0})
    assert house.client.run("first").result(timeout="30s") == 0
    before = used_bytes(house)
    due = round(time.time() + YEAR_S, 3)  # whole ms, as timers have: a fraction of one is rounded up
    runs = {f"sleeper-{n}": n for n in range(RESTING)}
    set_alarms(house, due, runs)
    until("all of them are parked", lambda: all_parked(house))
    assert all("run_parked" in house.kinds(run) for run in list(runs)[:: RESTING // 20])
    worker.kill()  # and with it whatever it kept of them
    each = (used_bytes(house) - before) / RESTING
    assert each < 2048, f"{each:.0f} bytes"
    due_ms, fired = timer_of(house.history("sleeper-0"))
    assert (due_ms, fired) == (round(due * 1000), [])
    worker.start()
    set_alarms(house, time.time() + 1, {"short": 7})
    assert house.client.run("short").result(timeout="30s") == 7
    assert len(list(house.client.list(status="running"))) == RESTING


def test_all_that_wake_in_one_second_go_on_once_and_none_early(house: House) -> None:
    for _ in range(2):
        house.worker("flows", app=APP, PYTHONPATH=PATH)
    house.ready()
    due = round(time.time() + 5 + AWAKE / 400, 3)
    runs = {f"sleeper-{n}": n for n in range(AWAKE)}
    set_alarms(house, due, runs)
    assert time.time() < due - 1, "they were all to sleep"
    house.check(runs, seconds=60 + AWAKE / 50)
    for run in runs:
        due_ms, fired = timer_of(house.history(run))
        assert due_ms == round(due * 1000) and len(fired) == 1 and fired[0] >= due_ms, f"{run}: {due_ms}, {fired}"
    lags = sorted(entry.wall - due for entry in house.starts(step="wakes"))
    assert len(lags) == AWAKE and lags[0] >= 0
    told = ", ".join(f"p{share} {lags[AWAKE * share // 100]:.2f} s" for share in (50, 95, 99))
    print(f"{AWAKE} runs woke in one instant: {told}, last {lags[-1]:.2f} s later")  # noqa: T201


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
