"""Long steps whose workers and servers are killed: what was committed of their progress is where they go on."""

from __future__ import annotations

import pytest

from tests.kill.house import House
from tests.kill.process import until

pytestmark = [pytest.mark.kill, pytest.mark.redis, pytest.mark.rabbitmq]

RUNS = 4
COUNT = 30


def counted(house: House, run: str) -> int:
    """How far the step of a run is, as clients see it."""
    said = house.client.run(run).get().progress
    return int(said[0].value(int)) if said else 0


def test_the_next_attempt_goes_on_where_the_one_before_was_seen_to_be(house: House) -> None:
    house.worker("flows")
    for _ in range(2):
        house.worker("steps")
    house.ready()
    runs = [f"r{n}" for n in range(RUNS)]
    for run in runs:
        house.start(run, "loading", n=COUNT, gate="g")
    begun = house.until_starts(RUNS, step="load")
    until("all have said how far they are", lambda: all(counted(house, run) == COUNT for run in runs))
    victim = house.worker_of(begun[0])
    lost = {entry.run for entry in begun if entry.pid == victim.pid}
    victim.kill()
    house.until_starts(RUNS + len(lost), step="load")
    assert all(counted(house, run) == COUNT for run in runs), "nothing was said since"
    house.open("g")
    house.check({run: COUNT if run in lost else 0 for run in runs})
    assert not any(house.client.run(run).get().progress for run in runs)


def test_a_server_that_dies_is_told_again(house: House) -> None:
    """Silence counts from when the servers are back, and the last word reaches them then."""
    server = house.servers[0]
    house.worker("flows")
    worker = house.worker("steps")
    house.ready()
    house.start("r", "loading", n=COUNT, gate="g")
    house.until_starts(1, step="load")
    server.kill()
    server.restart()
    until("it is told", lambda: counted(house, "r") == COUNT)
    worker.kill()
    worker.start()
    house.until_starts(1, step="load", attempt=2)
    house.open("g")
    house.check({"r": COUNT})
