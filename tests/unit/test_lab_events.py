"""Events in the lab: workflows that they start, and runs that wait for them, in virtual time."""

from __future__ import annotations

from typing import Any

from treadle.testing import Lab
from treadle.worker import Event, send_event, wait_for_event, workflow


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
