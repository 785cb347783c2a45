"""The app of the kill tests: workflows of the pool "flows", whose steps write to a ledger when they begin and end.

A step that is given a gate goes on once a file of that name is in the folder of gates; "" is no gate. "{attempt}" in its
name stands for the number of the attempt.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from treadle.worker import (
    Deferred,
    FailedRun,
    Retry,
    StepError,
    StepLost,
    continue_as_new,
    defer,
    heartbeat,
    last_progress,
    progress,
    publish_state,
    receive,
    receive_question,
    step,
    step_info,
    workflow,
)

_QUICK = Retry(initial="0.1s", cap="1s")


def note(what: str, *, local: bool, once: bool = False) -> None:
    """Append one line to the ledger, in one write."""
    info = step_info()
    line = {
        "what": what,
        "wall": time.clock_gettime(time.CLOCK_REALTIME),
        "boot": time.clock_gettime(time.CLOCK_BOOTTIME),
        "pid": os.getpid(),
        "run": info.run_id,
        "step": info.step,
        "command": info.command_id,
        "attempt": info.attempt,
        "try_number": info.try_number,
        "key": info.idempotency_key,
        "once": once,
        "local": local,
    }
    ledger = os.open(os.environ["KILL_LEDGER"], os.O_WRONLY | os.O_APPEND)
    try:
        os.write(ledger, f"{json.dumps(line)}\n".encode())
    finally:
        os.close(ledger)


@asynccontextmanager
async def noted(gate: str = "", *, local: bool = False, once: bool = False) -> AsyncIterator[None]:
    """A body: its start and end are noted, and it waits for its gate in between."""
    note("start", local=local, once=once)
    if gate:
        await opened(gate.format(attempt=step_info().attempt))
    yield
    note("end", local=local, once=once)


async def opened(gate: str) -> None:
    """Return once the gate is open."""
    path = Path(os.environ["KILL_GATES"]) / gate
    while not path.exists():
        await asyncio.sleep(0.01)


@step(pool="steps", retry=_QUICK)
async def square(n: int, gate: str = "") -> int:
    async with noted(gate):
        return n * n


@step(retry=_QUICK)
async def local_square(n: int, gate: str = "") -> int:
    async with noted(gate, local=True):
        return n * n


@step(pool="steps", retry=Retry.never)
async def once_square(n: int, gate: str = "") -> int:
    async with noted(gate, once=True):
        return n * n


@step(retry=Retry.never)
async def local_once_square(n: int, gate: str = "") -> int:
    async with noted(gate, local=True, once=True):
        return n * n


@step(pool="steps", retry=_QUICK)
async def last(n: int, seconds: float) -> int:
    """A body that takes a while on a loop that is free."""
    async with noted():
        await asyncio.sleep(seconds)
    return n * n


@step(pool="steps", retry=_QUICK)
async def block(n: int, seconds: float) -> int:
    """A body that blocks its loop."""
    async with noted():
        time.sleep(seconds)
    return n * n


@step(pool="steps", retry=Retry(attempts=1))
async def die() -> None:
    """A body that kills the process it runs in."""
    note("start", local=False)
    os.kill(os.getpid(), signal.SIGKILL)


@step(retry=Retry(attempts=1))
async def local_die() -> None:
    """A local body that does."""
    note("start", local=True)
    os.kill(os.getpid(), signal.SIGKILL)


@workflow(pool="flows")
async def deadly(*, local: bool) -> str:
    """A step that kills its worker. Returns what it failed with."""
    try:
        await (local_die() if local else die())
    except StepError as error:
        return error.type_name
    return "alive"


@workflow(pool="flows")
async def one(n: int, gate: str) -> int:
    """One pool step. Returns n²."""
    return await square(n, gate)


@workflow(pool="flows")
async def squares(n: int, gate: str = "") -> int:
    """n pool steps at once, then as many local ones one after the other. Returns twice the sum of the squares below n."""
    total = sum(await asyncio.gather(*(square(i, gate) for i in range(n))))
    for i in range(n):
        total += await local_square(i)
    return total


@step(pool="flows", retry=_QUICK)
async def own_square(n: int) -> int:
    """A pool step that the owner's worker may execute itself, and that takes a moment."""
    async with noted():
        await asyncio.sleep(0.02)
    return n * n


@workflow(pool="flows")
async def own_squares(n: int, letters: int) -> int:
    """n such steps one after the other; then so many signals are read. Returns the sum of the squares below n, and of these."""
    total = sum([await own_square(i) for i in range(n)])
    return total + sum([await receive("number", int) for _ in range(letters)])


