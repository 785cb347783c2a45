"""Cancels and deadlines on real processes: what was to end has ended, whoever died on the way, and no limit is forgotten."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.kill.conftest import Build
from tests.kill.house import House, Lane, WorkerProcess
from tests.kill.process import until
from treadle.protocol.errors import RunCancelled, RunTimedOut

pytestmark = [pytest.mark.kill, pytest.mark.redis, pytest.mark.rabbitmq]

APP = Path(__file__).with_name("time_app.py")
ROOT = APP.parents[2]
PATH = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
LOSERS = ("loses_on_the_loop", "loses_in_a_thread", "loses_in_a_process", "local_loses")


def employ(house: House, *pools: str) -> list[WorkerProcess]:
    """Start a worker for each pool, and wait for them."""
    workers = [house.worker(pool, app=APP, PYTHONPATH=PATH) for pool in pools]
    house.ready()
    return workers


def cuts(house: House) -> list[str]:
    """Which steps have noted that they were cut off."""
    return sorted(entry.step for entry in house.ledger() if entry.what == "cut")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("lane", ["amqp", "session"])
def test_the_losers_of_a_race_are_cut_off_though_the_server_dies(
    build: Build, lane: Lane, request: pytest.FixtureRequest
) -> None:
    house = build(lane, rabbit=request.getfixturevalue("rabbit"))
    server = house.server()
    employ(house, "flows", "steps")
    run = house.start("race", "first_of", gate="won")
    house.until_starts(6)
    (deaf,) = house.starts(step="is_deaf")
    assert alive(deaf.pid)
    house.open("won")
    until("the winner is recorded", lambda: "step_completed" in house.kinds("race"))
    server.kill()
    server.restart()
    assert run.result(timeout="60s") == "won"
    until("the losers are cut off", lambda: cuts(house) == sorted(LOSERS), seconds=30)
    until("the deaf one is killed", lambda: not alive(deaf.pid), seconds=30)
    house.check({"race": "won"})
    assert len(house.starts()) == 6, "nobody tried again"


def test_a_cancel_reaches_the_code_when_the_step_has_ended_though_workers_die(house: House) -> None:
    flows, steps = employ(house, "flows", "steps")
    run = house.start("polite", "polite", gate="leave")
    house.until_starts(2)
    run.cancel("enough")
    until("the step is told", lambda: cuts(house) == ["takes_its_leave"])
    flows.kill()
    flows.start()
    house.ready()
    assert not house.starts(step="tidy"), "the code waits for the step"
    house.open("leave")
    with pytest.raises(RunCancelled):
        run.result(timeout="60s")
    ended = [entry.step for entry in house.ledger() if entry.what == "end"]
    assert ended.index("takes_its_leave") < ended.index("tidy")
    assert steps.running and "goes_its_way" in ended, "what is abandoned goes on"
    kinds = house.kinds("polite")
    assert kinds.count("cancel_requested") == kinds.count("step_cancelled") == kinds.count("step_cancel_requested") == 1


def test_a_run_s_deadline_survives_the_death_of_everything(build: Build) -> None:
    house = build("session")
    house.server()
    employ(house, "flows")
    by_code = house.start("by-code", "bounded")
    by_call = house.client.start("bounded", {}, id="by-call", pool="flows", timeout="6s")
    until("its owner has said the timeout", lambda: by_code.get().deadline is not None)
    house.kill_all()
    house.start_all()
    limits = {"by-code": 4_000, "by-call": 6_000}
    for run in (by_code, by_call):
        run = house.client.run(run.id)
        with pytest.raises(RunTimedOut):
            run.result(timeout="60s")
        events = house.history(run.id)
        (late,) = [event for event in events if event.HasField("run_timed_out")]
        assert late.time_ms >= events[0].time_ms + limits[run.id], "never early"
        assert run.get().timed_out
    assert {entry.run for entry in house.starts(step="tidy")} == {"by-code", "by-call"}


def test_a_run_whose_workers_are_gone_is_handled_by_those_that_come(build: Build) -> None:
    """Its worker dies, everything dies; the control plane closes it alone, and what handles that waits for a worker."""
    house = build("session")
    server = house.server(CLEANUP="1s")
    (owner,) = employ(house, "flows")
    house.start("gone", "deaf", gate="never")
    until("its timeout is known", lambda: house.client.run("gone").get().deadline is not None)
    owner.kill()
    server.kill()
    house.redis.kill()
    house.redis.start()
    server.restart()
    until("it is closed", lambda: "run_failed" in house.kinds("gone"), seconds=30)
    (hook,) = [e.run_failed.hook_run_id for e in house.history("gone") if e.HasField("run_failed")]
    server.kill()
    server.restart()
    employ(house, "flows", "steps")
    house.check({hook: None})
    assert [entry.run for entry in house.starts(step="hears")] == [hook]
    assert [run.id for run in house.client.list(workflow="deaf.on_failure")] == [hook]
    assert house.kinds("gone").count("run_failed") == 1


def test_code_that_never_said_a_word_is_handled_once_though_its_worker_lives_on(build: Build) -> None:
    house = build("session")
    house.server(CLEANUP="1s")
    (owner,) = employ(house, "flows")
    house.client.start("mute", {"gate": "never"}, id="mute", pool="flows", timeout="2s")
    until("it is closed", lambda: "run_failed" in house.kinds("mute"), seconds=30)
    assert house.kinds("mute") == ["run_started", "run_opened", "run_timed_out", "run_failed"]
    (hook,) = [e.run_failed.hook_run_id for e in house.history("mute") if e.HasField("run_failed")]
    house.ready(house.worker("flows", app=APP, PYTHONPATH=PATH), house.worker("steps", app=APP, PYTHONPATH=PATH))
    assert house.client.run(hook).result(timeout="60s") is None
    assert owner.running, "its code goes on, and what it says would be refused"
    owner.kill()
    house.check({hook: None})
    assert [entry.run for entry in house.starts(step="hears")] == [hook]
    assert [run.id for run in house.client.list(workflow="mute.on_failure")] == [hook]


def test_each_limit_of_a_step_ends_it_with_an_error_of_its_own(house: House) -> None:
    employ(house, "flows", "steps")
    server = house.servers[0]
    house.start("limits", "limits")
    house.until_starts(1, step="never_ends")
    house.until_starts(2, step="fails_again_and_again")
    server.kill()
    server.restart()
    found = house.client.run("limits").result(timeout="60s")
    assert found == [
        "QueueTimedOut waits_in_vain",
        "StepTimedOut fails_again_and_again ConnectionError",
        "StepTimedOut never_ends",
        "StepTimedOut fails_here_again_and_again ConnectionError",
    ]
    employ(house, "nobody")
    house.check({"limits": found})
    assert not house.starts(step="waits_in_vain"), "whoever comes later finds it settled"
    assert len(house.starts(step="fails_again_and_again")) > 1
    events = house.history("limits")
    scheduled = {e.step_scheduled.command_id: e.time_ms for e in events if e.HasField("step_scheduled")}
    took = {
        e.step_failed.command_id: e.time_ms - scheduled[e.step_failed.command_id]
        for e in events
        if e.HasField("step_failed") and e.step_failed.command_id in scheduled
    }
    assert len(took) == 3 and took["0.1/waits_in_vain#1"] >= 3_000 and took["0.3/never_ends#1"] >= 8_000, json.dumps(
        took
    )
