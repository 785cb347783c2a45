"""Tasks whose first step runs at once are tasks like any other, whatever their code asks of asyncio."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from treadle.protocol.eager import start_now

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outside")


def from_callback(make: Callable[[], Coroutine[Any, Any, Any]]) -> tuple[bool, Any]:
    """Start a coroutine from a callback of the loop; returns whether it was done at once, and its outcome."""

    async def main() -> tuple[bool, Any]:
        loop = asyncio.get_running_loop()
        started: asyncio.Future[tuple[bool, asyncio.Task[Any]]] = loop.create_future()

        def start() -> None:
            task = start_now(make(), name="n", context=contextvars.copy_context())
            started.set_result((task.done(), task))

        loop.call_soon(start)
        at_once, task = await started
        assert "call_soon" not in vars(loop) and asyncio.current_task() is not task
        outcome: Any = (await asyncio.gather(task, return_exceptions=True))[0]
        return at_once, outcome

    return asyncio.run(main())


async def plain() -> str:
    task = asyncio.current_task()
    assert task is not None and task.get_name() == "n" and task in asyncio.all_tasks()
    return "plain"


async def with_timeout() -> str:
    task = asyncio.current_task()
    async with asyncio.timeout(60):
        pass
    async with asyncio.timeout(60):
        await asyncio.sleep(0)
    assert asyncio.current_task() is task
    try:
        async with asyncio.timeout(0):
            await asyncio.sleep(60)
    except TimeoutError:
        assert asyncio.current_task() is task
        return "timed out"
    return "never"


async def with_group() -> list[str]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(plain_child()) for _ in range(2)]
    return [task.result() for task in tasks]


async def plain_child() -> str:
    return VARIABLE.get()


async def with_variable() -> str:
    VARIABLE.set("inside")
    await asyncio.sleep(0)
    return VARIABLE.get()


async def raises() -> None:
    raise ValueError("no")


async def cancels_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(60)


@pytest.mark.parametrize(
    ("make", "at_once", "outcome"),
    [
        (plain, True, "plain"),
        (with_timeout, False, "timed out"),
        (with_group, False, ["outside", "outside"]),
        (with_variable, False, "inside"),
    ],
)
def test_what_it_returns(make: Callable[[], Coroutine[Any, Any, Any]], at_once: bool, outcome: object) -> None:
    assert from_callback(make) == (at_once, outcome)
    assert VARIABLE.get() == "outside"


def test_what_it_raises() -> None:
    at_once, error = from_callback(raises)
    assert at_once and isinstance(error, ValueError)
    at_once, error = from_callback(cancels_itself)
    assert not at_once and isinstance(error, asyncio.CancelledError)


def test_a_finalizer_that_runs_while_the_task_is_made_is_heard() -> None:
    """Whatever else is put into the loop's queue meanwhile goes there."""

    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        heard: list[str] = []
        over: asyncio.Future[None] = loop.create_future()

        def start() -> None:
            original = asyncio.Task

            def noisy(*args: Any, **kwargs: Any) -> asyncio.Task[Any]:
                loop.call_soon(heard.append, "finalizer")
                return original(*args, **kwargs)

            asyncio.Task = noisy  # type: ignore[assignment,misc]
            try:
                start_now(say(heard), name="n", context=contextvars.copy_context())
            finally:
                asyncio.Task = original  # type: ignore[misc]
            loop.call_soon(over.set_result, None)

        loop.call_soon(start)
        await over
        return heard

    assert asyncio.run(main()) == ["step", "finalizer"]


async def say(heard: list[str]) -> None:
    heard.append("step")


def test_inside_a_task_or_with_a_factory_it_still_runs() -> None:
    async def main() -> None:
        assert await start_now(plain(), name="n", context=contextvars.copy_context()) == "plain"
        made: list[str] = []

        def factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
            made.append("made")
            return asyncio.Task(coro, loop=loop, **options)

        asyncio.get_running_loop().set_task_factory(factory)
        assert await start_now(plain(), name="n", context=contextvars.copy_context()) == "plain"
        assert made == ["made"]

    asyncio.run(main())


def test_another_task_goes_on_while_it_is_suspended() -> None:
    async def main() -> list[str]:
        heard: list[str] = []
        loop = asyncio.get_running_loop()
        tasks: list[asyncio.Task[None]] = []

        async def body(name: str) -> None:
            heard.append(f"{name} begins")
            await asyncio.sleep(0)
            heard.append(f"{name} ends")

        def start() -> None:
            tasks.extend(start_now(body(n), name=n, context=contextvars.copy_context()) for n in ("a", "b"))

        loop.call_soon(start)
        while len(tasks) < 2:
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        return heard

    assert asyncio.run(main()) == ["a begins", "b begins", "a ends", "b ends"]
