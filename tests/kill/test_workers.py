"""Workers that die: in pool steps, and while they own runs."""

from __future__ import annotations

import pytest

from tests.kill.house import House

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
    print(f"{house.lane}: {len(lost)} attempts taken over after {took[0]:.2f} to {took[-1]:.2f} s")  # noqa: T201
    assert {entry.run for entry in again} == {entry.run for entry in lost}
    assert took[-1] < TAKE_OVER_S
    house.open("g")
    house.check({run: n * n for n, run in enumerate(runs)})
    for run in {entry.run for entry in lost}:
        kinds = house.kinds(run)
        assert (kinds.count("attempt_lost"), kinds.count("step_completed")) == (1, 1)
