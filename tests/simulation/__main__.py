"""`python -m tests.simulation 20000` simulates that many seeds; `17..17` a range, with the trace of what breaks."""

from __future__ import annotations

import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from .ledger import Broken
from .world import World, simulate

__all__ = ("broken_in", "main")


def main(argument: str) -> int:
    """Simulate seeds on all cores; returns 1 when one breaks a property."""
    first, last = _range(argument)
    began = time.monotonic()
    broken: list[tuple[int, str]] = []
    windows: Counter[str] = Counter()
    step = 50
    chunks = [(at, min(at + step, last + 1)) for at in range(first, last + 1, step)]
    with ProcessPoolExecutor() as pool:
        for found, counted in pool.map(broken_in, chunks):
            broken += found
            windows += counted
    took = time.monotonic() - began
    seeds = last - first + 1
    sys.stdout.write(
        f"{seeds} schedules in {took:.1f} s ({seeds / took:.0f} a second); windows that were used: {dict(windows)}\n"
    )
    for seed, why in broken:
        sys.stdout.write(f"seed {seed}: {why}\n  replay: make simulate SEEDS={seed}..{seed}\n")
    if len(broken) == 1 or (broken and seeds == 1):
        sys.stdout.write(_trace(broken[0][0]) + "\n")
    return 1 if broken else 0


def _range(argument: str) -> tuple[int, int]:
    if ".." in argument:
        first, _, last = argument.partition("..")
        return int(first), int(last)
    return 0, int(argument) - 1


def broken_in(bounds: tuple[int, int]) -> tuple[list[tuple[int, str]], Counter[str]]:
    """Simulate seeds first <= seed < last; returns (seed, what broke) pairs and how often each window was used."""
    broken: list[tuple[int, str]] = []
    windows: Counter[str] = Counter()
    for seed in range(*bounds):
        try:
            windows += simulate(seed, always_replay=seed % 5 == 4).ledger.windows
        except Broken as error:
            broken.append((seed, str(error)))
        except Exception as error:
            broken.append((seed, f"{type(error).__name__}: {error}"))
    return broken, windows


def _trace(seed: int) -> str:
    world = World(seed, trace=True, always_replay=seed % 5 == 4)
    try:
        world.run()
    except Exception as error:
        world.schedule.note(f"{type(error).__name__}: {error}")
    return "\n".join(world.schedule.trace or [])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "2000"))
