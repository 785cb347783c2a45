"""Where a process spends its time: py-spy, when it is on PATH, writes folded stacks while a workload is measured."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

__all__ = ("profiled", "rooms", "spy")

_RATE: Final = 200

_ROOMS: Final[tuple[tuple[str, str], ...]] = (
    ("protobuf", r"_message\.abi3|google/(protobuf|_upb)"),
    (
        "traces",
        r"controlplane/tracing/|opentelemetry|/exporter\.py|trace/__init__\.py|attributes/__init__\.py|_internal/",
    ),
    ("gRPC", r"grpc/|cygrpc"),
    ("JSON", r"msgspec|json/|_json"),
    ("decide", r"controlplane/machine/"),
    ("store: hot runs", r"store/cache\.py"),
    ("store: packing", r"store/(packing|lane)\.py"),
    ("store: Redis client", r"controlplane/store/|hiredis|redis/"),
    ("AMQP", r"controlplane/broker/|protocol/amqp|worker/(amqp|intake)|aiormq|aio_pika|pamqp"),
    ("committer, engine", r"controlplane/(committer|batches|engine)\.py"),
    ("sessions", r"controlplane/(replica/|sessions|frames|lanes)"),
    ("starts and results", r"controlplane/(api/|hints)"),
    ("timers, outbox, sweeps", r"controlplane/duties/"),
    ("protocol core", r"worker/core/"),
    ("durable loop", r"worker/loop/"),
    ("steps", r"worker/(executors|attempts|current|bodies|spans|logs)|benchmarks/app\.py"),
    ("session", r"worker/"),
    ("asyncio", r"asyncio|selectmodule|selectors|uvloop"),
)
"""Room -> what the file of a frame looks like; the first that fits."""

_FRAME: Final = re.compile(r"\(([^()]*?)(?::\d+)?\)$")
_WAITING: Final = re.compile(r"epoll_wait|futex|pthread_cond|PyThread_acquire_lock")
"""The system's calls in which a thread sleeps; where they have no names, what called them."""


def spy() -> str | None:
    """Return py-spy's path; None: it is not there."""
    return shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))


@contextlib.contextmanager
def profiled(pids: list[int], output: Path) -> Iterator[list[Path]]:
    """Sample the processes 200 times a second, C code included; yields the files of folded stacks, one a process.

    They are named `output` with a number behind, and complete when the context has ended.

    Raises:
        RuntimeError: There is no py-spy.
    """
    program = spy()
    if program is None:
        raise RuntimeError("profiles need py-spy on PATH: `pip install py-spy`")
    files = [output.with_name(f"{output.name}-{number}.folded") for number in range(len(pids))]
    command = [program, "record", "-r", str(_RATE), "--native", "-f", "raw", "-d", "3600"]
    samplers = [
        subprocess.Popen([*command, "-o", str(file), "-p", str(pid)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for pid, file in zip(pids, files, strict=True)
    ]
    try:
        for sampler in samplers:
            assert sampler.stdout is not None
            sampler.stdout.readline()  # it says when it begins
        yield files
    finally:
        for sampler in samplers:
            sampler.send_signal(signal.SIGINT)  # it writes its file then
            words = sampler.communicate(timeout=60)[0].decode(errors="replace").strip()
            if sampler.returncode != 0:
                sys.stderr.write(f"py-spy: {words}\n")
        sys.stderr.write(f"profiles: {output}-*.folded\n")


def rooms(stacks: Iterable[str]) -> dict[str, float]:
    """Return room -> share of the samples of folded stacks, the largest first; what only waits does not count.

    A sample belongs to the innermost frame of a room: what protobuf or gRPC do for the committer is theirs.
    """
    found: Counter[str] = Counter()
    for line in stacks:
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        if not any(map(_WAITING.search, frames[-3:])):
            found[next(filter(None, map(_room, reversed(frames))), "else")] += int(count)
    total = found.total()
    return {room: count / total for room, count in found.most_common()}


def _room(frame: str) -> str | None:
    match = _FRAME.search(frame)
    return next((room for room, files in _ROOMS if match and re.search(files, match[1])), None)
