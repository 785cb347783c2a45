from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import sys
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from treadle.protocol.errors import NotDeterministic
from treadle.worker.loop import asyncio_timeout
from treadle.worker.loop.durable_loop import DurableLoop, TimerCall
from treadle.worker.loop.refusals import REFUSED


class Clock:
    """Keeps the timers of a loop and fires them in order of time."""

    def __init__(self) -> None:
        self.loop = DurableLoop(self)  # type: ignore[abstract]
        self.loop.advance(1_000_000)
        self.open: list[TimerCall] = []
        self.names: list[tuple[str, str, int]] = []
        self.cancelled = 0

    def start_timer(self, call: TimerCall, delay_ms: int, path: str, name: str) -> None:
        call.ask = (self.loop.time() + delay_ms / 1000, len(self.names))
        self.open.append(call)
        self.names.append((path, name, delay_ms))

    def cancel_timer(self, call: TimerCall) -> None:
        self.cancelled += 1
        self.open = [other for other in self.open if other is not call]

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run to the end; whatever waits for time gets it."""
        loop = self.loop
        loop.enter()
        main = loop.root = loop.create_task(coroutine)
        loop.run_until_idle()
        loop.leave()
        while not main.done():
            assert self.open, "nothing will ever happen"
            call = min(self.open, key=lambda c: c.ask)
            self.open.remove(call)
            loop.advance(int(call.ask[0] * 1000))
            loop.enter()
            loop.fire(call)
            loop.run_until_idle()
            loop.leave()
        loop.enter()
        loop.finish()
        loop.leave()
        return main.result()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_callbacks_run_in_the_order_of_asking(clock: Clock) -> None:
    log: list[int] = []

    async def code() -> None:
        loop = asyncio.get_running_loop()
        for i in range(5):
            loop.call_soon(log.append, i)
        dropped = loop.call_soon(log.append, 99)
        dropped.cancel()
        await asyncio.sleep(0)

    clock.run(code())
    assert log == [0, 1, 2, 3, 4]


def test_timers_run_when_they_are_fired_and_only_then(clock: Clock) -> None:
    log: list[Any] = []

    async def code() -> list[float]:
        loop = asyncio.get_running_loop()
        start = loop.time()
        loop.call_later(2, log.append, "two")
        loop.call_at(start + 1, log.append, "one")
        loop.call_later(0, log.append, "now")
        await asyncio.sleep(3)
        return [start, loop.time()]

    assert clock.run(code()) == [1000.0, 1003.0]
    assert log == ["now", "one", "two"]
    assert clock.names == [("0", "timer", 2000), ("0", "timer", 1000), ("0", "sleep", 3000)]


@pytest.mark.parametrize(("delay", "expected"), [(0.0001, 1), (0.001, 1), (0.0011, 2), (0.1, 100), (59.999, 59_999)])
def test_delays_are_rounded_up_to_milliseconds(clock: Clock, delay: float, expected: int) -> None:
    async def code() -> None:
        loop = asyncio.get_running_loop()
        loop.call_at(loop.time() + delay, int).cancel()

    clock.loop.advance(1_764_000_123_457)
    clock.run(code())
    assert clock.names[0][2] == expected


def test_tasks_have_paths_and_hashes_of_their_own(clock: Clock) -> None:
    async def leaf() -> str:
        task = asyncio.current_task()
        assert task is not None
        return f"{task.path}:{task.get_name()}"  # type: ignore[attr-defined]

    async def branch() -> list[str]:
        return [await leaf(), *await asyncio.gather(leaf(), leaf())]

    async def code() -> Any:
        tasks = [asyncio.create_task(branch()) for _ in range(2)]
        hashes = [hash(t) for t in tasks] + [hash(asyncio.get_running_loop().create_future())]
        return hashes, await asyncio.gather(*tasks)

    hashes, paths = clock.run(code())
    assert hashes == [2, 3, 4]
    assert paths[0] == ["0.1:0.1", "0.1.1:0.1.1", "0.1.2:0.1.2"]
    assert paths[1] == ["0.2:0.2", "0.2.1:0.2.1", "0.2.2:0.2.2"]


def test_as_completed_takes_coroutines_in_order(clock: Clock) -> None:
    order: list[int] = []

    async def one(i: int) -> int:
        order.append(i)
        return i

    async def code() -> list[int]:
        return [await f for f in asyncio.as_completed([one(i) for i in range(40)])]

    assert clock.run(code()) == list(range(40))
    assert order == list(range(40))


def test_each_loop_has_its_own_context(clock: Clock) -> None:
    variable = contextvars.ContextVar("variable", default=0)

    async def child() -> int:
        variable.set(variable.get() + 1)
        await asyncio.sleep(1)
        return variable.get()

    async def code() -> list[int]:
        variable.set(10)
        return [*await asyncio.gather(child(), child()), variable.get()]

    assert contextvars.Context().run(clock.run, code()) == [11, 11, 10]


def test_it_nests_in_a_running_loop(clock: Clock) -> None:
    async def inner() -> str:
        await asyncio.sleep(5)
        assert asyncio.current_task() is clock.loop.root
        return "inner"

    async def outer() -> str:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        result = clock.run(inner())
        assert asyncio.get_running_loop() is loop
        assert asyncio.current_task() is task
        await asyncio.sleep(0)
        return f"{result} in outer"

    assert asyncio.run(outer()) == "inner in outer"


def test_hooks_and_collector_are_put_back(clock: Clock) -> None:
    before = sys.get_asyncgen_hooks()
    seen = []

    async def code() -> None:
        seen.append(gc.isenabled())

    clock.run(code())
    assert seen == [False]
    assert gc.isenabled()
    assert sys.get_asyncgen_hooks() == before
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_a_workflow_must_not_ask_for_says_what_to_do(clock: Clock, name: str) -> None:
    async def code() -> None:
        getattr(asyncio.get_running_loop(), name)()

    with pytest.raises(NotDeterministic, match=rf"loop\.{name}\(\) inside a workflow: "):
        clock.run(code())


def test_threads_are_refused(clock: Clock) -> None:
    async def code() -> None:
        await asyncio.to_thread(int)

    with pytest.raises(NotDeterministic, match="other threads go on in an order of their own; do it in a @step"):
        clock.run(code())


def test_nothing_is_taken_outside_a_turn(clock: Clock) -> None:
    with pytest.raises(NotDeterministic, match="while the workflow is not running: __del__"):
        clock.loop.call_soon(int)
    with pytest.raises(NotDeterministic, match="while the workflow is not running: __del__"):
        clock.loop.call_later(1, int)
    coroutine = asyncio.sleep(1)
    with pytest.raises(NotDeterministic, match="create_task"):
        clock.loop.create_task(coroutine)


def test_unfinished_generators_are_closed_in_order_of_creation_at_the_end(clock: Clock) -> None:
    log: list[str] = []

    async def numbers(name: str) -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            await asyncio.sleep(0)
            log.append(name)

    async def code() -> None:
        for name in "abc":
            async for _ in numbers(name):
                break
        gc.collect()
        log.append("end")

    clock.run(code())
    assert log == ["end", "a", "b", "c"]


def test_tasks_left_over_are_cancelled_in_order_of_creation(clock: Clock) -> None:
    log: list[int] = []

    async def background(i: int) -> None:
        try:
            await asyncio.sleep(100)
        finally:
            log.append(i)

    async def code() -> str:
        tasks = [asyncio.create_task(background(i)) for i in range(4)]
        await asyncio.sleep(0)
        return f"{len(tasks)} left"

    assert clock.run(code()) == "4 left"
    assert log == [0, 1, 2, 3]


def test_errors_nobody_hears_of_are_logged(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    async def code() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 // 0)
        await asyncio.sleep(0)

    with caplog.at_level(logging.ERROR):
        clock.run(code())
    assert "ZeroDivisionError" in caplog.text


def test_dropping_closes_coroutines_that_resist(clock: Clock) -> None:
    log: list[str] = []

    async def resists() -> None:
        for _ in range(3):
            try:
                await asyncio.sleep(100)
            except GeneratorExit:
                log.append("resisted")
                await asyncio.sleep(0)

    async def asks_for_more() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            log.append("finally")
            await asyncio.create_task(resists())

    loop = clock.loop
    loop.enter()
    loop.root = loop.create_task(asks_for_more())
    loop.create_task(resists())
    loop.run_until_idle()
    loop.leave()
    loop.drop()
    assert log == ["resisted", "finally"]


def test_many_tasks_and_generators_are_forgotten_when_done(clock: Clock) -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1

    async def code() -> None:
        for _ in range(30):
            await asyncio.gather(*(asyncio.sleep(0) for _ in range(20)))
            async for _ in numbers():
                pass
            await asyncio.sleep(1)

    clock.run(code())
    assert len(clock.loop._tasks) < 200
    assert len(clock.loop._generators) <= 65


def test_other_loops_are_as_before() -> None:
    async def one(i: int) -> int:
        return i

    async def code() -> list[int]:
        gathers = {asyncio.gather(one(i)) for i in range(5)}
        values = [(await g)[0] for g in gathers]
        done, _ = await asyncio.wait([asyncio.create_task(one(9))])
        return sorted(values) + [t.result() for t in done]

    assert asyncio.run(code()) == [0, 1, 2, 3, 4, 9]


# --- timeouts of early 3.11 --------------------------------------------------------------------------------------------
async def _times_out_after_a_failed_group() -> str:
    async def fail() -> None:
        await asyncio.sleep(0.01)
        raise ValueError

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
    try:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)
    except TimeoutError:
        return "timed out"
    return "went on"


async def _is_cancelled_inside_a_timeout() -> str:
    async def waits() -> None:
        async with asyncio.timeout(60):
            await asyncio.sleep(120)

    task = asyncio.create_task(waits())
    await asyncio.sleep(0.01)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return "cancelled"
    return "went on"


async def _leave_of_3_11_2(self: Any, kind: Any, _error: Any, _traceback: Any) -> None:
    states = type(self._state)
    if self._timeout_handler is not None:
        self._timeout_handler.cancel()
        self._timeout_handler = None
    if self._state is states.EXPIRING:
        self._state = states.EXPIRED
        if self._task.uncancel() == 0 and kind is asyncio.CancelledError:
            raise TimeoutError
    else:
        self._state = states.EXITED


def test_a_timeout_after_a_failed_group_is_a_timeout(clock: Clock) -> None:
    """On the Python that the tests run on, whichever it is."""
    assert clock.run(_times_out_after_a_failed_group()) == "timed out"


def test_timeouts_of_3_11_2_are_corrected(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio.Timeout, "__aexit__", _leave_of_3_11_2)
    if sys.version_info < (3, 13):  # whose TaskGroup leaves nothing counted
        with pytest.raises(asyncio.CancelledError):
            Clock().run(_times_out_after_a_failed_group())
    entered, left = asyncio_timeout.corrected(asyncio.Timeout.__aenter__, asyncio.Timeout.__aexit__)
    monkeypatch.setattr(asyncio.Timeout, "__aenter__", entered)
    monkeypatch.setattr(asyncio.Timeout, "__aexit__", left)
    assert clock.run(_times_out_after_a_failed_group()) == "timed out"
    assert Clock().run(_is_cancelled_inside_a_timeout()) == "cancelled"


def test_it_runs_within_a_callback_of_another_loop_as_within_a_task(clock: Clock) -> None:
    async def sleeps() -> str:
        await asyncio.sleep(60)
        return "slept"

    async def outer() -> None:
        task, ended = asyncio.current_task(), asyncio.get_running_loop().create_future()

        def callback() -> None:
            try:
                ended.set_result(clock.run(sleeps()))
            except Exception as error:
                ended.set_exception(error)

        asyncio.get_running_loop().call_soon(callback)
        assert await ended == Clock().run(sleeps()) == "slept"
        assert asyncio.current_task() is task

    asyncio.run(outer())


def test_outside_of_workflows_asyncio_waits_as_it_did() -> None:
    async def waits() -> bool:
        outer = asyncio.current_task()

        async def inner() -> bool:
            return asyncio.current_task() is outer

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.01)
        return await asyncio.wait_for(inner(), timeout=60)

    assert asyncio.run(waits()) == (sys.version_info >= (3, 12))


def test_a_wake_up_whose_waiter_is_cancelled_goes_to_the_next(clock: Clock) -> None:
    async def one_is_cancelled() -> list[str]:
        changed, woken = asyncio.Condition(), []

        async def waits(name: str) -> None:
            async with changed:
                await changed.wait()
                woken.append(name)

        tasks = [asyncio.create_task(waits(name)) for name in "ab"]
        await asyncio.sleep(0.01)
        async with changed:
            changed.notify()
            tasks[0].cancel()
        await asyncio.wait(tasks, timeout=1)
        return woken

    assert clock.run(one_is_cancelled()) == ["b"]


def test_a_cancel_inside_a_timeout_is_a_cancel(clock: Clock) -> None:
    assert clock.run(_is_cancelled_inside_a_timeout()) == "cancelled"
