"""What the model of events (tests/model) found: records that are forgotten, waits that end, keys that nobody may use."""

from __future__ import annotations

import pytest
from tests.unit.test_machine_events import World, event, key, wait

from treadle.controlplane.machine.event_requests import RouteEvent, UseKeySet
from treadle.controlplane.machine.event_routers import router_of, slot_of
from treadle.controlplane.machine.events import request_of
from treadle.controlplane.machine.requests import FireTimer
from treadle.protocol.events import EVENT_KEPT_MS, canonical_match
from treadle.protocol.ids import RunKey
from treadle.v1.common_pb2 import NamedEvent, Payload
from treadle.v1.state_pb2 import RUN_STATE_CONTINUING, UseKeys
from treadle.v1.worker_service_pb2 import CancelCommand, Command, ContinueRun

SEVEN = slot_of("paid", canonical_match({"order": 7}))


def late(world: World, order: int = 7) -> NamedEvent:
    """An event that was accepted and waits for its router."""
    found = event("late", order=order)
    found.time_ms = world.now
    return found


def idle_router(world: World) -> str:
    """The router of such an event, about to be forgotten: nothing came to it for a day."""
    name = router_of(late(world))
    world.ask(key(name), RouteEvent(late(world, 1)))
    world.settle()
    world.now += EVENT_KEPT_MS
    return name


def test_keys_that_come_into_use_as_their_router_is_forgotten_are_known() -> None:
    world = World()
    name = idle_router(world)
    world.batch(key(name), FireTimer(""), UseKeySet(UseKeys(name="paid", keys=["order"], slot=SEVEN)))
    world.settle()
    head = world.head(key(name))
    assert head is not None and [list(one.keys) for one in head.event_router.key_sets] == [["order"]]


def test_an_event_that_comes_as_its_router_is_forgotten_is_found() -> None:
    world = World()
    name = idle_router(world)
    world.batch(key(name), FireTimer(""), RouteEvent(late(world)))
    world.wait(match={"order": 7})
    world.settle()
    assert world.got() == ["late"]


def test_a_wait_that_begins_as_its_slot_is_forgotten_stays() -> None:
    world = World()
    world.wait(match={"order": 7})
    world.settle()
    world.say("r1", _cancel())
    world.settle(timers=False)
    world.now += EVENT_KEPT_MS
    world.wait("r2", match={"order": 7})
    (begin,) = world.letters()
    world.batch(key(SEVEN), FireTimer(""), request_of(begin)[1])
    world.store.confirmed_now([(RunKey("ns", begin.from_run_id).shard, begin.letter_id)])
    world.send(event(order=7))
    world.settle()
    assert world.got("r2") == ["e1"]


def test_a_slot_that_nobody_needs_is_forgotten_in_a_commit_of_its_own() -> None:
    world = World()
    world.wait(match={"order": 7})
    world.settle()
    world.say("r1", _cancel())
    world.settle()
    assert world.slot(order=7) is not None
    world.pass_time(EVENT_KEPT_MS + 1)
    assert world.slot(order=7) is None


def test_whoever_waits_with_keys_that_were_refused_is_refused_too() -> None:
    """Nobody would ever hear of an event: the routers have no room, so that they do not know the keys."""
    world = World()
    for n in range(32):
        world.wait(f"r{n}", match={f"key{n}": 1})
        world.settle()
    for n in range(2):
        world.wait(f"late {n}", match={"one more": n})
        world.settle()
    assert [world.got(f"late {n}") for n in range(2)] == [["refused"], ["refused"]]


@pytest.mark.parametrize("others", [0, 20], ids=["in the head", "in a field"])
def test_a_beginning_that_comes_again_behind_its_end_begins_nothing(others: int) -> None:
    world = World()
    for number in range(others):
        world.wait(f"other {number}")
    world.settle()
    world.wait("r1")
    (begin,) = (letter for letter in world.letters() if letter.from_run_id == "r1")
    world.deliver(begin, lost=True)
    world.say("r1", Command(command_id="0/paid#1", digest=1, cancel=CancelCommand()))
    (end,) = (letter for letter in world.letters() if letter.slot_news.HasField("end"))
    world.deliver(end)
    world.deliver(begin)
    world.settle()
    assert len(world.slot().waits) + world.slot().more_waits == others


@pytest.mark.parametrize("fires", [0, 1, 2])
def test_nothing_is_recorded_behind_the_end_of_a_part(fires: int) -> None:
    """The event comes before the rows of the old part are swept, behind that, or when the next part has begun."""
    world = World()
    world.wait(match={"order": 7})
    world.settle()
    world.send(event(order=7))
    while not (effect := [letter for letter in world.letters() if letter.HasField("event_effect")]):
        for letter in world.letters():
            world.deliver(letter)
    world.say("r1", continue_run=ContinueRun(input=Payload(data=b"{}")))
    for _ in range(fires):
        world.ask(key("r1"), FireTimer(""))
    before = world.history(key("r1"))
    world.deliver(effect[0])
    head = world.head(key("r1"))
    assert world.history(key("r1")) == before
    assert head is not None and (head.state == RUN_STATE_CONTINUING) == (fires < 2)


def _cancel() -> Command:
    cancel = wait()
    cancel.ClearField("wait_for_event")
    cancel.cancel.CopyFrom(CancelCommand())
    return cancel
