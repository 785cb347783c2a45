"""Events among two replicas, workers and a broker that die: one event, one run of each that it starts, one end of each wait."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from treadle.controlplane.machine import Decision
from treadle.controlplane.machine.event_requests import AcceptEvent
from treadle.controlplane.machine.event_routers import record_of
from treadle.controlplane.machine.requests import Reply, RunReply
from treadle.protocol.ids import RECORD_MARK, RunKey
from treadle.v1.common_pb2 import NamedEvent, Payload
from treadle.v1.state_pb2 import StartByEvent

from .world import World

ORDERS = 3
HEALED_MS = 14_000
STARTS = [StartByEvent(workflow=name, pool="default", parameter="n") for name in ("payments", "naps")]
LETTERS_MS = 15_000
"""The last letters are delivered once more in so long."""


def event(event_id: str, name: str, data: Any) -> NamedEvent:
    return NamedEvent(event_id=event_id, name=name, data=Payload(data=json.dumps(data).encode()))


def insist(world: World, sent: NamedEvent, starts: list[StartByEvent], then: Callable[[], None]) -> None:
    """A client that sends again until it is answered, under the same id."""
    answered = False
    record = RunKey("sim", record_of(sent.event_id))
    world.known(record)

    def settle(reply: Reply | Exception) -> None:
        nonlocal answered
        if isinstance(reply, RunReply) and not answered:
            answered = True
            then()

    def ask() -> None:
        up = [replica for replica in world.replicas if replica.up]
        if up and not answered:
            world.schedule.rng.choice(up).ask(record, AcceptEvent(sent, starts), settle)
        if not answered:
            world.schedule.later(700, ask)

    ask()


def told(seed: int) -> World:
    """Orders are created, and paid in two parts, before or after the run of the order waits for that."""
    world = World(seed)
    rng = world.schedule.rng
    taken: list[str] = []

    def committed(run: RunKey, decision: Decision) -> None:
        for one in decision.events:
            if one.HasField("run_started") and not run.run_id.startswith(RECORD_MARK):
                n = json.loads(one.run_started.input.data)["n"]
                world.expected[run] = {"payments": 30 + 2 * n, "naps": n + 2}[one.run_started.workflow]

    world.on_commit = committed
    for n in range(ORDERS):
        at = rng.randint(0, 4_000)
        created = event(f"o{n}", "created", n)
        world.schedule.later(at, partial(insist, world, created, STARTS, partial(taken.append, f"o{n}")))
        for part in (10, 20):
            paid = event(f"p{n}/{part}", "paid", {"order": n, "amount": part + n})
            later = at + rng.choice((0, 5, 300, 5_000))
            world.schedule.later(later, partial(insist, world, paid, [], partial(taken.append, paid.event_id)))
    for _ in range(rng.choice((2, 4, 6, 10))):
        world.schedule.later(rng.randint(0, 8_000), world.fault)
    world.schedule.later(HEALED_MS, world.heal)
    world.finish(at_least_ms=HEALED_MS + 10_000)
    until_ms = world.schedule.now + LETTERS_MS
    assert world.schedule.run(lambda: world.schedule.now > until_ms, 10**6)
    assert len(taken) == 3 * ORDERS
    return world


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_each_event_once_whatever_dies(first: int) -> None:
    for seed in range(first, first + 10):
        world = told(seed)
        runs = Counter(run.run_id.partition("-")[0] for run in world.expected)
        assert runs == {"payments": ORDERS, "naps": ORDERS}, f"seed {seed}"
        for run in world.expected:
            history = world.ledger.record(run).events
            matched = [one.event_matched.event.event_id for one in history if one.HasField("event_matched")]
            if run.run_id.startswith("payments"):
                assert len(set(matched)) == 2, f"seed {seed}: {matched}"
