"""What processes use: CPU seconds and memory by process tree, the whole machine, and how fast the machine is just now."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.processes import descendants

__all__ = ("cpu_seconds", "machine", "machine_cpu", "own_cpu", "percentile", "pss_mib", "reference")

_TICKS = os.sysconf("SC_CLK_TCK")


def percentile(values: Sequence[float], share: float) -> float:
    """Return the percentile (0 to 100), interpolated; nan of nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    place = (len(ordered) - 1) * share / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def cpu_seconds(roots: Iterable[int]) -> float:
    """Return user and system CPU of the trees under `roots`, children that were waited for included."""
    total = 0
    for pid in descendants(roots):
        with contextlib.suppress(OSError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(field) for field in fields[11:15])
    return total / _TICKS


def own_cpu() -> float:
    """Return user and system CPU of this process, without children."""
    times = os.times()
    return times.user + times.system


def pss_mib(roots: Iterable[int]) -> float:
    """Return the memory of the trees under `roots`, shared pages counted by their share, in MiB."""
    kib = 0
    for pid in descendants(roots):
        kib += _pss_kib(pid)
    return kib / 1024


def _pss_kib(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def machine_cpu() -> tuple[float, float]:
    """Return busy and stolen CPU seconds of the whole machine since its start."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(fields[:3]) + fields[5] + fields[6]) / _TICKS, fields[7] / _TICKS


def machine() -> dict[str, str]:
    """Return what a reader must know of the machine; no names."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 1024**2
    release = os.uname()
    return {
        "processor": model,
        "cores": str(os.cpu_count()),
        "memory": f"{memory:.0f} GiB",
        "kernel": f"{release.sysname} {release.release.partition('-')[0]}",
    }


def reference() -> dict[str, float]:
    """Half a second of fixed work: JSON round trips a second, fdatasync (ms, median), TCP ping-pong (µs, median)."""
    return {"json_per_s": _json_rate(), "fdatasync_ms": _sync_ms(), "tcp_us": _ping_us()}


def _json_rate() -> float:
    blob = {"a": list(range(20)), "b": "x" * 64, "c": {"d": 1.5}}
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < 0.2:
        for _ in range(50):
            json.loads(json.dumps(blob))
        count += 50
    return round(count / (time.perf_counter() - began))


def _sync_ms() -> float:
    took = []
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(40):
            began = time.perf_counter()
            file.write(b"x" * 512)
            file.flush()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    return round(percentile(took, 50) * 1e3, 3)


def _ping_us() -> float:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    with ours, theirs:
        for end in (ours, theirs):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        took = []
        for _ in range(1000):
            began = time.perf_counter()
            ours.sendall(b"y" * 200)
            theirs.sendall(theirs.recv(4096))
            ours.recv(4096)
            took.append(time.perf_counter() - began)
    return round(percentile(took, 50) * 1e6, 1)
