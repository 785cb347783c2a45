"""What both halves of a trace need to send spans over OTLP gRPC: a sender of requests that are made already.

Only for processes that export: it needs the SDK's exporter.
"""

from __future__ import annotations

from typing import Any, Final

import grpc
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import SpanExportResult

__all__ = ("RequestSender",)

_METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class _Bytes:
    """The service, for requests that are encoded already. The answer is not read: it has nothing that could be done."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.Export: Any = channel.unary_unary(_METHOD)


class RequestSender(OTLPSpanExporter):
    """The SDK's exporter with its settings, its channel and its retries, for requests as bytes."""

    def __init__(self, endpoint: str | None = None, *, timeout: float | None = None) -> None:
        super().__init__(endpoint=endpoint, timeout=timeout)
        channel: Any = self._channel
        self._stub: Any = _Bytes  # also for the channel that it opens when this one broke
        self._client: Any = _Bytes(channel)

    def send(self, request: bytes) -> bool:
        """Send, in this thread; False: it was refused, or could not be sent in time."""
        made: Any = (request,)
        return self._export(made) is SpanExportResult.SUCCESS

    def _translate_data(self, data: Any) -> Any:
        return data[0]
