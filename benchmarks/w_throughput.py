"""W1: runs of five steps in sequence, local ones (a) and steps of a pool (b)."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.app import local_chain, pool_chain
from benchmarks.catalogue import Mode
from benchmarks.drive import Metrics, Result, Start, in_flight, throughput
from benchmarks.house import order
from benchmarks.session import Session
from treadle.client import Client, RunHandle

__all__ = ("KINDS", "flow", "kinds", "run")

KINDS: dict[str, Any] = {"a": local_chain, "b": pool_chain}
"""Letter of a workload -> the workflow."""


def kinds(mode: Mode) -> dict[str, Any]:
    """Return those that a mode runs: only steps of a pool are "queued"."""
    return {letter: workflow for letter, workflow in KINDS.items() if mode != "queued" or letter == "b"}


Shape = Callable[[Start, Result, int, int], Awaitable[Metrics]]


def flow(
    workflow: Any, *arguments: Any, returns: Any, shape: Shape, runs: int, steps: int
) -> Callable[[Client], Awaitable[Metrics]]:
    """Return a workload: `runs` runs of `workflow(*arguments)`, each of which must return `returns`."""

    async def work(client: Client) -> Metrics:
        def start(_: int) -> Awaitable[RunHandle[Any]]:
            return client.start(workflow, *arguments)

        async def result(run: RunHandle[Any]) -> None:
            found = await run.result(timeout=600)
            assert found == returns, f"run {run.id} returned {found!r}, not {returns!r}"

        return await shape(start, result, runs, steps)

    return work


def run(session: Session) -> None:
    """1,000 runs, all started and then awaited; the same with 100 in flight; 10,000 runs with 100 in flight.

    Modes that are compared take turns, run by run.
    """
    sizes = session.sizes
    shapes: list[tuple[str, Shape, int, int | None]] = [
        ("", throughput, sizes.runs, None),
        ("-flight", in_flight, sizes.runs, None),
    ]
    long: list[tuple[str, Shape, int, int | None]] = [] if session.short else [("-10k", in_flight, sizes.runs * 10, 1)]
    compared: list[Mode] = session.deployments
    shown: list[Mode] = [mode for mode in session.modes if mode not in compared]
    for modes, wanted in ((compared, shapes + long), (shown, shapes)):
        for letter, workflow in KINDS.items():
            with contextlib.ExitStack() as stack:
                houses = [stack.enter_context(session.house(mode)) for mode in modes if letter in kinds(mode)]
                for name, shape, runs, reps in wanted if houses else []:
                    work = flow(
                        workflow, sizes.steps, order(), returns=sizes.steps, shape=shape, runs=runs, steps=sizes.steps
                    )
                    named = [(f"W1{letter}{name}", house) for house in houses]
                    session.in_turn(named, work, steps=runs * sizes.steps, reps=reps)
