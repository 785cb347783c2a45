"""Workers that take steps both ways: pushed to free slots, and from RabbitMQ what must wait."""

from __future__ import annotations

import time

import pytest

from tests.kill.conftest import Build
from tests.kill.house import House, WorkerProcess
from tests.kill.process import until
from tests.kill.record import timing
from treadle.v1.history_pb2 import HistoryEvent

pytestmark = [pytest.mark.kill, pytest.mark.redis, pytest.mark.rabbitmq]

BROKER_AWAY_S = 10.0
TAKE_OVER_S = 1.0
ASKS = ("step_scheduled", "attempt_lost", "attempt_released", "attempt_failed")


def pushed_in(events: list[HistoryEvent]) -> list[bool]:
    """Return for each attempt whether its GO was part of the commit that asked for it; else a delivery was claimed."""
    asked, found = 0, []
    for event in events:
        kind = event.WhichOneof("kind") or ""
        if kind in ASKS:
            asked = event.revision
        elif kind == "attempt_started":
            found.append(event.revision == asked)
    return found


def until_pushed(house: House, name: str = "warm") -> dict[str, int]:
    """Run short steps until one of them was pushed: from then on free slots are stated. Returns the runs' results."""
    done: dict[str, int] = {}

    def pushed() -> bool:
        run = f"{name}{len(done)}"
        assert house.start(run, "one", n=2, gate="").result(timeout="30s") == 4
        done[run] = 4
        return pushed_in(house.history(run)) == [True]

    until("a step is pushed to a free slot", pushed)
    return done


def worker(house: House, slots: int) -> WorkerProcess:
    return house.worker("steps", lane="auto", options=("--slots", str(slots)))


def test_steps_go_on_in_free_slots_while_rabbitmq_is_away(build: Build) -> None:
    house = build("amqp")
    house.server()
    house.worker("flows", lane="auto")
    worker(house, 4)
    house.ready()
    expected = until_pushed(house)
    assert house.rabbit is not None
    house.rabbit.kill()
    killed = time.monotonic()
    took: list[float] = []
    while time.monotonic() - killed < BROKER_AWAY_S:
        run, began = f"away{len(took)}", time.monotonic()
        assert house.start(run, "one", n=3, gate="").result(timeout="10s") == 9
        took.append(time.monotonic() - began)
        expected[run] = 9
    assert not house.rabbit.running
    assert all(pushed_in(house.history(f"away{n}")) == [True] for n in range(len(took)))
    timing("runs of one pool step while RabbitMQ is away", *took)
    more = {f"more{n}": n * n for n in range(8)}  # twice the slots: half of them must wait
    for n, run in enumerate(more):
        house.start(run, "one", n=n, gate="g")
    house.until_starts(4, step="square", attempt=1)
    house.rabbit.start()
    house.open("g")
    house.check(expected | more)


def test_a_worker_dies_that_holds_pushed_and_claimed_attempts(build: Build) -> None:
    house = build("amqp")
    house.server()
    house.worker("flows", lane="auto")
    victim = worker(house, 6)
    house.ready()
    expected = until_pushed(house)
    first = {f"r{n}": n * n for n in range(6)}
    for n, run in enumerate(first):
        house.start(run, "one", n=n, gate="early" if n < 2 else "late")
    until("the slots are full", lambda: all(house.starts(run) for run in first))
    then = {f"s{n}": n * n for n in range(6)}
    for n, run in enumerate(then):
        house.start(run, "one", n=n, gate="late")
    house.open("early")
    until("freed slots took what waited", lambda: sum(bool(house.starts(run)) for run in then) == 2)
    other = worker(house, 20)
    house.ready(other)
    until("the rest begins elsewhere", lambda: all(house.starts(run) for run in then))
    held = [run for run in [*list(first)[2:], *then] if house.starts(run)[0].pid == victim.pid]
    ways = [pushed_in(house.history(run))[0] for run in held]
    assert len(held) == 6 and True in ways and False in ways, "both ways are under test"
    killed = victim.kill()
    until("another begins all of them", lambda: all(len(house.starts(run)) == 2 for run in held))
    took = [house.starts(run)[1].boot - killed for run in held]
    timing("SIGKILL of a worker with pushed and claimed steps until another begins them", *took)
    assert max(took) < TAKE_OVER_S
    house.open("late")
    house.check(expected | first | then)
    for run in held:
        kinds = house.kinds(run)
        assert (kinds.count("attempt_lost"), kinds.count("step_completed")) == (1, 1)
        assert [entry.try_number for entry in house.starts(run)] == [1, 1]
