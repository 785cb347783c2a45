"""User code on the loop, in threads and in child processes: every call has one end, and it is the right one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from treadle.v1.common_pb2 import (
    FAILURE_KIND_APPLICATION,
    FAILURE_KIND_CRASHED,
    FAILURE_KIND_PAYLOAD,
    FAILURE_KIND_STEP_TIMED_OUT,
    FAILURE_KIND_TIMED_OUT,
    ON_CANCEL_ABANDON,
    ON_CANCEL_UNSPECIFIED,
    ON_CANCEL_WAIT,
    OnCancel,
    Payload,
)
from treadle.worker.app import Registry, load_app
from treadle.worker.core.port import Report
from treadle.worker.current import StepInfo
from treadle.worker.executors import Call, Executors, Running

APP = """
import asyncio, os, signal, sys, threading, time
from treadle.worker import Fatal, RetryAfter, step, step_info

STARTED = threading.Event()
GO_ON = threading.Event()

@step
async def double(n: int) -> int:
    return 2 * n

@step
async def sleeps() -> str:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        assert step_info().cancel_reason in ("", "cancelled", "drain")
        raise
    return "never"

@step
async def stubborn() -> str:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        return "finished all the same"
    return "never"

@step
async def lingers() -> None:
    for _ in range(2):  # the second cancel is that of the end of the test
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            continue

@step
def blocks() -> None:
    GO_ON.wait(30)

@step
async def exits() -> None:
    sys.exit(3)

@step
async def unencodable() -> object:
    return object()

@step
async def fatal() -> None:
    raise Fatal("no use")

@step
async def later() -> None:
    raise RetryAfter("90s")

@step
def in_thread(n: int) -> list[str]:
    return [threading.current_thread().name, step_info().idempotency_key]

@step
def waits() -> str:
    STARTED.set()
    while not GO_ON.wait(0.01):
        if step_info().cancel_reason:
            return "saw " + step_info().cancel_reason
    return "went on"

@step(executor="process")
def pid(n: int) -> int:
    print("this goes to stderr, not into the wire")
    return os.getpid()

@step(executor="process")
async def pid_async() -> int:
    await asyncio.sleep(0)
    return os.getpid()

@step(executor="process")
def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)

@step(executor="process")
def sleeps_in_process(path: str) -> None:
    try:
        open(path + ".started", "w").close()
        time.sleep(60)
    finally:
        open(path, "w").write(step_info().cancel_reason)

