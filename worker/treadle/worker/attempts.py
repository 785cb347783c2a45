"""What runs in this worker: attempts that the core wants started, cut off, and reported back to it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Final

from treadle.protocol.topology import queue_of
from treadle.worker.app import Registry
from treadle.worker.clock import monotonic_ms
from treadle.worker.core.port import Attempt, Report, StartAttempt, StartLocal, WorkerCorePort
from treadle.worker.current import LazyInfo
from treadle.worker.executors import Call, Executors, Running
from treadle.worker.spans import SpanFacts

__all__ = ("Attempts",)

SHORT_MS: Final = 100
"""Pool steps are short when their median is below; deliveries are then prefetched for twice the slots."""

_LOOK_BACK: Final = 31


class Attempts:
    """Everything that runs, by token (pool steps) or owner token and command (local steps).

    Args:
        core: Told every end.
        registry: The steps.
        executors: What runs them.
        changed: Called after the core was told something.
        namespace, pool, worker_id: Of the worker.
        broker: (host, port) of RabbitMQ, where deliveries come from; None on the session lane.
    """

    def __init__(
        self,
        core: WorkerCorePort,
        registry: Registry,
        executors: Executors,
        changed: Callable[[], None],
        *,
        namespace: str,
        pool: str,
        worker_id: str,
        broker: tuple[str, int] | None = None,
    ) -> None:
        self._core = core
        self._steps = registry.steps
        self._executors = executors
        self._changed = changed
        self._namespace = namespace
        self._pool = pool
        self._worker_id = worker_id
        self._broker = broker
        self._facts = SpanFacts(pool=pool, worker_id=worker_id)
        self._pool_steps: dict[bytes, Running] = {}
        self._local_steps: dict[tuple[bytes, str], Running] = {}
        self._said = self._progressed  # one bound method for all
        self._durations: deque[int] = deque(maxlen=_LOOK_BACK)

    @property
    def short(self) -> bool:
        """Whether pool steps are short here, as far as is known."""
        return len(self._durations) >= 5 and median(self._durations) < SHORT_MS

    def start(self, action: StartAttempt) -> None:
        """Start an attempt of a pool step."""
        attempt = action.attempt
        job, token = attempt.job, attempt.token
        name = job.name
        info = LazyInfo(
            job.run_id,
            job.incarnation,
            name,
            attempt.number,
            self._namespace,
            job.command_id,
            job.try_number,
            attempt.traceparent,
            job.redone,
        )

        def ended(report: Report | None) -> None:
            self._pool_steps.pop(token, None)
            if report is not None and report.kind == "completed":
                self._durations.append(report.duration_ms)
            self._core.attempt_ended(token, report or Report("released"), monotonic_ms())
            self._changed()

        values = self._executors.values
        if values is not None and attempt.progress is not None:
            attempt.progress = values.open_progress(attempt.progress, info)
        call = Call(
            step=self._steps[name],
            payload=job.input,
            info=info,
            may_start=lambda: self._core.may_start(token, monotonic_ms()),
            ended=ended,
            timeout_ms=job.timeout_ms,
            left_ms=attempt.left_ms,
            alone=attempt.alone,
            facts=self._facts_of(attempt) if self._executors.spans.enabled else self._facts,
            attempt=attempt,
            heartbeat_ms=job.heartbeat_ms,
            progress=attempt.progress,
            said=self._said,
        )
        running = self._executors.start(call)
        if not running.done:
            self._pool_steps[token] = running

    def start_local(self, action: StartLocal) -> None:
        """Start a try of a local step."""
        asked, token = action.call, action.owner_token
        key = (token, asked.command_id)
        info = LazyInfo(
            action.run_id,
            action.incarnation,
            asked.name,
            action.attempt,
            self._namespace,
            asked.command_id,
            asked.try_number,
            None,
            asked.redone,
        )

        running: Running | None = None
        values, given = self._executors.values, asked.progress
        if values is not None and given is not None:
            given = values.open_progress(given, info)

        def ended(report: Report | None) -> None:
            nonlocal running
            if running is not None and self._local_steps.get(key) is running:
                del self._local_steps[key]
            running = None  # what refers to itself is left to the garbage collector
            if values is not None and report is not None and report.progress is not None:
                report = replace(report, progress=values.seal_progress(report.progress.data, info))
            if report is None:
                self._core.local_refused(token, asked.command_id, monotonic_ms())
            else:
                self._core.local_ended(token, asked.command_id, report, monotonic_ms())
            self._changed()

        call = Call(
            step=asked.step,
            payload=asked.input,
            info=info,
            may_start=lambda: self._core.may_start_local(token, asked.command_id, monotonic_ms()),
            ended=ended,
            timeout_ms=asked.timeout_ms,
            left_ms=action.left_ms,
            alone=action.alone,
            local=True,
            facts=self._facts,
            heartbeat_ms=asked.step.heartbeat_ms,
            progress=given,
        )
        begun = self._executors.start(call)
        if not begun.done:
            running = self._local_steps[key] = begun

    def _progressed(self, call: Call, data: bytes | None) -> None:
        if call.attempt is not None:
            values = self._executors.values
            said = data if values is None or data is None else values.seal_progress(data, call.info)
            self._core.progressed(call.attempt.token, call.attempt.number, said)
        self._changed()

    def cancel(self, token: bytes, reason: str) -> None:
        """Cut off an attempt of a pool step."""
        running = self._pool_steps.get(token)
        if running is not None:
            running.cancel(reason)

    def cancel_local(self, owner_token: bytes, command_id: str, reason: str) -> None:
        """Cut off a local step."""
        running = self._local_steps.get((owner_token, command_id))
        if running is not None:
            running.cancel(reason)

    def _facts_of(self, attempt: Attempt) -> SpanFacts:
        job = attempt.job
        return SpanFacts(
            pool=self._pool,
            worker_id=self._worker_id,
            dispatch_id=job.dispatch_id,
            queue=queue_of(job).name,
            broker=None if attempt.pushed else self._broker,
        )
