"""The demo as a person runs it: it shows what it promises, its checks pass, and nothing of it stays behind."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from treadle.client import SyncClient

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "examples" / "contacts" / "demo.py"
DEADLINE_S = 90.0
MINUTE_S = 60.0


def environment() -> dict[str, str]:
    """Return ours, with the servers that tests may use in the place where the demo looks for servers."""
    given = {name: value for name, value in os.environ.items() if not name.startswith(("TREADLE_", "OTEL_"))}
    for name in ("REDIS_URL", "AMQP_URL"):
        if url := os.environ.get(f"TREADLE_TEST_{name}"):
            given[f"TREADLE_{name}"] = url
    return given


@contextmanager
def demo(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Run the demo; killed at the end if it still runs."""
    command = [sys.executable, str(DEMO), "--folder", str(folder), *options]
    with subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of the processes that have the folder in their command line or environment."""
    found = []
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            command, variables = (proc / "cmdline").read_bytes(), (proc / "environ").read_bytes()
        except OSError:
            continue  # it ended, or is somebody else's
        if str(folder).encode() in command + variables:
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


def until(process: subprocess.Popen[str], text: str) -> str:
    """Return what the demo said up to the first line with `text`."""
    assert process.stdout is not None
    said: list[str] = []
    for line in process.stdout:
        said.append(line)
        if text in line:
            return "".join(said)
    raise AssertionError(f"ended without {text!r}:\n{''.join(said)}")


def workers_of(said: str) -> set[tuple[str, int]]:
    """Return pool and slots of each worker, as the control plane tells while the demo runs."""
    address = re.search(r"control plane on (\S+)", said)
    assert address is not None
    with SyncClient(address[1]) as client:
        workers = client.workers()
    assert all(re.fullmatch(r".+:\d+", worker.host) for worker in workers), "host name and process id"
    return {(worker.pool, worker.step_slots) for worker in workers}


def check_output(said: str) -> None:
    """Check that the demo showed the attempts, the database, the ledger, the history and the way to the trace."""
    assert "12 checks passed, 0 failed" in said, said
    assert len(re.findall(r"⟳ add_zip_codes +attempt \d failed: ConnectionError", said)) == 1
    assert re.search(r"⚡ add_zip_codes +attempt \d lost: its worker died", said)
    assert re.search(r"✓ add_zip_codes +attempt \d · ", said)
    assert re.search(r"SIGKILL for the worker of pool enrich, process \d+", said)
    assert "3364, 3364: each valid row exactly once" in said
    assert re.search(r"validate +1 +1 +0 +0\n", said)
    assert re.search(r"create_contacts +1 +1 +0 +0\n", said)
    assert re.search(r"\$ treadle run show airports-\w+ --server 127", said)
    assert re.search(r"✓ create_contacts +pool crm", said), "what `run show` draws"
    assert "jaeger" in said
    assert "nothing imported: 6 rows are invalid" in said


@pytest.mark.kill
def test_demo_on_embedded_state(tmp_path: Path) -> None:
    began = time.monotonic()
    with demo(tmp_path) as process:
        said, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, said
    check_output(said)
    assert time.monotonic() - began < MINUTE_S
    assert processes_of(tmp_path) == []


@pytest.mark.kill
@pytest.mark.redis
@pytest.mark.rabbitmq
def test_demo_on_redis_and_rabbitmq(tmp_path: Path) -> None:
    with demo(tmp_path, "--services") as process:
        said, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, said
    check_output(said)
    assert '"lane": "amqp"' in (tmp_path / "logs" / "worker-enrich.log").read_text()
    assert processes_of(tmp_path) == []


@pytest.mark.kill
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_stops_everything_when_it_is_told_to(tmp_path: Path, number: signal.Signals) -> None:
    with demo(tmp_path) as process:
        said = until(process, "✓ validate")
        assert workers_of(said) == {("default", 4), ("csv", 4), ("enrich", 3), ("crm", 4)}, "pools and slots"
        assert len(processes_of(tmp_path)) >= 6, "the demo, its state, and four workers at least"
        process.send_signal(number)
        said, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, said
    assert "all processes are ended" in said
    assert "Traceback" not in said
    assert processes_of(tmp_path) == []


@pytest.mark.kill
def test_demo_says_so_when_a_worker_ends_by_itself(tmp_path: Path) -> None:
    with demo(tmp_path) as process:
        said = until(process, "worker of pool default")
        found = re.search(r"worker of pool default +process (\d+)", said)
        assert found is not None
        os.kill(int(found[1]), signal.SIGKILL)
        said, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1, said
    assert "worker-default ended with exit code -9" in said
    assert processes_of(tmp_path) == []


def test_demo_leaves_another_one_alone(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with (tmp_path / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with demo(tmp_path) as process:
            said, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert f"another demo uses {tmp_path}" in said
    assert (tmp_path / "state").is_dir()
