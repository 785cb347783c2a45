"""Schedules on two servers, one of which dies around due times: each occurrence is started, and once."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from tests.kill.conftest import Build
from tests.kill.house import House
from tests.kill.process import until
from treadle.client import RunInfo, ScheduleInfo

pytestmark = [pytest.mark.kill, pytest.mark.redis, pytest.mark.rabbitmq]

APP = Path(__file__).with_name("schedule_app.py")
SCHEDULES = 8
KILLS = 4
DOWN_S = 4.0
BEFORE_S = 0.03
"""How long before a whole second the victim dies in every other turn: then what is due is decided by it, or not."""


def about_a_second(turn: int) -> None:
    """Return around the instant at which everything falls due: just before it, or just after."""
    low = 1 - BEFORE_S if turn % 2 == 0 else 0.0
    until("a whole second is near", lambda: low <= time.time() % 1 < low + BEFORE_S, seconds=3)


def runs_of(house: House, schedule: ScheduleInfo) -> dict[str, RunInfo]:
    found = {run.id: run for run in house.client.list(workflow=schedule.workflow)}
    return {id: run for id, run in found.items() if id.startswith(f"{schedule.id}-")}


def test_each_occurrence_is_started_once_though_a_server_dies_when_it_is_due(
    build: Build, request: pytest.FixtureRequest
) -> None:
    house = build("session", rabbit=request.getfixturevalue("rabbit"))
    first, second = house.server(), house.server()
    house.worker("flows", server=f"{first.address},{second.address}", app=APP)
    house.ready()
    client = house.client
    for n in range(SCHEDULES):
        overlap = ("allow", "queue-all")[n % 2]
        client.schedules.create(f"s{n}", "tick", {"name": f"s{n}"}, every="1s", overlap=overlap)  # type: ignore[arg-type]
    for kill in range(KILLS):
        victim = (first, second)[kill % 2]
        started = sum(schedule.started_count for schedule in house.client.schedules.list())
        about_a_second(kill)
        victim.kill()
        goes_on = started + 2 * SCHEDULES
        until(
            "occurrences are started by the other server",
            lambda goes_on=goes_on: sum(s.started_count for s in house.client.schedules.list()) >= goes_on,  # type: ignore[misc]
        )
        victim.restart()
    names = [schedule.id for schedule in house.client.schedules.list()]
    assert names == ["declared", *(f"s{n}" for n in range(SCHEDULES))]
    for name in names:
        schedule = house.client.schedules.pause(name)  # what is queued stays so
        until(
            f"the letters of schedule {name} have been delivered",
            lambda schedule=schedule: len(runs_of(house, schedule)) >= schedule.started_count,  # type: ignore[misc]
        )
        runs = runs_of(house, schedule)
        assert (schedule.missed_count, schedule.skipped_count) == (0, 0), "no gap was as long as the window"
        assert schedule.started_count == len(runs) >= 2 * KILLS
        due = sorted(datetime.fromisoformat(id.removeprefix(f"{name}-")) for id in runs)
        assert all(later - one == timedelta(seconds=1) for one, later in pairwise(due)), due
        assert {one.fate for one in schedule.recent} <= {"started", "queued"}
        for id, run in runs.items():
            at = id.removeprefix(f"{name}-")
            assert house.client.run(id).result("30s") == (at if name == "declared" else f"{name} {at}")
            assert run.created_at >= datetime.fromisoformat(at), "never early"
            (began,) = [event for event in house.history(id) if event.HasField("run_started")]
            assert began.run_started.trigger == "schedule"


def test_what_came_due_while_no_server_was_there_is_caught_up_with_or_missed(
    build: Build, request: pytest.FixtureRequest
) -> None:
    house = build("session", rabbit=request.getfixturevalue("rabbit"))
    server = house.server()
    house.worker("flows", app=APP)
    house.ready()
    house.client.schedules.create("short", "tick", {"name": "n"}, every="1s", overlap="allow", catch_up="1s")
    house.client.schedules.create("long", "tick", {"name": "n"}, every="1s", overlap="allow", catch_up="1h")

    def started(name: str) -> int:
        return house.client.schedules.get(name).started_count

    until("both have begun", lambda: min(started("short"), started("long")) >= 1, seconds=60)
    server.kill()
    down = time.monotonic() + DOWN_S
    until("several occurrences have passed", lambda: time.monotonic() > down)
    server.restart()
    counts = {name: started(name) for name in ("short", "long")}
    until("both go on", lambda: all(started(name) > counts[name] for name in counts), seconds=60)
    for name in ("short", "long"):
        schedule = house.client.schedules.pause(name)
        until("their letters have been delivered", lambda s=schedule: len(runs_of(house, s)) >= s.started_count)  # type: ignore[misc]
        due = {datetime.fromisoformat(id.removeprefix(f"{name}-")) for id in runs_of(house, schedule)}
        assert not due & set(schedule.missed) and len(schedule.missed) == schedule.missed_count
        both = sorted(due | set(schedule.missed))
        assert all(later - one == timedelta(seconds=1) for one, later in pairwise(both)), both
        assert bool(schedule.missed) == (name == "short")
