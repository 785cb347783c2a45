"""What type checkers make of a lab; checked by running one over this file, never imported."""

from __future__ import annotations

from typing import Any, assert_type

from treadle.testing import Lab, Run
from treadle.worker import step, workflow


@step(pool="pay")
async def charge(amount: int, *, currency: str = "EUR") -> str:
    return f"{amount} {currency}"


@step
def count(word: str) -> int:
    return len(word)


@workflow
async def order(item: str, amount: int = 1) -> float:
    return amount / len(item)


def right(lab: Lab) -> None:
    assert_type(lab.start(order, "book"), Run[float])
    assert_type(lab.start(order, "book", amount=2).result(), float)
    assert_type(lab.start(order, "book", 2, id="order-1"), Run[float])
    assert_type(lab.find("order-1"), Run[Any] | None)
    lab.replace(charge, returns="receipt", takes="5s")
    lab.replace(charge, calls=fake)
    lab.replace(count, calls=lambda word: 3)
    lab.replace(count, outcomes=[OSError("away"), 3])
    lab.replace(order, raises=ValueError)
    lab.replace(order, calls=lambda item, amount=1: 2.5)
    run = lab.start(order, "book")
    lab.later("2d", run.signal, "approve", 3, id="a")
    assert_type(run.ask("price", returns=int), int)
    assert_type(run.state(str), str | None)


async def fake(amount: int, *, currency: str = "") -> str:
    return f"{amount}{currency}"
