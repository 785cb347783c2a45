"""Heartbeats and progress of steps that run: in async code, in threads and in child processes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from treadle.protocol.deferral import read_token
from treadle.protocol.errors import ConfigError, PayloadError
from treadle.v1.common_pb2 import FAILURE_KIND_HEARTBEAT_MISSED, Payload
from treadle.v1.job_pb2 import Job
from treadle.worker import defer, heartbeat, last_progress, progress, step
from treadle.worker.app import Registry, load_app
from treadle.worker.core.port import Attempt, Report
from treadle.worker.current import StepInfo
from treadle.worker.executors import Call, Executors
from treadle.worker.pulse import Pulse, interval_s

APP = """
import asyncio, sys, threading, time
from dataclasses import dataclass
from treadle.worker import Deferred, defer, heartbeat, last_progress, progress, step, step_info

CUT = {}

@dataclass
class Cursor:
    row: int

def goes_on(row):
    before = last_progress(Cursor)
    progress(Cursor(row))
    after = last_progress(Cursor)
    return [None if before is None else before.row, after.row]

@step(heartbeat="5s")
async def in_loop(row: int) -> list[int | None]:
    return goes_on(row)

@step
def in_thread(row: int) -> list[int | None]:
    return goes_on(row)

@step(executor="process")
def in_process(row: int) -> list[int | None]:
    return goes_on(row)

@step(heartbeat="0.3s")
async def silent_in_loop() -> None:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError as told:
        CUT["loop"] = told.args[0]
        raise

@step(heartbeat="0.3s")
def silent_in_thread() -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until and not (why := step_info().cancel_reason):
        time.sleep(0.01)
    CUT["thread"] = why

@step(executor="process", heartbeat="0.5s")
def silent_in_process(path: str) -> None:
    try:
        time.sleep(60)
    finally:
        open(path, "w").write(step_info().cancel_reason)

@step(heartbeat="0.3s")
async def beats_in_loop() -> None:
    for _ in range(12):
        await asyncio.sleep(0.1)
        heartbeat()

@step(heartbeat="0.3s")
def beats_in_thread() -> None:
    for n in range(12):
        time.sleep(0.1)
        progress(n)

@step(executor="process", heartbeat="1s")
def beats_in_process() -> None:
    for _ in range(24):
        time.sleep(0.1)
        heartbeat()

@step
def often() -> int:
    said, until = 0, time.monotonic() + 1.5
    while time.monotonic() < until:
        progress({"said": said})
        said += 1
        if said % 100 == 0:
            time.sleep(0)
    return said

def defers(timeout):
    token = defer(timeout=timeout)
    progress(token)
    raise Deferred

@step
async def defers_in_loop() -> int:
    defers("7d")

@step
def defers_in_thread() -> int:
    defers(None)

@step(executor="process")
def defers_in_process() -> int:
    defers("1m")

@step
async def asks_and_returns() -> str:
    return defer()

@step
async def has_no_token() -> None:
    raise Deferred

@step
async def counts(n: int) -> None:
    for k in range(n):
        progress(k)
