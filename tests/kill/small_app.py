"""The small worker of the examples with one more step, which notes its start in the ledger and waits for a gate."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path

WORKER = Path(__file__).parents[2] / "examples" / "small_worker" / "worker.py"


def slow_thumbnail(gate: str) -> int:
    """Return the process id, once the gate is open."""
    line = json.dumps({"pid": os.getpid(), "boot": time.clock_gettime(time.CLOCK_BOOTTIME), "wall": time.time()})
    with open(os.environ["SMALL_LEDGER"], "a") as ledger:
        ledger.write(f"{line}\n")
    while not (Path(os.environ["KILL_GATES"]) / gate).exists():
        time.sleep(0.01)
    return os.getpid()


def main() -> None:
    spec = importlib.util.spec_from_file_location("small_worker", WORKER)
    assert spec is not None and spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    worker.STEPS["slow_thumbnail"] = slow_thumbnail
    worker.main(*sys.argv[1:])


if __name__ == "__main__":
    main()
