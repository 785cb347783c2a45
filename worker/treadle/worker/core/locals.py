"""Local steps of one open run: asked for, offered to the shell, running, ended (R2, A9).

A step waits until every command that was asked for before it is answered OK. One that must leave a trace (at most once,
or the run executes alone) has its own start among these commands.
"""

from __future__ import annotations

from treadle.v1.common_pb2 import FAILURE_KIND_CANCELLED, FAILURE_KIND_STEP_TIMED_OUT, Failure, Payload
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.worker_service_pb2 import (
    REPORT_KIND_CANCELLED,
    REPORT_KIND_COMPLETED,
    REPORT_KIND_FAILED,
    REPORT_KIND_LOST,
    Checkpoint,
    Command,
    StartLocalStep,
)

from ..loop.port import LocalCall
from .port import CancelLocal, Report
from .shared import Shared

__all__ = ("Local", "LocalSteps", "announcement")


def announcement(call: LocalCall) -> Command:
    """Return what commits that a try starts, before it does."""
    start = StartLocalStep(
        name=call.name,
        try_number=call.try_number,
        at_most_once=call.at_most_once,
        tries_before=call.tries_before,
    )
    return Command(command_id=call.command_id, digest=call.digest, start_local_step=start)


class Local:
    """One try of a local step.

    Attributes:
        barrier: It starts when so many commands of its run were answered OK.
        announced: Its start is one of these commands.
        running: `may_start_local` said yes.
        cancelled: Nobody waits for its result any more.
        awaited: But the code waits for its end.
    """

    __slots__ = ("announced", "awaited", "barrier", "call", "cancelled", "running")

    def __init__(self, call: LocalCall, barrier: int, announced: bool) -> None:
        self.call = call
        self.barrier = barrier
        self.announced = announced
        self.running = False
        self.cancelled = False
        self.awaited = False


