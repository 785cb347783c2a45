"""Beats: each second, from a thread and over a channel of their own, so that code that blocks the loop costs no lease.

A beat says that the process is alive and what it holds (A5): the time is taken before the list is read, and the list
travels only when it changed or is asked for. The thread is silent while there is no session, and once the loop has not run
for a minute (A10): a process that cannot work must not look alive for ever.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import grpc
import structlog

from treadle.client.config import Tls, auth_metadata, channel_options
from treadle.v1.state_pb2 import HeldToken
from treadle.v1.worker_service_pb2 import BeatRequest, BeatResponse
from treadle.v1.worker_service_pb2_grpc import WorkerServiceStub
from treadle.worker.clock import monotonic_ms
from treadle.worker.loop_watch import STAMP_MS, LoopWatch

__all__ = ("BeatChannel", "BeatSource", "BeatThread", "GrpcBeats")

BEAT_MS: Final = 1000
DEADLINE_S: Final = 2.0
STUCK_LOOP_MS: Final = 60_000

_log = structlog.stdlib.get_logger(__name__)


class BeatSource(Protocol):
    """What a beat is made of; read from the beat thread."""

    def held(self) -> tuple[int, tuple[HeldToken, ...]]:
        """Id of the list of held tokens, and the list."""
        ...

    def counts(self) -> tuple[int, int]:
        """Attempts that hold a slot, and open runs."""
        ...


class BeatChannel(Protocol):
    """How a beat goes out. Used on the beat thread only."""

    def send(self, address: str, beat: BeatRequest) -> BeatResponse:
        """Send it and return the answer.

        Raises:
            ConnectionError: There was none within 2 s.
        """
        ...

    def close(self) -> None:
        """Give the connection up."""
        ...


class GrpcBeats:
    """A blocking channel to the replica that serves the session; a new one after a failure."""

    def __init__(self, *, tls: Tls | None, token: str | None) -> None:
        self._credentials = tls.credentials() if tls is not None else None
        self._metadata = auth_metadata(token)
        self._address = ""
        self._channel: grpc.Channel | None = None
        self._stub: WorkerServiceStub | None = None

    def send(self, address: str, beat: BeatRequest) -> BeatResponse:
        if self._stub is None or address != self._address:
            self._open(address)
        assert self._stub is not None
        try:
            return self._stub.Beat(beat, timeout=DEADLINE_S, metadata=self._metadata)
        except grpc.RpcError as error:
            self.close()
            code, details = getattr(error, "code", None), getattr(error, "details", None)
            said = f"{code().name}: {details()}" if callable(code) and callable(details) else str(error)
            raise ConnectionError(said) from error

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel = self._stub = None

    def _open(self, address: str) -> None:
        self.close()
        # A connection of its own: gRPC would otherwise share one with the session.
        options = [*channel_options(), ("grpc.use_local_subchannel_pool", 1)]
        if self._credentials is not None:
            self._channel = grpc.secure_channel(address, self._credentials, options=options)
        else:
            self._channel = grpc.insecure_channel(address, options=options)
        self._stub = WorkerServiceStub(self._channel)
        self._address = address


@dataclass(frozen=True, slots=True)
class _Session:
    id: str
    address: str


class BeatThread:
    """The thread.

    Args:
        worker_id: The process.
        source: What it holds.
        channel: How beats go out.
        watch: The event loop.
        beat_ms: How often.
    """

    def __init__(
        self, worker_id: str, source: BeatSource, channel: BeatChannel, watch: LoopWatch, *, beat_ms: int = BEAT_MS
    ) -> None:
        self._worker_id = worker_id
        self._source = source
        self._channel = channel
        self._watch = watch
        self.beat_ms = beat_ms
        self.draining = False
        self._session: _Session | None = None
        self._known_list: int | None = None
        self._failures = 0
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._crashed: Callable[[BaseException], None] | None = None
        self._thread = threading.Thread(target=self._run, name="beats", daemon=True)

    def start(self, crashed: Callable[[BaseException], None]) -> None:
        """Begin. `crashed` is called on the thread if it ends by an error: without beats the worker must end, too."""
        self._crashed = crashed
        self._thread.start()

    def stop(self) -> None:
        """End the thread; waits for the beat that is under way."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(DEADLINE_S + 1)

    def session_opened(self, session_id: str, address: str) -> None:
        """From now on beats name this session; the first goes out at once."""
        self._session = _Session(session_id, address)
        self._wake.set()

    def session_ended(self) -> None:
        """No more beats."""
        self._session = None

    def _run(self) -> None:
        due = monotonic_ms()
        stood_still_ms = 0
        try:
            while not self._stopping.is_set():
                self._watch.look(stood_still_ms=stood_still_ms)
                now = monotonic_ms()
                if self._wake.is_set():
                    self._wake.clear()
                    due = now
                session = self._session
                if session is not None and now >= due:
                    due = now + self.beat_ms
                    if self._watch.silent_ms <= STUCK_LOOP_MS:
                        self._beat(session)
                stood_still_ms = self._rest(due if session is not None else None)
        except BaseException as error:
            if self._crashed is not None:
                self._crashed(error)
        finally:
            self._channel.close()

    def _rest(self, due: int | None) -> int:
        """Wait until the next look or beat. Returns by how much that took longer than it should."""
        began = monotonic_ms()
        pause = STAMP_MS if due is None else max(1, min(STAMP_MS, due - began))
        self._wake.wait(pause / 1000)
        return max(0, monotonic_ms() - began - pause)

    def _beat(self, session: _Session) -> None:
        sent_ms = monotonic_ms()  # before the list is read: what it lacks was not held then
        list_id, held = self._source.held()
        steps, runs = self._source.counts()
        beat = BeatRequest(
            worker_id=self._worker_id,
            session_id=session.id,
            sent_ms=sent_ms,
            list_id=list_id,
            loop_lag_ms=self._watch.silent_ms,
            steps_running=steps,
            runs_open=runs,
            draining=self.draining,
        )
        if list_id != self._known_list:
            beat.list_given = True
            beat.held.extend(held)
        try:
            answer = self._channel.send(session.address, beat)
        except ConnectionError as error:
            self._failures += 1
            if self._failures in (1, 10) or self._failures % 100 == 0:
                _log.warning("beat_failed", address=session.address, error=str(error), failures=self._failures)
            return
        if self._failures:
            _log.info("beats_back", address=session.address, failures=self._failures)
            self._failures = 0
        self._known_list = None if answer.want_list else list_id
        if answer.ignored and session == self._session:
            _log.debug("beat_ignored", session=session.id)
