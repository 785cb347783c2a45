"""The part of a timeline that is about what a run waits for besides its steps: timers, events; and the events it sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from treadle.v1.common_pb2 import Failure
from treadle.v1.history_pb2 import (
    EventMatched,
    EventSent,
    EventWaitCancelled,
    EventWaitRefused,
    EventWaitStarted,
    EventWaitTimedOut,
    TimerCancelled,
    TimerFired,
    TimerStarted,
)

__all__ = ("EventLines",)


class EventLines:
    """Rules of Timeline for these kinds of history events."""

    __slots__ = ()

    if TYPE_CHECKING:
        _enter: Any
        _settle: Any
        _step: Any
        now_ms: int

    def _timer_started(self, body: TimerStarted) -> None:
        self._enter(body.command_id, "sleep", "timer", "sleeping").due_ms = body.fire_at_ms

    def _timer_fired(self, body: TimerFired) -> None:
        self._settle(self._step(body, self.now_ms), "completed")

    def _timer_cancelled(self, body: TimerCancelled) -> None:
        self._settle(self._step(body, self.now_ms), "cancelled")

    def _event_wait_started(self, body: EventWaitStarted) -> None:
        wait = self._enter(body.command_id, body.name, "event", "sleeping")
        wait.due_ms = body.until_ms or None
        wait.reason = f"waits for event {body.name!r}" + (f" with {body.match.decode()}" if body.match else "")

    def _event_matched(self, body: EventMatched) -> None:
        self._settle(self._step(body, self.now_ms), "completed")

    def _event_wait_timed_out(self, body: EventWaitTimedOut) -> None:
        wait = self._step(body, self.now_ms)
        self._settle(wait, "completed")
        wait.reason = "no event came in time"

    def _event_wait_cancelled(self, body: EventWaitCancelled) -> None:
        self._settle(self._step(body, self.now_ms), "cancelled")

    def _event_wait_refused(self, body: EventWaitRefused) -> None:
        wait = self._step(body, self.now_ms)
        wait.error = Failure(type="WaitRefused", message=body.reason)
        self._settle(wait, "failed")

    def _event_sent(self, body: EventSent) -> None:
        self._settle(self._enter(body.command_id, body.name, "event", "completed"), "completed")
