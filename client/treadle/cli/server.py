"""`treadle server`: the control plane."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

__all__ = ("server",)


async def server(
    *,
    redis: str | None = None,
    redis_cluster: Annotated[bool | None, Parameter(negative="")] = None,
    amqp: str | None = None,
    worker_amqp: str | None = None,
    listen: str | None = None,
    insecure: Annotated[bool | None, Parameter(negative="")] = None,
    allow_volatile: Annotated[bool | None, Parameter(negative="")] = None,
    tokens_file: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    tls_ca: Path | None = None,
    trace_endpoint: str | None = None,
    log_level: str | None = None,
) -> int:
    """Run the control plane until SIGTERM. Each option has a variable TREADLE_…; see docs/operations.md.

    Parameters
    ----------
    redis
        redis://, rediss:// or unix:// (TREADLE_REDIS_URL).
    redis_cluster
        The address names any node of a Redis Cluster.
    amqp
        amqp:// or amqps:// (TREADLE_AMQP_URL); "memory": no broker, for one server alone.
    worker_amqp
        What workers are told to consume from; without it they use the session lane.
    listen
        "host:port" of the gRPC API (TREADLE_LISTEN).
    insecure
        Listen beyond loopback without TLS and tokens.
    allow_volatile
        Start although Redis may lose acknowledged work.
    tokens_file
        The tokens that are accepted.
    tls_cert
        Certificate of the server (PEM file).
    tls_key
        Its private key (PEM file).
    tls_ca
        Demand client certificates of this authority (PEM file).
    trace_endpoint
        Where traces go, as OTLP over gRPC (OTEL_EXPORTER_OTLP_ENDPOINT).
    log_level
        debug, info, warning or error.
    """
    from treadle.cli.output import note
    from treadle.controlplane.config import ServerConfig
    from treadle.controlplane.serve import serve

    if trace_endpoint is not None:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = trace_endpoint
    config = ServerConfig.from_env(
        os.environ,
        redis_url=redis,
        redis_cluster=redis_cluster,
        amqp_url=amqp,
        worker_amqp_url=worker_amqp,
        listen=listen,
        insecure=insecure,
        allow_volatile=allow_volatile,
        tokens_file=tokens_file,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_ca=tls_ca,
        log_level=log_level,
    )
    return await serve(config, ready=lambda address: note(f"treadle server: listening on {address}"))