class LocalSteps:
    """The local steps of one run, by command id.

    Attributes:
        waiting: Not yet offered, in the order of asking.
        active: Offered to the shell, or running.
    """

    __slots__ = ("_attempts", "_reported", "_results", "_shared", "_token", "active", "waiting")

    def __init__(self, shared: Shared, owner_token: bytes) -> None:
        self._shared = shared
        self._token = owner_token
        self.waiting: dict[str, Local] = {}
        self.active: dict[str, Local] = {}
        self._results: dict[str, Payload] = {}  # brought by a checkpoint, event not fed yet
        self._reported: dict[str, int] = {}  # try of a checkpoint whose event was not fed yet
        self._attempts: dict[str, int] = {}  # of announced starts

    def __bool__(self) -> bool:
        return bool(self.waiting or self.active)

    def known(self, call: LocalCall) -> bool:
        """Whether this very try was asked for before and its outcome has not been fed."""
        local = self.waiting.get(call.command_id) or self.active.get(call.command_id)
        if local is not None:
            return local.call.try_number == call.try_number
        return self._reported.get(call.command_id) == call.try_number

    def ask(self, call: LocalCall, barrier: int, announced: bool) -> None:
        self.waiting[call.command_id] = Local(call, barrier, announced)

    def startable(self, answered: int) -> list[Local]:
        """Those that everything before was answered for; when draining, only those whose start has left its trace."""
        draining = self._shared.draining
        return [
            local for local in self.waiting.values() if local.barrier <= answered and (local.announced or not draining)
        ]

    def offered(self, local: Local) -> int:
        """It is offered to the shell. Returns the number of its attempt."""
        del self.waiting[local.call.command_id]
        self.active[local.call.command_id] = local
        return self._attempts.get(local.call.command_id, local.call.try_number)

    def start(self, command_id: str) -> bool:
        local = self.active.get(command_id)
        if local is None or local.running or local.cancelled:
            return False
        local.running = True
        return True

    def refused(self, command_id: str) -> None:
        """It was not started: it waits again, unless nobody wants it."""
        local = self.active.get(command_id)
        if local is not None and not local.running:
            del self.active[command_id]
            if not local.cancelled:
                self.waiting[command_id] = local

    def unwanted(self, command_id: str) -> None:
        """Its task was cancelled."""
        if self.waiting.pop(command_id, None) is None:
            self._cut(command_id, "cancelled")

    def cancel_all(self, reason: str) -> None:
        """The run is over here: what runs is cut off, what was offered will not start, no end is reported."""
        self.waiting.clear()
        for command_id in tuple(self.active):
            self._cut(command_id, reason)
        self.active.clear()

    def drain_over(self) -> None:
        """What was only offered will not start; what runs is cut off, and its end is still reported."""
        self.waiting.clear()
        for command_id, local in tuple(self.active.items()):
            self._shared.actions.append(CancelLocal(self._token, command_id, "drain"))
            if not local.running:
                del self.active[command_id]

    def _cut(self, command_id: str, reason: str) -> None:
        local = self.active.get(command_id)
        if local is None or local.cancelled:
            return
        self._shared.actions.append(CancelLocal(self._token, command_id, reason))
        if local.running:
            local.cancelled = True
        else:
            del self.active[command_id]

    def ended(self, command_id: str, report: Report) -> Checkpoint | None:
        """A try ended. Returns what is to be recorded; None: nothing (cut off, or not started)."""
        local = self.active.get(command_id)
        if local is None:
            return None
        kind = report.kind
        if kind in ("released", "lost") and not (local.running and local.call.at_most_once):
            if self._shared.drain_over or local.cancelled:
                del self.active[command_id]
            else:
                local.running = False
                self.refused(command_id)
            return None
        del self.active[command_id]
        if local.cancelled and kind in ("failed", "cancelled"):
            # Nobody waits for its result, and a retry would be of no use.
            return self._cancelled(local.call, report.duration_ms) if local.awaited else None
        return self._checkpoint(local.call, report)

    def end(self, call: LocalCall) -> Checkpoint | None:
        """It is to end, and its end to be recorded. Returns that, if nothing of it runs that will tell."""
        command_id = call.command_id
        if command_id in self._reported:
            return None  # a try has ended; if the step goes on after it, the code asks again
        local = self.active.get(command_id)
        if local is not None and local.running:
            self._cut(command_id, "cancelled")
            local.awaited = True
            return None
        if self.waiting.pop(command_id, None) is None and local is not None:
            self._cut(command_id, "cancelled")
        return self._cancelled(call)

    def _cancelled(self, call: LocalCall, duration_ms: int = 0) -> Checkpoint:
        self._reported[call.command_id] = call.try_number
        return Checkpoint(
            command_id=call.command_id,
            digest=call.digest,
            name=call.name,
            try_number=call.try_number,
            kind=REPORT_KIND_CANCELLED,
            duration_ms=duration_ms,
        )

    def out_of_time(self, local: Local) -> Checkpoint:
        """Its total timeout is over, so it does not start. Returns what is to be recorded."""
        del self.waiting[local.call.command_id]
        failure = Failure(kind=FAILURE_KIND_STEP_TIMED_OUT, type="StepTimedOut")
        return self._checkpoint(local.call, Report("failed", failure=failure))

    def _checkpoint(self, call: LocalCall, report: Report) -> Checkpoint:
        command_id = call.command_id
        self._reported[command_id] = call.try_number
        if report.kind == "completed":
            result = self._results[command_id] = report.result if report.result is not None else Payload()
            return Checkpoint(
                command_id=command_id,
                digest=call.digest,
                name=call.name,
                try_number=call.try_number,
                kind=REPORT_KIND_COMPLETED,
                result=report.sealed if report.sealed is not None else result,
                duration_ms=report.duration_ms,
            )
        checkpoint = Checkpoint(
            command_id=command_id,
            digest=call.digest,
            name=call.name,
            try_number=call.try_number,
            tries_before=call.tries_before,
            duration_ms=report.duration_ms,
        )
        if report.kind in ("failed", "cancelled"):  # cancelled by nobody here: a failure like any other
            checkpoint.kind = REPORT_KIND_FAILED
            checkpoint.failure.CopyFrom(report.failure or Failure(kind=FAILURE_KIND_CANCELLED))
            checkpoint.retry_after_ms = report.retry_after_ms
            checkpoint.retry.CopyFrom(call.retry)
            if report.progress is not None:
                checkpoint.progress.CopyFrom(report.progress)
            if call.deadline_ms:
                checkpoint.deadline_ms, checkpoint.total_timeout_ms = call.deadline_ms, call.total_timeout_ms
        else:
            checkpoint.kind = REPORT_KIND_LOST  # A9
        return checkpoint

    def result(self, command_id: str) -> Payload:
        """The result of a checkpoint whose event was not fed yet, as the code will see it."""
        return self._results[command_id]

    def put_back(self, event: HistoryEvent) -> bool:
        """Put the result that this worker reported into its event; False: it is not here."""
        completed = event.step_completed
        result = self._results.get(completed.command_id)
        if result is None:
            return False
        completed.result.CopyFrom(result)
        return True

    def saw(self, event: HistoryEvent) -> None:
        """An event was fed: forget what it settles."""
        kind = event.WhichOneof("kind")
        if kind == "step_completed":
            command_id = event.step_completed.command_id
        elif kind == "attempt_started":
            if event.attempt_started.local:
                self._attempts[event.attempt_started.command_id] = event.attempt_started.attempt
            return
        elif kind == "step_failed":
            command_id = event.step_failed.command_id
        elif kind == "step_cancelled":
            command_id = event.step_cancelled.command_id
        elif kind == "attempt_failed" and event.attempt_failed.local:
            command_id = event.attempt_failed.command_id
        else:
            return
        self._results.pop(command_id, None)
        self._reported.pop(command_id, None)
        self._attempts.pop(command_id, None)
        if self.waiting.pop(command_id, None) is None and command_id in self.active:
            self._cut(command_id, "settled")
            self.active.pop(command_id, None)
