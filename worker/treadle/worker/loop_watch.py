"""Watching the event loop from another thread: how late it is, and what holds it up.

The loop leaves a stamp four times a second. A stamp that is old while the watching thread itself was running means that
code on the loop does not give it back.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Final

import structlog

from treadle.worker.app import Registry
from treadle.worker.bodies import run_async
from treadle.worker.clock import monotonic_ms

__all__ = ("BLOCKED_MS", "STAMP_MS", "LoopWatch")

STAMP_MS: Final = 250
BLOCKED_MS: Final = 1000
"""A loop that has not run for so long is reported."""

STUCK_MS: Final = 2000
"""A loop that has not run for so long lets go of what others could do."""

_OWN: Final = str(Path(__file__).parent)

_log = structlog.stdlib.get_logger(__name__)


class LoopWatch:
    """Stamps on the loop; `look` on another thread.

    Args:
        registry: Names the code that holds up the loop.
    """

    def __init__(self, registry: Registry) -> None:
        steps = {step.function.__code__: ("step", step.name) for step in registry.steps.values()}
        flows = {flow.function.__code__: ("workflow", flow.name) for flow in registry.workflows.values()}
        self._names: dict[CodeType, tuple[str, str]] = {**steps, **flows}
        self._stamp = monotonic_ms()
        self._thread_id = threading.get_ident()
        self._timer: asyncio.TimerHandle | None = None
        self._reported: int | None = None
        self._let_go: int | None = None
        self.on_stuck: Callable[[], None] | None = None
        """Called once for each time that the loop is stuck, on the thread that looks."""

    def start(self) -> None:
        """Begin to stamp. Call it on the loop."""
        self._thread_id = threading.get_ident()
        self._mark()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _mark(self) -> None:
        self._stamp = monotonic_ms()
        self._timer = asyncio.get_running_loop().call_later(STAMP_MS / 1000, self._mark)

    @property
    def silent_ms(self) -> int:
        """For how long the loop has not run."""
        return max(0, monotonic_ms() - self._stamp - STAMP_MS)

    def look(self, *, stood_still_ms: int = 0) -> int:
        """Return the lag in milliseconds; log a warning, once, when the loop is blocked. Call it every 250 ms or so.

        Args:
            stood_still_ms: For how long the calling thread could not run either: the process was stopped, or C code kept
                the interpreter's lock.
        """
        stamp = self._stamp
        lag = max(0, monotonic_ms() - stamp - STAMP_MS)
        if self._reported is not None and self._reported != stamp:
            _log.warning("event_loop_back", blocked_ms=stamp - self._reported)
            self._reported = None
        if stood_still_ms > BLOCKED_MS:
            self._reported = stamp
            _, name, place = self._culprit()
            _log.warning(
                "process_stood_still",
                for_ms=stood_still_ms,
                step=name,
                at=place,
                reason="the process was stopped, or C code kept the interpreter's lock",
                remedy="after 5 s what it holds goes to others; for such C code give the step executor='process'",
            )
        elif lag > BLOCKED_MS and self._reported is None:
            self._reported = stamp
            self._report(lag)
        if lag > STUCK_MS and self._let_go != stamp and self.on_stuck is not None:
            self._let_go = stamp
            self.on_stuck()
        return lag

    def _report(self, lag: int) -> None:
        what, name, place = self._culprit()
        if what == "workflow":
            remedy = "move the work into a step"
        else:
            remedy = "write the step as a plain def (it runs in a thread), or give it executor='process'"
        who = f"{what} {name!r}" if name else "code"
        _log.warning("event_loop_blocked", lag_ms=lag, step=name, at=place, reason=f"{who} blocks it", remedy=remedy)

    def _culprit(self) -> tuple[str, str, str]:
        """The step or workflow whose code is on the loop's stack, and the innermost line of user code."""
        frame = sys._current_frames().get(self._thread_id)
        place = ""
        own: FrameType | None = frame
        while own is not None:
            known = self._names.get(own.f_code)
            if not place and not own.f_code.co_filename.startswith(_OWN):
                place = f"{own.f_code.co_filename}:{own.f_lineno}"
            if known is not None:
                return known[0], _executed(own) or known[1], f"{own.f_code.co_filename}:{own.f_lineno}"
            own = own.f_back
        return "", "", place


def _executed(frame: FrameType | None) -> str:
    """The step that this frame is part of, as its executor knows it: steps made by one factory share their code."""
    while frame is not None:
        if frame.f_code is run_async.__code__:
            return str(frame.f_locals["info"].step)
        frame = frame.f_back
    return ""
