"""Small workflows that use what asyncio offers. Each is (workflow, arguments, what it returns or how it ends)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from typing import Any

from tests.replay.event_flow import eventful
from treadle.worker import (
    Deferred,
    Fatal,
    Retry,
    StepError,
    changed,
    continue_as_new,
    now,
    publish_state,
    random,
    receive,
    receive_question,
    set_tags,
    step,
    uuid4,
    workflow,
)
from treadle.worker.app import Registry


@step(pool="p")
async def double(x: int) -> int:
    return 2 * x


@step(pool="p")
async def broken(x: int) -> int:
    raise ValueError(f"broken {x}")


@step
def shout(text: str) -> str:
    return text.upper()


_FLAKY: dict[str, int] = {}


@step(retry=Retry(attempts=3, initial="10ms", jitter=0))
def flaky(key: str) -> str:
    raise ConnectionError(key)


@step
def fatal() -> None:
    raise Fatal("never again")


@step(pool="p")
def cleanup(what: str) -> str:
    return f"cleaned {what}"


@step(pool="p", timeout="1m", retry=Retry(attempts=2))
async def total(words: set[str]) -> int:
    return sum(map(len, words))


@step(pool="p")
async def approve(what: str) -> str:
    raise Deferred


@workflow
async def approves(n: int) -> list[Any]:
    """Steps that somebody outside finishes, beside others; and one that may be too late."""
    first = asyncio.create_task(approve("first"))
    found: list[Any] = [await double(n), await shout("meanwhile"), await first]
    try:
        async with asyncio.timeout(0.6):
            found.append(await approve("second"))
    except TimeoutError:
        await cleanup("late")
    return found


@workflow
async def sequence(n: int) -> list[Any]:
    found: list[Any] = []
    for i in range(n):
        found.append(await double(i))
        found.append(await shout(f"a{i}"))
        await asyncio.sleep(0.5)
        await asyncio.sleep(0)
    return found


@workflow
async def fan_out(n: int) -> list[int]:
    order: list[int] = []

    async def one(i: int) -> int:
        value = await double(i)
        order.append(i)
        await shout(str(i))
        return value

    values = await asyncio.gather(*(one(i) for i in range(n)))
    return values + order


@workflow
async def failing_group(n: int) -> list[str]:
    cleaned: list[str] = []

    async def member(i: int) -> None:
        try:
            if i == n // 2:
                await broken(i)
            await asyncio.sleep(3600)
        finally:
            cleaned.append(await cleanup(f"m{i}"))

    try:
        async with asyncio.TaskGroup() as group:
            for i in range(n):
                group.create_task(member(i))
    except* StepError as errors:
        cleaned.append(errors.exceptions[0].__class__.__name__)
    return cleaned


@workflow
async def nested_groups() -> str:
    async def inner() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(double(1))
            group.create_task(broken(1))
            group.create_task(broken(2))

    async with asyncio.TaskGroup() as group:
        group.create_task(inner())
        group.create_task(shout("x"))
    return "not reached"


@workflow
async def timeout_fires() -> str:
    try:
        async with asyncio.timeout(0.2):
            await asyncio.sleep(60)
    except TimeoutError:
        return "late " + await shout("x")
    return "not reached"


@workflow
async def timeout_not_fires() -> int:
    async with asyncio.timeout(3600):
        value = await double(4)
    return value + await double(5)


@workflow
async def waits_for() -> list[Any]:
    first = await asyncio.wait_for(double(2), 3600)
    try:
        await asyncio.wait_for(asyncio.sleep(100), 0.5)
    except TimeoutError:
        return [first, "timeout"]
    return []


@workflow
async def completed_order(n: int) -> list[int]:
    return [await next_one for next_one in asyncio.as_completed([double(i) for i in range(n)])]


@workflow
async def first_of(n: int) -> list[Any]:
    tasks = {asyncio.create_task(double(i)) for i in range(n)}
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    ended = await asyncio.gather(*pending, return_exceptions=True)
    after = [await shout(str(task.result())) for task in done]
    return [*after, [type(e).__name__ for e in ended]]


@workflow
async def set_of_gathers(n: int) -> list[Any]:
    groups = {asyncio.gather(double(i), double(i + 1)) for i in range(n)}
    return [await shout(str(await g)) for g in groups]


@workflow
async def event_set() -> list[str]:
    event, log = asyncio.Event(), []

    async def waiter(name: str) -> None:
        await event.wait()
        log.append(await shout(name))

    tasks = [asyncio.create_task(waiter(c)) for c in "abc"]
    await double(1)
    event.set()
    await asyncio.gather(*tasks)
    return log


@workflow
async def queue(n: int) -> list[int]:
    items: asyncio.Queue[int | None] = asyncio.Queue(maxsize=2)
    results: list[int] = []

    async def produce() -> None:
        for i in range(n):
            await items.put(i)
        for _ in range(2):
            await items.put(None)

    async def consume() -> None:
        while (item := await items.get()) is not None:
            results.append(await double(item))
            items.task_done()

    await asyncio.gather(produce(), consume(), consume())
    return results


@workflow
async def locks(n: int) -> list[int]:
    lock, gate, results = asyncio.Lock(), asyncio.Semaphore(2), []

    async def one(i: int) -> None:
        async with gate:
            value = await double(i)
            async with lock:
                await asyncio.sleep(0.01)
                results.append(value)

    async with asyncio.TaskGroup() as group:
        for i in range(n):
            group.create_task(one(i))
    return results


@workflow
async def cleans_up() -> str:
    try:
        await asyncio.gather(double(1), asyncio.sleep(3600), shout("y"))
        await asyncio.sleep(3600)
    finally:
        await cleanup("all")
        await asyncio.shield(shout("bye"))
    return "not reached"


@workflow
async def swallows_cancel() -> str:
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError as cancelled:
        return f"cancelled: {cancelled}"
    return "not reached"


async def numbers(n: int) -> AsyncIterator[int]:
    try:
        for i in range(n):
            yield await double(i)
    finally:
        await shout("closed")


@workflow
async def generators() -> list[int]:
    found = []
    async with aclosing(numbers(5)) as source:  # type: ignore[type-var]
        async for value in source:
            found.append(value)
            if value >= 4:
                break
    async for value in numbers(3):  # abandoned on purpose
        found.append(value)
        break
    return [*found, await double(50)]


@workflow
async def sets_of_strings() -> int:
    words = {f"word{i}" for i in range(20)}
    return await total(words) + sum([await double(len(w)) for w in sorted(words)[:2]])


@workflow
async def failures() -> list[str]:
    said = []
    for call in (flaky("k"), fatal(), broken(3)):
        try:
            await call
        except StepError as error:
            said.append(f"{error.type_name}/{error.attempts}/{error.message}")
    return said


@workflow
async def fails() -> None:
    try:
        await broken(1)
    except StepError as error:
        raise LookupError("no such thing") from error


@workflow
async def deterministic_values() -> list[Any]:
    start = now()
    value = await double(random().randrange(1000))
    other = await asyncio.gather(*(shout(str(uuid4())) for _ in range(2)))
    await asyncio.sleep(2)
    assert now() - start >= timedelta(seconds=2)
    await double(int(now().timestamp()))
    return [value, len(set(other))]


@workflow
async def leaves_tasks() -> int:
    async def background() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await cleanup("background")

    asyncio.create_task(background())  # noqa: RUF006 # abandoned on purpose
    return await double(3)


@workflow
async def hears() -> list[Any]:
    """Signals that come before, between and after what else is awaited."""
    found: list[Any] = [await receive("a", int)]
    publish_state(found)

    async def answers() -> None:
        question = await receive_question("q", int)
        question.answer(question.value + await double(1))

    task = asyncio.create_task(answers())
    found.append(await double(found[0]))
    found += [await receive("a", int), await receive("never", timeout=0.3)]
    await task
    publish_state(len(found))
    return found


@step(pool="p", on_cancel="wait")
async def careful(x: int) -> int:
    return x


@step(on_cancel="wait")
def careful_here(x: int) -> int:
    return x


@step(pool="p", on_cancel="abandon")
async def careless(x: int) -> int:
    return x


@workflow
async def cancels(n: int) -> list[str]:
    """Steps of each mode, cancelled by their code, by a timeout, and by whoever cancels the run."""
    log: list[str] = []

    async def one(call: Any, i: int) -> None:
        try:
            log.append(f"{i} {await call}")
        except asyncio.CancelledError:
            log.append(await shout(f"cancelled {i}"))
            raise

    calls = (careful(n), careful_here(n), careless(n), double(n), careful(n + 1))
    tasks = [asyncio.create_task(one(call, i)) for i, call in enumerate(calls)]
    await asyncio.sleep(0.12)
    for task in tasks:
        task.cancel()
        task.cancel()
    await asyncio.wait(tasks)
    try:
        async with asyncio.timeout(0.15):
            await asyncio.gather(careful(7), careful_here(8))
    except TimeoutError:
        log.append("timeout")
    return log


@workflow
async def goes_on(n: int) -> int:
    """Ends as a new part of itself, a step still open."""
    task = asyncio.create_task(double(n))
    try:
        found = await receive("a", int)
        await asyncio.sleep(0.05)
        continue_as_new(n + found)
    finally:
        await shout("bye")
        task.cancel()


@workflow
async def goes_by_changes(n: int) -> list[Any]:
    """Marked changes in tasks that run beside each other, in a loop, after a local step, and in a cleanup."""
    found: list[Any] = [changed("first")]
    set_tags(stage="begun", run=n)

    async def one(i: int) -> bool:
        await double(i)
        new = changed(f"of-{i % 2}")
        if new:
            await shout(f"new {i}")
        await asyncio.sleep(0.05 * i)
        return new

    try:
        found += await asyncio.gather(*(one(i) for i in range(n)))
        await shout("x")
        if changed("after-local"):
            await double(7)
    finally:
        if changed("cleanup"):
            await cleanup("y")
        set_tags(stage="done", run=None)
    return found


@workflow
async def stuck() -> None:
    await asyncio.Event().wait()


CATALOGUE: list[tuple[Any, tuple[Any, ...], Any]] = [
    (sequence, (2,), [0, "A0", 2, "A1"]),
    (fan_out, (4,), None),
    (failing_group, (6,), None),
    (nested_groups, (), "ExceptionGroup"),
    (timeout_fires, (), "late X"),
    (timeout_not_fires, (), 18),
    (waits_for, (), [4, "timeout"]),
    (completed_order, (6,), None),
    (first_of, (8,), None),
    (set_of_gathers, (5,), None),
    (event_set, (), None),
    (queue, (6,), None),
    (locks, (5,), None),
    (cleans_up, (), None),
    (swallows_cancel, (), None),
    (generators, (), [0, 2, 4, 0, 100]),
    (sets_of_strings, (), 130),
    (failures, (), ["ConnectionError/3/k", "Fatal/1/never again", "ValueError/1/broken 3"]),
    (fails, (), "LookupError"),
    (deterministic_values, (), None),
    (leaves_tasks, (), 6),
    (stuck, (), "Stuck"),
    (hears, (), [1, 2, 2, None]),
    (goes_on, (3,), None),
    (cancels, (1,), None),
    (eventful, (5,), [32, 5, None, "unwanted", "other", "other", 10]),
    (goes_by_changes, (4,), [True, True, True, True, True]),
    (approves, (3,), None),
]
LETTERS: dict[str, list[tuple[int, str, bytes, bool]]] = {
    "goes_on": [(10, "a", b"1", False), (20, "a", b"2", False)],
    "hears": [(0, "a", b"1", False), (0, "a", b"2", False), (5, "unheard", b"0", False), (900, "q", b"3", True)],
}
"""Workflow -> what it is sent; see `Server.letters`."""
REGISTRY = Registry().add(
    *(entry[0] for entry in CATALOGUE),
    double,
    approve,
    careful,
    careful_here,
    careless,
    broken,
    shout,
    flaky,
    fatal,
    cleanup,
    total,
)
