"""Deadlines and schedules in a lab: the rules are those of the machine, the clock is virtual."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from treadle.protocol.errors import ConfigError, RunFailed, RunTimedOut
from treadle.testing import Lab, Stuck
from treadle.worker import Occurrence, Retry, receive, step, workflow


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@step(pool="slow", timeout="40s", total_timeout="1m", retry=Retry(attempts=9, initial="1s", jitter=0))
async def fetch(url: str) -> str:
    return url


@step(total_timeout="1m", retry=Retry(attempts=9, initial="10s", factor=1, jitter=0))
def parse(text: str) -> str:
    return text


@step
def note(text: str) -> None: ...


@workflow
async def fetches(url: str) -> str:
    return await parse(await fetch(url))


def test_the_total_timeout_of_a_step_ends_its_last_try(lab: Lab) -> None:
    lab.replace(fetch, hangs=True)
    run = lab.start(fetches, "a")
    with pytest.raises(RunFailed, match="step fetch took too long after 2 attempts"):
        run.result()
    assert [call.at.second for call in run.calls] == [0, 41]
    assert lab.now == datetime(2030, 1, 1, 0, 1, tzinfo=UTC)


def test_the_total_timeout_of_a_local_step(lab: Lab) -> None:
    lab.replace(parse, raises=OSError("no"), takes="25s")
    with pytest.raises(RunFailed, match="step parse"):
        lab.start(fetches, "a").result()
    assert len(lab.calls(parse)) == 2
    assert lab.now == datetime(2030, 1, 1, 0, 1, tzinfo=UTC)


@workflow(timeout="1h")
async def bounded(kind: str) -> str:
    try:
        return await receive("go", str)
    finally:
        await note("cleaning up")
        if kind == "stubborn":
            await asyncio.sleep(7200)


@pytest.mark.parametrize(("kind", "minutes"), [("good", 0), ("stubborn", 1)])
def test_the_timeout_of_a_run_is_raised_in_its_code(lab: Lab, kind: str, minutes: int) -> None:
    run = lab.start(bounded, kind)
    with pytest.raises(RunTimedOut, match="longer than its timeout"):
        run.result()
    assert lab.now == datetime(2030, 1, 1, 1, minutes, tzinfo=UTC)
    assert run.steps == ["note"]


@workflow(cron="0 6 * * *", tz="Europe/Berlin", overlap="skip")
async def nightly(occurrence: Occurrence) -> str:
    await asyncio.sleep(3600)
    return f"{occurrence.scheduled_at:%d %H:%M} {occurrence.timezone}"


def test_a_schedule_starts_runs_as_time_passes(lab: Lab) -> None:
    lab.schedule(nightly)
    lab.advance("3d")
    assert [run.result() for run in lab.runs] == [f"0{day} 06:00 Europe/Berlin" for day in (1, 2, 3)]


def test_a_run_is_stuck_although_a_schedule_goes_on(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treadle.testing.house._MAX_JUMPS", 10)
    lab.schedule(nightly)
    with pytest.raises(Stuck):
        lab.start(bounded_not).result()


@workflow
async def bounded_not() -> str:
    return await receive("go", str)


def test_a_workflow_without_a_schedule_is_told(lab: Lab) -> None:
    with pytest.raises(ConfigError, match=r"schedule\(bounded\): it declares none"):
        lab.schedule(bounded)
