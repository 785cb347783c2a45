"""What both halves of a trace need to send spans over OTLP gRPC: attributes as messages, and a sender of made requests.

Only for processes that export: it needs the SDK's exporter.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.sdk.trace.export import SpanExportResult

__all__ = ("RequestSender", "key_values")

_SHORT: Final = 64


class RequestSender(OTLPSpanExporter):
    """The SDK's exporter with its settings, its channel and its retries, for requests that are made already."""

    def send(self, request: ExportTraceServiceRequest) -> bool:
        """Send, in this thread; False: it was refused, or could not be sent in time."""
        made: Any = (request,)
        return self._export(made) is SpanExportResult.SUCCESS

    def _translate_data(self, data: Any) -> ExportTraceServiceRequest:
        request: ExportTraceServiceRequest = data[0]
        return request


def key_values(values: Mapping[str, str | int | bool]) -> list[KeyValue]:
    """Return attributes as messages, which others may have, too: do not change them."""
    return [
        _new(key, value) if isinstance(value, str) and len(value) > _SHORT else _known(key, value)
        for key, value in values.items()
    ]


def _new(key: str, value: str | int | bool) -> KeyValue:
    if isinstance(value, bool):
        return KeyValue(key=key, value=AnyValue(bool_value=value))
    if isinstance(value, int):
        return KeyValue(key=key, value=AnyValue(int_value=value))
    return KeyValue(key=key, value=AnyValue(string_value=value))


_known = lru_cache(maxsize=4096, typed=True)(_new)
"""Most attributes are those of many spans. (Typed: True is no 1.)"""
