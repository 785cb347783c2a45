"""Where the CPU of a step goes: W1 with 100 runs open, once for each process that is sampled."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.drive import in_flight
from benchmarks.house import order
from benchmarks.profiling import profiled, rooms, spy
from benchmarks.session import Session
from benchmarks.w_throughput import KINDS, flow

__all__ = ("run",)


def run(session: Session) -> None:
    """The server, then the worker, of local and of pool steps. Throughput suffers from it, shares do not."""
    if spy() is None:
        sys.stderr.write("no profile of W1: py-spy is not on PATH (`pip install py-spy`)\n")
        return
    runs, steps = session.sizes.runs * 2, session.sizes.steps
    for letter, workflow in KINDS.items():
        with session.house("services") as house:
            work = flow(workflow, steps, order(), returns=steps, shape=in_flight, runs=runs, steps=steps)
            for group in ("server", "worker"):
                name = f"P-{letter}-{group}"
                with profiled(house.groups()[group](), session.folder / name) as files:
                    found = session.series(house, name, work, steps=runs * steps, reps=1, spare=0)
                for record in found:
                    cost = record.cpu_s.get(group, 0.0) / record.steps * 1e6
                    record.rooms = {room: round(share * cost, 1) for room, share in rooms(_lines(files)).items()}


def _lines(files: list[Path]) -> list[str]:
    return [line for file in files for line in file.read_text().splitlines()]
