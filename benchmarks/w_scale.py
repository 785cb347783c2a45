"""W6: more workers and servers on the same cores; longer histories; how long a long history takes to be replayed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import cycle
from typing import Any

from benchmarks.app import long_history, pool_chain
from benchmarks.drive import Metrics, throughput
from benchmarks.house import House, order
from benchmarks.measure import Probe
from benchmarks.session import Session
from benchmarks.w_latency import one_at_a_time
from benchmarks.w_throughput import KINDS
from treadle.client import Client, RunHandle

__all__ = ("LENGTHS", "run")

LENGTHS = (10, 100, 1_000, 10_000)
_TEAMS = ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (4, 2))
_MARKS = 400


def run(session: Session) -> None:
    """W1(b) with 1, 2, 4 workers and 1, 2 servers; histories of 10 to 10,000 steps."""
    for mode in session.deployments:
        for workers, servers in _TEAMS:
            if servers == 1 or mode == "services":  # one server alone has the broker in memory
                with session.house(mode, workers=workers, servers=servers) as house:
                    runs, steps = session.sizes.runs, session.sizes.steps
                    name = f"W6-{workers}w{servers}s"
                    session.probed(house, name, _across(house, runs, steps), steps=runs * steps)
        with session.house(mode) as house:
            for letter in KINDS:
                _histories(session, house, letter)
            for length in (LENGTHS[0], *LENGTHS[2:]):
                session.probed(house, f"W6-replay-{length}", _replay(house, session.sizes.of(length, 10)))


def _across(house: House, runs: int, steps: int) -> Callable[[Probe], Metrics]:
    """Starts go to the servers in turn; each run must return what it should, so none is lost."""

    async def drive() -> Metrics:
        clients = [Client(address) for address in house.addresses]
        turns = cycle(clients)

        async def start(_: int) -> RunHandle[int]:
            return await next(turns).start(pool_chain, steps, order())

        async def result(run: RunHandle[int]) -> None:
            assert await run.result(timeout=600) == steps

        try:
            return await throughput(start, result, runs, steps)
        finally:
            for client in clients:
                await client.close()

    return lambda _probe: house.complete(drive())


def _histories(session: Session, house: House, letter: str) -> None:
    """One run at a time: at 10 steps enough runs for a thousand steps, at 10,000 one run."""
    for length in LENGTHS:
        steps = session.sizes.of(length, 10)
        runs = max(1, min(100, 1000 // steps))
        work: Callable[[Client], Awaitable[Metrics]] = one_at_a_time(KINDS[letter], steps, runs, chain=True)
        reps = 1 if length == LENGTHS[-1] else None
        session.series(house, f"W6-history-{length}{letter}", work, steps=steps * runs, reps=reps)


def _replay(house: House, length: int) -> Callable[[Probe], Metrics]:
    """From the start of a new worker to the next step of a run with so many steps behind it, after a `kill -9`."""

    def work(probe: Probe) -> Metrics:
        async def drive(client: Client) -> Metrics:
            house.step_log.reset()
            run: RunHandle[Any] = await client.start(long_history, length, _MARKS, order())
            await _marks(house, 3)
            await asyncio.to_thread(probe.replacing, "worker", house.end_workers)
            known = len(house.step_log.lines())
            began = time.perf_counter()
            house.start_workers()
            await _marks(house, known + 2)  # the mark that was cut off runs again
            took = time.perf_counter() - began
            await run.terminate("measured")
            return {"until_next_step_s": round(took, 3), "steps": length}

        return house.run(drive)

    return work


async def _marks(house: House, count: int) -> None:
    async with asyncio.timeout(300):
        while len(house.step_log.lines()) < count:
            await asyncio.sleep(0.002)
