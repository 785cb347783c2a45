"""Attempts of pool steps that this worker holds: from GO to the answered report.

An attempt holds a slot until its user code has ended; its token stays listed, and its report is sent again, until the
report is answered (A5).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from treadle.v1.common_pb2 import Payload
from treadle.v1.job_pb2 import Job
from treadle.v1.worker_service_pb2 import (
    ANSWER_LEASE_LOST,
    ANSWER_OK,
    ANSWER_SETTLED,
    REPORT_KIND_CANCELLED,
    REPORT_KIND_COMPLETED,
    REPORT_KIND_DEFERRED,
    REPORT_KIND_FAILED,
    REPORT_KIND_LOST,
    REPORT_KIND_RELEASED,
    AttemptReport,
    Grant,
    ReportAnswer,
)

from .outbox import Outbox
from .port import Attempt, CancelAttempt, Report, StartAttempt
from .progress import Progress
from .rights import Right
from .shared import Shared
from .slots import Slots

__all__ = ("KINDS", "Attempts", "Result")

KINDS = {
    "completed": REPORT_KIND_COMPLETED,
    "failed": REPORT_KIND_FAILED,
    "released": REPORT_KIND_RELEASED,
    "lost": REPORT_KIND_LOST,
    "cancelled": REPORT_KIND_CANCELLED,
    "deferred": REPORT_KIND_DEFERRED,
}


class State(Enum):
    """How far an attempt is."""

    OFFERED = 1  # the shell was told to start it
    STARTED = 2  # its last check said yes
    ENDED = 3  # its report waits for an answer


class Result(NamedTuple):
    """The report of an attempt that returned, before it is sent; and which attempt."""

    report: AttemptReport
    attempt: int


class Held:
    """One attempt."""

    __slots__ = ("cancelled", "job", "number", "right", "state", "token")

    def __init__(self, token: bytes, job: Job, number: int, right: Right) -> None:
        self.token = token
        self.job = job
        self.number = number
        self.right = right
        self.state = State.OFFERED
        self.cancelled = False


class Attempts:
    """All attempts of pool steps."""

    __slots__ = ("_held", "_shared", "_unanswered", "progress", "reports", "running", "slots")

    def __init__(self, shared: Shared, slots: Slots) -> None:
        self._shared = shared
        self.running = 0  # those that hold a slot
        self._held: dict[bytes, Held] = {}
        self.slots = slots
        self.reports: Outbox[bytes, AttemptReport] = Outbox()
        self._unanswered: Counter[str] = Counter()  # reports, by run
        self.progress = Progress()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, token: bytes) -> bool:
        return token in self._held

    def granted(self, grant: Grant, job: Job, right: Right, *, now_ms: int) -> None:
        """A GO that has its slot: start it if the right is still valid, else release it (A4)."""
        held = self._hold(grant, job, right)
        if not right.valid(self._shared.session, now_ms):
            self._release(held, "right over")
            self.slots.give(now_ms)
            return
        self.running += 1
        attempt = Attempt(
            token=grant.token,
            job=job,
            number=grant.attempt,
            alone=grant.alone,
            traceparent=grant.trace.traceparent,
            pushed=grant.push_number > 0,
            progress=grant.progress if grant.HasField("progress") else None,
            left_ms=grant.left_ms,
            deferral_key=grant.deferral_key or grant.token,
        )
        self._shared.actions.append(StartAttempt(attempt))

    def refuse(self, grant: Grant, job: Job, reason: str) -> None:
        """A GO that is not wanted, or has no slot: it is listed and released."""
        self._release(self._hold(grant, job, Right(0, 0)), reason)

    def may_start(self, token: bytes, now_ms: int) -> bool:
        """The last check before user code (A4)."""
        held = self._held.get(token)
        if held is None or held.state is not State.OFFERED or held.cancelled or self._shared.drain_over:
            return False
        if not held.right.valid(self._shared.session, now_ms):
            return False
        held.state = State.STARTED
        return True

    def ended(self, token: bytes, report: Report, now_ms: int) -> Result | None:
        """An attempt ended. Returns its result, if it has one: the run may be here, and its code go on by it (R10)."""
        held = self._held.get(token)
        if held is None or held.state is State.ENDED:
            self._shared.note("warning", "attempt_unknown", token=token.hex(), kind=report.kind)
            return None
        kind = report.kind
        if kind == "released" and held.state is State.STARTED and held.job.at_most_once:
            kind = "lost"  # A9: one that has started is never released
        elif kind == "released" and held.state is State.OFFERED and held.cancelled:
            kind = "cancelled"
        reason = report.reason
        if kind == "released" and not reason:
            reason = "drain" if held.state is State.STARTED or self._shared.drain_over else "right over"
        message = self._message(held, kind)
        if report.result is not None:
            message.result.CopyFrom(report.result if report.sealed is None else report.sealed)
        if report.failure is not None:
            message.failure.CopyFrom(report.failure)
        message.retry_after_ms = report.retry_after_ms
        message.duration_ms = report.duration_ms
        message.reason = reason
        message.deferred_for_ms = report.deferred_ms
        self.progress.ended(token, message)
        self._say(held, message)
        self.running -= 1
        self.slots.give(now_ms)
        return Result(message, held.number) if kind == "completed" else None

    def answered(self, answer: ReportAnswer) -> Job | None:
        """OK, SETTLED, LEASE_LOST and UNKNOWN all end it: nothing of it runs any more. Returns its job, unless it is OK."""
        held = self._held.get(answer.token)
        if held is None or held.state is not State.ENDED or not answer.answer:
            return None
        self.reports.drop(answer.token)
        run_id = held.job.run_id
        self._unanswered[run_id] -= 1
        if not self._unanswered[run_id]:
            del self._unanswered[run_id]
        del self._held[answer.token]
        self._shared.held.remove(answer.token)
        return held.job if answer.answer != ANSWER_OK else None

    def alone(self, run_id: str) -> bool:
        """Whether only one report of this run is unanswered: another's event would come before what follows from it."""
        return self._unanswered[run_id] == 1

    def progressed(self, token: bytes, number: int, data: bytes | Payload | None) -> None:
        """User code of attempt `number` says how far it is, or (None) that it goes on."""
        held = self._held.get(token)
        if held is not None and held.state is State.STARTED:
            self.progress.say(token, held.job, number, data)

    def progress_answered(self, answer: ReportAnswer) -> None:
        """What was said has arrived; another one may hold it by now, or it is settled: as a rule its run has ended."""
        self.progress.answered(answer.token)
        if answer.answer in (ANSWER_LEASE_LOST, ANSWER_SETTLED):
            self.cancel(answer.token, "run closed" if answer.answer == ANSWER_SETTLED else "lease lost")

    def cancel(self, token: bytes, reason: str) -> None:
        """Its cancellation was asked for; the shell is told once, its report still goes."""
        held = self._held.get(token)
        if held is None or held.state is State.ENDED or held.cancelled:
            return
        held.cancelled = True
        self._shared.actions.append(CancelAttempt(token, reason))

    def drain_over(self) -> None:
        """Cut off everything that still runs; the shell reports the ends."""
        for held in self._running():
            self._shared.actions.append(CancelAttempt(held.token, "drain"))

    def _running(self) -> Iterator[Held]:
        return (held for held in self._held.values() if held.state is not State.ENDED)

    def _hold(self, grant: Grant, job: Job, right: Right) -> Held:
        held = Held(grant.token, job, grant.attempt, right)
        self._held[grant.token] = held
        self._shared.held.add(grant.token, job)
        return held

    def _release(self, held: Held, reason: str) -> None:
        message = self._message(held, "released")
        message.reason = reason
        self._say(held, message)
        self._shared.note("debug", "attempt_released", step=held.job.name, run=held.job.run_id, reason=reason)

    def _say(self, held: Held, message: AttemptReport) -> None:
        held.state = State.ENDED
        self._unanswered[held.job.run_id] += 1
        self.reports.put(held.token, message)

    @staticmethod
    def _message(held: Held, kind: str) -> AttemptReport:
        job = held.job
        return AttemptReport(
            run_id=job.run_id,
            incarnation=job.incarnation,
            command_id=job.command_id,
            token=held.token,
            kind=KINDS[kind],
        )
