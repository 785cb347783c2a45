"""Rolling deploys on real processes: runs of a version stay with it, and changed code goes one way in each run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kill.conftest import Build
from tests.kill.house import House, Lane, WorkerProcess
from tests.kill.process import until
from treadle.client import NotFound

pytestmark = [pytest.mark.kill, pytest.mark.redis]

_STEPS = """
from treadle.worker import changed, receive, set_tags, step, workflow

@step(name="local_square")
async def local_square(n: int) -> int:
    return n * n

@step(pool="steps", name="square")
async def square(n: int, gate: str = "") -> int:
    raise AssertionError("the workers of the pool have it")
"""
PINNED = """
@workflow(name="bill", pool="flows", version="{version}")
async def bill_{version}(n: int) -> str:
    total = await local_square(n)
    await receive("go")
    return f"{version}: {{total + await square(n)}}"
"""
BEFORE = """
@workflow(name="prices", pool="flows")
async def prices(n: int) -> list[int]:
    found = []
    for i in range(n):
        found.append(await square(i))
        found.append(await local_square(i))
        await receive("next")
    return found
"""
AFTER = """
@workflow(name="prices", pool="flows")
async def prices(n: int) -> list[int]:
    found = []
    for i in range(n):
        found.append(await square(i))
        if changed("negative"):
            set_tags(way="new")
            found.append(-await square(i))
        else:
            found.append(await local_square(i))
        await receive("next")
    return found
"""
ROUNDS = 5
KILLS = 3
"""With the old worker four owners of a run die in a row at most; at five it would need attention."""


def deploy(house: House, folder: Path, name: str, code: str, *options: str) -> WorkerProcess:
    app = folder / f"{name}.py"
    app.write_text(_STEPS + code)
    worker = house.worker("flows", app=app, options=options)
    house.ready(worker)
    return worker


@pytest.mark.rabbitmq
@pytest.mark.parametrize("lane", ["amqp", "session"])
def test_runs_finish_on_the_version_they_began_with(build: Build, lane: Lane, tmp_path: Path) -> None:
    house = build(lane)
    house.server()
    house.worker("steps")
    one, two = PINNED.format(version=1), PINNED.format(version=2)
    old = deploy(house, tmp_path, "old", one)
    house.ready()
    client = house.client
    first = [house.start(f"a{n}", "bill", n=n) for n in range(3)]
    until("they have begun", lambda: all("step_completed" in house.kinds(f"a{n}") for n in range(3)))
    new = deploy(house, tmp_path, "new", two)
    second = [house.start(f"b{n}", "bill", n=n) for n in range(3)]
    named = client.start("bill@1", {"n": 5}, id="named")
    with pytest.raises(NotFound, match="bill@3"):
        client.start("bill@3", {"n": 5})
    assert "names_missing" in new.said and "bill@1" in new.said, "the new worker does without what runs need"
    old.kill()
    house.worker("flows", app=tmp_path / "new.py")  # and another one of the new code takes nothing of the old
    for run in (*first, *second, named):
        run.signal("go")
    assert [run.result(timeout="30s") for run in second] == ["2: 0", "2: 2", "2: 8"]
    until("the old ones wait", lambda: client.count(trouble="waiting", workflow="bill@1").total == 4)
    words = "waiting for version 1: no live worker in pool 'flows' has the workflow 'bill@1'"
    until("they say why", lambda: any(words in run.reason for run in client.list(trouble="waiting")))
    assert {run.version for run in client.list(trouble="waiting")} == {"1"}
    assert not any(run.get().status.closed for run in first)
    both = deploy(house, tmp_path, "both", one + two)
    assert [run.result(timeout="60s") for run in first] == ["1: 0", "1: 2", "1: 8"]
    assert named.result(timeout="60s") == "1: 50"
    assert "names_missing" not in both.said
    assert client.count(workflow="bill@1", status="completed").total == 4
    for n in range(3):
        assert not {"run_diverged", "run_halted"}.intersection(house.kinds(f"a{n}"))
    house.until_nothing_waits()


def test_a_change_goes_one_way_in_each_run_whoever_dies_where(build: Build, tmp_path: Path) -> None:
    """Runs that the old code has taken to different places; then the new code, whose workers die at each suspension."""
    house = build("session")
    house.server()
    house.worker("steps")
    old = deploy(house, tmp_path, "before", BEFORE)
    house.ready()
    runs = [f"r{n}" for n in range(ROUNDS)]
    handles = {run: house.start(run, "prices", n=ROUNDS) for run in runs[:-1]}

    def rounds(run: str) -> int:
        """How often the run has come to rest after a round: its code waits for a signal then."""
        return house.kinds(run).count("signal_received")

    def rests(run: str, number: int) -> None:
        until(f"{run} rests in round {number}", lambda: house.kinds(run).count("step_completed") >= 2 * (number + 1))

    for place, run in enumerate(runs[:-1]):
        for number in range(place):
            rests(run, number)
            handles[run].signal("next", number, id=f"n{number}")
        rests(run, place)
    old.kill()
    owners = [
        deploy(house, tmp_path, "after", AFTER),
        deploy(house, tmp_path, "after", AFTER, "--always-replay"),
    ]
    handles[runs[-1]] = house.start(runs[-1], "prices", n=ROUNDS)
    for number in range(ROUNDS):
        for place, run in enumerate(runs):
            if place == len(runs) - 1 or number >= place:
                rests(run, number)
                handles[run].signal("next", number, id=f"n{number}")
        if number < KILLS:
            victim = owners[number % 2]
            victim.kill()
            victim.start()
    squares = [n * n for n in range(ROUNDS)]
    before = [value for n in squares for value in (n, n)]
    after = [value for n in squares for value in (n, -n)]
    assert {run: handles[run].result(timeout="60s") for run in runs[:-1]} == dict.fromkeys(runs[:-1], before)
    assert handles[runs[-1]].result(timeout="60s") == after
    marks = {run: house.kinds(run).count("change_marked") for run in runs}
    assert marks == dict.fromkeys(runs[:-1], 0) | {runs[-1]: 1}
    assert [run.id for run in house.client.list(tags={"way": "new"})] == [runs[-1]]
    assert all(rounds(run) == ROUNDS for run in runs)
    house.until_nothing_waits()
