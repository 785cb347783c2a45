"""A finished span as data: what the projection makes and the exporter sends."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from treadle.controlplane.tracing import attributes as a
from treadle.protocol.ids import span_id, trace_id
from treadle.v1.common_pb2 import Failure, TraceContext

__all__ = (
    "Attributes",
    "HeadFacts",
    "SpanData",
    "SpanEvent",
    "SpanLink",
    "Status",
    "caller_link",
    "description_of",
    "exception_event",
)

Attributes = Mapping[str, str | int | bool]
Status = Literal["unset", "ok", "error"]

_MESSAGE_CHARS: Final = 1_024
_TRACEBACK_CHARS: Final = 4_096
_DESCRIPTION_CHARS: Final = 200
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


@dataclass(frozen=True, slots=True)
class SpanLink:
    """A link to a span. Ids are hex digits; `flags` and `state` are those of its `traceparent` and `tracestate`."""

    trace_id: str
    span_id: str
    attributes: Attributes
    flags: int = 1
    state: str = ""

    @property
    def remote(self) -> bool:
        """Whether its context came from another process."""
        return self.attributes.get(a.LINK_TYPE) == "started_by"


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """Something at one moment (ns since 1970) of a span."""

    name: str
    time_ns: int
    attributes: Attributes


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanData:
    """A finished span.

    Attributes:
        namespace: Namespace of the run.
        position: Position of the event that finished it.
        path: What its id is hashed from.
        name, kind: As everywhere in OpenTelemetry.
        trace_id, span_id, parent_id: Hex digits; "" as parent: it is the root.
        start_ns, end_ns: Nanoseconds since 1970.
        status, description: How it ended; a description only with "error".
    """

    namespace: str
    position: int
    path: str
    name: str
    kind: Literal["internal", "producer"]
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: Attributes
    links: tuple[SpanLink, ...] = ()
    events: tuple[SpanEvent, ...] = ()
    status: Status = "unset"
    description: str = ""


@dataclass(frozen=True, slots=True)
class HeadFacts:
    """What identifies a run and never changes in its life."""

    namespace: str
    run_id: str
    incarnation: int
    trace_id: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "trace_id", trace_id(self.namespace, self.run_id, self.incarnation))

    def span_id(self, path: str) -> str:
        """Return the id of a span of this run."""
        return span_id(self.namespace, self.run_id, self.incarnation, path)


def caller_link(caller: TraceContext, attributes: Attributes) -> SpanLink | None:
    """Return a link to who started a run; None when that was not traced, or named itself in no way W3C knows."""
    match = _TRACEPARENT.fullmatch(caller.traceparent)
    if match is None or caller.traceparent.startswith("ff") or not int(match[1], 16) or not int(match[2], 16):
        return None
    return SpanLink(match[1], match[2], attributes, int(match[3], 16), caller.tracestate)


def description_of(failure: Failure) -> str:
    """Return a failure in one short line."""
    return f"{failure.type}: {failure.message}"[:_DESCRIPTION_CHARS]


def exception_event(failure: Failure, time_ms: int) -> SpanEvent:
    """Return a failure as the event by which UIs know it; the end of a long traceback is what is kept."""
    values: dict[str, str | int | bool] = {
        a.EXCEPTION_TYPE: failure.type or a.OTHER_ERROR,
        a.EXCEPTION_MESSAGE: failure.message[:_MESSAGE_CHARS],
    }
    if failure.traceback:
        values[a.EXCEPTION_STACKTRACE] = failure.traceback[-_TRACEBACK_CHARS:]
    return SpanEvent(a.EXCEPTION, time_ms * 1_000_000, values)
