"""The suite runs: W1 on the embedded mode, in the smallest sizes; what it measures is not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.redis
def test_w1_runs_in_the_embedded_mode(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--w", "W1", "--mode", "embedded", "--scale", "0.005", "--reps", "1"]
    env = {**os.environ, "BENCH_LOCK": ""}
    run = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=100
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (file,) = tmp_path.glob("*.json")
    records = json.loads(file.read_text())["records"]
    assert [record["workload"] for record in records] == [
        "W1a",
        "W1a-flight",
        "W1a-10k",
        "W1b",
        "W1b-flight",
        "W1b-10k",
    ]
    assert all(record["metrics"]["steps_per_s"] > 0 and not record["error"] for record in records)
    assert "| W1a | treadle embedded |" in run.stdout


def test_unknown_workloads_and_peers_are_refused() -> None:
    for wrong in (["--w", "W9"], ["--peers", "cron"], ["--mode", "cloud"]):
        run = subprocess.run(
            [sys.executable, "-m", "benchmarks", *wrong], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert run.returncode == 2
        assert wrong[1] in run.stderr
