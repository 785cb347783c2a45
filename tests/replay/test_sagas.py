"""Sagas that were cancelled, interrupted or could not undo: what is undone is not taken for done when the run goes on."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.replay.harness import Server, check_every_prefix, drive, feed_all
from treadle.worker import Retry, Saga, StepError, step, workflow
from treadle.worker.app import Registry
from treadle.worker.loop.port import Outcome

BROKEN: set[str] = set()
RAN: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _whole() -> Iterator[None]:
    BROKEN.clear()
    RAN.clear()
    yield
    BROKEN.clear()


@step(pool="p", retry=Retry.never)
async def does(what: str) -> str:
    RAN[what] += 1
    if what in BROKEN:
        raise ConnectionError(what)
    return what.upper()


async def trip() -> str:
    """Books and pays; ten seconds are between."""
    async with Saga() as saga:
        await does("seat")
        saga.undo(does, "free seat")
        await does("car")
        saga.undo(does, "free car")
        await asyncio.sleep(10)
        return await does("pay")


@workflow
async def alone() -> str:
    return await trip()


@workflow
async def beside() -> str:
    """A sibling fails while the saga waits."""
    async with asyncio.TaskGroup() as group:
        booked = group.create_task(trip())
        group.create_task(_later("visa"))
    return booked.result()


async def _later(what: str) -> str:
    await asyncio.sleep(5)
    return await does(what)


@workflow
async def beside_code() -> str:
    """A sibling raises by itself."""

    async def wrong() -> None:
        await asyncio.sleep(5)
        raise KeyError("a mistake")

    async with asyncio.TaskGroup() as group:
        booked = group.create_task(trip())
        group.create_task(wrong())
    return booked.result()


@workflow
async def plan_b() -> str:
    """That the sibling failed is handled; something else fails behind it."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(trip())
            group.create_task(_later("visa"))
    except* StepError:
        pass
    return await does("stay")


@workflow
async def in_time() -> str:
    """The saga takes too long, which is handled; something else fails behind it."""
    try:
        async with asyncio.timeout(8):
            return await trip()
    except TimeoutError:
        return await does("stay")


@workflow
async def race() -> str:
    """The slower one of two is undone."""
    tasks = [asyncio.create_task(trip()), asyncio.create_task(_later("train"))]
    done, (slow,) = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    slow.cancel()
    await asyncio.wait([slow])
    return done.pop().result() + await does("stay")


@workflow
async def by_hand() -> str:
    async with Saga() as saga:
        try:
            await does("seat")
            saga.undo(does, "free seat")
            return await does("pay")
        except StepError:
            await saga.compensate()
            raise


@workflow
async def by_hand_alone() -> str:
    saga = Saga()
    try:
        await does("seat")
        saga.undo(does, "free seat")
        return await does("pay")
    except StepError as error:
        await saga.compensate()
        raise RuntimeError("not booked") from error


FLOWS = Registry().add(alone, beside, beside_code, plan_b, in_time, race, by_hand, by_hand_alone, does)


def ended(flow: Any, *broken: str, **settings: Any) -> tuple[Server, Outcome]:
    """A run that has ended, with these steps broken, and closed."""
    server = Server(FLOWS, flow, seed=2, **settings)
    server.start()
    BROKEN.update(broken)
    outcome = drive(server)
    check_every_prefix(server, outcome)
    server.close(outcome)
    BROKEN.clear()
    RAN.clear()
    return server, outcome


def undoing(server: Server) -> bool:
    """What its last owner says with each request."""
    execution = server.fresh()
    feed_all(execution, server.history)
    execution.close()
    return execution.undoing


def goes_on(server: Server, number: int = 1) -> Outcome:
    server.retry(number=number, undoing=undoing(server))
    outcome = drive(server)
    check_every_prefix(server, outcome)
    return outcome


@pytest.mark.parametrize(
    ("flow", "broken"),
    [(beside, "visa"), (beside_code, ""), (by_hand, "pay"), (by_hand_alone, "pay"), (alone, "pay")],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_run_that_failed_says_that_a_saga_has_undone_what_was_done(flow: Any, broken: str) -> None:
    _, outcome = ended(flow, broken)
    assert outcome.failure is not None and outcome.undone


@pytest.mark.parametrize(("flow", "broken"), [(plan_b, ("visa", "stay")), (in_time, ("stay",)), (race, ("stay",))])
def test_what_was_undone_and_handled_comes_about_again(flow: Any, broken: tuple[str, ...]) -> None:
    server, outcome = ended(flow, *broken)
    assert outcome.failure is not None and not outcome.undone
    outcome = goes_on(server)
    assert outcome.result is not None and json.loads(outcome.result.data).endswith("STAY") and RAN == {"stay": 1}


@pytest.mark.parametrize("by_timeout", [False, True])
def test_a_run_that_was_to_end_and_could_not_undo_goes_on_undoing(by_timeout: bool) -> None:
    server, outcome = ended(alone, "free seat", cancel_at_ms=9000, by_timeout=by_timeout)
    assert outcome.failure is not None and outcome.failure.type == "CompensationFailed"
    assert not outcome.undone and undoing(server)
    outcome = goes_on(server)
    assert outcome.cancelled and outcome.undone and RAN == {"free seat": 1}


def test_one_that_was_terminated_while_it_undid_goes_on_undoing() -> None:
    whole, _ = ended(alone, cancel_at_ms=9000)
    first, last = (
        next(e.position for e in whole.history if e.WhichOneof("kind") == kind)
        for kind in ("cancel_requested", "run_cancelled")
    )
    for position in range(first, last):
        RAN.clear()
        server = Server(FLOWS, alone, seed=2, cancel_at_ms=9000)
        server.start()
        execution = server.fresh()
        while len(server.history) < position:
            feed_all(execution, server.history)
            server.accept(execution.take(), execution.fed)
            server.advance()
        feed_all(execution, server.history)
        says = execution.undoing
        execution.close()
        server.close(None)
        undone = RAN["free seat"]
        server.retry(undoing=says)
        RAN.clear()
        outcome = drive(server)
        assert outcome.cancelled and outcome.undone and RAN["pay"] == 0, f"terminated at {position}"
        assert RAN["free seat"] == 1 - undone


def test_beside_a_sibling_that_failed_undoing_goes_on_first() -> None:
    server, outcome = ended(beside, "visa", "free seat")
    assert not outcome.undone and len(outcome.because) == 1
    outcome = goes_on(server)
    assert outcome.failure is not None and outcome.undone and RAN == {"free seat": 1}
