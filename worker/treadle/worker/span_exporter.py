"""Sends the notes of steps that did not touch their span as messages of OTLP, from a thread, a few at a time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import structlog
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import INVALID_SPAN_CONTEXT

from treadle.protocol.otlp import RequestSender, key_values
from treadle.worker.step_span import StepSpan

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

__all__ = ("StepExporter", "message_of")

_QUEUE: Final = 16_384
_BATCH: Final = 512
_SLICE: Final = 16
_PAUSE_S: Final = 0.000_5
"""After each slice: a thread that computes keeps the event loop from the interpreter."""
_DELAY_S: Final = 5.0
_JOIN_S: Final = 15.0
_REMOTE: Final = 0x300  # flags: it is known whether the context came from another process, and it did

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
        self._frame = encode_spans([empty])
        self._frame.resource_spans[0].scope_spans[0].ClearField("spans")
        self._attributes = attributes
        self._sender = sender
        self._queue: deque[StepSpan] = deque()
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
        self._queue.append(span)
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
                request = ExportTraceServiceRequest()
                request.CopyFrom(self._frame)
                try:
                    spans = request.resource_spans[0].scope_spans[0].spans
                    self._fill(spans)
                    if spans:
                        well = self._sender.send(request) and well
                except Exception as error:  # telemetry fails nobody; the thread goes on
                    well = False
                    _log.warning("span_export_failed", error=f"{type(error).__name__}: {error}")
        return well

    def _fill(self, spans: RepeatedCompositeFieldContainer[Span]) -> None:
        for number in range(_BATCH):
            if not self._queue:
                return
            message = message_of(self._queue.popleft(), self._attributes)
            if message is not None:
                spans.append(message)
            if number % _SLICE == _SLICE - 1 and not self._ending:
                time.sleep(_PAUSE_S)

    def _tell_lost(self) -> None:
        if self._lost:
            lost, self._lost = self._lost, 0
            _log.warning("spans_dropped", spans=lost, queue=_QUEUE, remedy="is the OTLP receiver slow, or away?")


def message_of(span: StepSpan, attributes: Callable[[StepSpan], Mapping[str, str | int]]) -> Span | None:
    """Return the message that the SDK would make of it; None: the run is not sampled."""
    _, trace, parent, flags = span.info.traceparent.split("-")
    if not int(flags, 16) & 1:
        return None
    trace_id, parent_id = bytes.fromhex(trace), bytes.fromhex(parent)
    link = Span.Link(
        trace_id=trace_id,
        span_id=parent_id,
        attributes=key_values({"treadle.link.type": "creation_context"}),
        flags=_REMOTE,
    )
    red = span.outcome.name in ("failure", "timeout")
    return Span(
        trace_id=trace_id,
        span_id=span.span_id.to_bytes(8, "big"),
        parent_span_id=parent_id,
        name=f"process {span.info.step}",
        kind=Span.SPAN_KIND_CONSUMER if span.facts.dispatch_id else Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=span.start_ns,
        end_time_unix_nano=span.end_ns,
        attributes=key_values(attributes(span)),
        links=[link],
        status=Status(code=Status.STATUS_CODE_ERROR if red else Status.STATUS_CODE_UNSET),
        flags=_REMOTE,
    )
