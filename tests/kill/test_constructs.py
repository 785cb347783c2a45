"""What asyncio offers inside workflows, while their owners are killed again and again."""

from __future__ import annotations

import pytest

from tests.kill.conftest import Build

pytestmark = [pytest.mark.kill, pytest.mark.redis]

RUNS = 5
KILLS = 4
STARTS = RUNS * 17
"""How many bodies begin at least."""


def test_workflows_survive_kills_of_their_owner_anywhere(build: Build) -> None:
    house = build("session")
    house.server()
    owners = [house.worker("flows"), house.worker("flows", options=("--always-replay",))]
    house.worker("steps")
    house.ready()
    runs = [f"r{n}" for n in range(RUNS)]
    for run in runs:
        house.start(run, "constructs")
    for kill in range(KILLS):
        house.until_starts(STARTS * (kill + 1) // (KILLS + 1))
        victim = owners[kill % 2]
        victim.kill()
        victim.start()
        house.ready(victim)
    house.check({run: [1, 2, 3, 4, 5, 6, 7, 8] for run in runs})
    lost = sum(house.kinds(run).count("run_owner_lost") for run in runs)
    assert lost >= KILLS
