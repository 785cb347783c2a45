"""Celery on RabbitMQ, results in Redis: acks_late, confirmed publishes, JSON, one worker node of 20 threads.

A durable step is a task; a workflow is a `chain` (W3: a `group`). BENCH_QUEUE names the type of the queue ("quorum"),
BENCH_POOL the pool of the worker ("threads").
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from celery import Celery, chain, group

from benchmarks.drive import Metrics, append_line, spread
from benchmarks.measure import Probe
from benchmarks.peers.stage import STEP_LOG_VARIABLE, Stage, Team, durable, killed, options, services
from benchmarks.sizes import ORDER, SLOW_STEP_S

QUEUE, POOL = os.environ.get("BENCH_QUEUE", "quorum"), os.environ.get("BENCH_POOL", "threads")
VARIANT = f"{POOL}-{QUEUE}"
_PATIENCE_S = 300

app = Celery("bench", broker=services()["rabbitmq"]["url"], backend=f"{services()['redis']['url']}/0")
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    broker_transport_options={"confirm_publish": True},
    result_expires=3600,
    task_default_queue=f"bench-{QUEUE}",
    task_default_queue_type=QUEUE,
    worker_send_task_events=False,
    worker_detect_quorum_queues=QUEUE == "quorum",
    broker_connection_retry_on_startup=True,
)


@app.task(name="bench.step")
def step(x: dict[str, Any]) -> dict[str, Any]:
    x["n"] += 1
    return x


@app.task(name="bench.wake")
def wake(due: float) -> float:
    return time.time() - due


@app.task(name="bench.slow")
def slow(_: Any, run: int, index: int) -> int:
    append_line(os.environ[STEP_LOG_VARIABLE], run, index)
    time.sleep(SLOW_STEP_S)
    return index


def start_all(count: int, start: Callable[[int], Any]) -> list[Any]:
    """The publishing client: 8 threads; each publish waits for its confirm."""
    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(start, range(count)))


def chain_of(length: int) -> Any:
    first = step.s(dict(ORDER))
    return first if length == 1 else chain(first, *(step.s() for _ in range(length - 1)))


def throughput(runs: int, steps: int) -> Metrics:
    began = time.perf_counter()
    results = start_all(runs, lambda _: chain_of(steps).apply_async())
    started = time.perf_counter() - began
    for result in results:
        result.get(timeout=_PATIENCE_S)
    wall = time.perf_counter() - began
    return {
        "steps_per_s": round(runs * steps / wall, 1),
        "wall_s": round(wall, 3),
        "start_s": round(started, 3),
        "runs": runs,
    }


def one_at_a_time(runs: int, steps: int) -> Metrics:
    took = []
    for _ in range(runs):
        began = time.perf_counter()
        chain_of(steps).apply_async().get(timeout=_PATIENCE_S)
        took.append((time.perf_counter() - began) / steps)
    figures = spread(took)
    return {**figures, "runs": runs} if steps == 1 else {"step_ms": figures["p50_ms"], "runs": runs}


def fan_out(width: int) -> Metrics:
    began = time.perf_counter()
    found = group([step.s(dict(ORDER)) for _ in range(width)]).apply_async().get(timeout=_PATIENCE_S)
    assert len(found) == width
    return {"wall_s": round(time.perf_counter() - began, 3), "steps": width}


def sleepers(probe: Probe, runs: int, sleep_s: float) -> Metrics:
    before, began = probe.memory(), time.perf_counter()
    due = time.time() + sleep_s
    results = start_all(runs, lambda _: wake.apply_async((due,), countdown=max(due - time.time(), 0)))
    started = time.perf_counter() - began
    time.sleep(3)
    asleep = probe.memory()
    lags = [result.get(timeout=_PATIENCE_S) for result in results]
    grown = {f"kib_{name}": round((asleep[name] - before[name]) * 1024 / runs, 2) for name in asleep}
    return durable(
        {**{f"lag_{name}": value for name, value in spread(lags).items()}, **grown, "start_s": round(started, 2)}
    )


def crash(stage: Stage, team: Team, at_s: float | None) -> Callable[[Probe], Metrics]:
    runs, steps, log = stage.sizes.crash_runs, stage.sizes.crash_steps, stage.step_log

    def slow_chain(run: int) -> Any:
        return chain(slow.s(None, run, 0), *(slow.s(run, index) for index in range(1, steps))).apply_async()

    def work(probe: Probe) -> Metrics:
        log.reset()
        began = time.perf_counter()
        results = start_all(runs, slow_chain)
        if at_s is not None:
            time.sleep(max(0, at_s - (time.perf_counter() - began)))
            probe.replacing("worker", team.strike)
        for result in results:
            result.get(timeout=_PATIENCE_S)
        return {"wall_s": round(time.perf_counter() - began, 3), **log.figures(), "runs": runs}

    return work


def start_worker(stage: Stage, threads: int) -> Team:
    command: list[object] = [sys.executable, "-m", "celery", "-A", "benchmarks.peers.celery", "worker", "-P", POOL]
    command += ["-c", threads, "-l", "WARNING", "--without-gossip", "--without-mingle"]
    team = Team(command, stage.log("worker"), {STEP_LOG_VARIABLE: str(stage.step_log.path)}, Path.cwd())
    team.start()
    stage.cleanup.callback(team.stop)
    for result in start_all(20, lambda _: chain_of(5).apply_async()):
        result.get(timeout=_PATIENCE_S)
    return team


def bench(stage: Stage) -> None:
    """One workload."""
    sizes = stage.sizes
    team = start_worker(stage, sizes.crash_slots if stage.part == "W5" else 20)
    groups = {**stage.service_groups(), "worker": team.pids}
    runs, steps = sizes.runs, sizes.steps
    if stage.part == "W1":
        stage.series(VARIANT, "W1b", groups, lambda _: throughput(runs, steps), steps=runs * steps)
    elif stage.part == "W2":
        stage.series(VARIANT, "W2b", groups, lambda _: one_at_a_time(sizes.latency, 1), steps=sizes.latency)
        total = sizes.chains * sizes.chain
        stage.series(VARIANT, "W2b-chain", groups, lambda _: one_at_a_time(sizes.chains, sizes.chain), steps=total)
    elif stage.part == "W3":
        stage.series(VARIANT, "W3b", groups, lambda _: fan_out(sizes.fan), steps=sizes.fan)
    elif stage.part == "W4":
        stage.series(VARIANT, "W4", groups, lambda probe: sleepers(probe, sizes.sleepers, sizes.sleep_s))
    else:
        killed(stage, VARIANT, groups, lambda at_s: crash(stage, team, at_s))


if __name__ == "__main__":
    with options("celery") as stage:
        bench(stage)
