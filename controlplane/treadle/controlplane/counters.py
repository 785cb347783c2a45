"""Counts what commits decided: attempts and runs by outcome, losses, refusals. Reads events; changes nothing."""

from __future__ import annotations

from functools import cache
from typing import Final

from treadle.controlplane.machine import Decision
from treadle.controlplane.telemetry import Metrics
from treadle.protocol.ids import RunKey
from treadle.v1.worker_service_pb2 import ANSWER_LEASE_LOST, ANSWER_SETTLED, ANSWER_UNKNOWN, ReportAnswer

__all__ = ("DecisionCounter",)

_ATTEMPTS: Final = {
    "attempt_failed": "failure",
    "step_failed": "failure",
    "attempt_lost": "lost",
    "attempt_released": "released",
    "step_cancelled": "cancelled",
}
_LOST: Final = frozenset(("attempt_lost", "run_owner_lost"))
_RUNS: Final = {
    "run_completed": "success",
    "run_failed": "failure",
    "run_cancelled": "cancellation",
    "run_terminated": "termination",
}
_COUNTED: Final = _LOST.union(_ATTEMPTS, _RUNS)
_REFUSED: Final = {ANSWER_SETTLED: "settled", ANSWER_LEASE_LOST: "lease_lost", ANSWER_UNKNOWN: "unknown"}


class DecisionCounter:
    """Called once for each commit, when somebody reads the metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._completed = cache(
            lambda namespace: (
                metrics.counter("treadle.attempts", namespace=namespace, outcome="success"),
                metrics.histogram("treadle.attempt.duration", namespace=namespace),
            )
        )

    def __call__(self, run: RunKey, decision: Decision) -> None:
        namespace = run.namespace
        for event in decision.events:
            kind = event.WhichOneof("kind")
            if kind == "step_completed":
                attempts, durations = self._completed(namespace)
                attempts.add()
                durations.add(event.step_completed.duration_ms / 1000)
            elif kind in _COUNTED:
                self._count(namespace, kind, decision)
        for reply in decision.replies:
            if isinstance(reply, ReportAnswer) and reply.answer in _REFUSED:
                self._metrics.count("treadle.result.rejected", namespace=namespace, reason=_REFUSED[reply.answer])
        if decision.missed:
            self._metrics.count("treadle.schedule.missed", decision.missed, namespace=namespace)
        if decision.unknown:
            self._metrics.count("treadle.job.aside", len(decision.unknown), namespace=namespace, kind="unknown")

    def _count(self, namespace: str, kind: str, decision: Decision) -> None:
        metrics = self._metrics
        if kind in _ATTEMPTS:
            metrics.count("treadle.attempts", namespace=namespace, outcome=_ATTEMPTS[kind])
        if kind in _LOST:
            metrics.count("treadle.lease.expired", namespace=namespace)
        if kind in _RUNS and decision.head is not None:
            workflow = decision.head.workflow
            metrics.count("treadle.runs", namespace=namespace, workflow=workflow, outcome=_RUNS[kind])
            lived = (decision.head.closed_ms - decision.head.created_ms) / 1000
            metrics.observe("treadle.run.duration", lived, namespace=namespace, workflow=workflow)
