"""The app of the tests of cancels and deadlines: what is cut off says so in the ledger, whatever runs it."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

from tests.kill.app import note, noted, opened
from treadle.worker import FailedRun, Retry, Step, StepTimedOut, sleep_until, step, step_info, workflow

_QUICK = Retry(attempts=0, initial="0.1s", cap="0.2s")
_LONG_S = 600.0


@step(pool="steps")
async def wins(gate: str) -> str:
    async with noted(gate):
        return "won"


@step(pool="steps")
async def loses_on_the_loop() -> None:
    note("start", local=False)
    try:
        await asyncio.sleep(_LONG_S)
    except asyncio.CancelledError:
        note("cut", local=False)
        raise


@step(pool="steps")
def loses_in_a_thread() -> str:
    note("start", local=False)
    while not step_info().cancelled:
        time.sleep(0.02)
    note("cut", local=False)
    return "too late"


@step(pool="steps", executor="process")
def loses_in_a_process() -> None:
    note("start", local=False)
    try:
        time.sleep(_LONG_S)
    except asyncio.CancelledError:  # SIGTERM
        note("cut", local=False)
        raise


@step(pool="steps", executor="process")
def is_deaf() -> None:
    """Only SIGKILL ends it."""
    note("start", local=False)
    until = time.monotonic() + _LONG_S
    while time.monotonic() < until:
        try:
            time.sleep(_LONG_S)
        except asyncio.CancelledError:
            continue


LOSERS = (loses_on_the_loop, loses_in_a_thread, loses_in_a_process, is_deaf)


@step
async def local_loses() -> None:
    note("start", local=True)
    try:
        await asyncio.sleep(_LONG_S)
    except asyncio.CancelledError:
        note("cut", local=True)
        raise


@workflow(pool="flows")
async def first_of(gate: str) -> str:
    """A winner behind a gate, and losers of each kind."""
    losers: list[Step[[], Any]] = [*LOSERS, local_loses]
    tasks = [asyncio.create_task(wins(gate)), *(asyncio.create_task(loser()) for loser in losers)]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    ended = await asyncio.gather(*pending, return_exceptions=True)
    assert all(isinstance(error, asyncio.CancelledError) for error in ended), ended
    (winner,) = done
    return str(winner.result())


@step(pool="steps", on_cancel="wait")
async def takes_its_leave(gate: str) -> None:
    """Goes on for a while although it was told to end."""
    note("start", local=False)
    try:
        await asyncio.sleep(_LONG_S)
    finally:
        note("cut", local=False)
        await opened(gate)
        note("end", local=False)


@step(pool="steps", on_cancel="abandon")
async def goes_its_way(gate: str) -> None:
    async with noted(gate):
        return


@step
async def tidy(text: str) -> str:
    async with noted(local=True):
        return text


@workflow(pool="flows")
async def polite(gate: str) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(takes_its_leave(gate))
            group.create_task(goes_its_way(gate))
    finally:
        await tidy("polite")


@workflow(pool="flows", timeout="4s")
async def bounded() -> str:
    """Ends by its timeout, which cleans up."""
    try:
        await asyncio.sleep(_LONG_S)
    finally:
        await tidy("bounded")
    return "never"


@step(pool="steps")
async def hears(failed: FailedRun) -> None:
    assert (failed.error.type, failed.input) == ("RunTimedOut", {"gate": "never"})
    note("start", local=False)


@workflow(pool="flows", timeout="3s", on_failure=hears)
async def deaf(gate: str) -> None:
    """Goes on whatever it is told."""
    while True:
        try:
            await asyncio.sleep(_LONG_S)
        except asyncio.CancelledError:
            continue


@workflow(pool="flows", on_failure=hears)
async def mute(gate: str) -> None:
    """Never says a word: its first turn has no end."""
    while gate:
        pass


@step
async def wakes(n: int) -> int:
    async with noted(local=True):
        return n


@workflow(pool="flows")
async def alarm(n: int, due: float) -> int:
    """Sleep until a Unix time, then run a step."""
    await sleep_until(datetime.fromtimestamp(due, UTC))
    return await wakes(n)


@step(pool="nobody", queue_timeout="3s")
async def waits_in_vain() -> None:
    note("start", local=False)


@step(pool="steps", total_timeout="8s", retry=_QUICK)
async def fails_again_and_again() -> None:
    note("start", local=False)
    raise ConnectionError("again")


@step(pool="steps", total_timeout="8s", retry=_QUICK)
async def never_ends() -> None:
    note("start", local=False)
    await asyncio.sleep(_LONG_S)


@step(total_timeout="8s", retry=Retry(initial="0.5s", factor=1, jitter=0, attempts=0))
async def fails_here_again_and_again() -> None:
    note("start", local=True)
    raise ConnectionError("again")


@workflow(pool="flows")
async def limits() -> list[str]:
    """What each step fails with, and why it was tried again."""

    async def why(call: Any) -> str:
        try:
            await call
        except StepTimedOut as error:
            cause = f"{error.failure.cause.type}" if error.failure is not None else ""
            return f"{type(error).__name__} {error.step} {cause}".strip()
        return "nothing"

    calls = (waits_in_vain(), fails_again_and_again(), never_ends(), fails_here_again_and_again())
    return list(await asyncio.gather(*(why(call) for call in calls)))
