"""The SDK's exporter of metrics, which adds the histograms of this process: the SDK's own cost ten times as much a value.

Only for processes that export: it needs the SDK.
"""

from __future__ import annotations

import time
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import Histogram as HistogramKind
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExportResult,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from treadle.controlplane.telemetry import BOUNDS, METRICS, SCOPE, Labels, Metrics, Summary

__all__ = ("MetricsExporter",)

_NEVER: Final = Summary()


class MetricsExporter(OTLPMetricExporter):
    """The exporter; its settings are the `OTEL_*` variables, temporality included. Buckets are `telemetry.BOUNDS`.

    Args:
        metrics: What has the histograms.
    """

    def __init__(self, metrics: Metrics) -> None:
        super().__init__()
        self._ours = metrics
        self._since = time.time_ns()
        preferred = self._preferred_temporality or {}
        self._temporality = preferred.get(HistogramKind, AggregationTemporality.CUMULATIVE)
        self._told: dict[tuple[str, Labels], Summary] = {}

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        first, *rest = metrics_data.resource_metrics
        ours = ScopeMetrics(InstrumentationScope(SCOPE), self._histograms(), "")
        whole = ResourceMetrics(first.resource, [*first.scope_metrics, ours], first.schema_url)
        return super().export(MetricsData([whole, *rest]), timeout_millis, **kwargs)

    def _histograms(self) -> list[Metric]:
        now = time.time_ns()
        found: list[Metric] = []
        for name, (kind, unit, text) in METRICS.items():
            if kind == "histogram":
                points = [self._point(name, labels, seen, now) for labels, seen in self._ours.summaries(name)]
                if points:
                    found.append(Metric(name, text, unit, Histogram(points, self._temporality)))
        if self._temporality is AggregationTemporality.DELTA:
            self._since = now
        return found

    def _point(self, name: str, labels: Labels, seen: Summary, now: int) -> HistogramDataPoint:
        total, buckets = seen.total, list(seen.buckets)
        ends: Any = (seen.smallest, seen.largest)
        if self._temporality is AggregationTemporality.DELTA:
            ends = (None, None)  # those of this interval are not known
            before = self._told.get((name, labels), _NEVER)
            self._told[name, labels] = Summary(0, total, buckets=buckets)
            total -= before.total
            buckets = [new - old for new, old in zip(buckets, before.buckets, strict=True)]
        return HistogramDataPoint(dict(labels), self._since, now, sum(buckets), total, buckets, BOUNDS, *ends)
