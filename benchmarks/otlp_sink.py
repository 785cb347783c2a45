"""A collector that takes OTLP traces over gRPC and throws them away; it writes down how many bytes came.

python -m benchmarks.otlp_sink PORT FILE
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import grpc

__all__ = ("serve",)


async def serve(port: int, counted: Path) -> None:
    """Serve until ended."""
    taken = 0

    async def export(request: bytes, _context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        nonlocal taken
        taken += len(request)
        counted.write_text(str(taken))
        return b""  # an empty ExportTraceServiceResponse

    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {"Export": grpc.unary_unary_rpc_method_handler(export)}
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2])))
