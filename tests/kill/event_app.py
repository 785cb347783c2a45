"""The app of the event kill test: events start runs, runs wait for events, and send some."""

from __future__ import annotations

from treadle.worker import send_event, step, wait_for_event, workflow


@step
async def add(a: int, b: int) -> int:
    return a + b


@workflow(pool="flows", on="order.created")
async def fulfil(order: int) -> int:
    """Return what was paid in two parts."""
    first = await wait_for_event("order.paid", dict[str, int], match={"order": order}, since="1h")
    second = await wait_for_event("order.paid", dict[str, int], match={"order": order}, since="1h")
    total = await add(first.data["amount"], second.data["amount"])
    send_event("order.fulfilled", {"order": order, "total": total})
    return total


@workflow(pool="flows", on="order.fulfilled", when="event.data.total > 0")
async def thank(data: dict[str, int]) -> int:
    return await add(data["total"], 0)
