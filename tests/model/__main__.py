"""Check the protocols exhaustively: `python -m tests.model [--deep] [--without RULE|all]`; status 1 on a violation."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from .bfs import Found, explore
from .models import AHEAD, DEEP, NOT_NEEDED, PROBES, RULES, SUITE, model_of


def check(job: tuple[Any, bool]) -> tuple[Found, float]:
    gc.disable()  # millions of tuples, no cycles
    began = time.monotonic()
    found = explore(model_of(job[0]), first=job[1])
    return found, time.monotonic() - began


def run(scenes: list[tuple[str, Any]], *, first: bool) -> bool:
    """Check scenes side by side; print a line each, and the schedule of whatever broke. True if nothing broke."""
    well = True
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        checks = pool.map(check, [(scene, first) for _, scene in scenes])
        for (title, _), (found, seconds) in zip(scenes, checks, strict=True):
            verdict = "; ".join(found.broken) or ("NOT EXHAUSTED" if found.cut else "ok")
            sys.stdout.write(f"{title:85s} {found.states:>9,} states {seconds:6.1f} s  {verdict}\n")
            sys.stdout.flush()
            well = well and not found.broken and not found.cut
            for rule, schedule in found.broken.items():
                lines = [f"     {number:2d}. {line}" for number, line in enumerate(schedule, 1)]
                sys.stdout.write("\n".join([f"   {rule}. Shortest schedule:", *lines]) + "\n")
    return well


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description="Check the protocols exhaustively.")
    parser.add_argument("--ahead", action="store_true", help="only the scenes with guesses (R10)")
    parser.add_argument("--deep", action="store_true", help="larger scenes too: half an hour")
    parser.add_argument("--without", metavar="RULE", help="switch off a rule (and its parts), or all in turn")
    args = parser.parse_args()
    if args.without:
        asked = args.without
        rules = [r for r in PROBES if asked in ("all", r) or r.startswith(asked + ".")]
        run([(f"without {r}: {RULES[r]}", PROBES[r]) for r in rules if r not in NOT_NEEDED], first=True)
        run([(f"without {r}, which saves work only", PROBES[r]) for r in rules if r in NOT_NEEDED], first=False)
        return 0
    scenes = ([] if args.ahead else SUITE) + AHEAD + (DEEP if args.deep else [])
    return 0 if run(scenes, first=False) else 1


if __name__ == "__main__":
    sys.exit(main())
