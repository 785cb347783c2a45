"""Encodes the notes of steps that did not touch their span as spans of OTLP, and sends them from a thread.

They are encoded where the step ended: in the thread that sends them it took more CPU, and that thread held up the event loop.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

import structlog
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import INVALID_SPAN_CONTEXT

from treadle.protocol import otlp_wire as wire
from treadle.protocol.otlp import RequestSender
from treadle.worker.step_span import StepSpan

__all__ = ("StepExporter", "entry_of")

_QUEUE: Final = 16_384
_BATCH: Final = 512
_DELAY_S: Final = 5.0
_JOIN_S: Final = 15.0
_INTERNAL, _CONSUMER = 1, 5
_LINKED: Final = wire.link_attributes({"treadle.link.type": "creation_context"})
_PLAIN, _RED = wire.status(0, flags=wire.REMOTE), wire.status(2, flags=wire.REMOTE)

_log = structlog.stdlib.get_logger(__name__)


class StepExporter(SpanProcessor):
    """The queue and its thread, which begins with the first note. A span processor, so that the provider ends it.

    Args:
        resource, scope: Of the spans.
        attributes: What a span says of itself.
        sender: Sends requests; ended with this.

    Attributes:
        alone: Nobody else wants to see spans begin and end: no processor was added since.
    """

    def __init__(
        self,
        resource: Resource,
        scope: InstrumentationScope,
        attributes: Callable[[StepSpan], Mapping[str, str | int]],
        sender: RequestSender,
    ) -> None:
        empty = ReadableSpan("", context=INVALID_SPAN_CONTEXT, resource=resource, instrumentation_scope=scope)
        of = encode_spans([empty]).resource_spans[0]
        by = of.scope_spans[0]
        by.ClearField("spans")
        in_scope = by.SerializeToString()
        of.ClearField("scope_spans")
        self._frame = of.SerializeToString(), in_scope
        self._attributes = attributes
        self._sender = sender
        self._queue: deque[bytes] = deque()
        self._lost = 0
        self.alone = True
        self._wake = threading.Event()
        self._ending = False
        self._sending = threading.Lock()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def put(self, span: StepSpan) -> None:
        """Have it sent within seconds; what does not fit into the queue is lost, and told."""
        if len(self._queue) >= _QUEUE or self._ending:
            self._lost += 1
            return
        try:
            entry = entry_of(span, self._attributes)
        except Exception as error:  # telemetry fails no step
            self._lost += 1
            _log.warning("span_not_made", error=f"{type(error).__name__}: {error}")
            return
        if entry is None:
            return
        self._queue.append(entry)
        if self._thread is None:
            self._start()
        if len(self._queue) == _BATCH:
            self._wake.set()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._drain()

    def shutdown(self) -> None:
        self._ending = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)
        self._sender.shutdown()
        self._tell_lost()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="treadle-spans", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._ending:
            self._wake.wait(_DELAY_S)
            self._wake.clear()
            self._drain()
            self._tell_lost()
        self._drain()

    def _drain(self) -> bool:
        """Send what is queued; False: some of it is lost."""
        well = True
        with self._sending:
            while self._queue:
                spans = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
                try:
                    well = self._sender.send(wire.request([(*self._frame, spans)])) and well
                except Exception as error:  # telemetry fails nobody; the thread goes on
                    well = False
                    _log.warning("span_export_failed", error=f"{type(error).__name__}: {error}")
        return well

    def _tell_lost(self) -> None:
        if self._lost:
            lost, self._lost = self._lost, 0
            _log.warning("spans_dropped", spans=lost, queue=_QUEUE, remedy="is the OTLP receiver slow, or away?")


def entry_of(span: StepSpan, attributes: Callable[[StepSpan], Mapping[str, str | int]]) -> bytes | None:
    """Return the span that the SDK would make of it, encoded; None: the run is not sampled."""
    _, trace, parent, flags = span.info.traceparent.split("-")
    if not int(flags, 16) & 1:
        return None
    trace_id, parent_id = bytes.fromhex(trace), bytes.fromhex(parent)
    head, under = wire.ids(trace_id, parent_id)
    kind = _CONSUMER if span.facts.dispatch_id else _INTERNAL
    front = (head, span.span_id.to_bytes(8, "big"), under, wire.name_and_kind(f"process {span.info.step}", kind))
    link = wire.link(trace_id, parent_id, _LINKED, wire.REMOTE)
    end = _RED if span.outcome.name in ("failure", "timeout") else _PLAIN
    return wire.span(front, span.start_ns, span.end_ns, (wire.attributes(attributes(span)), link, end))
