"""A finished span as data: what the projection makes and the exporter sends."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Literal

import msgspec

from treadle.controlplane.tracing import attributes as a
from treadle.protocol.ids import span_ids, trace_id
from treadle.v1.common_pb2 import Failure, TraceContext

__all__ = (
    "NOTHING",
    "Attributes",
    "HeadFacts",
    "Kind",
    "Shared",
    "SpanData",
    "SpanEvent",
    "SpanLink",
    "Status",
    "attempt_values",
    "caller_link",
    "description_of",
    "exception_event",
    "run_attributes",
)

Attributes = Mapping[str, str | int | bool]
Kind = Literal["internal", "producer"]
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


@dataclass(frozen=True, slots=True)
class HeadFacts:
    """What identifies a run and never changes in its life. `anchor` is the id of the root of its trace."""

    namespace: str
    run_id: str
    incarnation: int
    trace_id: str = field(init=False, compare=False)
    anchor: bytes = field(init=False, compare=False)
    span_id: Callable[[str], bytes] = field(init=False, compare=False, repr=False)
    """Returns the id of the span with a path."""

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "trace_id", trace_id(self.namespace, self.run_id, self.incarnation))
        put(self, "span_id", span_ids(self.namespace, self.run_id, self.incarnation))
        put(self, "anchor", self.span_id("anchor"))


@dataclass(frozen=True, slots=True, eq=False)
class Shared:
    """Attributes that many spans have: one object, so that it is encoded once."""

    values: Attributes


NOTHING: Final = Shared({})


class SpanData(msgspec.Struct, frozen=True, gc=False):
    """A finished span.

    Attributes:
        facts, workflow: Of the run.
        position: Position of the event that finished it.
        path: What its id is hashed from.
        name, kind: As everywhere in OpenTelemetry.
        id: Its id.
        start_ns, end_ns: Nanoseconds since 1970.
        own: Attributes beside those that all spans of the run have, and `shared`.
        status, description: How it ended; a description only with "error".
    """

    facts: HeadFacts
    workflow: str
    position: int
    path: str
    name: str
    kind: Kind
    id: bytes
    start_ns: int
    end_ns: int
    own: Attributes
    shared: Shared = NOTHING
    links: tuple[SpanLink, ...] = ()
    events: tuple[SpanEvent, ...] = ()
    status: Status = "unset"
    description: str = ""

    @property
    def namespace(self) -> str:
        """Namespace of the run."""
        return self.facts.namespace

    @property
    def trace_id(self) -> str:
        """Hex digits."""
        return self.facts.trace_id

    @property
    def span_id(self) -> str:
        """Hex digits."""
        return self.id.hex()

    @property
    def parent_id(self) -> str:
        """Hex digits; "": it is the root."""
        return "" if self.id == self.facts.anchor else self.facts.anchor.hex()

    @property
    def attributes(self) -> Attributes:
        """All of them."""
        return {**run_attributes(self.facts, self.workflow), **self.shared.values, **self.own}


def run_attributes(facts: HeadFacts, workflow: str) -> Attributes:
    """Return the attributes that all spans of a run have."""
    return {a.NAMESPACE: facts.namespace, a.RUN_ID: facts.run_id, a.WORKFLOW: workflow, a.SOURCE: "history"}


@lru_cache(maxsize=2048)
def attempt_values(
    name: str, pool: str, worker_id: str, number: int, outcome: str, error_type: str, final: bool
) -> Shared:
    """Return what spans of attempts say whichever step it is; "" as pool: a local one; `final`: the step ended so."""
    values: dict[str, str | int | bool] = {
        a.STEP_NAME: name,
        a.STEP_KIND: "task",
        a.ATTEMPT_NUMBER: number,
        a.ATTEMPT_OUTCOME: outcome,
    }
    if pool:
        values[a.POOL] = pool
    else:
        values[a.LOCAL] = True
    if worker_id:
        values[a.WORKER_ID] = worker_id
    if final:
        values[a.STEP_OUTCOME] = outcome
    if error_type:
        values[a.ERROR_TYPE] = error_type
    return Shared(values)


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
