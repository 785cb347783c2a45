"""The worker's spans: under the attempt's span, with the exact names, and never in the way of a step."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from tests.unit.core_rig import opened_rig, step_job

from treadle.worker import spans, step
from treadle.worker.app import collect
from treadle.worker.attempts import Attempts
from treadle.worker.core.port import Report, StartAttempt
from treadle.worker.current import StepInfo
from treadle.worker.executors import Call, Executors
from treadle.worker.spans import SpanFacts, Spans

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
FACTS = SpanFacts(
    pool="p",
    worker_id="w",
    dispatch_id="d1",
    queue="treadle.default.p.steps",
    broker=("rabbit", 5672),
)


@step(pool="p")
async def good() -> None:
    trace.get_current_span().set_attribute("mine", True)


@step(pool="p")
def bad() -> None:
    raise ValueError("no")


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(spans._step_ids())
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(spans, "_tracer", lambda: provider.get_tracer("test"))
    return exporter


def run(name: str, facts: SpanFacts = FACTS) -> Report:
    async def main() -> Report:
        executors = Executors("app.py", 1)
        end: asyncio.Future[Report | None] = asyncio.get_running_loop().create_future()
        target = {"good": good, "bad": bad}[name]
        info = StepInfo(
            run_id="r",
            step=name,
            attempt=2,
            idempotency_key="k",
            namespace="ns",
            command_id="0/x#1",
            traceparent=f"00-{TRACE}-{SPAN}-01",
        )
        call = Call(
            step=target,
            payload=target.signature.encode_call((), {}),
            info=info,
            may_start=lambda: True,
            ended=end.set_result,
            facts=facts,
        )
        executors.start(call)
        try:
            report = await end
        finally:
            await executors.close()
        assert report is not None
        return report

    return asyncio.run(main())


def test_the_span_hangs_under_the_attempt(exported: InMemorySpanExporter) -> None:
    assert run("good").kind == "completed"
    (span,) = exported.get_finished_spans()
    assert span.name == "process good" and span.kind is SpanKind.CONSUMER
    assert span.parent is not None and span.context is not None
    assert f"{span.context.trace_id:032x}" == TRACE and f"{span.parent.span_id:016x}" == SPAN
    (link,) = span.links
    assert link.attributes == {"treadle.link.type": "creation_context"} and f"{link.context.span_id:016x}" == SPAN
    assert span.attributes is not None and span.status.status_code is StatusCode.UNSET
    said = dict(span.attributes)
    assert said["mine"] is True and said["treadle.attempt.outcome"] == "success"
    assert (said["treadle.run.id"], said["treadle.step.id"], said["treadle.attempt.number"]) == ("r", "0/x#1", 2)
    assert said["messaging.destination.name"] == "treadle.jobs:treadle.default.p.steps"
    assert (said["messaging.message.id"], said["messaging.message.conversation_id"]) == ("d1", "r")
    assert (said["server.address"], said["server.port"]) == ("rabbit", 5672)


def test_a_failure_in_a_thread_colours_its_span(exported: InMemorySpanExporter) -> None:
    assert run("bad", SpanFacts()).kind == "failed"
    (span,) = exported.get_finished_spans()
    assert span.kind is SpanKind.INTERNAL and span.status.status_code is StatusCode.ERROR
    assert span.attributes is not None and span.attributes["error.type"] == "ValueError"
    assert "messaging.system" not in span.attributes


@pytest.mark.parametrize("pushed", [False, True])
def test_what_came_down_the_session_did_not_come_through_rabbitmq(exported: InMemorySpanExporter, pushed: bool) -> None:
    """On a worker that takes steps both ways, the span of each attempt says which one it was."""

    async def main() -> None:
        rig = opened_rig(steps=frozenset({"good"}), right_ms=10**15)  # the rig's clock is not that of the worker
        job = step_job(name="good", input=good.signature.encode_call((), {}))
        if pushed:
            rig.push(job, b"t")
        else:
            rig.deliver(job)
            rig.go(rig.claims()[0], b"t")
        (action,) = rig.of(StartAttempt)
        executors = Executors("app.py", 1)
        ended = asyncio.Event()
        attempts = Attempts(
            rig.core,
            collect([good]),
            executors,
            ended.set,
            namespace="default",
            pool="p",
            worker_id="w",
            broker=("rabbit", 5672),
        )
        try:
            attempts.start(action)
            await ended.wait()
        finally:
            await executors.close()

    asyncio.run(main())
    (span,) = exported.get_finished_spans()
    assert span.kind is SpanKind.CONSUMER and span.attributes is not None
    assert ("messaging.system" in span.attributes, "server.address" in span.attributes) == (not pushed, not pushed)


def test_broken_telemetry_fails_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def start_span(self, *args: object, **kwargs: object) -> None:
            raise RuntimeError("exporter on fire")

    monkeypatch.setattr(spans, "_tracer", Broken)
    assert run("good").kind == "completed"


def test_nothing_is_made_without_a_provider() -> None:
    assert not Spans().enabled
    assert spans.set_up({}, service="p", worker_id="w") is None
    assert (
        spans.set_up(
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}, service="p", worker_id="w"
        )
        is None
    )
