"""`treadle server`: the control plane."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

__all__ = ("server",)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Options of `treadle server`; each has a variable TREADLE_….

    Parameters
    ----------
    redis_url
        redis://, rediss:// or unix:// (TREADLE_REDIS_URL).
    redis_cluster
        The address names any node of a Redis Cluster.
    amqp_url
        amqp:// or amqps:// (TREADLE_AMQP_URL); "memory": no broker, for one server alone.
    worker_amqp_url
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
    blobs
        Where clients and workers keep large values: s3://bucket/prefix or file:///folder (TREADLE_BLOBS).
    log_level
        debug, info, warning or error.
    """

    redis_url: Annotated[str | None, Parameter(name="--redis")] = None
    redis_cluster: Annotated[bool | None, Parameter(negative="")] = None
    amqp_url: Annotated[str | None, Parameter(name="--amqp")] = None
    worker_amqp_url: Annotated[str | None, Parameter(name="--worker-amqp")] = None
    listen: str | None = None
    insecure: Annotated[bool | None, Parameter(negative="")] = None
    allow_volatile: Annotated[bool | None, Parameter(negative="")] = None
    tokens_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    blobs: str | None = None
    log_level: str | None = None


async def server(*, options: ServerOptions | None = None, trace_endpoint: str | None = None) -> int:
    """Run the control plane until SIGTERM. Each option has a variable TREADLE_…; see docs/operations.md.

    Parameters
    ----------
    trace_endpoint
        Where traces go, as OTLP over gRPC (OTEL_EXPORTER_OTLP_ENDPOINT).
    """
    from treadle.cli.output import note
    from treadle.controlplane.config import ServerConfig
    from treadle.controlplane.serve import serve

    if trace_endpoint is not None:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = trace_endpoint
    config = ServerConfig.from_env(os.environ, **asdict(options or ServerOptions()))
    return await serve(config, ready=lambda address: note(f"treadle server: listening on {address}"))
