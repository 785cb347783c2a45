"""Workers that die: in pool steps, and while they own runs."""

from __future__ import annotations

import pytest

from tests.kill.house import House
from tests.kill.record import timing

pytestmark = [pytest.mark.kill, pytest.mark.redis, pytest.mark.rabbitmq]

TAKE_OVER_S = 1.0


def test_another_worker_takes_over_within_a_second(house: House) -> None:
    house.worker("flows")
    for _ in range(2):
        house.worker("steps", options=("--slots", "8"))
    house.ready()
    runs = [f"r{n}" for n in range(8)]
    for n, run in enumerate(runs):
        house.start(run, "one", n=n, gate="g")
    begun = house.until_starts(8, step="square")
    victim = house.worker_of(begun[0])
    lost = [entry for entry in begun if entry.pid == victim.pid]
    killed = victim.kill()
    again = house.until_starts(len(lost), step="square", attempt=2)
    took = sorted(entry.boot - killed for entry in again)
    timing(f"SIGKILL of a worker until another begins its steps, {house.lane} lane", *took)
    assert {entry.run for entry in again} == {entry.run for entry in lost}
    assert took[-1] < TAKE_OVER_S
    house.open("g")
    house.check({run: n * n for n, run in enumerate(runs)})
    for run in {entry.run for entry in lost}:
        kinds = house.kinds(run)
        assert (kinds.count("attempt_lost"), kinds.count("step_completed")) == (1, 1)


def test_an_owner_dies_while_pool_steps_run(house: House) -> None:
    owners = [house.worker("flows") for _ in range(2)]
    house.worker("steps")
    house.ready()
    runs = [f"r{n}" for n in range(6)]
    for n, run in enumerate(runs):
        house.start(run, "both", n=n, pool_gate="pool", local_gate="local")
    house.until_starts(6, step="square")
    begun = house.until_starts(6, step="local_square")
    victim = house.worker_of(begun[0])
    held = {entry.run for entry in begun if entry.pid == victim.pid}
    killed = victim.kill()
    again = house.until_starts(6 + len(held), step="local_square")[6:]
    took = max(entry.boot for entry in again) - killed
    timing(f"SIGKILL of an owner until another goes on, {house.lane} lane", took)
    assert {entry.run for entry in again} == held
    assert victim in owners
    assert took < 2 * TAKE_OVER_S
    house.open("pool")
    house.open("local")
    house.check({run: 2 * n * n for n, run in enumerate(runs)})
    for run in runs:
        assert len(house.starts(run, "square")) == 1, "the owner's death is nothing to pool steps"
        assert house.kinds(run).count("run_owner_lost") == (run in held)


def test_an_owner_dies_in_a_local_step(house: House) -> None:
    first = house.worker("flows")
    house.ready()
    house.start("r1", "local_squares", n=4, gate="g")
    house.until_starts(5, "r1")
    second = house.worker("flows")
    house.ready(second)
    first.kill()
    begun = house.until_starts(6, "r1")
    house.open("g")
    house.check({"r1": 30})
    commands = [entry.command for entry in begun]
    assert len(set(commands[:4])) == 4
    assert commands[4:] == [commands[4]] * 2, "what was recorded is not done again, what was not is"
    assert house.worker_of(begun[5]) is second


def test_a_step_that_runs_at_most_once_is_lost_with_its_worker(house: House) -> None:
    flows, steps = house.worker("flows"), house.worker("steps")
    house.ready()
    house.start("pool", "at_most_once", n=3, gate="g")
    house.start("local", "at_most_once", n=3, gate="g", local=True)
    house.until_starts(1, "pool")
    house.until_starts(1, "local")
    flows.kill()
    steps.kill()
    for worker in (flows, steps):
        worker.start()
    house.open("g")
    house.check({"pool": -1, "local": -1})
    assert len(house.starts()) == 2


@pytest.mark.parametrize("lane", ["session"])
@pytest.mark.parametrize("local", [False, True], ids=["pool", "local"])
def test_a_body_that_kills_its_worker_ends_alone(house: House, local: bool) -> None:
    pools = ["flows"] * 3 if local else ["flows", *["steps"] * 3]
    workers = [house.worker(pool) for pool in pools]
    house.ready()
    house.start("r1", "deadly", local=local)
    house.check({"r1": "Crashed"})
    assert sum(not worker.running for worker in workers) == 2, "the third attempt ran in a process of its own"
    assert len(house.starts("r1")) == 3
