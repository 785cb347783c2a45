"""The pulse of an attempt in a child process: what its code says goes to the worker a few times a second, newest only."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from treadle.v1.common_pb2 import Payload
from treadle.worker.child_wire import Said

__all__ = ("ChildPulse",)

_EVERY_S: Final = 0.05


class ChildPulse:
    """Serves one attempt after the other: between `begin` and `end` one is open. `say` and `beat` may come from any thread.

    Args:
        send: Writes to the worker.
    """

    def __init__(self, send: Callable[[Said], None]) -> None:
        self.last: Payload | None = None
        self.deferral = ""
        self.deferred_ms: int | None = None
        self._send = send
        self._wanted = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._open = self._dirty = self._beaten = False

    def saying(self) -> ChildPulse:
        """See Live."""
        return self

    def begin(self, last: bytes | None, deferral: str) -> None:
        """An attempt begins; see Run."""
        self.deferral, self.deferred_ms = deferral, None
        self.last = None if last is None else Payload.FromString(last)
        self._dirty = self._beaten = False
        self._open = True

    def end(self) -> None:
        """The attempt ends: its last word is sent, and none that comes after it."""
        with self._lock:
            self._flush()
            self._open = False

    def say(self, data: bytes) -> None:
        self.last = Payload(data=data)
        self._dirty = True  # after the value: whoever clears it reads the value then
        self._want()

    def beat(self) -> None:
        self._beaten = True
        self._want()

    def _want(self) -> None:
        if not self._wanted.is_set():
            self._wanted.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        pause = threading.Event()  # never set: a wait that user code cannot replace, as it may `time.sleep`
        while True:
            self._wanted.wait()
            self._wanted.clear()
            with self._lock:
                self._flush()
            pause.wait(_EVERY_S)

    def _flush(self) -> None:
        if not self._open:
            return
        if self._dirty:
            self._dirty = self._beaten = False
            assert self.last is not None
            self._send(Said(self.last.data))
        elif self._beaten:
            self._beaten = False
            self._send(Said())
