"""Runs that fail and are continued, and their failure hooks, while workers and the control plane are killed."""

from __future__ import annotations

import pytest

from tests.kill.conftest import Build
from tests.kill.house import House, Lane
from tests.kill.process import DEADLINE_S, until
from treadle.client import SyncClient, Unavailable, WrongState

pytestmark = [pytest.mark.kill, pytest.mark.redis, pytest.mark.rabbitmq]

RUNS = 6
STEPS = 8
RESULT = sum(n * n for n in range(STEPS)) + STEPS**2 + STEPS**2 + (STEPS + 1) ** 2


def let_go_on(client: SyncClient, run: str) -> None:
    """Retry a run, whatever dies: who hears that it is open has been heard."""

    def told() -> bool:
        try:
            client.run(run).retry(reason="the gate is open")
        except Unavailable:
            return False
        except WrongState as error:
            assert error.reason == "RUN_NOT_CLOSED"
        return True

    until(f"{run} goes on", told, seconds=DEADLINE_S)


def all_failed(house: House, runs: list[str]) -> list[str]:
    """Wait until all have failed; returns the ids of the runs that handle it."""
    hooks = []
    for run in runs:
        assert house.client.run(run).wait("60s").status.value == "failed"
        hooks += [e.run_failed.hook_run_id for e in house.history(run) if e.HasField("run_failed")]
    return hooks


@pytest.mark.parametrize("lane", ["amqp", "session"])
def test_they_go_on_once_and_each_failure_is_handled_once_whoever_dies(
    build: Build, lane: Lane, request: pytest.FixtureRequest
) -> None:
    house = build(lane, rabbit=request.getfixturevalue("rabbit"))
    server = house.server()
    owners = [house.worker("flows"), house.worker("flows", options=("--always-replay",))]
    house.worker("steps")
    house.ready()
    runs = [f"r{n}" for n in range(RUNS)]
    for run in runs:
        house.start(run, "redriven", n=STEPS, gate="mended")
    house.until_starts(RUNS // 2, step="guarded")
    owners[0].kill()
    server.kill()  # while runs fail, and their hooks begin
    server.restart()
    owners[0].start()
    hooks = all_failed(house, runs)
    assert len(set(hooks)) == RUNS

    house.open("mended")
    before = len(house.starts(step="guarded"))
    for number, run in enumerate(runs):
        let_go_on(house.client, run)
        if number == RUNS // 2:
            server.kill()
            owners[1].kill()
            server.restart()
            owners[1].start()
    house.until_starts(before + RUNS // 2, step="guarded")
    owners[0].kill()
    owners[0].start()
    expected = dict.fromkeys(runs, RESULT) | dict.fromkeys(hooks)
    house.check(expected)
    for run in runs:
        kinds = house.kinds(run)
        assert (kinds.count("run_failed"), kinds.count("run_retried"), kinds.count("run_completed")) == (1, 1, 1)
        completed = [e.step_completed.command_id for e in house.history(run) if e.HasField("step_completed")]
        assert len(completed) == len(set(completed)) == STEPS + 3, "what was done is not done again"
        assert len({entry.key for entry in house.starts(run, "guarded")}) == 1
    assert {run.id for run in house.client.list(workflow="redriven.on_failure")} == set(hooks)
