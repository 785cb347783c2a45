"""Long steps, simulated: attempts that count, now and then fall silent, or leave it to somebody outside to finish them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from treadle.controlplane.machine.requests import Reply, RunReply, SettleStep
from treadle.controlplane.store.port import Change
from treadle.protocol.deferral import make_token, read_token
from treadle.protocol.errors import StepSettled
from treadle.protocol.ids import RunKey
from treadle.v1.common_pb2 import FAILURE_KIND_HEARTBEAT_MISSED, Failure, Payload
from treadle.v1.state_pb2 import CommandRow, RunHead
from treadle.worker.core.port import Attempt, Report

if TYPE_CHECKING:
    from .worker import SimWorker
    from .world import World

__all__ = ("Counts", "defers", "speaks")

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


def defers(worker: SimWorker, attempt: Attempt, value: int) -> Report:
    """An attempt that gives its token to two people, who finish the step some time, each asking until it is answered.

    Now and then nobody does: then the time is over, and the next try has another token.
    """
    job, world, rng = attempt.job, worker.world, worker.schedule.rng
    token = make_token(
        attempt.deferral_key,
        namespace=job.namespace,
        run_id=job.run_id,
        incarnation=job.incarnation,
        command_id=job.command_id,
        try_number=job.try_number,
    )
    lost = rng.random() < 0.2
    if not lost:
        for person in ("Ada", "Bob"):
            worker.schedule.later(rng.randint(0, 5_000), partial(_finish, world, token, person, value))
    return Report("deferred", deferred_ms=rng.randint(500, 4_000) if lost or rng.random() < 0.3 else 0)


def _finish(world: World, token: str, person: str, value: int) -> None:
    read, answered = read_token(token), False
    run = RunKey("sim", read.run_id)
    request = SettleStep(read, person, result=Payload(data=b"%d" % value))

    def settle(reply: Reply | Exception) -> None:
        nonlocal answered
        if isinstance(reply, RunReply):
            world.ledger.counts.finished(run, token, person)
        answered = answered or isinstance(reply, RunReply | StepSettled)

    def ask() -> None:
        if answered or world.ledger.record(run).outcome:
            return
        up = [replica for replica in world.replicas if replica.up]
        if up:
            world.schedule.rng.choice(up).ask(run, request, settle)
        world.schedule.later(1_500, ask)

    ask()


class Counts:
    """What was committed of each step's progress."""

    def __init__(self) -> None:
        self._finished: dict[tuple[RunKey, str], str] = {}
        self._known: dict[tuple[RunKey, int, str], int] = {}
        self.kept = 0

    def finished(self, run: RunKey, token: str, person: str) -> None:
        """Somebody was told to have finished the step: one person for each token."""
        first = self._finished.setdefault((run, token), person)
        if first != person:
            raise AssertionError(f"{run}: {first} and {person} have both finished a step")

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
