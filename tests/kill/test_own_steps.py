"""Workers that execute pool steps of runs they own, and say what follows beside the report: they and servers are killed."""

from __future__ import annotations

import pytest

from tests.kill.conftest import Build
from tests.kill.house import House, Lane
from treadle.client import Unavailable

pytestmark = [pytest.mark.kill, pytest.mark.redis, pytest.mark.rabbitmq]

RUNS, STEPS, LETTERS = 16, 40, 4
LONG = 250
SQUARES = sum(i * i for i in range(STEPS))


def test_each_step_is_done_once_though_workers_and_servers_die_between(house: House) -> None:
    """Signals come between report and request, so that some of what code went on by was not what came next."""
    for _ in range(2):
        house.worker("flows")
    house.ready()
    runs = [f"r{n}" for n in range(RUNS)]
    handles = [house.start(run, "own_squares", n=STEPS, letters=LETTERS) for run in runs]
    begun = 0
    for letter, victim in enumerate((*house.workers, *house.servers, house.workers[0])):
        begun = len(house.until_starts(begun + 2 * RUNS))
        for handle in handles:
            signalled = False
            while not signalled:
                try:
                    handle.signal("number", letter, id=f"n{letter}")
                    signalled = True
                except Unavailable:
                    continue
        victim.kill()
        victim.start()
    assert letter == LETTERS - 1
    house.check({run: SQUARES + sum(range(LETTERS)) for run in runs})
    events = [event for run in runs for event in house.history(run)]
    done = [event.step_completed for event in events if event.HasField("step_completed")]
    assert len(done) == RUNS * STEPS
    assert sum(step.ended_ms > 0 for step in done) > RUNS * STEPS / 10, "code went on before the event"


@pytest.mark.parametrize("lane", ["amqp", "session"])
def test_who_waits_for_the_only_slot_gets_it_from_a_run_that_asks_again_and_again(build: Build, lane: Lane) -> None:
    """The slot is free, and wanted anew, in the same frame: what waits in the queue comes first."""
    house = build(lane)
    house.server()
    house.worker("flows", options=("--slots", "1"))
    house.ready()
    house.start("long", "own_squares", n=LONG, letters=0)
    house.until_starts(5, "long")
    house.start("short", "own_squares", n=4, letters=0)
    house.check({"long": sum(i * i for i in range(LONG)), "short": 14})
    order = [entry.run for entry in house.starts()]
    last = len(order) - 1 - order[::-1].index("short")
    assert order[last:].count("long") > LONG / 2, "it has its turns long before the other one has ended"