"""


JOB = Job(namespace="ns", run_id="r", incarnation=7, command_id="0/s#1", try_number=2)


class Rig:
    """Executors over a real app file, and what attempts said."""

    def __init__(self, executors: Executors, registry: Registry, path: Path) -> None:
        self.executors, self.registry, self.path = executors, registry, path
        self.said: list[tuple[float, bytes | None]] = []

    async def run(self, name: str, *args: Any, before: Payload | None = None, local: bool = False) -> Report:
        step = self.registry.steps[name]
        end: asyncio.Future[Report | None] = asyncio.get_running_loop().create_future()
        call = Call(
            step=step,
            payload=step.signature.encode_call(args, {}),
            info=StepInfo(run_id="r", step=name, attempt=1, idempotency_key="k"),
            may_start=lambda: True,
            ended=end.set_result,
            heartbeat_ms=step.heartbeat_ms,
            attempt=None if local else Attempt(b"t", JOB, 1, False, "", deferral_key=b"key"),
            progress=before,
            local=local,
            said=lambda call, data: self.said.append((time.monotonic(), data)),
        )
        self.executors.start(call)
        async with asyncio.timeout(30):
            report = await end
        assert report is not None and call.info.live is None, "what has ended holds nothing"
        return report

    def value(self, name: str, report: Report) -> Any:
        assert report.kind == "completed" and report.result is not None, report
        return self.registry.steps[name].signature.decode_result(report.result)


Play = Callable[[Callable[[Rig], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    app = tmp_path / "long_app.py"
    app.write_text(APP)

    def run(body: Callable[[Rig], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            executors = Executors(str(app), 2)
            try:
                await body(Rig(executors, load_app(str(app)), tmp_path))
            finally:
                await executors.close()

        asyncio.run(main())

    return run


@pytest.mark.parametrize("name", ["in_loop", "in_thread", "in_process"])
def test_a_step_says_how_far_it_is_and_knows_what_was_said_before(play: Play, name: str) -> None:
    async def body(rig: Rig) -> None:
        assert rig.value(name, await rig.run(name, 7)) == [None, 7]
        assert [data for _, data in rig.said] == [b'{"row":7}'], "the last word is told before the end"
        assert rig.value(name, await rig.run(name, 9, before=Payload(data=b'{"row":8}'))) == [8, 9]

    play(body)


@pytest.mark.parametrize("where", ["loop", "thread"])
def test_silence_ends_the_attempt_and_the_code_is_told(play: Play, where: str) -> None:
    async def body(rig: Rig) -> None:
        report = await rig.run(f"silent_in_{where}")
        assert report.kind == "failed" and report.failure is not None
        assert (report.failure.kind, report.failure.type) == (FAILURE_KIND_HEARTBEAT_MISSED, "HeartbeatMissed")
        assert 300 <= report.duration_ms < 3_000 and not rig.said
        cut = rig.registry.steps[f"silent_in_{where}"].function.__globals__["CUT"]
        async with asyncio.timeout(10):
            while where not in cut:
                await asyncio.sleep(0.01)
        assert cut[where] == "heartbeat missed"

    play(body)


def test_silence_in_a_child_process_is_a_signal(play: Play) -> None:
    async def body(rig: Rig) -> None:
        path = rig.path / "cut"
        report = await rig.run("silent_in_process", str(path))
        assert report.failure is not None and report.failure.kind == FAILURE_KIND_HEARTBEAT_MISSED
        assert path.read_text() == "heartbeat missed"

    play(body)


@pytest.mark.parametrize(("name", "least"), [("beats_in_loop", 1), ("beats_in_thread", 4), ("beats_in_process", 2)])
def test_who_speaks_is_left_alone(play: Play, name: str, least: int) -> None:
    async def body(rig: Rig) -> None:
        report = await rig.run(name)
        assert report.kind == "completed", report.failure
        assert len(rig.said) >= least
        every = interval_s(rig.registry.steps[name].heartbeat_ms)
        times = [at for at, _ in rig.said][:-1]  # the last word does not wait
        assert all(b - a >= every * 0.9 for a, b in pairwise(times))

    play(body)


def test_it_may_be_said_thousands_of_times_a_second(play: Play) -> None:
    async def body(rig: Rig) -> None:
        said = rig.value("often", await rig.run("often"))
        assert said > 10_000, f"{said} in 1.5 s"
        assert len(rig.said) <= 4 and rig.said[-1][1] == b'{"said":%d}' % (said - 1)

    play(body)


def test_a_step_that_never_waits_is_told_of_in_the_end(play: Play) -> None:
    async def body(rig: Rig) -> None:
        await rig.run("counts", 500)
        assert [data for _, data in rig.said] == [b"499"]

    play(body)


def test_a_loop_that_was_held_up_looks_once_more() -> None:
    """What kept the loop kept the code, too."""

    async def main() -> None:
        missed: list[float] = []
        loop = asyncio.get_running_loop()
        pulse = Pulse(loop, 600, None, None, lambda data: None, lambda: missed.append(loop.time()))
        pulse.watch()
        time.sleep(1.2)
        await asyncio.sleep(0.1)
        assert not missed
        async with asyncio.timeout(5):
            while not missed:
                await asyncio.sleep(0.01)
        pulse.close()

    asyncio.run(main())


@pytest.mark.parametrize(("name", "wait_ms"), [("loop", 604_800_000), ("thread", 0), ("process", 60_000)])
def test_a_step_ends_without_an_outcome_and_its_token_is_good(play: Play, name: str, wait_ms: int) -> None:
    async def body(rig: Rig) -> None:
        report = await rig.run(f"defers_in_{name}")
        assert (report.kind, report.deferred_ms, report.failure) == ("deferred", wait_ms, None)
        token = read_token(json.loads(rig.said[-1][1] or b""))
        assert (token.run_id, token.incarnation, token.command_id, token.try_number) == ("r", 7, "0/s#1", 2)
        assert token.is_signed(b"key", "ns") and not token.is_signed(b"key", "other")

    play(body)


def test_the_report_of_a_local_step_brings_its_last_word(play: Play) -> None:
    async def body(rig: Rig) -> None:
        report = await rig.run("in_thread", 7, local=True)
        assert report.progress == Payload(data=b'{"row":7}')
        assert (await rig.run("in_thread", 7)).progress is None, "that of a pool step is told apart"

    play(body)


def test_who_has_a_token_need_not_defer(play: Play) -> None:
    async def body(rig: Rig) -> None:
        assert rig.value("asks_and_returns", await rig.run("asks_and_returns")).startswith("tds_")

    play(body)


@pytest.mark.parametrize(
    ("name", "local", "why"), [("has_no_token", False, "without a token"), ("asks_and_returns", True, "pool")]
)
def test_what_nobody_could_finish_is_not_deferred(play: Play, name: str, local: bool, why: str) -> None:
    async def body(rig: Rig) -> None:
        report = await rig.run(name, local=local)
        assert report.kind == "failed" and report.failure is not None
        assert report.failure.type == "ConfigError" and why in report.failure.message

    play(body)


def test_a_plain_call_has_no_token() -> None:
    with pytest.raises(ConfigError, match="there is no attempt here"):
        defer()
    with pytest.raises(ConfigError, match="give more than 0"):
        defer(timeout=0)


def test_a_plain_call_says_nothing_to_nobody() -> None:
    @step
    def plain() -> Any:
        progress(1)
        heartbeat()
        return last_progress(int)

    assert plain() is None


def test_what_is_too_large_or_no_value_is_refused_where_it_is_said() -> None:
    progress("x" * (16 * 1024 - 2))
    with pytest.raises(PayloadError, match=r"progress: 16,385 bytes of JSON are more than the limit of 16,384"):
        progress("x" * (16 * 1024 - 1))
    with pytest.raises(PayloadError, match="progress"):
        progress(object())


@pytest.mark.parametrize("value", ["0.05s", 0, "1.5x"])
def test_a_heartbeat_has_a_least_length(value: Any) -> None:
    with pytest.raises(ConfigError, match="heartbeat"):

        @step(heartbeat=value)
        async def never() -> None: ...
