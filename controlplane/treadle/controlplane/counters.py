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
    "step_completed": "success",
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
_REFUSED: Final = {ANSWER_SETTLED: "settled", ANSWER_LEASE_LOST: "lease_lost", ANSWER_UNKNOWN: "unknown"}


class DecisionCounter:
    """Called once for each commit, when somebody reads the metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._attempts = cache(
            lambda namespace, kind: metrics.counter("treadle.attempts", namespace=namespace, outcome=_ATTEMPTS[kind])
        )
        self._durations = cache(lambda namespace: metrics.histogram("treadle.attempt.duration", namespace=namespace))

    def __call__(self, run: RunKey, decision: Decision) -> None:
        metrics, namespace = self._metrics, run.namespace
        for event in decision.events:
            kind = event.WhichOneof("kind") or ""
            if kind in _ATTEMPTS:
                self._attempts(namespace, kind).add()
            if kind in _LOST:
                metrics.count("treadle.lease.expired", namespace=namespace)
            if kind == "step_completed":
                self._durations(namespace).add(event.step_completed.duration_ms / 1000)
            if kind in _RUNS and decision.head is not None:
                workflow = decision.head.workflow
                metrics.count("treadle.runs", namespace=namespace, workflow=workflow, outcome=_RUNS[kind])
                lived = (decision.head.closed_ms - decision.head.created_ms) / 1000
                metrics.observe("treadle.run.duration", lived, namespace=namespace, workflow=workflow)
        for reply in decision.replies:
            if isinstance(reply, ReportAnswer) and reply.answer in _REFUSED:
                metrics.count("treadle.result.rejected", namespace=namespace, reason=_REFUSED[reply.answer])
        if decision.unknown:
            metrics.count("treadle.job.aside", len(decision.unknown), namespace=namespace, kind="unknown")
