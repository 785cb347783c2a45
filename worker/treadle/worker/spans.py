"""The worker's spans: one `process {step}` around user code, under the attempt's span that GO names.

History is the truth about a run; these spans only add what happened inside. Nothing here may fail a step: what telemetry
raises is logged once and forgotten. Without a configured provider nothing is made at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog

from treadle.protocol.topology import EXCHANGE
from treadle.worker.current import STEP_INFO, StepInfo

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import Span, Tracer

    from treadle.worker.span_exporter import StepExporter
    from treadle.worker.step_span import StepSpan

__all__ = ("SpanFacts", "Spans", "set_up")

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_SCOPE: Final = "treadle.worker"
_TRACEPARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanFacts:
    """What a span says about its attempt, beside what the step may know of it.

    Attributes:
        pool: Pool of the worker.
        worker_id: The process.
        dispatch_id: Id of the message that brought the job; "" for local steps.
        queue: Queue that it came from; "" when it came down the session.
        broker: (host, port) of RabbitMQ; None when it came down the session.
    """

    pool: str = ""
    worker_id: str = ""
    dispatch_id: str = ""
    queue: str = ""
    broker: tuple[str, int] | None = None


class Outcome:
    """Set by the executor before the span ends.

    Attributes:
        name: "success", "failure", "timeout", "cancelled" or "released".
        error_type: Class of the error, or "".
    """

    __slots__ = ("error_type", "name")

    def __init__(self) -> None:
        self.name = "success"
        self.error_type = ""


_NOTHING: Final = nullcontext(Outcome())
"""Instead of a span; what is said of the outcome is heard by nobody."""


class Spans:
    """Makes the spans. Look at `traceparent` inside `process` for the context that goes on to other processes."""

    def __init__(self) -> None:
        self._tracer = _tracer()
        self._direct = _direct() if self._tracer is not None else None
        self._complained = False
        if self._direct is not None:
            from treadle.worker.step_span import Noted

            self._noted = Noted

    @property
    def enabled(self) -> bool:
        """Whether anybody wants spans."""
        return self._tracer is not None

    def process(self, facts: SpanFacts) -> AbstractContextManager[Outcome]:
        """A span around user code; current inside. Call it where `STEP_INFO` is set."""
        if self._tracer is None:
            return _NOTHING
        info = STEP_INFO.get()
        direct = self._direct
        if (
            info is None
            or direct is None
            or not direct.alone
            or not (info.made_here or _TRACEPARENT.fullmatch(info.traceparent))
        ):
            return self._process(self._tracer, facts)
        return self._noted(info, facts, Outcome(), self._touched, direct.put, self._close)

    def _touched(self, info: StepInfo, facts: SpanFacts, start_ns: int) -> Span:
        """Make the SDK's span of a step that asks for it."""
        from opentelemetry.trace import INVALID_SPAN

        made = None if self._tracer is None else self._start(self._tracer, info, facts, start_ns)
        return made or INVALID_SPAN

    @contextmanager
    def _process(self, tracer: Tracer, facts: SpanFacts) -> Iterator[Outcome]:
        from opentelemetry import context as otel_context

        outcome = Outcome()
        opened = self._open(tracer, facts)
        if opened is None:
            yield outcome
            return
        span, context = opened
        token = otel_context.attach(context)
        try:
            yield outcome
        finally:
            otel_context.detach(token)
            self._close(span, outcome)

    def traceparent(self, otherwise: str) -> str:
        """Return the context of the current span, for another process; `otherwise` when there is none."""
        if self._tracer is None:
            return otherwise
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        return carrier.get("traceparent", otherwise)

    @contextmanager
    def under(self, traceparent: str) -> Iterator[None]:
        """Spans made inside hang under this context: that of a process span made by another process."""
        if self._tracer is None or not traceparent:
            yield
            return
        from opentelemetry import context as otel_context

        token = otel_context.attach(_remote(traceparent))
        try:
            yield
        finally:
            otel_context.detach(token)

    def _open(self, tracer: Tracer, facts: SpanFacts) -> tuple[Span, Context] | None:
        info = STEP_INFO.get()
        span = None if info is None else self._start(tracer, info, facts)
        if info is None or span is None:
            return None
        from opentelemetry.trace import set_span_in_context

        return span, set_span_in_context(span, _remote(info.traceparent))

    def _start(self, tracer: Tracer, info: StepInfo, facts: SpanFacts, start_ns: int | None = None) -> Span | None:
        try:
            from opentelemetry.trace import Link, SpanKind, get_current_span

            parent = _remote(info.traceparent)
            creation = get_current_span(parent).get_span_context()
            links = [Link(creation, {"treadle.link.type": "creation_context"})] if creation.is_valid else []
            return tracer.start_span(
                f"process {info.step}",
                context=parent,
                kind=SpanKind.CONSUMER if facts.dispatch_id else SpanKind.INTERNAL,
                attributes=_attributes(info, facts),
                links=links,
                start_time=start_ns,
            )
        except Exception as error:
            self._complain(error)
            return None

    def _close(self, span: Span, outcome: Outcome) -> None:
        try:
            from opentelemetry.trace import StatusCode

            span.set_attribute("treadle.attempt.outcome", outcome.name)
            if outcome.name in ("failure", "timeout"):
                span.set_status(StatusCode.ERROR)
            if outcome.error_type:
                span.set_attribute("error.type", outcome.error_type)
            span.end()
        except Exception as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            _log.warning(
                "telemetry_failed", error=f"{type(error).__name__}: {error}", remedy="steps go on without spans"
            )


