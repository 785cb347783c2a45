"""W5: the worker dies by `kill -9` in the middle of its work and is started again at once."""

from __future__ import annotations

import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.accounting import percentile
from benchmarks.app import local_chain, slow_local_chain, slow_pool_chain
from benchmarks.drive import Metrics, crash
from benchmarks.house import House, order
from benchmarks.measure import Probe
from benchmarks.session import Session, say
from treadle.client import Client, RunHandle

__all__ = ("run", "worker_start")


def worker_start(house: House) -> float:
    """Return what a worker needs from its start to the result of a run of one step that waits for it, in seconds.

    The last worker ended in good order, so nothing of it is missed first.
    """
    house.end_workers(signal.SIGTERM)

    async def work(client: Client) -> float:
        run = await client.start(local_chain, 1, order())
        began = time.perf_counter()
        house.start_workers()
        await run.result(timeout=60)
        return time.perf_counter() - began

    return house.run(work)


def _slow(session: Session, house: House, workflow: Any, at_s: float | None) -> Callable[[Probe], Metrics]:
    sizes = session.sizes

    def work(probe: Probe) -> Metrics:
        async def drive(client: Client) -> Metrics:
            def start(number: int) -> Awaitable[RunHandle[int]]:
                return client.start(workflow, number, sizes.crash_steps)

            async def result(run: RunHandle[int]) -> None:
                assert await run.result(timeout=170) == sizes.crash_steps

            blow = None if at_s is None else lambda: probe.replacing("worker", house.strike)
            return await crash(start, result, house.step_log, runs=sizes.crash_runs, strike=blow, at_s=at_s or 0.0)

        return house.run(drive)

    return work


def run(session: Session) -> None:
    """200 runs of 10 steps of 50 ms, 50 at a time: undisturbed, and killed at half of that time."""
    sizes = session.sizes
    steps = sizes.crash_runs * sizes.crash_steps
    for mode in session.deployments:
        for name, workflow, slots in (
            ("W5", slow_pool_chain, {"slots": sizes.crash_slots}),
            ("W5-local", slow_local_chain, {"run_slots": sizes.crash_slots}),
        ):
            with session.house(mode, **slots) as house:
                calm = session.probed(house, f"{name}-calm", _slow(session, house, workflow, None), steps=steps)
                if calm[-1].error:
                    continue
                wall = percentile([record.metrics["wall_s"] for record in calm], 50)
                kills = session.probed(house, name, _slow(session, house, workflow, wall / 2), steps=steps)
                own = percentile([worker_start(house) for _ in range(session.each)], 50)
            for record in kills:
                if not record.error:
                    extra = record.metrics["wall_s"] - wall
                    more = {"extra_s": extra, "worker_start_s": own, "beyond_start_s": extra - own}
                    record.metrics |= {key: round(value, 3) for key, value in more.items()}
                    say(record)
