"""What a replica may take for known about sets of keys: a wait that rests on it must not be left alone."""

from __future__ import annotations

from tests.unit.post_rig import Post
from tests.unit.test_machine_events import World, event, key

from treadle.controlplane.events.known_keys import KnownKeys
from treadle.controlplane.machine.event_routers import routers
from treadle.controlplane.machine.requests import RunReply
from treadle.v1.state_pb2 import Letter, RunHead, UseKeys

REFUSED = ("refused", "refused again")


def crowded() -> World:
    """All sets of keys that the routers take are in use."""
    world = World()
    for n in range(32):
        world.wait(f"r{n}", match={f"key{n}": 1})
        world.settle()
    return world


def test_a_set_that_was_refused_is_refused_to_the_next_run_too() -> None:
    world = crowded()
    for value, run_id in enumerate(REFUSED):
        world.wait(run_id, match={"one too many": value})
        world.settle()
        assert world.got(run_id) == ["refused"], run_id


def test_what_a_store_that_went_back_in_time_has_forgotten_is_said_again() -> None:
    world = World()
    before = world.store.snapshot()
    world.wait("r1", match={"order": 1})
    world.settle()
    assert known_to(world) == 4
    world.store.restore(before)
    world.lives += 1
    world.wait("r2", match={"order": 2})
    world.settle()
    assert known_to(world) == 4
    world.send(event(order=2))
    world.settle()
    assert world.got("r2") == ["e1"]


def test_only_an_answer_of_the_store_as_it_is_now_counts() -> None:
    life = 1
    known = KnownKeys(lambda: life)
    in_use = RunReply(RunHead(), started=True)

    def told(reply: RunReply, of: int) -> bool:
        for router in routers("paid"):
            asked = UseKeys(name="paid", keys=["order"], slot="s")
            known.note(Letter(namespace="ns", run_id=router, use_keys=asked), reply, 1_000, of)
        return known.known("ns", "paid", ("order",), 1_000)

    assert not told(RunReply(RunHead()), life) and told(in_use, life)
    life = 2
    assert not known.known("ns", "paid", ("order",), 1_000)
    assert not told(in_use, 1) and told(in_use, life)


def known_to(world: Post) -> int:
    heads = [world.head(key(router)) for router in routers("paid")]
    return sum(head is not None and len(head.event_router.key_sets) == 1 for head in heads)
