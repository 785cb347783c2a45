"""The gRPC server of a control plane: services, interceptors, health, reflection, port and TLS."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Final

import structlog
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from treadle.controlplane.api.auth import TokenFile, TokenGuard, server_credentials
from treadle.controlplane.api.blob_service import BlobService
from treadle.controlplane.api.errors import DeadlineGuard, ErrorInterceptor, Guard
from treadle.controlplane.config import ServerConfig, split_address
from treadle.controlplane.telemetry import Metrics
from treadle.protocol.errors import ConfigError
from treadle.v1 import (
    blob_service_pb2,
    event_service_pb2,
    pool_service_pb2,
    run_service_pb2,
    schedule_service_pb2,
    step_service_pb2,
    worker_service_pb2,
)
from treadle.v1.blob_service_pb2_grpc import add_BlobServiceServicer_to_server
from treadle.v1.event_service_pb2_grpc import EventServiceServicer, add_EventServiceServicer_to_server
from treadle.v1.pool_service_pb2_grpc import PoolServiceServicer, add_PoolServiceServicer_to_server
from treadle.v1.run_service_pb2_grpc import RunServiceServicer, add_RunServiceServicer_to_server
from treadle.v1.schedule_service_pb2_grpc import ScheduleServiceServicer, add_ScheduleServiceServicer_to_server
from treadle.v1.step_service_pb2_grpc import StepServiceServicer, add_StepServiceServicer_to_server
from treadle.v1.worker_service_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server

__all__ = ("MESSAGE_BYTES", "ApiServer")

_log = structlog.stdlib.get_logger(__name__)

MESSAGE_BYTES: Final = 16 << 20
"""Largest message either way: a page of 1 MiB, or one event with the largest payload, and room to spare."""

_OPTIONS: Final[Sequence[tuple[str, int]]] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # else two servers share a port, and each gets half of the calls
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
)


class ApiServer:
    """Listens from `start` to `stop`.

    Args:
        config: Address, TLS, tokens.
        runs, pools, schedules, steps, events: The services for clients.
        workers: The service for workers; None: clients only.
        metrics: Counts calls.

    Raises:
        ConfigError: The tokens file has a wrong line.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        runs: RunServiceServicer,
        pools: PoolServiceServicer,
        schedules: ScheduleServiceServicer | None = None,
        steps: StepServiceServicer | None = None,
        events: EventServiceServicer | None = None,
        workers: WorkerServiceServicer | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._config = config
        guards: list[Guard] = [DeadlineGuard()]
        if config.tokens_file is not None:
            guards.insert(0, TokenGuard(TokenFile(config.tokens_file)))
        self._server = aio.server(interceptors=[ErrorInterceptor(guards, metrics)], options=_OPTIONS)
        add_RunServiceServicer_to_server(runs, self._server)
        add_PoolServiceServicer_to_server(pools, self._server)
        self._names = [
            run_service_pb2.DESCRIPTOR.services_by_name["RunService"].full_name,
            pool_service_pb2.DESCRIPTOR.services_by_name["PoolService"].full_name,
        ]
        if schedules is not None:
            add_ScheduleServiceServicer_to_server(schedules, self._server)
            self._names.append(schedule_service_pb2.DESCRIPTOR.services_by_name["ScheduleService"].full_name)
        if steps is not None:
            add_StepServiceServicer_to_server(steps, self._server)
            self._names.append(step_service_pb2.DESCRIPTOR.services_by_name["StepService"].full_name)
        if events is not None:
            add_EventServiceServicer_to_server(events, self._server)
            self._names.append(event_service_pb2.DESCRIPTOR.services_by_name["EventService"].full_name)
        if workers is not None:
            add_WorkerServiceServicer_to_server(workers, self._server)
            self._names.append(worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"].full_name)
        add_BlobServiceServicer_to_server(BlobService(config), self._server)
        self._names.append(blob_service_pb2.DESCRIPTOR.services_by_name["BlobService"].full_name)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if config.reflection:
            reflection.enable_server_reflection([*self._names, reflection.SERVICE_NAME], self._server)

    async def start(self) -> str:
        """Listen; returns the address, with the port that was taken when 0 was asked for.

        Raises:
            ConfigError: The port is taken or may not be used, the host is unknown, or a TLS file is wrong.
        """
        address = self._config.listen
        _check_free(address)
        credentials = server_credentials(self._config)
        try:
            if credentials is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {address}: {error}") from error
        await self._server.start()
        for name in ("", *self._names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return f"{address.rpartition(':')[0]}:{port}"

    async def stop(self, grace_s: float) -> None:
        """Report NOT_SERVING, refuse new calls, let present ones go on for `grace_s`, then cut them off."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)


def _check_free(address: str) -> None:
    """Try the port ourselves first: gRPC says only that it could not bind, not why."""
    host, port = split_address(address)
    try:
        (family, kind, _, _, where), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except socket.gaierror as error:
        raise ConfigError(f"listen {address!r}: host {host!r} is unknown: {error.strerror}") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} is taken: another process listens on {address}. "
                "Stop it, or choose another port with --listen (TREADLE_LISTEN)"
            ) from error
        raise ConfigError(f"cannot listen on {address}: {error.strerror}") from error
