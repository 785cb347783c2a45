"""Metrics and logs of this process. Configured once, by the composition root; everything else only counts and logs.

Metrics live in a small registry that can be read in the process, and go out over OTLP when `OTEL_EXPORTER_OTLP_ENDPOINT`
(or `..._METRICS_ENDPOINT`) is set. Labels name a namespace, workflow, step, pool, method or outcome; never a run.
"""

from __future__ import annotations

import logging
import sys
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Final, Literal

import structlog

from treadle.protocol.errors import ConfigError

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation
    from opentelemetry.sdk.metrics import MeterProvider

__all__ = ("BOUNDS", "METRICS", "SCOPE", "Counter", "Metrics", "Summary", "configure_logging", "otlp_provider")

SCOPE: Final = "treadle"
"""Name of the instrumentation scope."""

Kind = Literal["counter", "gauge", "histogram"]
Labels = tuple[tuple[str, str], ...]

METRICS: Final[Mapping[str, tuple[Kind, str, str]]] = {
    "treadle.pool.ready": ("gauge", "{job}", "Jobs that wait in the queues of a pool."),
    "treadle.pool.running": ("gauge", "{attempt}", "Steps that run in a pool."),
    "treadle.pool.slots": ("gauge", "{slot}", "Step slots of live workers."),
    "treadle.pool.slots_used": ("gauge", "{slot}", "Step slots in use."),
    "treadle.pool.workers": ("gauge", "{worker}", "Live workers."),
    "treadle.attempt.duration": ("histogram", "s", "How long user code of an attempt ran."),
    "treadle.run.duration": ("histogram", "s", "From start to close."),
    "treadle.attempts": ("counter", "{attempt}", "Attempts by outcome."),
    "treadle.runs": ("counter", "{run}", "Runs by outcome; started ones too."),
    "treadle.lease.expired": ("counter", "{lease}", "Holders found lost."),
    "treadle.result.rejected": ("counter", "{report}", "Reports that were refused: stale, unknown or too late."),
    "treadle.job.aside": ("counter", "{job}", "Jobs and reports kept aside: unknown or garbage."),
    "treadle.schedule.missed": ("counter", "{occurrence}", "Occurrences of schedules that nobody could start in time."),
    "treadle.commit.conflicts": ("gauge", "{commit}", "Commits decided again because the run had changed."),
    "treadle.outbox.size": ("gauge", "{entry}", "Entries in the outbox."),
    "treadle.projector.lag": ("gauge", "s", "How far the trace export is behind."),
    "treadle.eventloop.lag": ("gauge", "s", "Lag of the event loop."),
    "treadle.sessions": ("gauge", "{session}", "Open worker sessions of this replica."),
    "rpc.server.call.duration": ("histogram", "s", "gRPC calls by method and code."),
}
"""Name -> (kind, unit, description). A name that is not here cannot be counted."""


BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 86400)
"""Upper bounds of the buckets of histograms, in seconds; the last bucket has none."""


@dataclass(slots=True)
class Summary:
    """What a histogram has seen: how many values, their sum, the smallest and largest, and how many in each bucket."""

    count: int = 0
    total: float = 0.0
    smallest: float = inf
    largest: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.buckets[bisect_left(BOUNDS, value)] += 1
        if value > self.largest:
            self.largest = value
        if value < self.smallest:
            self.smallest = value


