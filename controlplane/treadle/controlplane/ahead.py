"""Wakes of sleepers, decided shortly before they are due, so that a storm of timers has only to be committed. No I/O.

Such a decision is made as of the instant that is due. The commit refuses it before that instant, and when the run has changed
meanwhile; then it is made anew, as every other. It is kept only if it gives the run to the worker with its coroutine, and is
used as long as that credit may be: within the same session, and its statement not older than any other decision would allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from treadle.controlplane.batches import Item
from treadle.controlplane.clock import monotonic_ms
from treadle.controlplane.machine import Decision, decide
from treadle.controlplane.machine.requests import FireTimer
from treadle.controlplane.replica import Replica
from treadle.controlplane.store.port import Loaded, Timer
from treadle.protocol.ids import RunKey
from treadle.v1.state_pb2 import RUN_STATE_PARKED, RunHead

__all__ = ("Ahead",)

_LIMIT = 2_000
"""A decision takes some kilobytes."""


class _Made(NamedTuple):
    """A decision, the command whose timer it fires, until when it may be used, and its session."""

    decision: Decision
    command_id: str
    until_ms: int
    session: object


class Ahead:
    """See the module.

    Args:
        replica: Decides with its credits.
    """

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._made: dict[RunKey, _Made] = {}

    def __len__(self) -> int:
        """Return how many decisions are kept."""
        return len(self._made)

    def has(self, timer: Timer) -> bool:
        """Whether what this timer does is decided."""
        made = self._made.get(timer.run)
        return made is not None and made.command_id == timer.command_id

    def decide(self, timer: Timer, loaded: Loaded) -> None:
        """Decide what a timer will do that is not due yet, if it wakes a parked run and there is a credit for that."""
        run = timer.run
        if len(self._made) >= _LIMIT or run in self._made or not loaded.head:
            return
        now_ms = monotonic_ms()
        env = self._replica.env(timer.due_ms, now_ms)
        try:
            if RunHead.FromString(loaded.head).state != RUN_STATE_PARKED:
                return
            decision = decide(run, loaded, [FireTimer(timer.command_id)], env)
        except Exception:  # damaged: when it is due, it is looked at closely
            for credit, kind in env.taken:
                self._replica.credits.give_back(credit, kind)
            return
        credits = [pushed.credit for pushed in decision.grants]
        wakes = len(credits) == 1 and credits[0].wakes  # other slots are not held for what is not due
        statement = self._replica.credits.statement(credits[0].worker_id) if wakes else None
        if statement is None:
            self._replica.failed(decision)
        else:
            self._made[run] = _Made(decision, timer.command_id, statement.until_ms, statement)

    def take(self, run: RunKey, items: Sequence[Item]) -> Decision | None:
        """Return the decision on these requests, if it was made and still holds; it is kept no more."""
        made = self._made.pop(run, None) if self._made else None
        if made is None:
            return None
        request = items[0].request
        statement = self._replica.credits.statement(made.decision.grants[0].credit.worker_id)
        if (
            len(items) == 1
            and isinstance(request, FireTimer)
            and request.command_id == made.command_id
            and statement is made.session
            and monotonic_ms() < made.until_ms
        ):
            return made.decision
        self._replica.failed(made.decision)
        return None

    def clear(self) -> None:
        """Drop what is over: its timers were fired otherwise, or by another replica."""
        now_ms = monotonic_ms()
        for run in [run for run, made in self._made.items() if made.until_ms <= now_ms]:
            self._replica.failed(self._made.pop(run).decision)