@workflow(pool="flows")
async def local_squares(n: int, gate: str) -> int:
    """Local steps, the last of them behind the gate. Returns the sum of the squares up to n."""
    total = 0
    for i in range(n):
        total += await local_square(i)
    return total + await local_square(n, gate)


@workflow(pool="flows")
async def both(n: int, pool_gate: str, local_gate: str) -> int:
    """A pool step and a local step side by side. Returns 2 n²."""
    first, second = await asyncio.gather(square(n, pool_gate), local_square(n, local_gate))
    return first + second


@workflow(pool="flows")
async def at_most_once(n: int, gate: str, *, local: bool = False) -> int:
    """A step that may run once. Returns n², or -1 when its attempt was lost."""
    try:
        return await (local_once_square(n, gate) if local else once_square(n, gate))
    except StepLost:
        return -1


@workflow(pool="flows")
async def sleeper(n: int, seconds: float) -> int:
    """Sleep between two steps. Returns 2 n²."""
    before = await local_square(n)
    await asyncio.sleep(seconds)
    return before + await square(n)


@workflow(pool="flows")
async def lasting(n: int, seconds: float) -> int:
    """One pool step that takes a while. Returns n²."""
    return await last(n, seconds)


@workflow(pool="flows")
async def blocking(n: int, seconds: float) -> int:
    """One pool step that blocks the loop of its worker. Returns n²."""
    return await block(n, seconds)


@workflow(pool="flows")
async def family(n: int) -> int:
    """n children at once, each with an id of its own. Returns the sum of the squares below n."""
    return sum(await asyncio.gather(*(member(i) for i in range(n))))


@workflow(pool="flows")
async def member(n: int) -> int:
    """A local step and a pool step. Returns n²."""
    await local_square(n)
    return await square(n)


@workflow(pool="flows")
async def gated_family(n: int, gate: str) -> int:
    """n children that all wait for one gate."""
    return sum(await asyncio.gather(*(gated_member(i, gate) for i in range(n))))


@workflow(pool="flows")
async def gated_member(n: int, gate: str) -> int:
    """A pool step behind a gate. Returns n²."""
    return await square(n, gate)


@workflow(pool="flows")
async def mailbox(n: int) -> list[int]:
    """A step for each of n signals, then a question, then a local step. Returns what was received, in order."""
    found: list[int] = []
    while len(found) < n:
        number = await receive("number", int)
        await square(number)
        found.append(number)
        publish_state(len(found))
    question = await receive_question("sum", int)
    question.answer(question.value + sum(found))
    await local_square(n)
    return found


@workflow(pool="flows")
async def volumes(n: int, found: list[int] | None = None) -> list[int]:
    """As `mailbox`, with a new part after every two signals, each of which leaves a step open."""
    found = found or []
    publish_state(len(found))
    for _ in range(2):
        number = await receive("number", int)
        await square(number)
        found.append(number)
    if len(found) < n:
        left = asyncio.create_task(square(-1))
        await local_square(len(found))
        left.set_name("open")
        continue_as_new(n, found)
    question = await receive_question("sum", int)
    question.answer(question.value + sum(found))
    return found


@workflow(pool="flows")
async def constructs() -> list[int]:
    """What asyncio offers, one after the other. Returns 1, 2, 3 and so on: one number for each that went right."""
    right = []
    for number, construct in enumerate((_gather, _group, _completed, _limits, _queue, _event, _finally, _first), 1):
        if await construct():
            right.append(number)
        await asyncio.sleep(0.1)
    return right


async def _gather() -> bool:
    first, second, third = await asyncio.gather(square(1), local_square(2), square(3))
    return [first, second, third] == [1, 4, 9]


async def _group() -> bool:
    try:
        async with asyncio.TaskGroup() as group:
            first, second = group.create_task(square(2)), group.create_task(local_square(3))
            group.create_task(_raise(await local_square(1)))
    except ExceptionGroup as errors:
        return str(errors.exceptions) == "(ValueError(1),)" and first.done() and second.done()
    return False


async def _raise(value: int) -> None:
    await asyncio.sleep(0.05)
    raise ValueError(value)


async def _completed() -> bool:
    return {await found for found in asyncio.as_completed([square(4), local_square(5)])} == {16, 25}


async def _limits() -> bool:
    try:
        async with asyncio.timeout(0.1):
            await asyncio.sleep(60)
    except TimeoutError:
        try:
            await asyncio.wait_for(asyncio.Event().wait(), 0.1)
        except TimeoutError:
            return True
    return False


async def _queue() -> bool:
    queue: asyncio.Queue[int] = asyncio.Queue(1)

    async def produce() -> None:
        for n in range(4):
            await queue.put(await (square(n) if n % 2 else local_square(n)))

    producer = asyncio.create_task(produce())
    found = [await queue.get() for _ in range(4)]
    await producer
    return found == [0, 1, 4, 9]


