"""Every construct of asyncio that workflows may wait on, in real processes: replayed at each event, and killed on the way.

The simulation kills at every suspension (`tests/simulation/test_suspensions.py`); here the moments are sampled.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kill.house import House, WorkerProcess
from tests.kill.process import until
from tests.simulation import workflows
from tests.simulation.workflows import WORKFLOWS

pytestmark = [pytest.mark.kill, pytest.mark.redis]

APP = Path(workflows.__file__)
KILLS = 4


def _progress(house: House, runs: list[str]) -> int:
    return sum(house.client.run(run).get().length for run in runs)


def _worker(house: House, *options: str) -> WorkerProcess:
    return house.worker("default", app=APP, options=options)


def test_every_waiting_construct_survives_kills(tmp_path: Path) -> None:
    with House(tmp_path, lane="session") as house:
        house.server()
        workers = [_worker(house), _worker(house, "--always-replay")]
        house.ready()
        expected: dict[str, object] = {}
        for kill in range(KILLS):
            runs = []
            for n, (name, (_, result)) in enumerate(WORKFLOWS.items()):
                run = house.client.start(name, {"n": n}, id=f"{name}-{kill}", pool="default")
                expected[run.id] = result(n)
                runs.append(run.id)
            enough = len(runs) * (2 + 2 * kill)  # another place in the histories each time
            until("the runs are on their way", lambda ids=runs, least=enough: _progress(house, ids) > least)  # type: ignore[misc]
            victim = workers[kill % 2]
            victim.kill()
            victim.start()
        results = {run: house.client.run(run).result(timeout=60) for run in expected}
        assert results == expected
