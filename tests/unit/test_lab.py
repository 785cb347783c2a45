"""The lab: workflows run in this process by the real machine, worker core and loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from treadle.protocol.errors import (
    ConfigError,
    MapFailed,
    NotDeterministic,
    QuestionRefused,
    RunCancelled,
    RunClosed,
    RunFailed,
    RunIdConflict,
    RunTerminated,
)
from treadle.testing import Lab, Stuck
from treadle.worker import (
    Fatal,
    Retry,
    Saga,
    continue_as_new,
    now,
    publish_state,
    random,
    receive,
    receive_question,
    sleep_until,
    start_child,
    step,
    uuid4,
    workflow,
)


@dataclass
class Order:
    item: str
    amount: int


@dataclass
class Approval:
    by: str


@step
def reserve(item: str) -> str:
    return f"reserved {item}"


@step(pool="pay", retry=Retry(attempts=4, initial="1m", factor=2, jitter=0))
async def charge(order: Order, *, currency: str = "EUR") -> str:
    await asyncio.sleep(0)
    return f"charged {order.amount} {currency}"


@step
async def release(item: str) -> None:
    assert item


@workflow
async def buy(order: Order) -> str:
    await reserve(order.item)
    approval = await receive("approve", Approval, timeout="3d")
    if approval is None:
        await release(order.item)
        return "not approved"
    return f"{await charge(order)}, approved by {approval.by}"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


# --- what runs, and what came of it ------------------------------------------------------------------------------------
def test_real_steps_run_and_signals_come_when_they_are_planned(lab: Lab) -> None:
    run = lab.start(buy, Order("book", 12))
    assert run.status == "running"
    lab.later("2d", run.signal, "approve", Approval("Ada"))
    assert run.result() == "charged 12 EUR, approved by Ada"
    assert (run.status, run.closed) == ("completed", True)
    assert run.steps == ["reserve", "charge"]
    (call,) = lab.calls(charge)
    assert (call.args, call.kwargs, call.attempt) == ((Order("book", 12),), {"currency": "EUR"}, 1)
    assert call.at - lab.calls(reserve)[0].at == timedelta(days=2)
    assert lab.now == datetime(2030, 1, 3, tzinfo=UTC)


def test_a_timeout_passes_in_no_time(lab: Lab) -> None:
    run = lab.start(buy, Order("book", 12))
    assert run.result() == "not approved"
    assert run.steps == ["reserve", "release"]
    assert lab.now == datetime(2030, 1, 4, tzinfo=UTC)


def test_a_signal_goes_to_the_code_at_once(lab: Lab) -> None:
    run = lab.start(buy, Order("book", 12), id="order-1")
    lab.advance("1d")
    assert run.steps == ["reserve"]
    run.signal("approve", Approval("Bob"), id="a")
    run.signal("other", 1)
    assert run.result().endswith("Bob")
    assert run.id == "order-1"
    with pytest.raises(RunClosed):
        run.signal("approve", Approval("Eve"))
    run.signal("approve", Approval("Bob"), id="a")  # the same once more


@workflow
async def year() -> list[str]:
    seen = []
    for _ in range(12):
        await asyncio.sleep(30 * 86400)
        seen.append(now().date().isoformat())
    await sleep_until(datetime(2031, 7, 1, tzinfo=UTC))
    return [*seen, now().date().isoformat()]


def test_a_year_of_sleeps_wakes_only_when_there_is_something_to_do(lab: Lab) -> None:
    run = lab.start(year)
    days = run.result()
    assert (days[0], days[11], days[12]) == ("2030-01-31", "2030-12-27", "2031-07-01")
    kinds = [event.WhichOneof("kind") for event in run.history()]
    assert kinds.count("timer_fired") == 13
    assert len(kinds) < 80, "nobody looks in between"


@workflow
async def fails(kind: str) -> None:
    if kind == "step":
        await reserve.map([kind])
        await broken()
    raise ValueError(f"no {kind}")


@step(retry=Retry(attempts=3, initial="10s", factor=2, jitter=0))
def broken() -> None:
    raise ConnectionError("away")


def test_retries_wait_as_in_production(lab: Lab) -> None:
    run = lab.start(fails, "step")
    with pytest.raises(RunFailed, match="step broken failed after 3 attempts: ConnectionError: away") as caught:
        run.result()
    assert "StepError" in repr(caught.value.__cause__)
    assert [(call.attempt, (call.at - lab.calls(broken)[0].at).seconds) for call in lab.calls(broken)] == [
        (1, 0),
        (2, 10),
        (3, 30),
    ]
    assert len({call.idempotency_key for call in lab.calls(broken)}) == 1
    assert run.steps == ["reserve", "broken"], "an attempt more is no step more"


def test_what_the_workflow_raises_is_the_cause(lab: Lab) -> None:
    with pytest.raises(RunFailed, match="ValueError: no luck") as caught:
        lab.start(fails, "luck").result()
    assert "ValueError" in repr(caught.value.__cause__)


def test_cancel_and_terminate(lab: Lab) -> None:
    cleaned = lab.start(tidy)
    cleaned.cancel("enough")
    with pytest.raises(RunCancelled, match="enough"):
        cleaned.result()
    assert cleaned.steps == ["release"]
    ended = lab.start(tidy)
    ended.terminate()
    with pytest.raises(RunTerminated, match=r"was terminated$"):
        ended.result()
    assert ended.steps == []


@workflow
async def tidy() -> None:
    try:
        await asyncio.sleep(10**6)
    finally:
        await release("it")


# --- what it says, and is asked ----------------------------------------------------------------------------------------
@workflow
async def desk() -> str:
    publish_state({"open": True})
    await asyncio.sleep(3600)
    question = await receive_question("price", str)
    question.answer(f"{question.value}: 12")
    other = await receive_question("price", str)
    other.refuse("sold out")
    publish_state("closed")
    return await receive("bye", str)


def test_questions_and_states(lab: Lab) -> None:
    run = lab.start(desk)
    assert run.state() == {"open": True}
    assert run.ask("price", "EUR", returns=str) == "EUR: 12"
    assert lab.now == datetime(2030, 1, 1, 1, tzinfo=UTC), "the answer took its hour"
    with pytest.raises(QuestionRefused, match="sold out"):
        run.ask("price", "USD")
    assert run.state(str) == "closed"
    run.signal("bye", "see you")
    assert run.result() == "see you"
    with pytest.raises(RunClosed):
        run.ask("price")


def test_a_question_that_nobody_answers(lab: Lab) -> None:
    run = lab.start(buy, Order("book", 1))
    with pytest.raises(RunClosed, match="closed without an answer to question 'price'"):
        run.ask("price")


# --- runs that call runs, many steps at once ---------------------------------------------------------------------------
@workflow
async def family(count: int) -> list[str]:
    left = start_child(buy, Order("left", 1))
    found = [await buy(Order("book", number)) for number in range(count)]
    left.cancel()
    return found


def test_children_are_runs_of_the_lab(lab: Lab) -> None:
    run = lab.start(family, 1)
    first = run.children[1]
    lab.later("1h", first.signal, "approve", Approval("Ada"))
    assert run.result() == ["charged 0 EUR, approved by Ada"]
    assert [child.status for child in run.children] == ["cancelled", "completed"]
    assert lab.runs == [run, *run.children]
    assert first.steps == ["reserve", "charge"]


@workflow
async def many(count: int) -> list[str]:
    await charge.map([Order("a", number) for number in range(count)], limit=count)
    return await reserve.map([str(number) for number in range(count)], limit=7)


def test_more_steps_at_once_than_a_worker_has_slots(lab: Lab) -> None:
    run = lab.start(many, 1200)
    assert len(run.result()) == 1200
    assert len(run.steps) == 2400
    with pytest.raises(RunFailed, match=MapFailed.__name__):
        lab.replace(reserve, raises=Fatal("none"))
        lab.start(many, 3).result()


@workflow
async def trip() -> str:
    async with Saga() as saga:
        for place in ("Rome", "Oslo"):
            await reserve(place)
            saga.undo(release, place)
        return await charge(Order("trip", 3))


def test_a_saga_undoes(lab: Lab) -> None:
    lab.replace(charge, raises=Fatal("no money"))
    with pytest.raises(RunFailed, match="no money"):
        lab.start(trip).result()
    assert [(call.step, *call.args) for call in lab.calls() if call.step != "charge"] == [
        ("reserve", "Rome"),
        ("reserve", "Oslo"),
        ("release", "Oslo"),
        ("release", "Rome"),
    ]


# --- runs that go on as new -----------------------------------------------------------
@workflow
async def months(left: int) -> str:
    await reserve(f"month {left}")
    told = await receive("stop", str, timeout="30d")
    if told is not None or not left:
        return f"{told} with {left} left"
    continue_as_new(left - 1)


def test_a_run_that_goes_on_as_new_is_one_run(lab: Lab) -> None:
    run = lab.start(months, 12)
    lab.later("100d", run.signal, "stop", "enough")
    assert run.result() == "enough with 9 left"
    assert run.steps == ["reserve"] * 4
    assert len(run.history()) < 15, "that of the last part"
    assert lab.start(months, 2).result() == "None with 0 left"


# --- nothing that never comes is waited for ----------------------------------------------------------------------------
@workflow
async def waits(kind: str) -> Any:
    if kind == "child":
        return await waits("signal")
    if kind == "question":
        return await receive_question("price")
    return await asyncio.gather(receive("approve"), receive("deny"))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            "signal",
            r"waits for signal 'approve', and for signal 'deny'; nothing is planned that brings it: send it with ",
        ),
        ("question", r"waits for question 'price'; .* run\.ask\('price', \.\.\.\)"),
        ("child", r"waits for child '.*' of workflow 'waits'; run .* waits for signal 'approve'"),
    ],
)
def test_a_run_that_nothing_will_wake_says_what_it_waits_for(lab: Lab, kind: str, words: str) -> None:
    with pytest.raises(Stuck, match=words):
        lab.start(waits, kind).result()


@workflow
async def for_ever() -> None:
    while True:
        await asyncio.sleep(1)


def test_a_run_without_end_is_given_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treadle.testing.house._MAX_JUMPS", 50)
    with pytest.raises(Stuck, match="there is no end to it"):
        lab.start(for_ever).result()


# --- the same each time ------------------------------------------------------------------------------------------------
@workflow
async def dice() -> str:
    return f"{random().random()} {uuid4()}"


def test_chance_comes_from_the_seed() -> None:
    def result(seed: int) -> str:
        with Lab(seed=seed) as lab:
            return lab.start(dice).result()

    assert result(1) == result(1) != result(2)


def test_ids(lab: Lab) -> None:
    first, second = lab.start(dice), lab.start(dice)
    assert first.id != second.id
    assert lab.find(first.id) is first
    assert lab.find("nobody") is None
    with pytest.raises(RunIdConflict):
        lab.start(dice, id=first.id)


def test_what_a_lab_is_not_given_right_is_told() -> None:
    with pytest.raises(ConfigError, match="time zone"):
        Lab(start=datetime(2030, 1, 1))
    with Lab() as lab:
        with pytest.raises(TypeError, match="missing"):
            lab.start(buy)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="time zone"):
            lab.at(datetime(2030, 1, 1), print)
    with pytest.raises(ConfigError, match="closed"):
        lab.start(dice)


@workflow
async def naughty() -> None:
    open("somewhere", "w").close()


def test_what_only_a_step_may_do_is_refused_as_in_production(lab: Lab) -> None:
    with pytest.raises(RunFailed, match=NotDeterministic.__name__):
        lab.start(naughty).result()


def test_importing_the_lab_needs_no_server_and_no_pytest() -> None:
    code = "import treadle.testing, sys; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"redis", "aio_pika", "aiormq", "grpc", "pytest"} & set(out.stdout.split())
