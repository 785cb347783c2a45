"""What durability and traces cost: W1 with `appendfsync everysec`, and with traces going out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.drive import in_flight
from benchmarks.house import order
from benchmarks.processes import free_port, kill_tree, spawn, wait_for_port
from benchmarks.session import Session
from benchmarks.w_throughput import KINDS, flow

__all__ = ("run",)

_ROOT = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def _collector(folder: Path) -> Iterator[dict[str, str]]:
    """A collector in a process of its own; yields the environment that sends traces there.

    Raises:
        RuntimeError: Nothing came.
    """
    port, counted = free_port(), folder / f"otlp-{free_port()}.bytes"
    counted.write_text("0")
    sink = spawn([sys.executable, "-m", "benchmarks.otlp_sink", port, counted], folder / "otlp.log", cwd=_ROOT)
    try:
        wait_for_port(port, sink)
        yield {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
        if counted.read_text() == "0":
            raise RuntimeError("no traces were sent: the figures with traces are worth nothing")
    finally:
        kill_tree(sink)


def run(session: Session) -> None:
    """As in production, with everysec, and with traces; deployments of their own, which take turns.

    Five times as many runs as W1 has, 100 open at a time: spans are made behind the runs, and must be paid for within what is
    measured.
    """
    runs, steps = session.sizes.runs * 5, session.sizes.steps
    for letter, workflow in KINDS.items():
        with contextlib.ExitStack() as stack:
            traced = stack.enter_context(_collector(session.folder))
            houses = [
                (f"C-{name}-{letter}", stack.enter_context(session.house("services", fsync=fsync, env=env)))
                for name, fsync, env in (
                    ("production", "always", {}),
                    ("everysec", "everysec", {}),
                    ("traced", "always", traced),
                )
            ]
            work = flow(workflow, steps, order(), returns=steps, shape=in_flight, runs=runs, steps=steps)
            session.in_turn(houses, work, steps=runs * steps)
