"""Run a peer's script in its own virtualenv, with fresh servers, and take what it measured."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.servers.rabbit_server import RabbitServer
from tests.servers.redis_server import RedisServer

from benchmarks.measure import LOCK_VARIABLE, Record, lock_is_inherited
from benchmarks.peers import Peer, home
from benchmarks.peers.stage import SERVICES_VARIABLE
from benchmarks.processes import free_port, kill_tree, spawn, wait_for_port
from benchmarks.session import Session

__all__ = ("run_peer",)

_ROOT = Path(__file__).resolve().parents[2]
_LONGEST_S = 3600.0

Service = dict[str, str | int]


def run_peer(peer: Peer, part: str, session: Session) -> list[Record]:
    """Measure one workload; returns the records. A peer that fails gives a record that says so."""
    python = home() / f"venv-{peer.name}" / "bin" / "python"
    if not python.exists():
        raise SystemExit(f"{peer.name} is not installed: `python -m benchmarks.peers.install {peer.name}`")
    folder = Path(tempfile.mkdtemp(prefix=f"{part}-{peer.name}-", dir=session.folder))
    out = folder / "records.jsonl"
    out.touch()
    with contextlib.ExitStack() as stack:
        services = {name: stack.enter_context(_SERVICES[name](folder)) for name in peer.services}
        command = [str(python), "-m", f"benchmarks.peers.{peer.name}", "--w", part, "--reps", str(session.each)]
        command += [
            "--scale",
            str(session.sizes.scale),
            "--out",
            str(out),
        ]
        command += [] if session.quiet else ["--busy"]
        env = {
            **os.environ,
            "PYTHONPATH": str(_ROOT),
            "PEERS_HOME": str(home()),
            SERVICES_VARIABLE: json.dumps(services),
        }
        if lock_is_inherited():
            env[LOCK_VARIABLE] = ""
        process = subprocess.Popen(command, cwd=_ROOT, env=env)
        try:
            code = process.wait(_LONGEST_S)
        except BaseException:
            process.send_signal(signal.SIGTERM)  # it ends its own processes
            process.wait(60)
            raise
    records = [Record.from_json(json.loads(line)) for line in out.read_text().splitlines()]
    if code != 0:
        sys.stderr.write(f"{peer.name} ended with {code}: logs in {folder}\n")
        records.append(Record(peer.name, "", part, 0, error=f"the script ended with {code}"))
    return records


@contextlib.contextmanager
def _redis(folder: Path, fsync: str = "everysec") -> Iterator[Service]:
    with RedisServer(appendfsync=fsync) as server:
        yield {"port": server.port, "pid": server.pid, "url": f"redis://127.0.0.1:{server.port}"}


@contextlib.contextmanager
def _redis_always(folder: Path) -> Iterator[Service]:
    with _redis(folder, "always") as service:
        yield service


@contextlib.contextmanager
def _rabbitmq(folder: Path) -> Iterator[Service]:
    server = RabbitServer()
    try:
        server.start()
        assert server.pid is not None
        yield {"port": server.port, "pid": server.pid, "url": server.url}
    finally:
        server.stop()


@contextlib.contextmanager
def _postgres(folder: Path) -> Iterator[Service]:
    """PostgreSQL with the durable defaults of initdb; as the user "postgres" when we are root, which it refuses."""
    port, data = free_port(), Path(tempfile.mkdtemp(prefix="treadle-postgres-"))
    as_user: list[str] = []
    if os.getuid() == 0:
        user = pwd.getpwnam("postgres")
        os.chown(data, user.pw_uid, user.pw_gid)
        as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    programs = _postgres_programs()
    setup = [*as_user, str(programs / "initdb"), "-D", str(data / "data"), "-U", "postgres", "-A", "trust"]
    subprocess.run(setup, check=True, stdout=subprocess.DEVNULL, cwd=data)
    command = [
        *as_user,
        programs / "postgres",
        "-D",
        data / "data",
        "-p",
        port,
        "-c",
        "listen_addresses=127.0.0.1",
        "-k",
        data,
    ]
    server = spawn(command, folder / "postgres.log", cwd=data)
    try:
        wait_for_port(port, server)
        _until_ready(programs, port)
        yield {"port": port, "pid": server.pid, "url": f"postgresql+psycopg://postgres@127.0.0.1:{port}/bench"}
    finally:
        kill_tree(server, signal.SIGINT)
        shutil.rmtree(data, ignore_errors=True)


def _postgres_programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    if found:
        return found[-1].parent
    if on_path is None:
        raise SystemExit("PostgreSQL is not installed: `apt-get install postgresql-15`")
    return Path(on_path).resolve().parent


def _until_ready(programs: Path, port: int) -> None:
    ask = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    for _ in range(200):
        if subprocess.run(ask, check=False).returncode == 0:
            return
    raise SystemExit("PostgreSQL does not get ready")


_SERVICES: dict[str, Callable[[Path], contextlib.AbstractContextManager[Service]]] = {
    "redis": _redis,
    "redis-always": _redis_always,
    "rabbitmq": _rabbitmq,
    "postgres": _postgres,
}
