"""Events in the lab: workflows that they start, and runs that wait for them, in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from treadle.testing import Lab
from treadle.v1.common_pb2 import NamedEvent
from treadle.v1.history_pb2 import RunStarted
from treadle.worker import Event, continue_as_new, send_event, wait_for_event, workflow
from treadle.worker.loop.events_had import EventsHad


@workflow(on="order.created")
async def fulfil(order: int) -> str:
    paid = await wait_for_event("order.paid", match={"order": order}, timeout="3d")
    if paid is None:
        send_event("order.abandoned", order)
        return "abandoned"
    return f"{paid.id} at {paid.time:%d %H}"


@workflow(on="order.*", when="event.data == 7 && event.time > timestamp('2030-01-02T00:00:00Z')")
async def watches(event: Event[Any]) -> str:
    return event.name


def test_an_event_starts_and_another_one_ends_a_wait_days_later() -> None:
    with Lab(fulfil, watches) as lab:
        assert lab.send("order.created", 7, id="o7") == 1
        lab.send("order.created", 7, id="o7")
        (run,) = lab.runs
        lab.later("2d", lab.send, "order.paid", {"order": 8})
        lab.later("2.5d", lab.send, "order.paid", {"order": 7}, id="p7")
        assert run.result() == "p7 at 03 12"


def test_what_a_run_sends_starts_another_one() -> None:
    with Lab(fulfil, watches) as lab:
        lab.send("order.created", 7)
        lab.advance("3d")
        assert sorted(str(run.result()) for run in lab.runs) == ["abandoned", "order.abandoned"]


# --- one after the other ------------------------------------------------------------------------------------------------
@workflow
async def ticks(since: str, seen: list[str]) -> list[str]:
    """Each part has one event, and an hour of work."""
    tick = await wait_for_event("tick", timeout="3d", since=since)
    if tick is None:
        return seen
    await asyncio.sleep(3_600)
    continue_as_new(since, [*seen, tick.id])


@pytest.mark.parametrize("since", ["run_start", "1d"])
def test_the_parts_of_a_run_get_one_event_after_the_other_and_miss_none(since: str) -> None:
    with Lab(ticks) as lab:
        run = lab.start(ticks, since, [])
        lab.send("tick", 1, id="first")
        lab.later("10m", lab.send, "tick", 2, id="while the first part works")
        lab.later("20m", lab.send, "tick", 3, id="then, too")
        lab.later("5h", lab.send, "tick", 4, id="to a part that waits")
        assert run.result() == ["first", "while the first part works", "then, too", "to a part that waits"]


@workflow(on="tick")
async def from_tick(data: int, part: int = 1) -> str | None:
    if part < 3:
        continue_as_new(data, part + 1)
    following = await wait_for_event("tick", timeout="1d", since="1d")
    return None if following is None else str(following.id)


def test_the_event_that_started_a_run_is_given_to_none_of_its_parts() -> None:
    with Lab(from_tick) as lab:
        lab.send("tick", 1, id="starts it")
        (run,) = lab.runs
        assert run.result() is None


def test_an_id_that_is_used_again_a_day_later_is_another_event() -> None:
    @workflow
    async def rows() -> list[Any]:
        events = [await wait_for_event("report", int, timeout="3d") for _ in range(2)]
        return [(event.id, event.data) if event else None for event in events]

    with Lab(rows) as lab:
        run = lab.start(rows)
        lab.send("report", 1, id="daily")
        lab.later("25h", lab.send, "report", 2, id="daily")
        assert run.result() == [["daily", 1], ["daily", 2]]


def test_what_a_part_takes_along_is_bounded_and_is_what_was_waited_for_last() -> None:
    had = EventsHad()
    had.started(RunStarted(), 1_000)
    for number in range(3_000):
        place = had.place("tick", b"%d" % number)
        place.take(NamedEvent(event_id=f"event {number}", time_ms=2_000), number + 1, place.count)
    had.place("tick", b"0")
    given = had.carried()
    assert given.ByteSize() <= 65 * 1024 and len(given.places) > 500
    assert [place.match for place in given.places[-2:]] == [b"2999", b"0"]
    following = EventsHad()
    following.started(RunStarted(given=given), 5_000)
    place = following.place("tick", b"2999")
    assert (place.seq, place.count, place.since_ms) == (3_000, 1, 900)
    again = NamedEvent(event_id="event 2999", time_ms=2_000)
    assert not place.take(again, 3_001, place.count)
    assert following.place("tick", b"1").since_ms == 4_900, "forgotten: as of a name that nobody waited for"
