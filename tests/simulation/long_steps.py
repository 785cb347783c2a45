"""Long steps, simulated: attempts that count, now and then fall silent, and what was committed of it never goes back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from treadle.controlplane.store.port import Change
from treadle.protocol.ids import RunKey
from treadle.v1.common_pb2 import FAILURE_KIND_HEARTBEAT_MISSED, Failure
from treadle.v1.state_pb2 import CommandRow, RunHead
from treadle.worker.core.port import Attempt, Report

if TYPE_CHECKING:
    from .worker import SimWorker

__all__ = ("Counts", "speaks")

_EVERY_MS = 300


def speaks(worker: SimWorker, attempt: Attempt) -> int:
    """An attempt counts on from what it was given, each 0.3 s, until it ends or falls silent. Returns how long it runs (ms)."""
    rng, token = worker.schedule.rng, attempt.token
    heartbeat_ms = attempt.job.heartbeat_ms
    count = int(attempt.progress.data) if attempt.progress is not None else 0
    silent = rng.random() < 0.3
    left = rng.randint(0, 6) if silent else 1_000
    notices = rng.random() < 0.7  # else its loop is blocked, and only the servers see that it is silent

    def speak() -> None:
        nonlocal count, left
        if token not in worker.running:
            return
        left -= 1
        if left > 0:
            count += 1
            said = b"%d" % count if rng.random() < 0.8 else None
            worker.do(lambda: worker.core.progressed(token, attempt.number, said))
            worker.later(_EVERY_MS, speak)
        elif notices:
            missed = Failure(kind=FAILURE_KIND_HEARTBEAT_MISSED, type="HeartbeatMissed", message="silent")
            worker.later(heartbeat_ms, lambda: worker.end_attempt(token, Report("failed", failure=missed)))

    speak()
    return 15_000 if silent else rng.randint(100, 4_000)


class Counts:
    """What was committed of each step's progress."""

    def __init__(self) -> None:
        self._known: dict[tuple[RunKey, int, str], int] = {}
        self.kept = 0

    def committed(self, change: Change) -> str:
        """Take a commit; returns what is wrong with it, or ""."""
        for name, data in change.set_fields.items():
            if not name.startswith("c:"):
                continue
            row = CommandRow.FromString(data)
            if not row.progress_number:
                continue
            key = change.run, RunHead.FromString(change.head).incarnation, row.command_id
            before, now = self._known.get(key, 0), int(row.progress.data)
            if now < before:
                return f"{change.run} {row.command_id} had counted to {before}, and is at {now}"
            self.kept += now > before and row.attempt > 1
            self._known[key] = now
        return ""
