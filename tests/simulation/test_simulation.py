"""The heart of the suite: thousands of seeded schedules, and proof that broken rules would be noticed."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from typing import Any

import pytest

from treadle.protocol.ids import RunKey
from treadle.protocol.payloads import decode

from .__main__ import broken_in
from .ledger import Broken
from .mutants import MUTANTS
from .world import World, simulate

_SEEDS = int(os.environ.get("TREADLE_TEST_SEEDS", "2000"))


@pytest.mark.timeout(400)
def test_schedules_with_faults() -> None:
    """A failing seed is printed and replays exactly: make simulate SEEDS=n..n."""
    chunks = [(at, min(at + 50, _SEEDS)) for at in range(0, _SEEDS, 50)]
    with ProcessPoolExecutor() as pool:
        broken = [found for chunk in pool.map(broken_in, chunks) for found in chunk[0]]
    assert not broken, f"replay with: make simulate SEEDS={broken[0][0]}..{broken[0][0]}"


@pytest.mark.parametrize("seed", range(40))
def test_a_healthy_system_needs_no_repair(seed: int) -> None:
    """Without faults nothing is ever lost, and the watch finds nothing to do.

    One window needs no fault: code that returns while a losing step's GO is on its way (W4; one to two of 100 seeds).
    """
    world = simulate(seed, faults=False)
    assert not world.ledger.repairs
    assert set(world.ledger.windows) <= {"W4 (closed)"}


def test_pool_steps_go_both_ways_and_collide() -> None:
    """Workers with step credits and without, deliveries beside pushes in one worker, and pushes that find no slot."""
    worlds = [simulate(seed) for seed in range(60)]
    ways = sum((world.ways for world in worlds), Counter[str]())
    assert min(ways["pushed"], ways["claimed"]) > 50 and ways["no slot"]
    assert sum(1 for world in worlds if world.ways["pushed"] and world.ways["claimed"]) > 10


def _with(seed: int, *names: str) -> World:
    """A schedule with runs of these workflows among others."""
    world = World(seed)
    for number, name in enumerate(names, start=50):
        world.start_run(name, number)
    world.run()
    return world


def test_what_follows_from_a_pool_step_goes_along_with_its_report() -> None:
    """R10 under faults: an owner that executed the step itself is right as a rule; sometimes something came between."""
    ledgers = [_with(seed, "steady", "spoiled").ledger for seed in range(100)]
    taken, refused = sum(ledger.foretold for ledger in ledgers), sum(ledger.wrong for ledger in ledgers)
    assert taken > 400 and refused > 5, (taken, refused)


def test_long_steps_fall_silent_and_count_on() -> None:
    """Silence is told by workers and found by servers, and later attempts go on from what was committed."""
    worlds = [_with(seed, "loads") for seed in range(150)]
    events = [event for world in worlds for record in world.ledger.runs.values() for event in record.events]
    missed = [e.attempt_failed.failure for e in events if e.attempt_failed.failure.type == "HeartbeatMissed"]
    found = [failure for failure in missed if failure.message.endswith("did not report")]
    assert len(found) > 3 and len(missed) > 2 * len(found)
    assert sum(world.ledger.counts.kept for world in worlds) > 50


def test_limits_come_up_in_every_way() -> None:
    """Steps that time out in a queue, by their holder's word and without it; runs that are interrupted by their timeout."""
    worlds = [_with(seed, "hurried", "late") for seed in range(100)]
    events = [event for world in worlds for record in world.ledger.runs.values() for event in record.events]
    kinds = Counter(event.step_failed.failure.type for event in events if event.HasField("step_failed"))
    assert kinds["QueueTimedOut"] > 2 and kinds["StepTimedOut"] > 5, kinds
    late = [record.events for world in worlds for run, record in world.ledger.runs.items() if run.run_id[:5] == "late-"]
    interrupted = [[event.WhichOneof("kind") for event in events].count("run_timed_out") for events in late]
    assert sum(interrupted) > 5 and set(interrupted) <= {0, 1}
    told = {"run_timed_out", "cancel_requested", "run_terminated"}
    assert all(told & {event.WhichOneof("kind") for event in events} for events in late)


@pytest.mark.timeout(200)
def test_a_run_that_no_code_ends_is_closed_and_handled_once() -> None:
    """Whoever dies meanwhile: the commit that closes it starts its hook, which opens what the run was started with."""
    handled = []
    for seed in range(30):
        world = World(seed)
        run = RunKey("sim", "deaf-50")
        world.start_run("deaf", 50)
        world.interrupted.add(run)
        world.run()
        record = world.ledger.record(run)
        if record.outcome != "run_failed":
            continue  # cancelled or terminated by a person before
        failed = record.events[-1].run_failed
        hook = world.ledger.record(RunKey("sim", failed.hook_run_id)).events
        told = [decode(e.step_completed.result, Any, what="result") for e in hook if e.HasField("step_completed")]
        assert told == [[run.run_id, "RunTimedOut", "50"]]
        handled.append(run)
    assert len(handled) > 20


def test_a_seed_replays_exactly() -> None:
    first, again = simulate(11, trace=True), simulate(11, trace=True)
    assert first.schedule.trace == again.schedule.trace
    assert first.schedule.steps == again.schedule.steps


@pytest.mark.timeout(400)
@pytest.mark.parametrize("rule", MUTANTS)
def test_a_rule_that_is_switched_off_is_noticed(rule: str) -> None:
    with ProcessPoolExecutor() as pool:
        try:
            firsts = range(0, 6000, 20)  # most are noticed within a few hundred
            assert any(pool.map(_notices, repeat(rule), firsts)), "nothing in 6,000 schedules notices"
        finally:
            pool.shutdown(cancel_futures=True)


def _notices(rule: str, first: int) -> bool:
    """Whether one of 20 schedules breaks a property without this rule."""
    with MUTANTS[rule]():
        try:
            for seed in range(first, first + 20):
                simulate(seed)
        except Broken:
            return True
    return False
