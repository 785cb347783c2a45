"""A schedule among two replicas, workers and a broker that die: each occurrence is decided once, and its run started once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise

import pytest

from treadle.controlplane.machine import Decision
from treadle.controlplane.machine.requests import Reply
from treadle.controlplane.machine.schedule_requests import (
    CreateSchedule,
    PauseSchedule,
    ScheduleReply,
    ScheduleRequest,
    TriggerSchedule,
)
from treadle.controlplane.machine.schedules import record_of
from treadle.controlplane.store.port import Want
from treadle.protocol.ids import RunKey
from treadle.v1.schedule_pb2 import (
    OVERLAP_POLICY_ALLOW,
    OVERLAP_POLICY_CANCEL,
    OVERLAP_POLICY_QUEUE_ALL,
    OVERLAP_POLICY_QUEUE_ONE,
    OVERLAP_POLICY_SKIP,
    OVERLAP_POLICY_TERMINATE,
    OverlapPolicy,
    ScheduleRecord,
    ScheduleSpec,
)
from treadle.v1.state_pb2 import RunHead

from .workflows import WORKFLOWS
from .world import World

RECORD = record_of("sim", "s")
EVERY_MS = 2_000
HEALED_MS, PAUSED_MS = 14_000, 20_000
LETTERS_MS = 15_000
"""The last letters are delivered once more in so long."""
POLICIES = (
    OVERLAP_POLICY_ALLOW,
    OVERLAP_POLICY_QUEUE_ALL,
    OVERLAP_POLICY_QUEUE_ONE,
    OVERLAP_POLICY_SKIP,
    OVERLAP_POLICY_CANCEL,
    OVERLAP_POLICY_TERMINATE,
)


def insist(world: World, request: ScheduleRequest, then: Callable[[], None] = lambda: None) -> None:
    """A client that asks again until it is answered, with the same request."""
    answered = False

    def settle(reply: Reply | Exception) -> None:
        nonlocal answered
        if isinstance(reply, ScheduleReply) and not answered:
            answered = True
            then()

    def ask() -> None:
        up = [replica for replica in world.replicas if replica.up]
        if up and not answered:
            world.schedule.rng.choice(up).ask(RECORD, request, settle)
        if not answered:
            world.schedule.later(700, ask)

    ask()


def scheduled(seed: int, policy: OverlapPolicy.ValueType) -> tuple[World, ScheduleRecord]:
    """Run one schedule in a world with faults, pause it, and wait until all its runs have closed."""
    world = World(seed)
    rng = world.schedule.rng
    name, argument = rng.choice(("chain", "naps")), 5
    workflow, result = WORKFLOWS[name]
    world.known(RECORD)
    spec = ScheduleSpec(workflow=name, pool="default", every_ms=EVERY_MS, overlap=policy, catch_up_ms=600_000)
    spec.jitter_ms = rng.choice((0, 0, 1_500, 5_000))
    paused = False

    def committed(run: RunKey, decision: Decision) -> None:
        if run.run_id.startswith("s-"):
            world.expected[run] = result(argument)
            if policy in (OVERLAP_POLICY_CANCEL, OVERLAP_POLICY_TERMINATE):
                world.interrupted.add(run)

    def done() -> None:
        nonlocal paused
        paused = True

    world.on_commit = committed
    insist(world, CreateSchedule("create", spec, workflow.signature.encode_call((argument,), {})))
    world.schedule.later(5_000, partial(insist, world, TriggerSchedule("t", OVERLAP_POLICY_ALLOW)))
    for _ in range(rng.choice((2, 4, 6, 10))):
        world.schedule.later(rng.randint(0, 8_000), world.fault)
    world.schedule.later(HEALED_MS, world.heal)
    world.schedule.later(PAUSED_MS, partial(insist, world, PauseSchedule("enough"), done))
    world.finish(at_least_ms=PAUSED_MS + 5_000)
    told_ms = world.schedule.now + LETTERS_MS
    assert paused and world.schedule.run(lambda: world.schedule.now > told_ms, 10**6)
    head = RunHead.FromString(world.store.load_now([Want(RECORD)])[0].head)
    return world, head.schedule


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: OverlapPolicy.Name(policy)[15:].lower())
def test_each_occurrence_once_whatever_dies(policy: OverlapPolicy.ValueType) -> None:
    fates: Counter[str] = Counter()
    for seed in range(25):
        world, record = scheduled(seed, policy)
        runs = {run.run_id for run in world.ledger.runs if run.run_id.startswith("s-")}
        (triggered,) = [run for run in runs if run.startswith("s-triggered-")]
        due = sorted(datetime.fromisoformat(run.removeprefix("s-")) for run in runs - {triggered})
        for run in runs - {triggered}:
            started = world.ledger.record(RunKey("sim", run)).events[0]
            at = datetime.fromisoformat(run.removeprefix("s-")).timestamp() * 1000
            assert started.run_started.occurrence.scheduled_ms == at <= started.time_ms, f"seed {seed}: early"
        assert record.started_count == len(runs) and not record.missed_count, f"seed {seed}"
        assert all((later - one) % timedelta(milliseconds=EVERY_MS) == timedelta() for one, later in pairwise(due))
        span = (due[-1] - due[0]) // timedelta(milliseconds=EVERY_MS) + 1
        left_out = span - len(due)
        assert left_out <= record.skipped_count, f"seed {seed}: what has no run was skipped"
        if policy in (OVERLAP_POLICY_ALLOW, OVERLAP_POLICY_QUEUE_ALL):
            assert not record.skipped_count and not left_out, f"seed {seed}"
        if policy != OVERLAP_POLICY_ALLOW:
            lives = [world.ledger.record(RunKey("sim", run)).events for run in runs - {triggered}]
            spans = sorted((events[0].time_ms, events[-1].time_ms) for events in lives)
            assert all(one[1] <= later[0] for one, later in pairwise(spans)), f"seed {seed}: two are open at once"
        assert not record.open, f"seed {seed}: the closes of all runs came back"
        fates["skipped"] += record.skipped_count
        fates["started"] += len(due)
    assert fates["started"] > 60
    expects_skips = policy not in (OVERLAP_POLICY_ALLOW, OVERLAP_POLICY_QUEUE_ALL)
    assert bool(fates["skipped"]) == expects_skips
