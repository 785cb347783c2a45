"""What is folded into one commit, where work in pages and steady traffic meet."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from tests.unit.machine_rig import Rig, schedule
from tests.unit.test_machine_events import World, event, key, wait

from treadle.controlplane.batches import Item, fold
from treadle.controlplane.machine.event_requests import TellSlot
from treadle.controlplane.machine.event_routers import slot_of
from treadle.controlplane.machine.requests import CancelRun, FireTimer, Request
from treadle.protocol.events import canonical_match
from treadle.v1.state_pb2 import SlotNews


def batches(*requests: Request) -> list[Sequence[Request]]:
    waiting = deque(Item(request, lambda reply: None, 0) for request in requests)
    found: list[Sequence[Request]] = []
    while waiting:
        found.append([item.request for item in fold(waiting)])
    return found


def test_a_timer_of_the_run_goes_with_no_other_request_and_in_its_place() -> None:
    head, row, cancel = FireTimer(""), FireTimer("0/sleep#1"), CancelRun("c", "why")
    assert batches(row, cancel, head, head, cancel, row) == [[row, cancel], [head, head], [cancel, row]]


def test_many_waits_are_told_while_events_come_steadily() -> None:
    world = World()
    runs = ("r1", "r2", "r3")
    for run_id in runs:
        world.start(run_id)
        world.say(run_id, *(wait(number, world.now) for number in range(90)))
    world.settle()
    slot = key(slot_of("paid", canonical_match({})))
    assert world.slot().more_waits > 200

    def news(number: int) -> TellSlot:
        sent = event(f"e{number}")
        sent.time_ms = world.now
        return TellSlot(SlotNews(name="paid", event=sent))

    for number in range(0, 20, 2):
        for batch in batches(news(number), FireTimer(""), news(number + 1)):
            world.batch(slot, *batch)
    assert not world.slot().more_waits and not world.slot().HasField("telling")
    world.settle()
    assert all(world.got(run_id) == ["e0"] * 90 for run_id in runs)


def test_a_run_is_swept_while_it_is_asked_steadily() -> None:
    rig = Rig()
    rig.start()
    owner = rig.open()
    for page in range(4):
        owner.say(*(schedule(f"0/s#{page}-{number}") for number in range(100)))
    rig.terminate()
    for number in range(10):
        for batch in batches(CancelRun(f"a{number}", ""), FireTimer(""), CancelRun(f"b{number}", "")):
            rig.batch(*batch)
    assert not rig.head.sweeping and not rig.fields()
