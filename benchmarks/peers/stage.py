"""What every peer's script shares: its options, its processes, and the workloads over `start` and `result`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks import drive
from benchmarks.accounting import percentile
from benchmarks.drive import Metrics, StepLog
from benchmarks.measure import Groups, Probe, Record, always, repeat
from benchmarks.processes import kill_tree, spawn
from benchmarks.sizes import Sizes

__all__ = (
    "SERVICES_VARIABLE",
    "STEP_LOG_VARIABLE",
    "Connection",
    "Stage",
    "Team",
    "asynchronous",
    "crashed",
    "durable",
    "killed",
    "measure",
    "options",
    "reach",
    "services",
)

STEP_LOG_VARIABLE = "BENCH_STEP_LOG"
SERVICES_VARIABLE = "BENCH_SERVICES"


@dataclass(slots=True)
class Team:
    """The worker process of a peer: started, ended, killed and started again."""

    command: list[object]
    log: Path
    env: dict[str, str]
    cwd: Path | None = None
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = spawn(self.command, self.log, self.env, self.cwd)

    def strike(self) -> None:
        """`kill -9`, and start again at once."""
        self.stop()
        self.start()

    def stop(self) -> None:
        if self.process is not None:
            kill_tree(self.process)

    def pids(self) -> list[int]:
        return [self.process.pid] if self.process is not None else []


@dataclass(slots=True)
class Stage:
    """Options of a script, and where its records go.

    Attributes:
        peer: Its name.
        part: "W1" to "W5".
        sizes, reps, quiet: As in a session.
        services: Name -> url, port and pid of the servers that were started for it.
        variants: Which ones to measure; empty: its own choice.
        out: File of records, one in a line.
    """

    peer: str
    part: str
    sizes: Sizes
    reps: int
    quiet: bool
    services: dict[str, dict[str, Any]]
    variants: list[str]
    out: Path
    cleanup: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def folder(self) -> Path:
        """For logs and state."""
        return self.out.parent

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    @property
    def step_log(self) -> StepLog:
        return StepLog(self.folder / "steps")

    def service_groups(self) -> dict[str, Callable[[], list[int]]]:
        """The servers that were started for it, for accounting."""
        return {name: always(found["pid"]) for name, found in self.services.items()}

    def chosen(self, known: list[str]) -> list[str]:
        """Return which of its variants to measure."""
        return [name for name in known if not self.variants or name in self.variants]

    def series(
        self,
        variant: str,
        workload: str,
        groups: Groups,
        work: Callable[[Probe], Metrics],
        *,
        steps: int = 0,
        keep: bool = True,
    ) -> list[Record]:
        """Measure; unless told otherwise, the records are kept at once."""
        record = Record(self.peer, variant, workload, 0, steps=steps)
        found = list(repeat(record, groups, work, reps=self.reps, say=_say, quiet=self.quiet))
        if keep:
            self.keep(found)
        return found

    def keep(self, records: list[Record]) -> None:
        with self.out.open("a") as file:
            file.writelines(json.dumps(record.to_json()) + "\n" for record in records)


def _say(record: Record) -> None:
    figures = record.error or ", ".join(f"{name} {value:g}" for name, value in record.metrics.items())
    sys.stderr.write(f"{record.workload} {record.system} {record.variant} #{record.rep}: {figures}\n")


def services() -> dict[str, dict[str, Any]]:
    """Return the servers that were started for this script: name -> url, port, pid (variable BENCH_SERVICES)."""
    found: dict[str, dict[str, Any]] = json.loads(os.environ.get(SERVICES_VARIABLE, "{}"))
    return found


@contextlib.contextmanager
def options(peer: str) -> Iterator[Stage]:
    """Parse the command line; SIGTERM ends the script in good order, with what was put into `cleanup`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.peers.{peer}")
    parser.add_argument("--w", required=True, help="one of W1 to W5")
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--variants", type=lambda text: text.split(","), default=[])
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    stage = Stage(peer, given.w, Sizes(given.scale), given.reps, not given.busy, services(), given.variants, given.out)
    with stage.cleanup:
        yield stage


class Connection(Protocol):
    """A client of a peer: starts workflows by name and waits for them."""

    async def start(self, name: str, *arguments: Any) -> Any: ...

    async def result(self, handle: Any) -> Any: ...

    async def call(self, name: str, *arguments: Any) -> Any:
        """Start and wait, in the way that is fastest."""
        ...


Open = Callable[[], contextlib.AbstractAsyncContextManager[Connection]]


def asynchronous(open_client: Open, work: Callable[[Connection], Awaitable[Metrics]]) -> Callable[[Probe], Metrics]:
    """Return a workload that runs in a loop of its own with a fresh client."""

    async def inside() -> Metrics:
        async with open_client() as client:
            return await work(client)

    return lambda _probe: asyncio.run(inside())


@dataclass(frozen=True, slots=True)
class Reach:
    """How much of a workload a peer does: slow ones do less of it."""

    runs: int
    latency: int
    chains: int
    flight: bool = True


