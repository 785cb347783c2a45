"""Steps in a lab: real ones that await, durations and timeouts in virtual time, cancelling, progress."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta

import pytest

from treadle.protocol.errors import RunCancelled, RunFailed, StepError, StepSettled, StepTimedOut
from treadle.testing import Lab, Stuck
from treadle.testing.lab import START
from treadle.worker import Deferred, Fatal, Retry, defer, heartbeat, last_progress, progress, step, step_info, workflow


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@step
def lookup(item: str) -> str:
    return f"looked up {item}"


@step
async def knows() -> str:
    await asyncio.sleep(0.001)
    info = step_info()
    return f"{info.step} {info.attempt} {info.run_id}"


@step(timeout="10s", retry=Retry.never)
async def bounded() -> None:
    await asyncio.sleep(0)


@workflow
async def both() -> list[str]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(knows()) for _ in range(3)]
        group.create_task(bounded())
    return [task.result() for task in tasks]


def test_async_steps_await_real_things_and_know_their_attempt(lab: Lab) -> None:
    assert lab.start(both, id="r").result() == ["knows 1 r"] * 3


@step
def sync_over_async(text: str) -> str:
    async def body() -> str:
        await asyncio.sleep(0)
        return text.upper()

    return asyncio.run(body())


@workflow
async def mixed() -> list[str]:
    return [await sync_over_async("a"), await knows()]


def test_a_test_may_be_a_coroutine_itself() -> None:
    async def main() -> None:
        before = asyncio.current_task()
        with Lab() as lab:
            assert lab.start(mixed, id="r").result() == ["A", "knows 1 r"]
            assert lab.start(both, id="s").result() == ["knows 1 s"] * 3
            await asyncio.sleep(0)
        assert asyncio.current_task() is before

    asyncio.run(main())


@workflow
async def patient() -> str:
    try:
        async with asyncio.timeout(60):
            await bounded()
    except StepTimedOut as error:
        return str(error)
    except TimeoutError:
        return "the workflow's own timeout"
    return "done"


@pytest.mark.parametrize(
    ("takes", "words"),
    [("9s", "done"), ("11s", "step bounded timed out: TimeoutError: the attempt of step bounded ran longer than")],
)
def test_a_step_takes_virtual_time_and_its_timeout_counts(lab: Lab, takes: str, words: str) -> None:
    lab.replace(bounded, returns=None, takes=takes)
    run = lab.start(patient)
    assert run.result().startswith(words)
    assert lab.now.second == int(takes[:-1]) if words == "done" else lab.now.second == 10


@step
async def slow() -> str:
    return "done"


@workflow
async def race() -> str:
    try:
        async with asyncio.timeout(60):
            return await slow()
    except TimeoutError:
        return "too slow"


def test_the_workflows_own_timeout_cancels_a_slow_step(lab: Lab) -> None:
    lab.replace(slow, returns="done", takes="2m")
    run = lab.start(race)
    assert run.result() == "too slow"
    lab.advance("5m")
    assert lab.now.minute == 6
    lab.replace(slow, hangs=True)
    assert lab.start(race).result() == "too slow"
    lab.replace(slow, returns="done", takes="59s")
    assert lab.start(race).result() == "done"


def test_a_real_step_that_is_cancelled_hears_of_it(lab: Lab) -> None:
    heard: list[str] = []

    @step(pool="other")
    async def listens() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            heard.append(step_info().cancel_reason)
            raise

    @workflow
    async def calls() -> None:
        await listens()

    run = lab.start(calls)
    run.cancel("stop")
    with pytest.raises(RunCancelled):
        run.result()
    assert len(heard) == 1 and heard[0]


def test_a_step_error_reaches_the_workflow(lab: Lab) -> None:
    @workflow
    async def catches() -> str:
        try:
            await lookup("x")
        except StepError as error:
            return f"{error.type_name}: {error.message}"
        return "no error"

    lab.replace(lookup, raises=Fatal("gone"))
    assert lab.start(catches).result() == "Fatal: gone"


# --- what a long step says ---------------------------------------------------------------------------------------------
@step(pool="bulk", heartbeat="10s", retry=Retry(attempts=3, initial="1s", jitter=0))
async def load(rows: int) -> list[int]:
    begin = last_progress(int) or 0
    for row in range(begin, rows):
        progress(row)
        await asyncio.to_thread(heartbeat)
        if row == 3 and step_info().attempt == 1:
            raise ConnectionError
    return [begin, rows]


@workflow
async def loads() -> list[int]:
    return await load(5)


def test_progress_is_given_to_the_next_attempt(lab: Lab) -> None:
    assert lab.start(loads).result() == [3, 5]


@step(retry=Retry(attempts=4, initial="1m", jitter=0))
def load_here(rows: int) -> list[int]:
    begin = last_progress(int) or 0
    if step_info().attempt > 1 and begin < rows:
        raise ConnectionError
    for row in range(begin, rows + 1):
        progress(row)
    if begin == 0:
        raise ConnectionError
    return [begin, rows]


@workflow
async def loads_here() -> list[int]:
    return await load_here(5)


def test_a_local_step_hands_its_progress_on_even_to_other_workers(lab: Lab) -> None:
    run = lab.start(loads_here)
    lab.restart()
    assert run.result() == [5, 5]


def test_a_double_that_takes_long_misses_its_heartbeats(lab: Lab) -> None:
    lab.replace(load, returns=[0], takes="11s")
    run = lab.start(loads)
    with pytest.raises(RunFailed, match="nothing for longer than its heartbeat of 10 s"):
        run.result()
    assert [call.at.second for call in run.calls] == [0, 11, 23]


INBOX: list[str] = []


@step(pool="default", retry=Retry(attempts=2, initial="1s"))
def approve(what: str) -> str:
    INBOX.append(defer(timeout="7d"))
    raise Deferred


@workflow
async def approval(what: str) -> str:
    try:
        return await approve(what)
    except StepTimedOut as error:
        return f"timed out after {error.attempts}"
    except StepError as error:
        return error.message


def test_a_step_is_finished_from_outside(lab: Lab) -> None:
    INBOX.clear()
    run = lab.start(approval, "x")
    lab.later("2d", lambda: lab.complete_step(INBOX[0], "fine"))
    assert run.result() == "fine" and lab.now == START + timedelta(days=2)
    with pytest.raises(StepSettled):
        lab.fail_step(INBOX[0], "late")


def test_a_step_that_nobody_finishes_is_tried_again_and_times_out(lab: Lab) -> None:
    INBOX.clear()
    assert lab.start(approval, "x").result() == "timed out after 2"
    assert lab.now >= START + timedelta(days=14) and len(set(INBOX)) == 2


def test_a_step_is_failed_from_outside(lab: Lab) -> None:
    INBOX.clear()
    run = lab.start(approval, "x")
    lab.fail_step(INBOX[0], "no", final=True)
    assert run.result() == "no"


@step(pool="default")
def waits_for_ever() -> None:
    defer()
    raise Deferred


@workflow
async def forgotten() -> None:
    await waits_for_ever()


def test_what_nobody_finishes_is_told(lab: Lab) -> None:
    with pytest.raises(Stuck, match="step 'waits_for_ever' to be finished from outside: hand its token"):
        lab.start(forgotten).result()


# --- large values ------------------------------------------------------------------------------------------------------
@step
def large(size: int) -> str:
    return "x" * size


@step(pool="far")
def size_of(text: str) -> int:
    return len(text)


@workflow
async def weighs(size: int) -> int:
    text = await large(size)
    return await size_of(text)


def test_values_are_as_large_as_production_takes_them() -> None:
    with Lab() as lab:
        assert lab.start(weighs, 500_000).result() == 500_000
        with pytest.raises(RunFailed, match="PayloadTooLarge"):
            lab.start(weighs, 2_000_000).result()
    with Lab(max_payload_bytes=64 << 20) as lab:
        assert lab.start(weighs, 2_000_000).result() == 2_000_000
