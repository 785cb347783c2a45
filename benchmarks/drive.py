"""The client's side of the workloads: the same loops for Treadle and for every peer.

`start(i)` starts run number i and returns a handle; `result(handle)` waits for what it returned; `call(i)` does both. Each loop
returns its figures by name; the unit is the end of the name.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.accounting import percentile
from benchmarks.sizes import LANES

__all__ = (
    "Call",
    "Metrics",
    "Result",
    "Start",
    "StepLog",
    "append_line",
    "bounded",
    "chains",
    "crash",
    "fan_out",
    "in_flight",
    "latency",
    "sleepers",
    "spread",
    "throughput",
)

T = TypeVar("T")
Metrics = dict[str, float]
Start = Callable[[int], Awaitable[Any]]
Result = Callable[[Any], Awaitable[Any]]
Call = Callable[[int], Awaitable[Any]]


def spread(values: Sequence[float], unit: float = 1e3) -> Metrics:
    """Return p50, p95, p99 and the largest of seconds, as ms."""
    named = {f"p{share}_ms": percentile(values, share) for share in (50, 95, 99)} | {"max_ms": max(values)}
    return {name: round(value * unit, 3) for name, value in named.items()}


async def bounded(count: int, lanes: int, call: Callable[[int], Awaitable[T]]) -> list[T]:
    """Return call(0) to call(count - 1), at most `lanes` at once; the results in order."""
    numbers = iter(range(count))
    found: dict[int, T] = {}

    async def lane() -> None:
        for number in numbers:
            found[number] = await call(number)

    await asyncio.gather(*(lane() for _ in range(min(lanes, count))))
    return [found[number] for number in range(count)]


def _rates(runs: int, steps: int, wall: float, **more: float) -> Metrics:
    rates = {"steps_per_s": round(runs * steps / wall, 1), "runs_per_s": round(runs / wall, 1)}
    return {**rates, "wall_s": round(wall, 3), **more, "runs": runs}


async def throughput(start: Start, result: Result, runs: int, steps: int) -> Metrics:
    """All started, at most 100 starts at once, then all awaited: so up to `runs` are open together."""
    began = time.perf_counter()
    handles = await bounded(runs, LANES, start)
    started = time.perf_counter() - began
    await bounded(runs, LANES, lambda number: result(handles[number]))
    return _rates(runs, steps, time.perf_counter() - began, start_s=round(started, 3))


async def in_flight(start: Start, result: Result, runs: int, steps: int) -> Metrics:
    """At most 100 runs open: a new one is started when one has its result."""

    async def one(number: int) -> None:
        await result(await start(number))

    began = time.perf_counter()
    await bounded(runs, LANES, one)
    return _rates(runs, steps, time.perf_counter() - began)


async def latency(call: Call, runs: int) -> Metrics:
    """Start to result, one at a time."""
    took = []
    for number in range(runs):
        began = time.perf_counter()
        await call(number)
        took.append(time.perf_counter() - began)
    return {**spread(took), "runs": runs}


async def chains(call: Call, runs: int, steps: int) -> Metrics:
    """Time of one step within runs of many, one run at a time."""
    took = []
    for number in range(runs):
        began = time.perf_counter()
        await call(number)
        took.append((time.perf_counter() - began) / steps)
    figures = spread(took)
    return {"step_ms": figures["p50_ms"], "max_step_ms": figures["max_ms"], "runs": runs}


async def fan_out(call: Call, steps: int) -> Metrics:
    """One run that gathers `steps` steps."""
    began = time.perf_counter()
    await call(0)
    wall = time.perf_counter() - began
    return {"wall_s": round(wall, 3), "steps_per_s": round(steps / wall, 1), "steps": steps}


async def sleepers(
    start: Callable[[float], Awaitable[Any]],
    result: Result,
    memory: Callable[[], dict[str, float]],
    *,
    runs: int,
    sleep_s: float,
    quiet_s: float = 3.0,
) -> Metrics:
    """`start(due)` starts a run that sleeps until the Unix time `due` and returns by how many seconds it woke late.

    All share one instant, `sleep_s` after the first start. Memory (MiB by name) is taken before, and when all sleep.
    """
    before = await asyncio.to_thread(memory)
    began, due = time.perf_counter(), time.time() + sleep_s
    handles = await bounded(runs, LANES, lambda _: start(due))
    started = time.perf_counter() - began
    await asyncio.sleep(quiet_s)
    asleep = await asyncio.to_thread(memory)
    room = sleep_s - 2 - (time.perf_counter() - began)
    if room > 0:  # they sleep in peace before anybody waits for them
        await asyncio.sleep(room)
    lags = await bounded(runs, LANES, lambda number: result(handles[number]))
    grown = {name: (asleep[name] - before[name]) * 1024 / runs for name in asleep if name in before}
    return {
        **{f"lag_{name}": value for name, value in spread(lags).items()},
        **{f"kib_{name}": round(value, 2) for name, value in grown.items()},
        "start_s": round(started, 2),
        "early": float(sum(lag < 0 for lag in lags)),
        "runs": runs,
    }


class StepLog:
    """The file to which each executed slow step appends a line "run step"."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def reset(self) -> None:
        self.path.write_text("")

    def lines(self) -> list[str]:
        return self.path.read_text().split("\n")[:-1]

    def figures(self) -> Metrics:
        lines = self.lines()
        return {"executions": len(lines), "distinct": len(set(lines)), "repeated": len(lines) - len(set(lines))}


def append_line(path: str, run: int, step: int) -> None:
    """What a slow step does first: one write, which is atomic."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, f"{run} {step}\n".encode())
    finally:
        os.close(file)


async def crash(
    start: Start,
    result: Result,
    log: StepLog,
    *,
    runs: int,
    strike: Callable[[], None] | None = None,
    at_s: float = 0.0,
    lanes: int = 0,
    patience_s: float = 180.0,
) -> Metrics:
    """Run slow steps; `strike` (in a thread, `at_s` after the first start) kills the worker and starts it again.

    With `lanes`, the client keeps that many runs open; else it starts all, and the worker's own limit counts.

    Raises:
        TimeoutError: Not all runs ended in time.
    """
    log.reset()
    began = time.perf_counter()
    found: Metrics = {}

    async def hit(blow: Callable[[], None]) -> None:
        await asyncio.sleep(at_s)
        found["done_at_kill"] = log.figures()["distinct"]
        found["killed_at_s"] = round(time.perf_counter() - began, 3)
        await asyncio.to_thread(blow)

    async def one(number: int) -> None:
        await result(await start(number))

    async def work() -> None:
        if lanes:
            await bounded(runs, lanes, one)
            return
        handles = await bounded(runs, LANES, start)
        await bounded(runs, runs, lambda number: result(handles[number]))

    blow = None if strike is None else asyncio.create_task(hit(strike))
    async with asyncio.timeout(patience_s):
        await work()
        wall = time.perf_counter() - began
        if blow is not None:
            await blow
    return {"wall_s": round(wall, 3), **found, **log.figures(), "runs": runs}
