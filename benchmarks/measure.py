"""One measured run: the machine's lock, a quiet moment, a reference, then CPU and peak memory by group of processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.accounting import cpu_seconds, machine_cpu, own_cpu, pss_mib, reference

__all__ = ("NOISY", "Groups", "Probe", "Record", "always", "lock_is_inherited", "machine_lock", "repeat")

Groups = Mapping[str, Callable[[], list[int]]]
"""Name of a group -> the roots of its process trees now. "client", this process, is always measured beside them."""

NOISY: Final = 0.25
"""A run in which others used more of one core than this is repeated."""


def always(pid: int) -> Callable[[], list[int]]:
    """A group of one process that is not replaced."""
    return lambda: [pid]


LOCK_VARIABLE: Final = "BENCH_LOCK"
_QUIET_S, _QUIET_SHARE = 10.0, 0.08


@dataclass(slots=True)
class Record:
    """What one run gave.

    Attributes:
        system, variant, workload, rep: Which run it was.
        metrics: Figures by name; the unit is the end of the name.
        steps: By how many steps CPU is divided; 0: it is not.
        cpu_s: CPU seconds by group.
        peak_mib: Largest memory by group (PSS).
        rooms: Of a profile: µs of CPU a step by part of the process.
        reference: How fast the machine was just before.
        others: Cores that other programs used meanwhile, those of other machines on the same host included.
        stolen_s: CPU seconds that the hypervisor gave to others.
        error: What went wrong; "": nothing.
    """

    system: str
    variant: str
    workload: str
    rep: int
    steps: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=dict)
    peak_mib: dict[str, float] = field(default_factory=dict)
    rooms: dict[str, float] = field(default_factory=dict)
    reference: dict[str, float] = field(default_factory=dict)
    span_s: float = 0.0
    others: float = 0.0
    stolen_s: float = 0.0
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Record:
        return cls(**found)


@contextlib.contextmanager
def machine_lock() -> Iterator[None]:
    """Hold the lock that everybody takes who measures on this machine (a file; variable BENCH_LOCK; empty: no lock).

    Under `flock FILE python -m benchmarks` it is held already.
    """
    name = _lock_name()
    if not name or lock_is_inherited():
        yield
        return
    with Path(name).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def lock_is_inherited() -> bool:
    """Whether the program that started this one holds the lock for it."""
    lock = Path(_lock_name()).resolve()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if entry.resolve() == lock:
                return True
    return False


def _lock_name() -> str:
    return os.environ.get(LOCK_VARIABLE, str(Path(tempfile.gettempdir()) / "bench.lock"))


class Probe:
    """What a workload may ask while it is measured."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._cpu: dict[str, float] = {}
        self._peak: dict[str, float] = {}
        self._stop = threading.Event()

    def memory(self) -> dict[str, float]:
        """Return the memory of each group now, in MiB."""
        return {name: pss_mib(roots()) for name, roots in self._groups.items()}

    def replacing(self, group: str, swap: Callable[[], None]) -> None:
        """Let `swap` end the processes of a group and start others; what they used still counts."""
        spent = cpu_seconds(self._groups[group]()) - self._cpu[group]
        swap()
        self._cpu[group] = -spent

    def cpu(self) -> dict[str, float]:
        """Return the CPU seconds of each group since the start of the measurement."""
        return {name: cpu_seconds(roots()) - self._cpu[name] for name, roots in self._groups.items()}

    def measure(self, record: Record, work: Callable[[Probe], dict[str, float]], *, sample_s: float = 1.0) -> None:
        """Run `work` and fill the record."""
        self._sample()
        sampler = threading.Thread(target=self._sampling, args=(sample_s,), daemon=True)
        self._cpu = dict.fromkeys(self._groups, 0.0)
        self._cpu = self.cpu()
        own, (busy, stolen), began = own_cpu(), machine_cpu(), time.perf_counter()
        sampler.start()
        try:
            record.metrics = work(self)
        finally:
            record.span_s = round(time.perf_counter() - began, 3)
            record.cpu_s = {name: round(used, 3) for name, used in self.cpu().items()}
            record.cpu_s["client"] = round(own_cpu() - own, 3)
            busy_now, stolen_now = machine_cpu()
            self._stop.set()
            sampler.join()
            self._sample()
            record.stolen_s = round(stolen_now - stolen, 2)
            others = max(busy_now - busy - sum(record.cpu_s.values()), 0.0) + record.stolen_s
            record.others = round(others / max(record.span_s, 0.01), 3)
            record.peak_mib = {name: round(mib, 1) for name, mib in self._peak.items()}

    def wait_for_quiet(self) -> None:
        """Wait, for 10 s at most, for a second in which other programs use little CPU."""
        end = time.perf_counter() + _QUIET_S
        self._cpu = dict.fromkeys(self._groups, 0.0)
        while time.perf_counter() < end:
            busy, ours = machine_cpu()[0], sum(self.cpu().values())
            time.sleep(1)
            if machine_cpu()[0] - busy - (sum(self.cpu().values()) - ours) < _QUIET_SHARE:
                return

    def _sampling(self, every_s: float) -> None:
        while not self._stop.wait(every_s):
            self._sample()

    def _sample(self) -> None:
        for name, mib in (self.memory() | {"client": _own_mib()}).items():
            self._peak[name] = max(self._peak.get(name, 0.0), mib)


def _own_mib() -> float:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def repeat(
    record: Record,
    groups: Groups,
    work: Callable[[Probe], dict[str, float]],
    *,
    reps: int,
    say: Callable[[Record], None],
    quiet: bool = True,
    spare: int = 1,
) -> Iterator[Record]:
    """Measure until there are `reps` quiet runs, or `spare` more than that in all; each when its record is asked for.

    Args:
        record: System, variant, workload and steps of the series.
        groups: What is measured.
        work: The workload; returns its figures. What it raises is recorded and ends the series.
        reps: How many runs.
        say: Gets each record.
        quiet: False: neither wait for a quiet machine nor repeat noisy runs (for smoke runs).
    """
    quiet_ones = 0
    for rep in range(reps + (spare if quiet else 0)):
        one = Record(record.system, record.variant, record.workload, rep, steps=record.steps)
        probe = Probe(groups)
        with machine_lock():
            if quiet:
                probe.wait_for_quiet()
            one.reference = reference()
            try:
                probe.measure(one, work)
            except Exception as error:
                one.error = f"{type(error).__name__}: {error}"
        say(one)
        quiet_ones += one.others <= NOISY
        yield one
        if one.error or quiet_ones >= reps:
            return