def reach(sizes: Sizes, *, runs: int = 1000, latency: int = 500, chains: int = 30, flight: bool = True) -> Reach:
    """Return the sizes of a peer, scaled."""
    return Reach(sizes.of(runs), sizes.of(latency), sizes.of(chains, 2), flight)


Shape = Callable[[drive.Start, drive.Result, int, int], Awaitable[Metrics]]


def flow(shape: Shape, steps: int, runs: int) -> Callable[[Connection], Awaitable[Metrics]]:
    """Return a workload: `runs` chains of `steps` steps."""
    return lambda client: shape(lambda _: client.start("chain", steps), client.result, runs, steps)


def measure(
    stage: Stage,
    variant: str,
    letter: str,
    groups: Groups,
    open_client: Open,
    size: Reach,
    *,
    sleeper: bool = True,
) -> None:
    """W1 to W4 over workflows named "chain" (steps), "fan" (steps) and "sleeper" (due)."""
    sizes, part = stage.sizes, stage.part

    async def warm(client: Connection) -> Metrics:
        await drive.bounded(sizes.of(100, 4), 50, lambda _: client.call("chain", 5))
        return {}

    asynchronous(open_client, warm)(Probe({}))
    if part == "W1":
        total = size.runs * sizes.steps
        work = asynchronous(open_client, flow(drive.throughput, sizes.steps, size.runs))
        stage.series(variant, f"W1{letter}", groups, work, steps=total)
        if size.flight:
            work = asynchronous(open_client, flow(drive.in_flight, sizes.steps, size.runs))
            stage.series(variant, f"W1{letter}-flight", groups, work, steps=total)
    elif part == "W2":
        work = asynchronous(open_client, lambda client: drive.latency(lambda _: client.call("chain", 1), size.latency))
        stage.series(variant, f"W2{letter}", groups, work, steps=size.latency)
        work = asynchronous(
            open_client,
            lambda client: drive.chains(lambda _: client.call("chain", sizes.chain), size.chains, sizes.chain),
        )
        stage.series(variant, f"W2{letter}-chain", groups, work, steps=size.chains * sizes.chain)
    elif part == "W3":
        work = asynchronous(
            open_client, lambda client: drive.fan_out(lambda _: client.call("fan", sizes.fan), sizes.fan)
        )
        stage.series(variant, f"W3{letter}", groups, work, steps=sizes.fan)
    elif part == "W4" and sleeper:
        stage.series(variant, "W4", groups, _asleep(stage, open_client))


def _asleep(stage: Stage, open_client: Open) -> Callable[[Probe], Metrics]:
    def work(probe: Probe) -> Metrics:
        async def inside(client: Connection) -> Metrics:
            return await drive.sleepers(
                lambda due: client.start("sleeper", due),
                client.result,
                probe.memory,
                runs=stage.sizes.sleepers,
                sleep_s=stage.sizes.sleep_s,
            )

        return durable(asynchronous(open_client, inside)(probe))

    return work


def durable(found: Metrics) -> Metrics:
    """Add the memory of a sleeping run outside of workers and clients."""
    kept = sum(value for name, value in found.items() if name.startswith("kib_") and name != "kib_worker")
    return {**found, "kib_durable": round(kept, 2)}


def crashed(stage: Stage, variant: str, groups: Groups, open_client: Open, team: Team, lanes: int = 0) -> None:
    """W5 over the workflow "slow" (run, steps): undisturbed, then killed at half of that time."""
    sizes = stage.sizes

    def slow(at_s: float | None) -> Callable[[Probe], Metrics]:
        def work(probe: Probe) -> Metrics:
            async def inside(client: Connection) -> Metrics:
                return await drive.crash(
                    lambda number: client.start("slow", number, sizes.crash_steps),
                    client.result,
                    stage.step_log,
                    runs=sizes.crash_runs,
                    strike=None if at_s is None else lambda: probe.replacing("worker", team.strike),
                    at_s=at_s or 0.0,
                    lanes=lanes,
                )

            return asynchronous(open_client, inside)(probe)

        return work

    killed(stage, variant, groups, slow)


def killed(
    stage: Stage, variant: str, groups: Groups, slow: Callable[[float | None], Callable[[Probe], Metrics]]
) -> None:
    """Measure `slow(None)`, then `slow(half of its time)`, and keep by how much that took longer."""
    steps = stage.sizes.crash_runs * stage.sizes.crash_steps
    calm = stage.series(variant, "W5-calm", groups, slow(None), steps=steps)
    if calm[-1].error:
        return
    wall = percentile([record.metrics["wall_s"] for record in calm], 50)
    kills = stage.series(variant, "W5", groups, slow(wall / 2), steps=steps, keep=False)
    for record in kills:
        if not record.error:
            record.metrics["extra_s"] = round(record.metrics["wall_s"] - wall, 3)
    stage.keep(kills)
