"""Exit 0 when a Treadle server answers SERVING, for container health checks.

Usage: python healthcheck.py [HOST:PORT]    default 127.0.0.1:7430, without TLS
"""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

DEADLINE_S = 3.0


def main() -> int:
    """Ask the standard gRPC health service about the server as a whole (service name "")."""
    target = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7430"
    with grpc.insecure_channel(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
        except grpc.RpcError as error:
            sys.stderr.write(f"{target}: {error.code().name}: {error.details()}\n")
            return 1
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    sys.stderr.write(f"{target}: {status}\n")
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main())