@step(executor="process")
def deaf() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    time.sleep(60)
"""


class Rig:
    """Executors over a real app file, and what was told of each call."""

    def __init__(self, path: Path, executors: Executors, registry: Registry) -> None:
        self.path = path
        self.executors = executors
        self.registry = registry

    def start(
        self, name: str, *args: Any, may_start: bool = True, **options: Any
    ) -> tuple[Running, asyncio.Future[Any]]:
        step = self.registry.steps[name]
        end: asyncio.Future[Report | None] = asyncio.get_running_loop().create_future()
        info = StepInfo(run_id="r", step=name, attempt=1, idempotency_key="k", namespace="default", command_id="c")
        call = Call(
            step=step,
            payload=options.pop("payload", None) or step.signature.encode_call(args, {}),
            info=info,
            may_start=lambda: may_start,
            ended=end.set_result,
            **options,
        )
        return self.executors.start(call), end

    async def run(self, name: str, *args: Any, **options: Any) -> Report:
        async with asyncio.timeout(30):
            report = await self.start(name, *args, **options)[1]
        assert isinstance(report, Report)
        return report

    async def value(self, name: str, *args: Any, **options: Any) -> Any:
        report = await self.run(name, *args, **options)
        assert report.kind == "completed" and report.result is not None, report
        return self.registry.steps[name].signature.decode_result(report.result)


Body = Callable[[Rig], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Body], None]:
    app = tmp_path / "steps_app.py"
    app.write_text(APP)

    def run(body: Body, slots: int = 2) -> None:
        async def main() -> None:
            executors = Executors(str(app), slots)
            try:
                await body(Rig(tmp_path, executors, load_app(str(app))))
            finally:
                await executors.close()

        asyncio.run(main())

    return run


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def test_an_async_step_returns(play: Callable[[Body], None]) -> None:
    async def body(rig: Rig) -> None:
        assert await rig.value("double", 21) == 42

    play(body)


def test_what_may_not_start_does_not(play: Callable[[Body], None]) -> None:
    async def body(rig: Rig) -> None:
        for name, args in (("double", (1,)), ("in_thread", (1,)), ("pid", (1,))):
            running, end = rig.start(name, *args, may_start=False)
            assert await end is None and not running.started

    play(body)


def test_a_cancel_before_the_start_needs_no_answer_of_the_code(play: Callable[[Body], None]) -> None:
    async def body(rig: Rig) -> None:
        running, end = rig.start("pid", 1)  # waits for its process
        running.cancel("cancelled")
        assert await end is None

    play(body)


@pytest.mark.parametrize(("reason", "kind"), [("cancelled", "cancelled"), ("drain", "released")])
def test_a_cancel_reaches_the_code(play: Callable[[Body], None], reason: str, kind: str) -> None:
    async def body(rig: Rig) -> None:
        running, end = rig.start("sleeps")
        await until(lambda: running.started)
        running.cancel(reason)
        report = await end
        assert (report.kind, report.reason) == (kind, reason)

    play(body)


def test_what_is_abandoned_goes_on_when_its_run_has_ended(play: Callable[[Body], None]) -> None:
    async def body(rig: Rig) -> None:
        rig.registry.steps["sleeps"].on_cancel = ON_CANCEL_ABANDON
        running, end = rig.start("sleeps")
        await until(lambda: running.started)
        running.cancel("run closed")
        assert not running.call.info.cancelled
        running.cancel("lease lost")
        assert (await end).reason == "lease lost"

    play(body)


@pytest.mark.parametrize("mode", [ON_CANCEL_UNSPECIFIED, ON_CANCEL_WAIT])
def test_code_whose_end_is_waited_for_takes_its_time(
    play: Callable[[Body], None], mode: OnCancel.ValueType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treadle.worker.executors.CUT_OFF_S", 0.05)

    async def body(rig: Rig) -> None:
        rig.registry.steps["lingers"].on_cancel = mode
        running, end = rig.start("lingers", timeout_ms=400)
        await until(lambda: running.started)
        await asyncio.sleep(0)  # its body has begun to wait
        began = time.monotonic()
        running.cancel("cancelled")
        assert (await end).kind == "cancelled"
        waited = time.monotonic() - began
        assert waited > 0.2 if mode == ON_CANCEL_WAIT else waited < 0.3, "at its timeout, or soon"

    play(body)


def test_a_cancelled_thread_is_given_up_at_its_timeout(play: Callable[[Body], None]) -> None:
    async def body(rig: Rig) -> None:
        running, end = rig.start("blocks", timeout_ms=100)
        running.cancel("cancelled")
        assert (await end).kind == "cancelled"
        assert await rig.value("in_thread", 1)

    play(body)


def test_code_that_finishes_while_it_is_cancelled_has_its_result(play: Callable[[Body], None]) -> None:
    async def body(rig: Rig) -> None:
        running, end = rig.start("stubborn")
        await until(lambda: running.started)
        running.cancel("drain")
        assert (await end).kind == "completed"

    play(body)


def test_errors_become_failures(play: Callable[[Body], None]) -> None:
    async def body(rig: Rig) -> None:
        left = await rig.run("exits")
        assert left.failure is not None and left.failure.type == "SystemExit" and not left.failure.final
        assert left.failure.kind == FAILURE_KIND_APPLICATION
        fatal = await rig.run("fatal")
        assert fatal.failure is not None and fatal.failure.final
        assert (await rig.run("later")).retry_after_ms == 90_000
        odd = await rig.run("unencodable")
        assert odd.failure is not None and odd.failure.kind == FAILURE_KIND_PAYLOAD and odd.failure.final
        for name in ("double", "in_thread", "pid"):
            wrong = await rig.run(name, payload=Payload(data=b'{"n": "three"}'))
            assert wrong.failure is not None and wrong.failure.kind == FAILURE_KIND_PAYLOAD
            assert "argument n" in wrong.failure.message

    play(body)


def test_a_result_over_the_limit_is_refused_where_it_was_made(play: Callable[[Body], None]) -> None:
    async def body(rig: Rig) -> None:
        rig.executors.max_payload_bytes = 1
        report = await rig.run("double", 500)
        assert report.failure is not None and "more than the limit" in report.failure.message

    play(body)


def test_timeouts_of_async_steps(play: Callable[[Body], None]) -> None:
    async def body(rig: Rig) -> None:
        for name in ("sleeps", "stubborn"):
            report = await rig.run(name, timeout_ms=50)
            assert report.failure is not None and report.failure.kind == FAILURE_KIND_TIMED_OUT

    play(body)


@pytest.mark.parametrize(("timeout_ms", "left_ms", "total"), [(0, 50, True), (60_000, 50, True), (50, 60_000, False)])
def test_what_is_left_of_a_total_timeout_is_kept(
    play: Callable[[Body], None], timeout_ms: int, left_ms: int, total: bool
) -> None:
    async def body(rig: Rig) -> None:
        rig.registry.steps["sleeps"].total_timeout_ms = 60_000
        report = await rig.run("sleeps", timeout_ms=timeout_ms, left_ms=left_ms)
        assert report.failure is not None
        assert report.failure.kind == (FAILURE_KIND_STEP_TIMED_OUT if total else FAILURE_KIND_TIMED_OUT)
        assert not total or "1 m" in report.failure.message

    play(body)


def test_sync_steps_run_in_threads_with_their_context(play: Callable[[Body], None]) -> None:
    async def body(rig: Rig) -> None:
        name, key = await rig.value("in_thread", 1)
        assert name.startswith("step-") and key == "k"
        name, _ = await rig.value("in_thread", 1, local=True)
        assert name.startswith("local-step-")

    play(body)


def test_threads_are_bounded_and_the_rest_waits(play: Callable[[Body], None]) -> None:
    async def body(rig: Rig) -> None:
        module = rig.registry.steps["waits"].function.__globals__
        calls = [rig.start("waits") for _ in range(3)]
        await until(module["STARTED"].is_set)
        assert [running.started for running, _ in calls] == [True, True, False]
        module["GO_ON"].set()
        assert [(await end).kind for _, end in calls] == ["completed"] * 3

    play(body)


def test_a_thread_that_outlives_its_timeout_is_given_up_and_replaced(play: Callable[[Body], None]) -> None:
    async def body(rig: Rig) -> None:
        stuck = [rig.start("waits", timeout_ms=50) for _ in range(2)]
        for _, end in stuck:
            report = await end
            assert report.failure.kind == FAILURE_KIND_TIMED_OUT
        assert await rig.value("in_thread", 1)

    play(body)


def test_a_thread_sees_that_it_is_cancelled(play: Callable[[Body], None]) -> None:
    async def body(rig: Rig) -> None:
        running, end = rig.start("waits")
        running.cancel("cancelled")
        report = await end
        assert report.kind == "completed" and b"saw cancelled" in report.result.data

    play(body)


def test_processes_are_kept_but_not_for_what_runs_alone(play: Callable[[Body], None]) -> None:
    async def body(rig: Rig) -> None:
        first = await rig.value("pid", 1)
        assert await rig.value("pid", 1) == first
        assert await rig.value("pid_async") == first
        alone = [await rig.value("pid", 1, alone=True) for _ in range(2)]
        assert len({first, *alone}) == 3
        assert await rig.value("double", 4, alone=True) == 8  # an async step of the loop, too

    play(body)


def test_a_child_that_dies_is_one_failure(play: Callable[[Body], None]) -> None:
    async def body(rig: Rig) -> None:
        report = await rig.run("dies")
        assert report.failure is not None and report.failure.kind == FAILURE_KIND_CRASHED
        assert "was killed by SIGKILL" in report.failure.message and not report.failure.final
        assert await rig.value("pid", 1)

    play(body)


def test_a_cancel_interrupts_a_child_and_lets_it_clean_up(play: Callable[[Body], None]) -> None:
    async def body(rig: Rig) -> None:
        mark = rig.path / "mark"
        running, end = rig.start("sleeps_in_process", str(mark))
        await until((rig.path / "mark.started").exists)
        began = time.monotonic()
        running.cancel("drain")
        report = await end
        assert report.kind == "released" and mark.read_text() == "drain"
        assert time.monotonic() - began < 1.5

    play(body)


def test_a_child_that_does_not_listen_is_killed(play: Callable[[Body], None]) -> None:
    async def body(rig: Rig) -> None:
        report = await rig.run("deaf", timeout_ms=100)
        assert report.failure is not None and report.failure.kind == FAILURE_KIND_TIMED_OUT

    play(body)


def test_an_app_that_no_longer_imports_fails_the_attempt_not_the_worker(play: Callable[[Body], None]) -> None:
    async def body(rig: Rig) -> None:
        (rig.path / "steps_app.py").write_text("def broken(:\n")
        report = await rig.run("pid", 1)
        assert report.failure is not None and "syntax error at" in report.failure.message
        assert "steps_app.py:1" in report.failure.message

    play(body)
