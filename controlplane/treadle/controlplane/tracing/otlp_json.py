"""Spans as an OTLP JSON document, which trace UIs open as a file. The same spans as over gRPC, and no SDK is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from treadle.controlplane.tracing import attributes as a
from treadle.controlplane.tracing.span_data import Attributes, SpanData, SpanEvent, SpanLink

__all__ = ("otlp_json",)

_KINDS: Final = {"internal": 1, "producer": 4}  # OTLP JSON has numbers for enums
_STATUS: Final = {"ok": 1, "error": 2}
_LOCAL, _REMOTE = 0x100, 0x300  # flags: it is known whether the context came from another process, and it did


def otlp_json(spans: Sequence[SpanData]) -> dict[str, Any]:
    """Return the document of spans of one namespace: ids in hex digits, as OTLP says, and 64-bit numbers as strings."""
    if not spans:
        return {"resourceSpans": []}
    resource = a.resource_of(spans[0].namespace)
    scope = {"scope": {"name": a.SCOPE[0], "version": a.SCOPE[1]}, "spans": [_span(span) for span in spans]}
    return {"resourceSpans": [{"resource": {"attributes": _attributes(resource)}, "scopeSpans": [scope]}]}


def _span(span: SpanData) -> dict[str, Any]:
    found: dict[str, Any] = {"traceId": span.trace_id, "spanId": span.span_id}
    if span.parent_id:
        found["parentSpanId"] = span.parent_id
    found |= {
        "name": span.name,
        "kind": _KINDS[span.kind],
        "startTimeUnixNano": str(span.start_ns),
        "endTimeUnixNano": str(span.end_ns),
        "attributes": _attributes(span.attributes),
        "status": {},
        "flags": _LOCAL,
    }
    if span.events:
        found["events"] = [_event(event) for event in span.events]
    if span.links:
        found["links"] = [_link(link) for link in span.links]
    if span.status != "unset":
        found["status"] = {"code": _STATUS[span.status]}
        if span.description:
            found["status"]["message"] = span.description
    return found


def _event(event: SpanEvent) -> dict[str, Any]:
    return {"timeUnixNano": str(event.time_ns), "name": event.name, "attributes": _attributes(event.attributes)}


def _link(link: SpanLink) -> dict[str, Any]:
    return {
        "traceId": link.trace_id,
        "spanId": link.span_id,
        "attributes": _attributes(link.attributes),
        "flags": _REMOTE if link.remote else _LOCAL,
    }


def _attributes(values: Attributes) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: str | int | bool) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    return {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}
