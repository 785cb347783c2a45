"""Code that was changed under a live run: it stops with what was expected and found, and goes on with fitting code, or
when a person accepts the divergence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.kill.house import House
from tests.kill.process import until
from treadle.client.views import RunInfo, RunStatus

pytestmark = [pytest.mark.kill, pytest.mark.redis]

BEFORE = """
import asyncio
import os
from pathlib import Path
from treadle.worker import step, workflow

@step
async def measure(n: int) -> int:
    return n + 1

@step
async def gated(n: int) -> int:
    while not Path(os.environ["GATE"]).exists():
        await asyncio.sleep(0.01)
    return n * 10

@workflow(name="job", pool="flows")
async def job(n: int) -> int:
    return await gated(await measure(n))
"""

AFTER = BEFORE.replace("await gated(await measure(n))", "await gated(await weigh(n))").replace(
    "async def measure(", "async def weigh("
)


def _stopped(house: House, run_id: str) -> RunInfo:
    run = house.client.run(run_id)
    until(f"{run_id} needs attention", lambda: run.get().status is RunStatus.NEEDS_ATTENTION)
    return run.get()


def _started(house: House, folder: Path) -> tuple[Path, Path, str]:
    """A run whose first step is done by the old code, killed in its second one."""
    before, after, gate = folder / "before.py", folder / "after.py", str(folder / "gate")
    before.write_text(BEFORE)
    after.write_text(AFTER)
    house.server()
    worker = house.worker("flows", app=before, GATE=gate)
    house.ready()
    house.start("r1", "job", n=4)
    until("the first step is done", lambda: "step_completed" in house.kinds("r1"))
    worker.kill()
    return before, after, gate


def test_fitting_code_lets_it_go_on(tmp_path: Path) -> None:
    with House(tmp_path, lane="session") as house:
        before, after, gate = _started(house, tmp_path)
        changed = house.worker("flows", app=after, GATE=gate)
        info = _stopped(house, "r1")
        assert "measure" in info.reason
        assert "weigh" in info.reason
        changed.kill()
        house.worker("flows", app=before, GATE=gate)
        Path(gate).touch()
        assert house.client.run("r1").result(timeout=30) == 50


def test_a_person_accepts(tmp_path: Path) -> None:
    with House(tmp_path, lane="session") as house:
        _, after, gate = _started(house, tmp_path)
        house.worker("flows", app=after, GATE=gate)
        _stopped(house, "r1")
        address = house.servers[0].address
        command = ["run", "accept", "r1", "--server", address, "--namespace", house.namespace]
        subprocess.run([sys.executable, "-m", "treadle.cli", *command], check=True, timeout=30)
        Path(gate).touch()
        assert house.client.run("r1").result(timeout=30) == 50
        assert "run_accepted" in house.kinds("r1")
