"""Sends finished spans to an OTLP gRPC receiver, and says whether it took them.

The SDK's exporter is called directly: a span processor would keep spans in a queue that is lost with the process and drops
what does not fit. It blocks, so it has a thread of its own. Whatever could differ between two exports of a span, or between
two replicas, is left out: the resource and the scope are constants.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Final, Protocol

import structlog
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from treadle.controlplane.tracing import attributes as a
from treadle.controlplane.tracing.span_data import SpanData, SpanLink
from treadle.protocol.errors import ConfigError

__all__ = ("SpanExporter", "SpanSink", "exporter_of", "readable")

_log = structlog.stdlib.get_logger(__name__)

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_SCOPE: Final = InstrumentationScope(*a.SCOPE)
_KINDS: Final = {"internal": SpanKind.INTERNAL, "producer": SpanKind.PRODUCER}
_STATUS: Final = {"unset": StatusCode.UNSET, "ok": StatusCode.OK, "error": StatusCode.ERROR}


class SpanSink(Protocol):
    """Where spans go."""

    async def export(self, spans: Sequence[SpanData]) -> bool:
        """Send spans; True once all of them were taken. Raises nothing."""
        ...

    async def close(self) -> None:
        """Give up what is being sent, and end. May be called twice."""
        ...


class SpanExporter:
    """The SpanSink over OTLP gRPC. All settings come from the `OTEL_EXPORTER_OTLP_*` variables unless `endpoint` is given.

    Args:
        endpoint: "http://host:port", or "https://…" for TLS.
        timeout_s: After so long an export has failed; default: that of the variables, else 10.
    """

    def __init__(self, endpoint: str | None = None, *, timeout_s: float | None = None) -> None:
        self._exporter = OTLPSpanExporter(endpoint=endpoint, timeout=timeout_s)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="treadle-spans")
        self._closed = False

    async def export(self, spans: Sequence[SpanData]) -> bool:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._export, [readable(span) for span in spans])

    def _export(self, spans: list[ReadableSpan]) -> bool:
        try:
            return self._exporter.export(spans) is SpanExportResult.SUCCESS
        except Exception as error:  # the client library lets through what it did not foresee; the spans are kept
            _log.warning("span_export_failed", error=f"{type(error).__name__}: {error}", spans=len(spans))
            return False

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._exporter.shutdown()  # also cancels the call that the thread may be in
        await asyncio.to_thread(self._thread.shutdown)


def exporter_of(environ: Mapping[str, str]) -> SpanExporter | None:
    """Return the exporter that the `OTEL_*` variables ask for; None when they name no receiver, or switch traces off.

    Args:
        environ: The environment of this process: the exporter reads the rest of its settings from there.

    Raises:
        ConfigError: They ask for another protocol than gRPC.
    """
    off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
    if off or not any(environ.get(name) for name in _ENDPOINTS):
        return None
    name = next((name for name in _PROTOCOLS if environ.get(name)), None)
    if name is not None and environ[name] != "grpc":
        raise ConfigError(
            f"{name}={environ[name]!r}: traces of runs are exported over OTLP gRPC only; "
            "set it to 'grpc' and name the receiver's gRPC port (usually 4317)"
        )
    return SpanExporter()


def readable(span: SpanData) -> ReadableSpan:
    """Return the span in the form that the SDK's exporters take."""
    context = _context(span.trace_id, span.span_id)
    return ReadableSpan(
        name=span.name,
        context=context,
        parent=_context(span.trace_id, span.parent_id) if span.parent_id else None,
        resource=_resource(span.namespace),
        attributes=dict(span.attributes),
        events=[Event(event.name, dict(event.attributes), event.time_ns) for event in span.events],
        links=[_link(link) for link in span.links],
        kind=_KINDS[span.kind],
        status=Status(_STATUS[span.status], span.description or None),
        start_time=span.start_ns,
        end_time=span.end_ns,
        instrumentation_scope=_SCOPE,
    )


def _context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=_SAMPLED)


def _link(link: SpanLink) -> Link:
    context = SpanContext(
        int(link.trace_id, 16),
        int(link.span_id, 16),
        is_remote=link.remote,
        trace_flags=TraceFlags(link.flags),
        trace_state=TraceState.from_header([link.state]) if link.state else None,
    )
    return Link(context, dict(link.attributes))


@cache
def _resource(namespace: str) -> Resource:
    return Resource(a.resource_of(namespace))
