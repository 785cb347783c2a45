"""The catalogue, replayed in other processes: another hash seed, allocation noise, the garbage collector off or aggressive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.replay.catalogue import CATALOGUE, LETTERS, REGISTRY
from tests.replay.harness import Server, check_every_prefix, drive

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[list[str]]]]:
    path = tmp_path_factory.mktemp("histories") / "histories.jsonl"
    asked = []
    with path.open("w", encoding="utf-8") as lines:
        for workflow, args, _ in CATALOGUE:
            for seed in range(3):
                letters = LETTERS.get(workflow.name, ())
                server = Server(REGISTRY, workflow, seed=seed, cancel_at_ms=200 if seed == 2 else None, letters=letters)
                server.start(*args)
                seen = check_every_prefix(server, drive(server))
                asked.append([[c.hex() for c in commands] for commands in seen])
                history = [e.SerializeToString().hex() for e in server.history]
                lines.write(json.dumps({"workflow": workflow.name, "history": history}) + "\n")
    return path, asked


@pytest.mark.parametrize(
    ("hash_seed", "noise", "collector"),
    [("0", 0, "normal"), ("1", 30, "off"), ("4242", 200, "aggressive"), ("random", 50, "normal")],
)
def test_commands_are_equal_byte_by_byte(
    recorded: tuple[Path, list[list[list[str]]]], hash_seed: str, noise: int, collector: str
) -> None:
    path, asked = recorded
    folders = [str(ROOT / name) for name in ("", "proto", "client", "worker", "controlplane")]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(folders)}
    command = [sys.executable, "-m", "tests.replay.replayer", str(path), str(noise), collector]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == asked
