"""Failures in a lab: hooks, runs that are retried, rules for errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta

import pytest

from treadle.protocol.errors import NotFound, RunFailed, RunTimedOut, WrongState
from treadle.testing import Lab
from treadle.worker import FailedRun, Retry, step, workflow


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@step(retry=Retry(attempts=2, initial="1s", jitter=0).on(TimeoutError, attempts=4, initial="1m", factor=1, jitter=0))
def fetch(page: str) -> str:
    return f"content of {page}"


@step(pool="ops")
def tell(failed: FailedRun) -> None: ...


@step
def index(text: str) -> int:
    return len(text)


@workflow(on_failure=tell)
async def read(page: str) -> int:
    return await index(await fetch(page))


def test_a_hook_is_a_run_of_the_lab(lab: Lab) -> None:
    lab.replace(fetch, raises=OSError("gone"))
    run = lab.start(read, "a")
    with pytest.raises(RunFailed):
        run.result()
    (hook,) = [one for one in lab.runs if one is not run]
    hook.result()
    (call,) = lab.calls(tell)
    failed = call.args[0]
    assert (failed.id, failed.workflow, failed.input) == (run.id, "read", {"page": "a"})
    assert failed.error.type == "StepError"


@workflow(timeout="1h", on_failure=tell)
async def deaf(page: str) -> int:
    while True:
        try:
            await asyncio.sleep(86_400)
        except asyncio.CancelledError:
            await fetch(page)


def test_a_run_that_its_timeout_closes_has_a_hook_too(lab: Lab) -> None:
    began, run = lab.now, lab.start(deaf, "a")
    with pytest.raises(RunTimedOut):
        run.result()
    assert lab.now - began == timedelta(hours=1, minutes=1)
    (hook,) = [one for one in lab.runs if one is not run]
    hook.result()
    failed = lab.calls(tell)[0].args[0]
    assert (failed.id, failed.workflow, failed.input) == (run.id, "deaf", {"page": "a"})
    assert failed.error.type == "RunTimedOut" and "its code had not ended" in failed.error.message


def test_rules_for_errors_count_each_for_itself(lab: Lab) -> None:
    lab.replace(fetch, outcomes=[TimeoutError(), OSError(), TimeoutError(), "ok"])
    assert lab.start(read, "a").result() == 2
    began = [call.at for call in lab.calls(fetch)]
    assert [at - began[0] for at in began] == [timedelta(seconds=second) for second in (0, 60, 61, 121)]


MENDED: set[str] = set()


@workflow
async def mended(page: str) -> int:
    if MENDED:
        page = await fetch(page)
    return await index(page) + await count(page)


@step
def count(page: str) -> int:
    return len(page)


def test_from_a_step_means_where_it_was_called_last(lab: Lab) -> None:
    lab.replace(index, raises=OSError("full"))
    run = lab.start(mended, "a")
    with pytest.raises(RunFailed):
        run.result()
    MENDED.add("it fetches first")
    lab.replace(index, returns=3)
    lab.replace(count, raises=OSError("gone"))
    run.retry()
    with pytest.raises(RunFailed):
        run.result()
    lab.replace(count, returns=1)
    run.retry(from_step="index")
    assert run.result() == 4
    assert [call.step for call in run.calls].count("fetch") == 1, "it stands before the step that was named"


def test_a_run_goes_on_where_it_failed(lab: Lab) -> None:
    lab.replace(index, raises=OSError("full"))
    run = lab.start(read, "a")
    with pytest.raises(RunFailed):
        run.result()
    lab.replace(index, returns=3)
    run.retry(reason="there is room again")
    assert run.result() == 3
    assert [call.step for call in run.calls].count("fetch") == 1
    with pytest.raises(WrongState):
        run.retry()
    lab.replace(fetch, returns="other")
    run.retry(from_step="fetch")
    assert run.result() == 3
    assert [call.step for call in run.calls].count("fetch") == 2
    with pytest.raises(NotFound, match="no step 'ship'"):
        run.retry(from_step="ship")
