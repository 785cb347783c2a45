"""What Treadle asks of itself: each target, what was measured, and whether it is met. Judged is the variant "services"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from benchmarks.ratios import OURS
from benchmarks.results import Results

__all__ = ("TARGETS", "Bound", "Target", "judged")

Value = Callable[[Results], float | None]


@dataclass(frozen=True, slots=True)
class Bound:
    """A value and the number that it must not go below ("≥") or above ("≤")."""

    value: Value
    sign: str
    number: float
    unit: str

    @property
    def text(self) -> str:
        return f"{self.sign} {self.number:g} {self.unit}"

    def met(self, results: Results) -> bool | None:
        found = self.value(results)
        if found is None:
            return None
        return found >= self.number if self.sign == "≥" else found <= self.number


@dataclass(frozen=True, slots=True)
class Target:
    """One line: what must hold, and what is aimed at beyond that, if anything is."""

    name: str
    must: Bound
    aim: Bound | None = None


def _median(workload: str, metric: str, system: str = OURS, variant: str = "services") -> Value:
    def value(results: Results) -> float | None:
        cell = results.cell(workload, system, variant, metric)
        return None if cell is None else cell.median

    return value


def _share(ours: Value, theirs: Value, floor: float = 1e-9) -> Value:
    def value(results: Results) -> float | None:
        mine, other = ours(results), theirs(results)
        return None if mine is None or other is None else max(mine, floor) / max(other, floor)

    return value


_RUN, _CALL = ("restate", "run-granian"), ("restate", "call-granian")
_CELERY, _TASKIQ, _DBOS = ("celery", "threads-quorum"), ("taskiq", "quorum"), ("dbos", "queue")


def _against(workload: str, metric: str, peer: tuple[str, str], of: str = "") -> Value:
    return _share(_median(workload, metric), _median(of or workload, metric, *peer))


def _target(name: str, value: Value, sign: str, must: float, aim: float | None, unit: str) -> Target:
    """A target whose aim is another number for the same value."""
    return Target(name, Bound(value, sign, must, unit), None if aim is None else Bound(value, sign, aim, unit))


def _throughput() -> list[Target]:
    found = []
    for series, shape in (("", "all started"), ("-flight", "100 open")):
        local, pool = f"W1a{series}", f"W1b{series}"
        found += [
            _target(f"W1a local steps/s, {shape}", _against(local, "steps_per_s", _RUN), "≥", 2, 4, "× Restate run"),
            _target(f"W1b pool steps/s, {shape}", _against(pool, "steps_per_s", _CALL), "≥", 2, 3.5, "× Restate call"),
            _target(
                f"W1b against bare tasks, {shape}", _against(pool, "steps_per_s", _TASKIQ), "≥", 1, None, "× taskiq"
            ),
        ]
    return found


def _latency() -> list[Target]:
    one, chain, fan = (
        _against("W2b", "p50_ms", _CALL),
        _against("W2b-chain", "step_ms", _CALL),
        _against("W3b", "wall_s", _CALL),
    )
    one_run, celery = _against("W2b", "p50_ms", _RUN, "W2a"), _against("W2b-chain", "step_ms", _CELERY)
    call, run = "× Restate call", "× Restate run"
    return [
        _target("W2 one step p50, local", _against("W2a", "p50_ms", _RUN), "≤", 0.8, 0.4, run),
        Target("W2 one step p50, pool", Bound(one, "≤", 0.7, call), Bound(one_run, "≤", 1, run)),
        _target("W2 chain, local", _against("W2a-chain", "step_ms", _RUN), "≤", 0.8, 0.45, run),
        Target("W2 chain, pool", Bound(chain, "≤", 0.65, call), Bound(celery, "≤", 1, "× Celery")),
        _target("W3 500 pool steps", fan, "≤", 1, 0.5, call),
    ]


def _sleepers() -> list[Target]:
    found = [_target("W4 Redis + server, a sleeping run", _median("W4", "kib_durable"), "≤", 3, 1.5, "KiB")]
    for share in ("p50", "p99"):
        restate, dbos = (_against("W4", f"lag_{share}_ms", peer) for peer in (_RUN, _DBOS))
        found.append(
            Target(f"W4 lag {share} of 2,000", Bound(restate, "≤", 1, "× Restate run"), Bound(dbos, "≤", 1, "× DBOS"))
        )
    idle = _median("W4-idle", "server_idle_percent")
    return [*found, _target("server idle, 10,000 sleepers", idle, "≤", 1, 0.1, "% of a core")]


def _crash() -> list[Target]:
    found = []
    for name, kind in (("W5", "pool"), ("W5-local", "local")):
        beyond, repeated = _median(name, "beyond_start_s"), _median(name, "repeated")
        less = _share(beyond, _median("W5", "extra_s", *_CELERY), 0.01)
        fewer = _share(repeated, _median("W5", "repeated", *_CELERY), 1)
        found += [
            Target(
                f"W5 extra beyond the worker's start, {kind}",
                Bound(beyond, "≤", 0.8, "s"),
                Bound(less, "≤", 1, "× Celery's extra"),
            ),
            Target(
                f"W5 attempts repeated, {kind}",
                Bound(repeated, "≤", 50, "(in flight)"),
                Bound(fewer, "≤", 1, "× Celery"),
            ),
        ]
    return found


def _itself() -> list[Target]:
    """Treadle against Treadle."""
    found, rate = [], "steps_per_s"
    for letter in "ab":
        w1, flight = _median(f"W1{letter}", rate), _median(f"W1{letter}-flight", rate)
        more = _share(_median(f"W1{letter}-10k", rate), flight)
        long = _share(_median(f"W6-history-10000{letter}", "step_ms"), _median(f"W6-history-10{letter}", "step_ms"))
        embedded = _share(_median(f"W1{letter}", rate, OURS, "embedded"), w1)
        embedded_flight = _share(_median(f"W1{letter}-flight", rate, OURS, "embedded"), flight)
        traced = _share(_median(f"C-traced-{letter}", rate), _median(f"C-production-{letter}", rate))
        found += [
            _target(f"W1{letter} at 10,000 runs against 1,000", more, "≥", 0.8, 0.95, "×"),
            _target(f"W1{letter} embedded, all started", embedded, "≥", 1, 1.5, "× services"),
            _target(f"W1{letter} embedded, 100 open", embedded_flight, "≥", 1, 1.5, "× services"),
            _target(f"W6 {letter} step at history 10,000 against 10", long, "≤", 1.3, 1.1, "×"),
            _target(f"W1{letter} with traces", traced, "≥", 0.9, None, "× without"),
        ]
    for workers, servers in ((2, 1), (4, 1), (1, 2), (2, 2), (4, 2)):
        share = _share(_median(f"W6-{workers}w{servers}s", rate), _median("W6-1w1s", rate))
        found.append(_target(f"W6 workers: {workers}, servers: {servers}", share, "≥", 0.8, None, "× one of each"))
    return found


TARGETS: Final[tuple[Target, ...]] = (*_throughput(), *_latency(), *_sleepers(), *_crash(), *_itself())


def judged(results: Results) -> list[tuple[str, ...]]:
    """Return (name, must, measured, met, aim, measured, met) of each target that could be judged."""
    measured = [target for target in TARGETS if target.must.value(results) is not None]
    return [(target.name, *_judge(target.must, results), *_judge(target.aim, results)) for target in measured]


def _judge(bound: Bound | None, results: Results) -> tuple[str, str, str]:
    if bound is None:
        return "–", "–", "–"
    found = bound.value(results)
    return (
        bound.text,
        "–" if found is None else f"{found:.3g}",
        {True: "yes", False: "**no**", None: "–"}[bound.met(results)],
    )
