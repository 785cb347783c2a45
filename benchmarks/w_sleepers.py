"""W4: runs that sleep until one instant: what a sleeping run costs, and how late it wakes."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.app import sleeper
from benchmarks.drive import Metrics, bounded, sleepers
from benchmarks.house import House
from benchmarks.measure import Probe
from benchmarks.session import Session
from benchmarks.sizes import LANES
from treadle.client import Client, RunHandle

__all__ = ("run",)

_IDLE_S = 10.0


async def _result(run: RunHandle[float]) -> float:
    return await run.result(timeout=900)


def _sleep(house: House, runs: int, sleep_s: float) -> Callable[[Probe], Metrics]:
    """The lag is what the workflow saw: the wall clock in a local step behind the sleep, less the instant that was due."""

    def work(probe: Probe) -> Metrics:
        def memory() -> dict[str, float]:
            return {**probe.memory(), "redis_data": house.used_mib()}

        async def drive(client: Client) -> Metrics:
            def start(due: float) -> Awaitable[Any]:
                return client.start(sleeper, due)

            return await sleepers(start, _result, memory, runs=runs, sleep_s=sleep_s)

        found = house.run(drive)
        return {**found, "kib_durable": round(found["kib_redis_data"] + found["kib_server"], 2)}

    return work


def _idle(house: House, runs: int) -> Callable[[Probe], Metrics]:
    """CPU while all sleep and nothing else happens, as a share of one core."""

    def work(probe: Probe) -> Metrics:
        async def drive(client: Client) -> Metrics:
            due = time.time() + 3600  # none of them wakes
            await bounded(runs, LANES, lambda _: client.start(sleeper, due))
            await asyncio.sleep(3)
            before = probe.cpu()
            await asyncio.sleep(_IDLE_S)
            used = {name: value - before[name] for name, value in probe.cpu().items()}
            return {
                **{f"{name}_idle_percent": round(cpu / _IDLE_S * 100, 2) for name, cpu in used.items()},
                "runs": runs,
            }

        return house.run(drive)

    return work


def run(session: Session) -> None:
    """2,000 sleepers in a fresh deployment each time; 10,000 that never wake; 100,000 with `--big`."""
    sizes = session.sizes
    for mode in session.deployments:
        session.fresh(mode, "W4", lambda house: _sleep(house, sizes.sleepers, sizes.sleep_s))
        if not session.short and session.turn == 0:
            with session.house(mode) as house:
                session.probed(house, "W4-idle", _idle(house, sizes.sleepers * 5), reps=1)
        if session.big and session.turn == 0:
            with session.house(mode) as house:
                runs = sizes.sleepers * 50
                sleep_s = 30 + runs / 300  # starts included
                sys.stderr.write(f"{runs:,} sleepers, {sleep_s:.0f} s\n")
                session.probed(house, "W4-100k", _sleep(house, runs, sleep_s), reps=1)
