"""The workflows that are simulated: small, and with a result that does not depend on what died."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from treadle.worker import (
    FailedRun,
    Retry,
    Saga,
    StepError,
    changed,
    continue_as_new,
    publish_state,
    receive,
    receive_question,
    send_event,
    set_tags,
    start_child,
    step,
    wait_for_event,
    workflow,
)

from .limited import STEPS as LIMITED
from .limited import deaf, gentle, hurried, late, spoiled

QUICK = Retry(attempts=0, initial="200ms", cap="2s")


@step(pool="default", retry=QUICK)
async def add(a: int, b: int) -> int:
    return a + b


@step(pool="default", retry=QUICK, timeout="3s")
async def double(a: int) -> int:
    return a * 2


@step(retry=QUICK)
async def local_add(a: int, b: int) -> int:
    return a + b


@step(pool="default", retry=Retry.never)
async def charge(amount: int) -> str:
    return f"charged {amount}"


@step(retry=Retry.never)
async def local_charge(amount: int) -> str:
    return f"charged {amount}"


@workflow
async def chain(n: int) -> int:
    first = await add(n, 1)
    second = await local_add(first, 10)
    return await double(second)


@workflow
async def fan(n: int) -> list[int]:
    async def both(i: int) -> int:
        return await local_add(await add(i, 100), 1)

    return list(await asyncio.gather(*(both(n + i) for i in range(3))))


@workflow
async def naps(n: int) -> int:
    await asyncio.sleep(0.3)
    total = await local_add(n, 1)
    await asyncio.sleep(7)
    return await add(total, 1)


@workflow
async def steady(n: int) -> int:
    """One pool step after another, while letters come that are read at the end; the first step that follows is a local one."""
    total = await local_add(await add(n, 0), 0)
    for i in range(8):
        total = await add(total, 1)
        if i % 3 == 0:
            publish_state(i)
    for _ in range(3):
        total += await receive("number", int)
    return await add(total, 1)


@workflow
async def race(n: int) -> str:
    """The loser is cancelled; who wins depends on time alone, and is read from history in a replay."""
    tasks = [asyncio.create_task(_named(f"t{i}", n + i)) for i in range(3)]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    return "won" if done else "nobody"


async def _named(_: str, n: int) -> int:
    return await double(n)


@workflow
async def impatient(n: int) -> str:
    try:
        async with asyncio.timeout(0.5):
            await double(n)
    except TimeoutError:
        return "late or in time"
    return "late or in time"


@workflow
async def once(n: int) -> str:
    try:
        return await charge(n)
    except StepError:
        return f"charged {n}"


@workflow
async def local_once(n: int) -> str:
    try:
        return await local_charge(n)
    except StepError:
        return f"charged {n}"


@workflow
async def tidy(n: int) -> int:
    """Cleans up with a step, cancelled or not."""
    try:
        await add(n, 1)
        await asyncio.sleep(4)
        return await add(n, 2)
    finally:
        await local_add(n, 3)


@workflow
async def group(n: int) -> int:
    results: list[int] = []

    async def one(i: int) -> None:
        results.append(await add(n, i))

    async with asyncio.TaskGroup() as tasks:
        for i in range(3):
            tasks.create_task(one(i))
    return sum(results)


@workflow
async def collected(n: int) -> int:
    """as_completed: whichever is there first."""
    total = 0
    for done in asyncio.as_completed([add(n, i) for i in range(3)]):
        total += await done
    return total


@workflow
async def waiting(n: int) -> str:
    """wait_for in time, and too late."""
    first = await asyncio.wait_for(add(n, 1), 3600)
    try:
        await asyncio.wait_for(asyncio.sleep(3600), 0.2)
    except TimeoutError:
        return f"{first} then timeout"
    return "never"


@workflow
async def signalled(n: int) -> int:
    """Event: one task waits for what another one sets."""
    ready, found = asyncio.Event(), [0]

    async def setter() -> None:
        found[0] = await add(n, 5)
        ready.set()

    task = asyncio.create_task(setter())
    await ready.wait()
    await task
    return await local_add(found[0], 1)


@workflow
async def queued(n: int) -> int:
    """Queue: producer and consumer, the queue shorter than what goes through it."""
    queue: asyncio.Queue[int | None] = asyncio.Queue(1)

    async def produce() -> None:
        for i in range(3):
            await queue.put(await add(n, i))
        await queue.put(None)

    producer = asyncio.create_task(produce())
    total = 0
    while (item := await queue.get()) is not None:
        total += await local_add(item, 0)
    await producer
    return total


@workflow
async def failing_group(n: int) -> str:
    """A member of a TaskGroup fails: the others are cancelled, their cleanup runs."""

    async def fails() -> None:
        await add(n, 1)
        raise ValueError("one of them")

    async def cleans_up() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await local_add(n, 2)

    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(cleans_up())
            tasks.create_task(fails())
    except* ValueError:
        pass
    return "cleaned up"


@workflow
async def told(n: int) -> list[int]:
    """Signals, in the order in which they were sent."""
    found = [n]
    while len(found) < 4:
        found.append(await local_add(await receive("number", int), 0))
        publish_state(len(found))
    return found


@workflow
async def asked(n: int) -> int:
    """A question while a step runs, and another one that only the end answers."""
    task = asyncio.create_task(add(n, 1))
    question = await receive_question("sum", int)
    question.answer(question.value + await task)
    publish_state("answered")
    last = await receive_question("last", int, timeout="2m")
    if last is not None:
        last.answer(last.value)
    return await local_add(n, 2)


@workflow
async def families(n: int) -> list[int]:
    """Two children at once, and one whose outcome nobody waits for."""
    left = start_child(naps, n)
    found = await asyncio.gather(chain(n), once_more(n))
    return [found[0], found[1], int(bool(left.id))]


@workflow
async def chapters(n: int, found: list[int] | None = None) -> list[int]:
    """A part for each signal; each leaves a step open."""
    found = [*(found or [n]), await local_add(await receive("number", int), 0)]
    left = asyncio.create_task(add(n, 1))
    publish_state(await local_add(len(found), 0))
    if len(found) < 4:
        continue_as_new(n, found)
    await left
    return found


@workflow
async def once_more(n: int) -> int:
    return await local_add(n, 1)


@step(pool="default", retry=QUICK, heartbeat="1s")
async def load(n: int) -> int:
    return n * 3


@step(pool="default", retry=QUICK)
async def decide(n: int) -> int:
    return n * 5


@workflow
async def decided(n: int) -> int:
    """Steps that somebody outside finishes; what is waited for in vain is cancelled."""
    task = asyncio.create_task(decide(n))
    try:
        async with asyncio.timeout(1):
            await decide(n + 1)
    except TimeoutError:
        pass
    return await add(await task, 1)


@workflow
async def loads(n: int) -> list[int]:
    """Steps that say how far they are, and fall silent."""
    return list(await asyncio.gather(load(n), load(n + 1)))


@workflow
async def turns(n: int) -> list[int]:
    """Goes by marked changes, alone and in tasks beside each other; both ways come to the same."""

    async def one(i: int) -> int:
        found = await add(n, i)
        set_tags(last=i)
        return await (add(found, 1) if changed("one") else local_add(found, 1))

    first = await (local_add(n, 1) if changed("first") else add(n, 1))
    found = list(await asyncio.gather(*(one(i) for i in range(3))))
    await asyncio.sleep(0.2)
    return [first, *found, await (add(n, 2) if changed("last") and changed("first") else local_add(n, 2))]


@workflow
async def errands(n: int) -> list[Any]:
    """A child sends what its parent waits for; one event comes before it is waited for, one never."""
    child = start_child(sends, n)
    send_event("early", {"n": n})
    first = await wait_for_event("sent", dict[str, int], match={"n": n})
    second = await wait_for_event("early", dict[str, int], match={"n": n}, timeout="1h")
    never = await wait_for_event("never", timeout=0.4)
    return [first.data["value"], second is not None and second.data["n"], never, await child]


@workflow
async def sends(n: int) -> int:
    value = await local_add(n, 1)
    send_event("sent", {"n": n, "value": value})
    return value


@workflow
async def payments(n: int) -> int:
    """Waits for what comes from outside, and looks back for it."""
    paid = await wait_for_event("paid", dict[str, int], match={"order": n}, since="1h")
    again = await wait_for_event("paid", dict[str, int], match={"order": n}, since="1h")
    return await local_add(paid.data["amount"], again.data["amount"])


@workflow
async def undoes(n: int) -> list[int]:
    """What a saga did is undone, last first, once."""
    undone: list[int] = []

    async def undo(x: int) -> None:
        undone.append(await add(x, 100))

    async def undo_here(x: int) -> None:
        undone.append(await local_add(x, 200))

    try:
        async with Saga() as saga:
            saga.undo(undo, await add(n, 1))
            saga.undo(undo_here, await local_add(n, 2))
            await asyncio.sleep(0.2)
            raise LookupError("not to be had")
    except LookupError:
        return undone


MENDED: set[int] = set()
"""Arguments for which what is picky returns: a person mended the world before the run was told to go on."""


@step(pool="default", retry=Retry(attempts=2, initial="100ms"))
async def picky(n: int) -> int:
    if n not in MENDED:
        raise LookupError("the world is not mended")
    return n


@step(retry=Retry(attempts=1))
async def local_picky(n: int) -> int:
    if n not in MENDED:
        raise LookupError("the world is not mended here")
    return n


@step(retry=QUICK)
async def note_failure(failed: FailedRun) -> str:
    return failed.id


@workflow(on_failure=note_failure)
async def mended(n: int) -> int:
    """Fails while a sibling sleeps, and goes on when it is told to."""
    first = await add(n, 1)
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(2))
        second = group.create_task(picky(n))
    return await local_add(first, second.result())


@workflow(on_failure=note_failure)
async def mended_here(n: int) -> int:
    """The same with a local step, in a child."""
    return await add(await mended_child(n), 1)


@workflow
async def mended_child(n: int) -> int:
    return await local_picky(await local_add(n, 0))


WORKFLOWS: dict[str, tuple[Any, Callable[[int], Any]]] = {
    "chain": (chain, lambda n: (n + 11) * 2),
    "fan": (fan, lambda n: [n + i + 101 for i in range(3)]),
    "naps": (naps, lambda n: n + 2),
    "race": (race, lambda n: "won"),
    "impatient": (impatient, lambda n: "late or in time"),
    "steady": (steady, lambda n: n + 15),
    "once": (once, lambda n: f"charged {n}"),
    "local_once": (local_once, lambda n: f"charged {n}"),
    "tidy": (tidy, lambda n: n + 2),
    "group": (group, lambda n: 3 * n + 3),
    "collected": (collected, lambda n: 3 * n + 3),
    "waiting": (waiting, lambda n: f"{n + 1} then timeout"),
    "signalled": (signalled, lambda n: n + 6),
    "queued": (queued, lambda n: 3 * n + 3),
    "failing_group": (failing_group, lambda n: "cleaned up"),
    "told": (told, lambda n: [n, 1, 2, 3]),
    "asked": (asked, lambda n: n + 2),
    "families": (families, lambda n: [(n + 11) * 2, n + 1, 1]),
    "chapters": (chapters, lambda n: [n, 1, 2, 3]),
    "decided": (decided, lambda n: 5 * n + 1),
    "loads": (loads, lambda n: [3 * n, 3 * n + 3]),
    "errands": (errands, lambda n: [n + 1, n, None, n + 1]),
    "sends": (sends, lambda n: n + 1),
    "undoes": (undoes, lambda n: [n + 202, n + 101]),
    "mended": (mended, lambda n: 2 * n + 1),
    "mended_here": (mended_here, lambda n: n + 1),
    "once_more": (once_more, lambda n: n + 1),
    "turns": (turns, lambda n: [n + 1, n + 1, n + 2, n + 3, n + 2]),
    "gentle": (gentle, lambda n: n + 1),
    "hurried": (hurried, lambda n: n + 1),
    "late": (late, lambda n: n + 1),
    "spoiled": (spoiled, lambda n: n + 2),
}
"""Name -> (workflow, its result for an argument)."""

DEAF: dict[str, tuple[Any, Callable[[int], Any]]] = {"deaf": (deaf, lambda n: None)}
"""Workflows that only the control plane ends, minutes after they began: too long for every schedule."""

LETTERS: dict[str, list[tuple[str, int, bool]]] = {
    "chapters": [("number", 1, False), ("number", 2, False), ("number", 3, False)],
    "told": [("number", 1, False), ("number", 2, False), ("number", 3, False)],
    "steady": [("number", 1, False), ("number", 2, False), ("number", 3, False)],
    "asked": [("sum", 1, True), ("last", 2, True)],
}
"""Workflow -> what one sender sends it, in order: (name, value, whether it is a question)."""

BODIES = (add, double, local_add, charge, local_charge, load, decide, picky, local_picky, note_failure, *LIMITED)
STEPS: dict[str, Callable[..., Any]] = {s.name: s.function for s in BODIES}
"""What the bodies compute; the simulation runs them at once and lets time pass."""

DEFERRED = frozenset(("decide",))
"""Steps whose result comes from outside."""

REDRIVEN = frozenset(("mended", "mended_here"))
"""Workflows whose runs fail, and are then told to go on."""

EVERYTHING = (*BODIES, mended_child, payments, deaf, *(w for w, _ in WORKFLOWS.values()))
