"""One session: what is measured, how often, and the records that it gave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from benchmarks.catalogue import Mode
from benchmarks.drive import Metrics
from benchmarks.house import House
from benchmarks.measure import Probe, Record, repeat
from benchmarks.profiling import profiled
from benchmarks.sizes import Sizes
from treadle.client import Client

__all__ = ("SYSTEM", "Session", "say")

SYSTEM = "treadle"


def say(record: Record) -> None:
    """Tell what came out, on stderr."""
    figures = record.error or ", ".join(f"{name} {value:g}" for name, value in record.metrics.items())
    where = f"{record.workload} {record.system} {record.variant} #{record.rep}"
    sys.stderr.write(f"{where}: {figures} (others {record.others:.2f} cores)\n")
    sys.stderr.flush()


@dataclass(slots=True)
class Session:
    """Options and records.

    Attributes:
        sizes: How big the workloads are.
        reps: Quiet runs of each.
        turns: In so many parts they are taken, each with fresh deployments: peers come between them.
        turn: The part that it is, from 0. What is run once only is run in the first.
        modes: Of Treadle, see `House`.
        slots, run_slots: Of the workers, where a workload does not say; None: the product's defaults.
        quiet: False: do not wait for a quiet machine, nor repeat noisy runs.
        big: True: 100,000 sleepers too.
        short: True: leave out the long series of W1, W3 and W4.
        profile: "server" or "worker": sample it with py-spy.
        runner: The event loop of all clients.
        folder: For logs, state and profiles.
        records: In order.
    """

    sizes: Sizes
    reps: int
    modes: tuple[Mode, ...]
    slots: int | None = None
    run_slots: int | None = None
    quiet: bool = True
    big: bool = False
    short: bool = False
    profile: str | None = None
    runner: asyncio.Runner = field(default_factory=asyncio.Runner)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="treadle-bench-")))
    records: list[Record] = field(default_factory=list)
    turns: int = 1
    turn: int = 0
    _houses: int = 0

    @property
    def each(self) -> int:
        """Quiet runs of each in this turn."""
        return self.reps * (self.turn + 1) // self.turns - self.reps * self.turn // self.turns

    @property
    def deployments(self) -> list[Mode]:
        """The modes that are deployments of their own: "queued" differs only where steps of a pool are the matter."""
        return [mode for mode in self.modes if mode != "queued"]

    @contextlib.contextmanager
    def house(self, mode: Mode, **settings: Any) -> Iterator[House]:
        """Start a deployment of its own, warmed up; see `House` for settings."""
        self._houses += 1
        folder = self.folder / f"house{self._houses}"
        folder.mkdir()
        settings = {"slots": self.slots, "run_slots": self.run_slots, "runner": self.runner} | settings
        with House(mode, folder, **settings) as house:
            house.warm_up(self.sizes.of(200, 4))
            yield house

    def series(
        self,
        house: House,
        workload: str,
        work: Callable[[Client], Awaitable[Metrics]],
        *,
        steps: int = 0,
        reps: int | None = None,
        spare: int = 1,
    ) -> list[Record]:
        """Measure what `work` does with a client; see `repeat` for `spare`."""
        return self.probed(house, workload, house.measured(work), steps=steps, reps=reps, spare=spare)

    def probed(
        self,
        house: House,
        workload: str,
        work: Callable[[Probe], Metrics],
        *,
        steps: int = 0,
        reps: int | None = None,
        spare: int = 1,
    ) -> list[Record]:
        """Measure `work`, which may look at memory and replace processes; see `repeat` for `spare`."""
        found = list(self._each(house, workload, work, steps, self._reps(house.mode, reps), spare))
        self.keep(found)
        return found

    def in_turn(
        self,
        houses: Sequence[tuple[str, House]],
        work: Callable[[Client], Awaitable[Metrics]],
        *,
        steps: int = 0,
        reps: int | None = None,
    ) -> None:
        """Measure `work` in one house after the other, run by run: a machine that gets slower does so for all of them.

        Each house comes with the name of its series.

        The houses that are not measured idle. What they use counts as of "others".
        """
        each = [
            self._each(house, workload, house.measured(work), steps, self._reps(house.mode, reps), spare=1)
            for workload, house in houses
        ]
        for turn in zip_longest(*each):
            self.keep([record for record in turn if record is not None])

    def _each(
        self,
        house: House,
        workload: str,
        work: Callable[[Probe], Metrics],
        steps: int,
        reps: int,
        spare: int,
    ) -> Iterator[Record]:
        """Measure one run whenever the next record is asked for."""
        if not reps:
            return
        with self._profile(house, workload):
            for record in repeat(
                Record(SYSTEM, house.mode, workload, 0, steps=steps),
                house.groups(),
                work,
                reps=reps,
                say=say,
                quiet=self.quiet,
                spare=spare,
            ):
                if record.error:
                    sys.stderr.write(house.last_words())
                yield record

    def fresh(
        self, mode: Mode, workload: str, make: Callable[[House], Callable[[Probe], Metrics]], *, steps: int = 0
    ) -> None:
        """Measure `make(house)` in a new deployment each time: memory that a process took once is not taken again."""
        for _ in range(self.each):
            with self.house(mode) as house:
                found = list(self._each(house, workload, make(house), steps, 1, spare=0))
                self.keep(found)

    def keep(self, records: list[Record]) -> None:
        """Add records, numbered within their series; they are written to the session's folder too, should it end early."""
        for record in records:
            series = (record.workload, record.system, record.variant)
            record.rep = sum((one.workload, one.system, one.variant) == series for one in self.records)
            self.records.append(record)
        with (self.folder / "records.jsonl").open("a") as file:
            file.writelines(json.dumps(record.to_json()) + "\n" for record in records)

    def _reps(self, mode: Mode, reps: int | None) -> int:
        """How often to measure in this turn. What is shown beside the targets, and not judged, is measured twice at most."""
        if reps is not None:
            return reps if self.turn == 0 else 0
        if mode != "queued":
            return self.each
        return min(self.each, 2 if self.turns == 1 else int(self.turn < 2))

    def _profile(self, house: House, workload: str) -> contextlib.AbstractContextManager[object]:
        if self.profile is None:
            return contextlib.nullcontext()
        return profiled(house.groups()[self.profile](), self.folder / f"{workload}-{house.mode}-{self.profile}")
