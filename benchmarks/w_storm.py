"""W8: starts as fast as a client can make them: how long until all are accepted, how long until all are done."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.app import local_chain
from benchmarks.drive import Metrics, bounded
from benchmarks.house import House, order
from benchmarks.measure import Probe
from benchmarks.session import Session
from benchmarks.sizes import LANES
from treadle.client import Client, RunHandle

__all__ = ("run",)

_AT_ONCE = 500


def _storm(house: House, runs: int) -> Callable[[Probe], Metrics]:
    def work(_probe: Probe) -> Metrics:
        before = house.used_mib()

        async def drive(client: Client) -> Metrics:
            async def start(_: int) -> RunHandle[int]:
                return await client.start(local_chain, 1, order())

            async def result(number: int) -> None:
                assert await handles[number].result(timeout=600) == 1

            began = time.perf_counter()
            handles = await bounded(runs, _AT_ONCE, start)
            accepted = time.perf_counter() - began
            await bounded(runs, LANES, result)
            drained = time.perf_counter() - began
            return {
                "starts_per_s": round(runs / accepted, 1),
                "accept_s": round(accepted, 2),
                "drain_s": round(drained, 2),
                "redis_mib": round(house.used_mib() - before, 1),
                "runs": runs,
            }

        return house.run(drive)

    return work


def run(session: Session) -> None:
    """20,000 runs of one local step, 500 starts under way at once, in a fresh deployment each time."""
    runs = session.sizes.of(20_000)
    for mode in session.deployments:
        session.fresh(mode, "W8", lambda house: _storm(house, runs), steps=runs)
