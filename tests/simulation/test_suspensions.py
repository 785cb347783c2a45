"""Each thing that workflow code may wait on, killed at every suspension.

For each workflow and each position of its history: whoever holds the run (or the replica that serves it) dies the moment
that position is committed, and the run must still end with the right result, its coroutine having seen the history's order.
"""

from __future__ import annotations

from collections import Counter

import pytest

from treadle.controlplane.machine import Decision
from treadle.protocol.ids import RunKey
from treadle.v1.state_pb2 import RUN_STATE_OPEN, RunHead

from .workflows import WORKFLOWS
from .world import World


def _world(workflow: str, *, always_replay: bool = False) -> World:
    world = World(1, faults=False, always_replay=always_replay)
    world.failures_left = 0
    world.start_run(workflow, 7)
    return world


def _length(workflow: str) -> int:
    world = _world(workflow)
    world.finish()
    record = world.ledger.record(next(iter(world.expected)))
    return sum(map(len, (*record.before, record.events)))


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_replayed_at_every_event(workflow: str) -> None:
    """`always_replay`: the coroutine is dropped and replayed for each event, and nobody can tell."""
    world = _world(workflow, always_replay=True)
    world.finish()


@pytest.mark.parametrize("victim", ["owner", "replica"])
@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_killed_at_every_suspension(workflow: str, victim: str) -> None:
    for position in range(1, _length(workflow)):
        world = _world(workflow)
        _ambush(world, position, victim)
        world.finish()


def _ambush(world: World, position: int, victim: str) -> None:
    struck: list[int] = []
    counted: Counter[RunKey] = Counter()

    def strike(run: RunKey, decision: Decision) -> None:
        head = decision.head
        before = counted[run]
        counted[run] += len(decision.events)
        if struck or head is None or not before < position <= counted[run]:
            return
        struck.append(position)
        world.schedule.later(0, lambda: _kill(world, head, victim))

    world.on_commit = strike


def _kill(world: World, head: RunHead, victim: str) -> None:
    if victim == "replica":
        for replica in world.replicas:
            if replica.core.replica_id == head.owner.replica_id:
                world.crash_replica(replica)
        return
    for worker in world.workers:
        if head.state == RUN_STATE_OPEN and worker.worker_id == head.owner.worker_id and worker.alive:
            worker.kill()
            world.schedule.later(300, world.restarter(worker))
