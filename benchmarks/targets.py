"""What Treadle asks of itself: each target, what was measured, and whether it is met."""

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
    text: str

    def met(self, results: Results) -> bool | None:
        found = self.value(results)
        if found is None:
            return None
        return found >= self.number if self.sign == "≥" else found <= self.number


@dataclass(frozen=True, slots=True)
class Target:
    """One line: what must hold, and what is aimed at."""

    name: str
    must: Bound
    aim: Bound


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


def _bound(value: Value, sign: str, number: float, unit: str) -> Bound:
    return Bound(value, sign, number, f"{sign} {number:g} {unit}".strip())


def _of_peers() -> list[Target]:
    run, call = "× Restate run", "× Restate call"
    return [
        Target(
            "W1a local steps/s",
            _bound(_against("W1a", "steps_per_s", _RUN), "≥", 2, run),
            _bound(_against("W1a", "steps_per_s", _RUN), "≥", 4, run),
        ),
        Target(
            "W1b pool steps/s",
            _bound(_against("W1b", "steps_per_s", _CALL), "≥", 2, call),
            _bound(_against("W1b", "steps_per_s", _CALL), "≥", 3.5, call),
        ),
        Target(
            "W1b pool steps/s, bare tasks",
            _bound(_against("W1b", "steps_per_s", _TASKIQ), "≥", 1, "× taskiq"),
            _bound(_against("W1b", "steps_per_s", _TASKIQ), "≥", 1, "× taskiq"),
        ),
        Target(
            "W2 one step p50, local",
            _bound(_against("W2a", "p50_ms", _RUN), "≤", 0.8, run),
            _bound(_against("W2a", "p50_ms", _RUN), "≤", 0.4, run),
        ),
        Target(
            "W2 one step p50, pool",
            _bound(_against("W2b", "p50_ms", _CALL), "≤", 0.7, call),
            _bound(_against("W2b", "p50_ms", _RUN, "W2a"), "≤", 1, run),
        ),
        Target(
            "W2 chain, local",
            _bound(_against("W2a-chain", "step_ms", _RUN), "≤", 0.8, run),
            _bound(_against("W2a-chain", "step_ms", _RUN), "≤", 0.45, run),
        ),
        Target(
            "W2 chain, pool",
            _bound(_against("W2b-chain", "step_ms", _CALL), "≤", 0.65, call),
            _bound(_against("W2b-chain", "step_ms", _CELERY), "≤", 1, "× Celery"),
        ),
        Target(
            "W3 500 pool steps",
            _bound(_against("W3b", "wall_s", _CALL), "≤", 1, call),
            _bound(_against("W3b", "wall_s", _CALL), "≤", 0.5, call),
        ),
        *(
            Target(
                f"W4 lag {share} of 2,000",
                _bound(_against("W4", f"lag_{share}_ms", _RUN), "≤", 1, run),
                _bound(_against("W4", f"lag_{share}_ms", _DBOS), "≤", 1, "× DBOS"),
            )
            for share in ("p50", "p99")
        ),
    ]


def _of_ours() -> list[Target]:
    beyond, repeated = _median("W5", "beyond_start_s"), _median("W5", "repeated")
    memory, idle = _median("W4", "kib_durable"), _median("W4-idle", "server_idle_percent")
    history = _share(_median("W6-history-10000a", "step_ms"), _median("W6-history-10a", "step_ms"))
    found = [
        Target("W4 Redis + server, a sleeping run", _bound(memory, "≤", 3, "KiB"), _bound(memory, "≤", 1.5, "KiB")),
        Target(
            "W5 extra, beyond the worker's start",
            _bound(beyond, "≤", 0.8, "s"),
            _bound(_share(beyond, _median("W5", "extra_s", *_CELERY), 0.01), "≤", 1, "× Celery's extra"),
        ),
        Target(
            "W5 attempts repeated",
            _bound(repeated, "≤", 50, "(in flight)"),
            _bound(_share(repeated, _median("W5", "repeated", *_CELERY), 1), "≤", 1, "× Celery"),
        ),
        Target("W6 step at history 10,000 against 10", _bound(history, "≤", 1.3, "×"), _bound(history, "≤", 1.1, "×")),
        Target("server idle, 10,000 sleepers", _bound(idle, "≤", 1, "% of a core"), _bound(idle, "≤", 0.1, "% of a core")),
    ]
    for letter in "ab":
        sag = _share(_median(f"W1{letter}-10k", "steps_per_s"), _median(f"W1{letter}-flight", "steps_per_s"))
        modes = _share(_median(f"W1{letter}", "steps_per_s", OURS, "embedded"), _median(f"W1{letter}", "steps_per_s"))
        slower = _share(_median(f"C-traced-{letter}", "steps_per_s"), _median(f"C-production-{letter}", "steps_per_s"))
        found += [
            Target(f"W1{letter} at 10,000 runs against 1,000", _bound(sag, "≥", 0.8, "×"), _bound(sag, "≥", 0.95, "×")),
            Target(f"W1{letter} embedded", _bound(modes, "≥", 1, "× services"), _bound(modes, "≥", 1.5, "× services")),
            Target(f"W1{letter} with traces", _bound(slower, "≥", 0.9, "× without"), _bound(slower, "≥", 0.97, "× without")),
        ]
    for team in ("2w1s", "4w1s", "1w2s", "2w2s", "4w2s"):
        share = _share(_median(f"W6-{team}", "steps_per_s"), _median("W6-1w1s", "steps_per_s"))
        name = f"W6 {team[0]} workers, {team[2]} servers"
        found.append(Target(name, _bound(share, "≥", 0.8, "× one of each"), _bound(share, "≥", 1, "× one of each")))
    return found


TARGETS: Final[tuple[Target, ...]] = (*_of_peers(), *_of_ours())


def judged(results: Results) -> list[tuple[str, ...]]:
    """Return (name, must, measured, met, aim, measured, met) of each target that could be judged."""
    measured = [target for target in TARGETS if target.must.value(results) is not None]
    return [(target.name, *_judge(target.must, results), *_judge(target.aim, results)) for target in measured]


def _judge(bound: Bound, results: Results) -> tuple[str, str, str]:
    found = bound.value(results)
    return bound.text, "–" if found is None else f"{found:.3g}", {True: "yes", False: "**no**", None: "–"}[bound.met(results)]
