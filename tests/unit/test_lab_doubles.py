"""Steps and child workflows that are replaced in a lab: what happens instead, how often, and what the test hears of."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta

import pytest

from treadle.protocol.errors import ConfigError, RunFailed
from treadle.testing import Lab
from treadle.worker import Retry, RetryAfter, step, workflow


@step(retry=Retry(attempts=4, initial="1s", factor=2, jitter=0))
def charge(amount: int, *, currency: str = "EUR") -> str:
    raise AssertionError("never called here")


@step(pool="far", retry=Retry(attempts=3, initial="1s", jitter=0))
async def ship(item: str) -> int:
    raise AssertionError("never called here")


@workflow
async def pay(amount: int) -> str:
    return await charge(amount)


@workflow
async def order(amount: int) -> str:
    return f"{await pay(amount)} {await ship('book')}"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def test_values_and_functions(lab: Lab) -> None:
    async def shipped(item: str) -> int:
        await asyncio.sleep(0)
        return len(item)

    lab.replace(charge, calls=lambda amount, *, currency="": f"{amount} {currency}")
    lab.replace(ship, calls=shipped)
    run = lab.start(order, 3)
    assert run.result() == "3 EUR 4"
    assert [(call.step, call.args, call.kwargs) for call in lab.calls()] == [
        ("charge", (3,), {"currency": "EUR"}),
        ("ship", ("book",), {}),
    ]


def test_outcomes_are_those_of_the_attempts_in_order(lab: Lab) -> None:
    lab.replace(charge, outcomes=[ConnectionError("away"), RetryAfter("1h"), "paid"])
    lab.replace(ship, returns=1)
    run = lab.start(order, 3)
    assert run.result() == "paid 1"
    began = [call.at for call in lab.calls(charge)]
    assert [at - began[0] for at in began] == [timedelta(0), timedelta(seconds=1), timedelta(hours=1, seconds=1)]
    assert [call.attempt for call in lab.calls(charge)] == [1, 2, 3]
    assert {call.run_id for call in lab.calls(charge)} == {run.children[0].id}


def test_more_attempts_than_outcomes_are_an_error_of_the_test(lab: Lab) -> None:
    lab.replace(charge, outcomes=[ConnectionError("away")])
    with pytest.raises(ConfigError, match=r"step charge was called 2 times, and `outcomes` has 1"):
        lab.start(pay, 3).result()


def test_errors_are_raised_in_each_attempt(lab: Lab) -> None:
    lab.replace(charge, raises=ConnectionError)
    with pytest.raises(RunFailed, match="step charge failed after 4 attempts: ConnectionError"):
        lab.start(pay, 3).result()


def test_an_assertion_in_a_double_fails_the_test_at_once(lab: Lab) -> None:
    def check(amount: int, *, currency: str = "") -> str:
        assert amount == 5, "the wrong amount"
        return currency

    lab.replace(charge, calls=check)
    with pytest.raises(AssertionError, match="the wrong amount"):
        lab.start(pay, 3)
    assert len(lab.calls(charge)) == 1


def test_what_a_double_returns_travels_as_the_step_says(lab: Lab) -> None:
    lab.replace(ship, calls=lambda item: b"no number")  # type: ignore[arg-type]
    lab.replace(pay, returns="paid")
    with pytest.raises(RunFailed, match="ship"):
        lab.start(order, 3).result()


def test_steps_that_take_their_time(lab: Lab) -> None:
    lab.replace(charge, returns="paid", takes="90s")
    lab.replace(ship, outcomes=[OSError("full"), 2], takes="1m")
    run = lab.start(order, 3)
    began = lab.now
    assert run.result() == "paid 2"
    assert lab.now - began == timedelta(seconds=90 + 60 + 1 + 60)


def test_a_child_workflow_is_replaced(lab: Lab) -> None:
    lab.replace(ship, returns=1)
    lab.replace(pay, calls=lambda amount: f"{amount} paid", takes="2d")
    run = lab.start(order, 3)
    began = lab.now
    assert run.result() == "3 paid 1"
    assert run.steps == ["ship"]
    assert lab.now - began == timedelta(days=2)
    (child,) = run.children
    assert (child.status, child.result()) == ("completed", "3 paid")
    lab.replace(pay, outcomes=[ValueError("no"), "yes"])
    with pytest.raises(RunFailed, match="ValueError: no"):
        lab.start(order, 3).result()
    assert lab.start(order, 3).result() == "yes 1"


@workflow
async def hurried() -> str:
    try:
        async with asyncio.timeout(60):
            return await pay(1)
    except TimeoutError:
        return "too late"


def test_a_child_workflow_that_hangs(lab: Lab) -> None:
    lab.replace(pay, hangs=True)
    run = lab.start(hurried)
    assert run.result() == "too late"
    assert run.children[0].status == "cancelled"


def test_a_double_may_speak_to_the_run(lab: Lab) -> None:
    def tells(amount: int, *, currency: str = "") -> str:
        lab.runs[0].cancel("from inside")
        return "paid"

    lab.replace(charge, calls=tells)
    run = lab.start(pay, 1)
    assert run.status in ("completed", "cancelled")


def test_one_way_to_end_is_given() -> None:
    lab = Lab()
    with pytest.raises(ConfigError, match=r"replace\(step charge\): give exactly one of"):
        lab.replace(charge)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="exactly one"):
        lab.replace(charge, returns="a", raises=OSError)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="give an error, or a class of errors"):
        lab.replace(charge, raises="no")  # type: ignore[call-overload]
    lab.close()