async def _event() -> bool:
    event = asyncio.Event()

    async def fire() -> int:
        result = await square(6)
        event.set()
        return result

    task = asyncio.create_task(fire())
    await event.wait()
    return await local_square(6) == await task


async def _finally() -> bool:
    cleaned: list[int] = []
    task = asyncio.create_task(_cleaned(cleaned))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait([task])
    return task.cancelled() and cleaned == [49, 64]


async def _cleaned(cleaned: list[int]) -> None:
    try:
        await asyncio.sleep(60)
    finally:
        cleaned.append(await local_square(7))
        cleaned.append(await square(8))


async def _first() -> bool:
    tasks = [asyncio.create_task(asyncio.sleep(delay, delay)) for delay in (60.0, 0.05)]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return [task.result() for task in done] == [0.05] and pending == {tasks[0]}


@step(pool="steps", retry=_QUICK, heartbeat="5s")
async def load(n: int, gate: str) -> int:
    """Counts to `n`, saying so, then waits for its gate. Returns where this attempt began to count."""
    begun_at = last_progress(int) or 0
    async with noted():
        for count in range(begun_at, n):
            progress(count + 1)
            await asyncio.sleep(0.01)
        if gate:
            path = Path(os.environ["KILL_GATES"]) / gate
            while not path.exists():
                heartbeat()
                await asyncio.sleep(0.01)
    return begun_at


@workflow(pool="flows")
async def loading(n: int, gate: str) -> int:
    """A long step. Returns where its last attempt began."""
    return await load(n, gate)


@step(pool="steps", retry=_QUICK)
async def decide(n: int, gate: str) -> int:
    """Writes its token to a file, waits for its gate, and leaves the rest to whoever reads the file."""
    info = step_info()
    async with noted():
        path = Path(os.environ["KILL_GATES"]) / f"token-{info.run_id}-{info.attempt}"
        path.with_suffix(".new").write_text(defer())
        path.with_suffix(".new").rename(path)
        if gate:
            await opened(gate)
    raise Deferred


@workflow(pool="flows")
async def deciding(n: int, gate: str) -> int:
    """A step that somebody outside finishes."""
    return await decide(n, gate)


@step(pool="steps", retry=_QUICK)
async def enlarge(text: str, times: int) -> str:
    async with noted():
        return text * times


@step(retry=_QUICK)
def enlarge_here(text: str, times: int) -> str:
    note("start", local=True)
    note("end", local=True)
    return text * times


@step(pool="steps", retry=Retry(attempts=1))
async def spill(text: str) -> None:
    async with noted():
        raise ValueError(text)


@workflow(pool="flows")
async def cargo(text: str, times: int, gate: str = "") -> str:
    """Large values through steps and a child; an error, a state, an answer and a signal have them, too."""
    larger = await enlarge(text, times)
    if gate:
        await square(1, gate)
    largest = await enlarge_here(larger, 2)
    try:
        await spill(text)
    except StepError as error:
        assert error.message == text
    publish_state(largest)
    question = await receive_question("cargo", str)
    question.answer(question.value * times)
    more = await receive("more", str)
    return await stowed(largest + more)


@workflow(pool="flows")
async def stowed(text: str) -> str:
    """A child that returns what it is given."""
    return text


@step(pool="steps", retry=_QUICK, heartbeat="1s")
async def stall(n: int, seconds: float) -> int:
    """A body whose first attempt blocks its loop, so that its worker cannot say that it is silent."""
    async with noted():
        if step_info().attempt == 1:
            time.sleep(seconds)
    return n * n


@workflow(pool="flows")
async def stalling(n: int, seconds: float) -> int:
    """A long step that hangs."""
    return await stall(n, seconds)


@step(pool="steps", retry=Retry(attempts=1))
async def guarded(n: int, gate: str) -> int:
    """Fails as long as its gate is closed."""
    async with noted():
        if not (Path(os.environ["KILL_GATES"]) / gate).exists():
            raise RuntimeError(f"gate {gate} is closed")
        return n * n


@step(retry=_QUICK)
async def tell(failed: FailedRun) -> str:
    async with noted(local=True):
        return failed.id


@workflow(pool="flows", on_failure=tell)
async def redriven(n: int, gate: str) -> int:
    """Steps, one of which fails until its gate is open, and what comes behind it."""
    total = sum(await asyncio.gather(*(square(i) for i in range(n))))
    total += await local_square(n)
    total += await guarded(n, gate)
    return total + await local_square(n + 1)
