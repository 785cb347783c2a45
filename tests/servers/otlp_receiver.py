"""A real OTLP gRPC receiver that keeps what it is sent; it can go down, come back, refuse, and hold its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from grpc import StatusCode, aio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

__all__ = ("OtlpReceiver",)

DEADLINE_S = 30.0


class OtlpReceiver(TraceServiceServicer):
    """Use it as an async context manager, or `start` and `stop` it.

    Attributes:
        requests: What was taken, in order.
        refuse: Requests with such a span are refused for good; None: none are.
        hold: Answers are given only while this is set.
    """

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.refuse: Callable[[Span], bool] | None = None
        self.hold = asyncio.Event()
        self.hold.set()
        self._port = 0
        self._server: aio.Server | None = None
        self._came = asyncio.Condition()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Listen; on the same port when it comes back."""
        self._server = aio.server()
        add_TraceServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self._port = self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        await self._server.start()

    async def stop(self) -> None:
        """Go down."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(0)

    async def Export(
        self, request: ExportTraceServiceRequest, context: aio.ServicerContext[object, object]
    ) -> ExportTraceServiceResponse:
        if self.refuse is not None and any(self.refuse(span) for span in _spans(request)):
            await context.abort(StatusCode.INVALID_ARGUMENT, "refused by the test")
        async with self._came:
            self.requests.append(request)
            self._came.notify_all()
        await self.hold.wait()
        return ExportTraceServiceResponse()

    @property
    def spans(self) -> list[Span]:
        """All spans that came, in order, doubles too."""
        return [span for request in self.requests for span in _spans(request)]

    def names(self) -> list[str]:
        return [span.name for span in self.spans]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds, looking whenever spans came."""
        async with asyncio.timeout(DEADLINE_S), self._came:
            await self._came.wait_for(condition)

    async def __aenter__(self) -> OtlpReceiver:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hold.set()
        await self.stop()


def _spans(request: ExportTraceServiceRequest) -> list[Span]:
    return [span for resource in request.resource_spans for scope in resource.scope_spans for span in scope.spans]
