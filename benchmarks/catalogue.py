"""The workloads: what each is called, which of its figures are shown, and which of a peer's compare with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ("CATALOGUE", "MODES", "Figure", "Mode", "Workload")

Better = Literal["more", "less"]
Mode = Literal["services", "queued", "embedded"]
MODES: Final[tuple[Mode, ...]] = ("services", "queued", "embedded")
"""Treadle's variants; `benchmarks.house` says what they are. "services" is the one that is judged."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a workload.

    Attributes:
        name: Of the metric in records.
        unit: Behind the number.
        better: Whether more or less of it is better.
        label: In front of the number; "" when it is the only one.
        compared: Whether it is set against the peers.
        floor: What is smaller counts as this much in ratios: it is below what can be measured.
    """

    name: str
    unit: str
    better: Better = "less"
    label: str = ""
    compared: bool = True
    floor: float = 1e-9


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload.

    Attributes:
        name: As in records; letter a: local steps, b: steps of a pool.
        title: What it does.
        figures: What is shown of it.
    """

    name: str
    title: str
    figures: tuple[Figure, ...]


_RATE = (Figure("steps_per_s", "steps/s", "more"),)
_ONE = (
    Figure("p50_ms", "ms", label="p50"),
    Figure("p95_ms", "ms", label="p95", compared=False),
    Figure("p99_ms", "ms", label="p99"),
)
_STEP = (Figure("step_ms", "ms a step"),)
_WALL = (Figure("wall_s", "s"),)
_LAG = (
    Figure("lag_p50_ms", "ms", label="lag p50", floor=1.0),
    Figure("lag_p99_ms", "ms", label="lag p99", floor=1.0),
    Figure("kib_redis_data", "KiB", label="in Redis", compared=False),
    Figure("kib_server", "KiB", label="in the server", compared=False),
    Figure("kib_durable", "KiB", label="both", floor=0.01),
)
_CRASH = (
    Figure("extra_s", "s", label="extra", floor=0.01),
    Figure("beyond_start_s", "s", label="beyond the worker's start", compared=False),
    Figure("repeated", "attempts", label="repeated", floor=1.0),
)
_KINDS = {"a": "local", "b": "pool"}


def _throughput() -> list[Workload]:
    found = []
    for letter, kind in _KINDS.items():
        found += [
            Workload(f"W1{letter}", f"1,000 runs of 5 {kind} steps, all started, then awaited", _RATE),
            Workload(f"W1{letter}-flight", f"1,000 runs of 5 {kind} steps, 100 open", _RATE),
            Workload(f"W1{letter}-10k", f"10,000 runs of 5 {kind} steps, 100 open", _RATE),
        ]
    return found


def _one_run() -> list[Workload]:
    found = []
    for letter, kind in _KINDS.items():
        found.append(Workload(f"W2{letter}", f"one {kind} step, one run at a time", _ONE))
        found.append(Workload(f"W2{letter}-chain", f"runs of 50 {kind} steps, one at a time", _STEP))
    found.append(Workload("W3a", "one run gathers 500 local steps", _WALL))
    found.append(Workload("W3b", "one run gathers 500 pool steps", _WALL))
    found.append(Workload("W3b-10k", "one run gathers 10,000 pool steps", _WALL))
    return found


def _waiting() -> list[Workload]:
    idle = (
        Figure("server_idle_percent", "% of a core", label="server", floor=0.01),
        Figure("worker_idle_percent", "% of a core", label="worker", compared=False),
        Figure("redis_idle_percent", "% of a core", label="Redis", compared=False),
    )
    calm = (Figure("wall_s", "s"), Figure("repeated", "attempts", label="repeated", compared=False))
    return [
        Workload("W4", "2,000 runs sleep until one instant", _LAG),
        Workload("W4-100k", "100,000 runs sleep until one instant", _LAG),
        Workload("W4-idle", "10,000 runs sleep, nothing else happens", idle),
        Workload("W5-calm", "200 runs of 10 steps of 50 ms, undisturbed", calm),
        Workload("W5", "the same with `kill -9` of the worker half-way", _CRASH),
        Workload("W5-local-calm", "200 runs of 10 local steps of 50 ms, undisturbed", calm),
        Workload("W5-local", "the same with `kill -9` of the worker half-way", _CRASH),
    ]


def _scale() -> list[Workload]:
    found = []
    for servers in (1, 2):
        for workers in (1, 2, 4):
            title = f"W1b with {workers} worker{'s' * (workers > 1)}, {servers} server{'s' * (servers > 1)}"
            found.append(Workload(f"W6-{workers}w{servers}s", title, _RATE))
    for letter, kind in _KINDS.items():
        found += [
            Workload(f"W6-history-{length}{letter}", f"one run of {length:,} {kind} steps at a time", _STEP)
            for length in (10, 100, 1_000, 10_000)
        ]
    next_step = (Figure("until_next_step_s", "s"),)
    return found + [
        Workload(f"W6-replay-{length}", f"from a new worker to the next step, {length:,} steps behind it", next_step)
        for length in (10, 1_000, 10_000)
    ]


def _rest() -> list[Workload]:
    found = []
    for kib in (1, 16, 256):
        for letter, kind in _KINDS.items():
            found.append(Workload(f"W7-{kib}{letter}", f"W1 with {kind} results of {kib} KiB", _RATE))
    storm = (
        Figure("starts_per_s", "starts/s", "more", label="accepted"),
        Figure("accept_s", "s", label="all accepted", compared=False),
        Figure("drain_s", "s", label="all done"),
        Figure("redis_mib", "MiB", label="in Redis", compared=False),
    )
    found.append(Workload("W8", "20,000 starts as fast as the client can", storm))
    costs = {
        "production": "W1 as in production",
        "everysec": "W1 with `appendfsync everysec`",
        "traced": "W1 with traces going out",
    }
    for name, title in costs.items():
        for letter, kind in _KINDS.items():
            found.append(Workload(f"C-{name}-{letter}", f"{title}, {kind} steps", _RATE))
    raw = {
        "raw-rabbitmq": "publish, confirm, deliver, ack of one message",
        "raw-frames": "the same with bare AMQP frames",
        "raw-redis": "a commit script of four writes, 50 at once",
        "raw-grpc": "messages echoed over one stream",
    }
    return found + [Workload(name, title, (Figure("per_s", "/s", "more"),)) for name, title in raw.items()]


CATALOGUE: Final[dict[str, Workload]] = {
    workload.name: workload for workload in (*_throughput(), *_one_run(), *_waiting(), *_scale(), *_rest())
}
"""Name -> workload, in the order in which they are shown."""
