"""The client's loops, without any server: how much is under way at once, and what they count."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest
from benchmarks.drive import StepLog, append_line, bounded, crash, in_flight, sleepers, throughput
from benchmarks.measure import Probe, Record, lock_is_inherited, machine_lock, repeat


class Gauge:
    """Counts how many are inside."""

    def __init__(self) -> None:
        self.now = self.most = 0

    async def visit(self, number: int) -> int:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        self.now -= 1
        return number


def test_bounded_keeps_the_order_and_the_bound() -> None:
    gauge = Gauge()
    assert asyncio.run(bounded(50, 7, gauge.visit)) == list(range(50))
    assert gauge.most == 7


def open_runs(shape: Any) -> int:
    """Return how many runs a shape of W1 has open at the same time."""
    runs = Gauge()

    async def start(_: int) -> None:
        runs.now += 1
        runs.most = max(runs.most, runs.now)
        await asyncio.sleep(0)

    async def result(_: None) -> None:
        await asyncio.sleep(0)
        runs.now -= 1

    found = asyncio.run(shape(start, result, 300, 5))
    assert found["runs"] == 300
    assert found["steps_per_s"] == pytest.approx(5 * found["runs_per_s"], rel=0.01)
    return runs.most


def test_throughput_opens_all_runs_and_in_flight_a_hundred() -> None:
    assert open_runs(throughput) == 300
    assert open_runs(in_flight) == 100


def test_sleepers_share_one_instant() -> None:
    due: list[float] = []

    async def start(when: float) -> float:
        due.append(when)
        return when

    async def lag(when: float) -> float:
        return 0.25

    memory = iter([{"server": 10.0}, {"server": 11.0}])
    found = asyncio.run(sleepers(start, lag, lambda: next(memory), runs=4, sleep_s=0.0, quiet_s=0.0))
    assert len(set(due)) == 1
    assert (found["lag_p50_ms"], found["lag_p99_ms"], found["kib_server"]) == (250.0, 250.0, 256.0)


def test_crash_counts_repeated_steps_and_strikes_once(tmp_path: Path) -> None:
    log, blows = StepLog(tmp_path / "steps"), []
    struck = asyncio.Event()

    async def start(run: int) -> int:
        append_line(str(log.path), run, 0)
        return run

    async def result(run: int) -> None:
        await struck.wait()
        append_line(str(log.path), 0, 0)

    async def work() -> dict[str, float]:
        loop = asyncio.get_running_loop()

        def strike() -> None:
            blows.append(time.monotonic())
            loop.call_soon_threadsafe(struck.set)

        return await crash(start, result, log, runs=3, strike=strike, at_s=0.001)

    found = asyncio.run(work())
    assert len(blows) == 1
    assert (found["executions"], found["distinct"], found["repeated"]) == (6, 3, 3)


def test_measurement_counts_the_cpu_of_a_group_and_keeps_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_LOCK", "")  # somebody may be measuring

    def burn(_probe: Probe) -> dict[str, float]:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
        return {"done": 1.0}

    def fail(_probe: Probe) -> dict[str, float]:
        raise ValueError("lost")

    groups = {"server": lambda: [os.getpid()]}
    one = Record("treadle", "services", "W1a", 0)
    (found,) = repeat(one, groups, burn, reps=1, say=lambda _: None, quiet=False)
    assert found.metrics == {"done": 1.0}
    assert found.cpu_s["server"] >= 0.03
    assert found.peak_mib["server"] > 1
    (failed,) = repeat(one, groups, fail, reps=3, say=lambda _: None, quiet=False)
    assert failed.error == "ValueError: lost"


def test_lock_of_the_caller_is_not_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "lock"
    monkeypatch.setenv("BENCH_LOCK", str(lock))
    assert not lock_is_inherited()
    with machine_lock():
        assert lock_is_inherited()
        with machine_lock():
            pass
    assert not lock_is_inherited()
