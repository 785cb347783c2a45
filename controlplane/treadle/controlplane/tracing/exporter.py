"""Sends finished spans to an OTLP gRPC receiver, and says whether it took them.

The SDK's exporter is called directly: a span processor would keep spans in a queue that is lost with the process and drops
what does not fit. It blocks, so it has a thread of its own; requests are made before, on the event loop, a few spans at a
time, because a thread that computes holds up the loop for longer. Whatever could differ between two exports of a span, or
between two replicas, is left out: the resource and the scope are constants.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

import structlog

from treadle.protocol.errors import ConfigError
from treadle.protocol.otlp import RequestSender

__all__ = ("SpanExporter", "SpanSink", "exporter_of")

_log = structlog.stdlib.get_logger(__name__)

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class SpanSink(Protocol):
    """Where spans go."""

    async def export(self, request: bytes, spans: int) -> bool:
        """Send a request with so many spans; True once all of them were taken. Raises nothing."""
        ...

    async def close(self) -> None:
        """Give up what is being sent, and end. May be called twice."""
        ...


class SpanExporter:
    """The SpanSink over OTLP gRPC. All settings come from the `OTEL_EXPORTER_OTLP_*` variables unless `endpoint` is given.

    Args:
        endpoint: "http://host:port", or "https://…" for TLS.
        timeout_s: After so long an export has failed; default: that of the variables, else 10.
    """

    def __init__(self, endpoint: str | None = None, *, timeout_s: float | None = None) -> None:
        self._sender = RequestSender(endpoint=endpoint, timeout=timeout_s)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="treadle-spans")
        self._closed = False

    async def export(self, request: bytes, spans: int) -> bool:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._export, request, spans)

    def _export(self, request: bytes, spans: int) -> bool:
        try:
            return self._sender.send(request)
        except Exception as error:  # the client library lets through what it did not foresee; the spans are kept
            _log.warning("span_export_failed", error=f"{type(error).__name__}: {error}", spans=spans)
            return False

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._sender.shutdown()  # also cancels the call that the thread may be in
        await asyncio.to_thread(self._thread.shutdown)


def exporter_of(environ: Mapping[str, str]) -> SpanExporter | None:
    """Return the exporter that the `OTEL_*` variables ask for; None when they name no receiver, or switch traces off.

    Args:
        environ: The environment of this process: the exporter reads the rest of its settings from there.

    Raises:
        ConfigError: They ask for another protocol than gRPC.
    """
    off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
    if off or not any(environ.get(name) for name in _ENDPOINTS):
        return None
    name = next((name for name in _PROTOCOLS if environ.get(name)), None)
    if name is not None and environ[name] != "grpc":
        raise ConfigError(
            f"{name}={environ[name]!r}: traces of runs are exported over OTLP gRPC only; "
            "set it to 'grpc' and name the receiver's gRPC port (usually 4317)"
        )
    return SpanExporter()
