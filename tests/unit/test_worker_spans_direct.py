"""Steps that do not touch their span: what is exported is what the SDK would have exported, at a fraction of the price."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from treadle.worker import span_exporter, spans
from treadle.worker.current import STEP_INFO, LazyInfo, StepInfo
from treadle.worker.spans import SpanFacts, Spans

LOCAL = SpanFacts(pool="p", worker_id="w")
FACTS = SpanFacts(pool="p", worker_id="w", dispatch_id="d1", queue="treadle.ns.p.steps", broker=("rabbit", 5672))


class Here:
    def __init__(self, made: Spans, end: Callable[[], None], requests: list[ExportTraceServiceRequest]) -> None:
        self.made, self.end, self.requests = made, end, requests

    def spans(self) -> list[Span]:
        return [s for r in self.requests for x in r.resource_spans for y in x.scope_spans for s in y.spans]

    def step(self, info: StepInfo, facts: SpanFacts, *, touch: bool, error: str = "") -> trace.Span:
        token = STEP_INFO.set(info)
        try:
            with self.made.process(facts) as outcome:
                current = trace.get_current_span()
                if touch:
                    assert current.is_recording()
                if error:
                    outcome.name, outcome.error_type = "failure", error
        finally:
            STEP_INFO.reset(token)
        return current


class Receiver(TraceServiceServicer):
    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []

    def Export(self, request: ExportTraceServiceRequest, context: object) -> ExportTraceServiceResponse:
        self.requests.append(request)
        return ExportTraceServiceResponse()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    receiver = Receiver()
    server = grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    providers: list[trace.TracerProvider] = []  # a process can have but one for all its life
    monkeypatch.setattr(trace, "set_tracer_provider", providers.append)
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: providers[-1])
    end = spans.set_up(os.environ, service="p", worker_id="w")
    assert end is not None
    yield Here(Spans(), end, receiver.requests)
    end()
    server.stop(None).wait()


def info(traceparent: str | None = None) -> LazyInfo:
    return LazyInfo("r", 7, "good", 2, "ns", "0/x#1", 1, traceparent)


@pytest.mark.parametrize("facts", [FACTS, SpanFacts(pool="p", worker_id="w", dispatch_id="d")])
@pytest.mark.parametrize("error", ["", "ValueError"])
def test_the_message_is_that_of_the_sdk(here: Here, facts: SpanFacts, error: str) -> None:
    for touch in (True, False):
        here.step(info(), facts, touch=touch, error=error)
    here.end()
    assert len(here.requests) == 2 and len(here.spans()) == 2
    for span in here.spans():
        assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano and len(span.span_id) == 8
        span.start_time_unix_nano = span.end_time_unix_nano = 1
        span.span_id = b"12345678"
        values = sorted(span.attributes, key=lambda pair: pair.key)
        del span.attributes[:]
        span.attributes.extend(values)
    assert here.requests[0] == here.requests[1]


def test_spans_of_code_that_outlives_its_step_hang_under_the_one_that_was_exported(here: Here) -> None:
    late = here.step(info(), FACTS, touch=False)
    context = late.get_span_context()
    assert context.is_valid and context.trace_flags.sampled and not late.is_recording()
    here.end()
    (span,) = here.spans()
    assert span.span_id == context.span_id.to_bytes(8, "big") and span.trace_id == context.trace_id.to_bytes(16, "big")


def test_a_local_step_has_a_span_of_its_own_only_if_it_is_touched(here: Here) -> None:
    """No message brought it: the attempt's span says it all, and is what later code hangs under."""
    attempt = f"00-{'a' * 32}-{'b' * 16}-01"
    late = here.step(info(attempt), LOCAL, touch=False).get_span_context()
    assert (f"{late.trace_id:032x}", f"{late.span_id:016x}") == ("a" * 32, "b" * 16)
    here.step(info(attempt), LOCAL, touch=True)
    here.end()
    (span,) = here.spans()
    assert span.parent_span_id == bytes.fromhex("b" * 16)


def test_what_is_not_sampled_is_not_exported(here: Here) -> None:
    here.step(info(f"00-{'a' * 32}-{'b' * 16}-00"), FACTS, touch=False)
    here.end()
    assert here.spans() == []


def test_without_a_context_it_is_the_sdk_that_makes_a_root(here: Here) -> None:
    here.step(info(""), FACTS, touch=False)
    here.end()
    (span,) = here.spans()
    assert not span.parent_span_id and not span.links


def test_the_queue_is_bounded(here: Here, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(span_exporter, "_QUEUE", 3)
    for _ in range(5):
        here.step(info(), FACTS, touch=False)
    here.end()
    assert len(here.spans()) == 3
    assert "spans_dropped" in capsys.readouterr().out


def test_a_processor_that_comes_later_sees_all_spans(here: Here) -> None:
    provider = trace.get_tracer_provider()
    seen: list[str] = []

    class Seeing(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            seen.append(span.name)

    provider.add_span_processor(Seeing())  # type: ignore[attr-defined]
    here.step(info(), FACTS, touch=False)
    assert seen == ["process good"]
