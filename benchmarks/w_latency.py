"""W2: one run at a time: start to result of one step, and the time of a step in a chain of fifty."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.drive import Metrics, chains, latency
from benchmarks.house import order
from benchmarks.session import Session
from benchmarks.w_throughput import kinds
from treadle.client import Client

__all__ = ("one_at_a_time", "run")


def one_at_a_time(workflow: Any, steps: int, runs: int, *, chain: bool) -> Callable[[Client], Awaitable[Metrics]]:
    """Return a workload: runs of `steps` steps, one after the other."""

    async def work(client: Client) -> Metrics:
        async def call(_: int) -> None:
            found = await (await client.start(workflow, steps, order())).result(timeout=600)
            assert found == steps

        return await (chains(call, runs, steps) if chain else latency(call, runs))

    return work


def run(session: Session) -> None:
    """500 runs of one step; 10 of 50."""
    sizes = session.sizes
    for mode in session.modes:
        with session.house(mode) as house:
            for letter, workflow in kinds(mode).items():
                work = one_at_a_time(workflow, 1, sizes.latency, chain=False)
                session.series(house, f"W2{letter}", work, steps=sizes.latency)
                work = one_at_a_time(workflow, sizes.chain, sizes.chains, chain=True)
                session.series(house, f"W2{letter}-chain", work, steps=sizes.chain * sizes.chains)