def set_up(environ: Mapping[str, str], *, service: str, worker_id: str) -> Callable[[], None] | None:
    """Give this process a tracer provider that exports over OTLP gRPC, when `OTEL_*` names an endpoint and the SDK is there.

    Args:
        environ: Where the `OTEL_*` variables are; the SDK reads the rest of them itself.
        service: `service.name`, unless OTEL_SERVICE_NAME says otherwise: the pool.
        worker_id: `service.instance.id`.

    Returns:
        What flushes and ends it; None: nothing was set up.
    """
    off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
    if off or not any(environ.get(name) for name in _ENDPOINTS):
        return None
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        _log.warning("telemetry_missing", error=str(error), remedy="pip install 'treadle[server]', or unset OTEL_*")
        return None
    resource = Resource.create(
        {"service.name": environ.get("OTEL_SERVICE_NAME") or service, "service.instance.id": worker_id}
    )
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(_step_ids())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    if _as_the_sdk_would(environ):
        _add_direct(provider)
    trace.set_tracer_provider(provider)
    return provider.shutdown


def _step_ids() -> Any:
    """A span processor that copies the ids of the step onto the user's own spans, so that a search by tag finds them."""
    from opentelemetry.sdk.trace import Span as SdkSpan
    from opentelemetry.sdk.trace import SpanProcessor

    class StepIds(SpanProcessor):
        def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
            info = STEP_INFO.get()
            if info is not None:
                span.set_attribute("treadle.run.id", info.run_id)
                span.set_attribute("treadle.step.name", info.step)
                span.set_attribute("treadle.attempt.number", info.attempt)

    return StepIds()


def _as_the_sdk_would(environ: Mapping[str, str]) -> bool:
    """Whether spans can be made without the SDK: it samples as the parent says, and cuts nothing short."""
    sampler = environ.get("OTEL_TRACES_SAMPLER", "parentbased_")
    return sampler.startswith("parentbased_") and not any(
        name.startswith("OTEL_") and name.endswith("_LIMIT") for name in environ
    )


def _add_direct(provider: TracerProvider) -> None:
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    from treadle.protocol.otlp import RequestSender
    from treadle.worker.span_exporter import StepExporter

    direct = StepExporter(provider.resource, InstrumentationScope(_SCOPE, ""), _said, RequestSender())
    provider.add_span_processor(direct)
    provider.treadle_direct = direct  # type: ignore[attr-defined]  # the app may have set another provider before
    add = provider.add_span_processor

    def added(span_processor: SpanProcessor) -> None:
        direct.alone = False  # it is to see all spans
        add(span_processor)

    provider.add_span_processor = added  # type: ignore[method-assign]


def _direct() -> StepExporter | None:
    from opentelemetry import trace

    return getattr(trace.get_tracer_provider(), "treadle_direct", None)


def _tracer() -> Tracer | None:
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    return provider.get_tracer(_SCOPE)


def _remote(traceparent: str) -> Context:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent} if traceparent else {}, Context())


def _said(span: StepSpan) -> dict[str, str | int]:
    """All that a span nobody touched says."""
    said = _attributes(span.info, span.facts)
    said["treadle.attempt.outcome"] = span.outcome.name
    if span.outcome.error_type:
        said["error.type"] = span.outcome.error_type
    return said


def _attributes(info: StepInfo, facts: SpanFacts) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "treadle.span.source": "worker",
        "treadle.namespace": info.namespace,
        "treadle.run.id": info.run_id,
        "treadle.step.id": info.command_id,
        "treadle.step.name": info.step,
        "treadle.step.kind": "task",
        "treadle.attempt.number": info.attempt,
        "treadle.pool.name": facts.pool,
        "treadle.worker.id": facts.worker_id,
    }
    if facts.broker is not None:
        attributes |= {
            "messaging.system": "rabbitmq",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": f"{EXCHANGE}:{facts.queue}",
            "messaging.rabbitmq.destination.routing_key": facts.queue,
            "messaging.message.id": facts.dispatch_id,
            "messaging.message.conversation_id": info.run_id,
            "server.address": facts.broker[0],
            "server.port": facts.broker[1],
        }
    return attributes
