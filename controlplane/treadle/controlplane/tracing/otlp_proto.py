"""Spans as a request of OTLP over gRPC, byte for byte what protobuf would write. What all spans of a run have is made once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import Final

from treadle.controlplane.tracing import attributes as a
from treadle.controlplane.tracing.span_data import Shared, SpanData, SpanLink, run_attributes
from treadle.protocol import otlp_wire as wire

__all__ = ("encoded", "request_of")

_KINDS: Final = {"internal": 1, "producer": 4}
_ENDS: Final = {name: wire.status(code) for name, code in {"unset": 0, "ok": 1, "error": 2}.items()}
_ERROR: Final = 2
_SCOPE: Final = wire.scope(*a.SCOPE)


def encoded(spans: Sequence[SpanData]) -> list[bytes]:
    """Return spans of one run as entries of requests."""
    if not spans:
        return []
    facts, workflow = spans[0].facts, spans[0].workflow
    common = wire.attributes(run_attributes(facts, workflow))
    head, parent = wire.ids(bytes.fromhex(facts.trace_id), facts.anchor)
    return [_span(span, head, b"" if span.id == facts.anchor else parent, common) for span in spans]


def _span(span: SpanData, head: bytes, parent: bytes, common: bytes) -> bytes:
    front = (head, span.id, parent, wire.name_and_kind(span.name, _KINDS[span.kind]))
    back = [common, _shared(span.shared), wire.attributes(span.own)]
    if span.events or span.links:
        back += [wire.event(event.name, event.time_ns, event.attributes) for event in span.events]
        back += map(_link, span.links)
    back.append(wire.status(_ERROR, span.description) if span.description else _ENDS[span.status])
    return wire.span(front, span.start_ns, span.end_ns, back)


@lru_cache(maxsize=2048)
def _shared(shared: Shared) -> bytes:
    return wire.attributes(shared.values)


def _link(link: SpanLink) -> bytes:
    to = bytes.fromhex(link.trace_id), bytes.fromhex(link.span_id)
    return wire.link(*to, wire.link_attributes(link.attributes), wire.REMOTE if link.remote else wire.LOCAL)


def request_of(entries: Iterable[tuple[str, bytes]]) -> bytes:
    """Return the request that exports spans: each its namespace, and encoded. Those of one namespace share a resource."""
    namespaces: dict[str, list[bytes]] = {}
    for namespace, span in entries:
        namespaces.setdefault(namespace, []).append(span)
    return wire.request((_resource(namespace), _SCOPE, spans) for namespace, spans in namespaces.items())


@cache
def _resource(namespace: str) -> bytes:
    return wire.resource(a.resource_of(namespace))