class Counter:
    """One series of a counter or gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def add(self, by: float = 1) -> None:
        self.value += by


class Metrics:
    """The registry. Cheap enough for every call; not thread-safe, but for reading."""

    def __init__(self) -> None:
        self._values: dict[str, dict[Labels, Counter]] = {}
        self._summaries: dict[str, dict[Labels, Summary]] = {}

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """Add to a counter."""
        self.counter(name, **labels).add(by)

    def counter(self, name: str, **labels: str) -> Counter:
        """Return a counter, for who adds often."""
        return self._series(name, "counter", labels)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._series(name, "gauge", labels).value = value

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add a value to a histogram."""
        self.histogram(name, **labels).add(value)

    def histogram(self, name: str, **labels: str) -> Summary:
        """Return where values of a histogram are added, for who adds many."""
        _check(name, "histogram")
        series = self._summaries.setdefault(name, {})
        key = tuple(sorted(labels.items()))
        found = series.get(key)
        if found is None:
            found = series[key] = Summary()
        return found

    def value(self, name: str, **labels: str) -> float:
        """Return a counter or gauge; 0 when it was never set."""
        found = self._values.get(name, {}).get(tuple(sorted(labels.items())))
        return 0 if found is None else found.value

    def summary(self, name: str, **labels: str) -> Summary:
        """Return what a histogram has seen."""
        return self._summaries.get(name, {}).get(tuple(sorted(labels.items())), Summary())

    def export(self, meter: Meter) -> None:
        """Make the counters and gauges in `meter`, which are read when it collects. (Histograms: `otlp_provider`.)"""
        for name, (kind, unit, text) in METRICS.items():
            if kind == "counter":
                meter.create_observable_counter(name, [_Reader(self, name)], unit, text)
            elif kind == "gauge":
                meter.create_observable_gauge(name, [_Reader(self, name)], unit, text)

    def series(self, name: str) -> list[tuple[Labels, float]]:
        """Return all values of a counter or gauge with their labels."""
        return [(labels, counter.value) for labels, counter in self._values.get(name, {}).items()]

    def summaries(self, name: str) -> list[tuple[Labels, Summary]]:
        """Return all that a histogram has seen with its labels."""
        return list(self._summaries.get(name, {}).items())

    def _series(self, name: str, kind: Kind, labels: Mapping[str, str]) -> Counter:
        _check(name, kind)
        series = self._values.setdefault(name, {})
        key = tuple(sorted(labels.items()))
        found = series.get(key)
        if found is None:
            found = series[key] = Counter()
        return found


class _Reader:
    def __init__(self, metrics: Metrics, name: str) -> None:
        self._metrics = metrics
        self._name = name

    def __call__(self, options: CallbackOptions) -> Iterable[Observation]:
        from opentelemetry.metrics import Observation

        return [Observation(value, dict(labels)) for labels, value in self._metrics.series(self._name)]


def _check(name: str, kind: Kind) -> None:
    known = METRICS.get(name)
    if known is None or known[0] != kind:
        raise ConfigError(f"no {kind} named {name!r}: add it to telemetry.METRICS")


def otlp_provider(environ: Mapping[str, str], replica_id: str, metrics: Metrics) -> MeterProvider | None:
    """Return a provider that exports `metrics` over OTLP gRPC every 10 s, or None when no endpoint is set.

    The exporter reads the other `OTEL_*` variables itself. The caller shuts the provider down.
    """
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
    off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_METRICS_EXPORTER") == "none"
    if off or not any(environ.get(name) for name in names):
        return None
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource

    from treadle.controlplane.metrics_exporter import MetricsExporter

    resource = Resource.create(
        {"service.name": environ.get("OTEL_SERVICE_NAME", "treadle-server"), "service.instance.id": replica_id}
    )
    reader = PeriodicExportingMetricReader(MetricsExporter(metrics), export_interval_millis=10_000)
    provider = MeterProvider([reader], resource=resource)
    metrics.export(provider.get_meter(SCOPE))
    return provider


def configure_logging(*, level: str = "info", human: bool = False) -> None:
    """Send structured logs to stderr: one JSON document a line, or coloured lines for people.

    Args:
        level: "debug", "info", "warning" or "error".
        human: True: for a terminal.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ConfigError(f"log level {level!r}: use debug, info, warning or error")
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if human
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for noisy in ("aio_pika", "aiormq", "asyncio", "grpc"):
        logging.getLogger(noisy).setLevel(max(number, logging.WARNING))
