"""W7: results of 1, 16 and 256 KiB."""

from __future__ import annotations

from typing import Any

from benchmarks.app import big_local_chain, big_pool_chain
from benchmarks.drive import throughput
from benchmarks.session import Session
from benchmarks.w_throughput import flow

__all__ = ("run",)

_RUNS = {1: 1000, 16: 500, 256: 100}
"""KiB of a result -> runs: what Redis keeps stays near 130 MB."""


def run(session: Session) -> None:
    """W1 with big results."""
    steps = session.sizes.steps
    kinds: dict[str, Any] = {"a": big_local_chain, "b": big_pool_chain}
    for mode in session.deployments:
        for kib, full in _RUNS.items():
            runs = session.sizes.of(full)
            with session.house(mode) as house:
                for letter, workflow in kinds.items():
                    returns = steps * kib * 1024
                    work = flow(workflow, steps, kib, returns=returns, shape=throughput, runs=runs, steps=steps)
                    session.series(house, f"W7-{kib}{letter}", work, steps=runs * steps)
