"""What stands before every service: ports, deadlines, tokens, TLS, health, reflection, unforeseen errors."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
from pathlib import Path
from typing import cast

import grpc
import pytest
import structlog
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.integration.api_host import DEADLINE_S, api_host
from treadle.client.status import from_rpc_error
from treadle.controlplane.api.auth import make_token, server_credentials
from treadle.controlplane.api.errors import Context, status_of_error
from treadle.controlplane.config import ServerConfig
from treadle.controlplane.store.port import Want
from treadle.controlplane.telemetry import configure_logging
from treadle.protocol.errors import ConfigError, NotFound
from treadle.v1 import pool_service_pb2 as pools
from treadle.v1 import run_service_pb2 as runs
from treadle.v1 import worker_service_pb2 as workers
from treadle.v1.run_service_pb2_grpc import RunServiceStub
from treadle.v1.worker_service_pb2_grpc import WorkerServiceStub

T = DEADLINE_S


def reason(error: aio.AioRpcError) -> str:
    """Return the reason that a refusal names."""
    return getattr(from_rpc_error(error), "reason", "")


def test_a_taken_port_is_named() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(ConfigError, match=rf"port {port} is taken: .*choose another port"):
                async with api_host(ServerConfig(listen=f"127.0.0.1:{port}", amqp_url="")):
                    pass
        async with api_host() as host:
            port = int(host.address.rpartition(":")[2])
            with pytest.raises(ConfigError, match=f"port {port} is taken"):
                async with api_host(ServerConfig(listen=f"127.0.0.1:{port}", amqp_url="")):
                    pass
        with pytest.raises(ConfigError, match=r"host 'nowhere\.invalid' is unknown"):
            async with api_host(ServerConfig(listen="nowhere.invalid:1", insecure=True, amqp_url="")):
                pass

    asyncio.run(main())


def test_a_worker_call_without_a_deadline_is_refused() -> None:
    async def main() -> None:
        async with api_host() as host:
            stub = WorkerServiceStub(host.channel)
            with pytest.raises(aio.AioRpcError) as caught:
                await stub.Beat(workers.BeatRequest(worker_id="w"))
            assert caught.value.code() == StatusCode.INVALID_ARGUMENT
            assert reason(caught.value) == "DEADLINE_REQUIRED"
            assert (await stub.Beat(workers.BeatRequest(worker_id="w"), timeout=T)).ignored

    asyncio.run(main())


def test_health_and_reflection_answer() -> None:
    async def main() -> None:
        async with api_host() as host:
            health = health_pb2_grpc.HealthStub(host.channel)
            for name in ("", "treadle.v1.RunService", "treadle.v1.PoolService", "treadle.v1.WorkerService"):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=T)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            reflection = reflection_pb2_grpc.ServerReflectionStub(host.channel)
            asked = reflection_pb2.ServerReflectionRequest(list_services="")
            listed = [answer async for answer in reflection.ServerReflectionInfo(iter([asked]), timeout=T)]
            names = {service.name for service in listed[0].list_services_response.service}
            assert {"treadle.v1.RunService", "treadle.v1.WorkerService"} <= names
            got = host.metrics.summary("rpc.server.call.duration", method="/grpc.health.v1.Health/Check", code="OK")
            assert got.count == 4

    asyncio.run(main())


def test_what_nobody_foresaw_is_logged_under_the_id_that_the_caller_gets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(wants: list[Want]) -> None:
        raise ZeroDivisionError("secret detail")

    async def main() -> aio.AioRpcError:
        async with api_host() as host:
            monkeypatch.setattr(host.store, "load", broken)
            with pytest.raises(aio.AioRpcError) as caught:
                await host.runs.GetRun(runs.GetRunRequest(run_id="r"), timeout=T)
            with pytest.raises(aio.AioRpcError) as streamed:
                await host.runs.WatchRun(runs.WatchRunRequest(run_id="r")).read()
            assert streamed.value.code() == StatusCode.INTERNAL
            return caught.value

    root = logging.getLogger()
    before = root.handlers[:], root.level, structlog.get_config()
    try:
        configure_logging()
        error = asyncio.run(main())
    finally:
        root.handlers[:], root.level = before[0], before[1]
        structlog.configure(**before[2])
    assert error.code() == StatusCode.INTERNAL
    (raw,) = (value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin")
    info = ErrorInfo()
    assert isinstance(raw, bytes)
    assert Status.FromString(raw).details[0].Unpack(info)
    assert "secret" not in (error.details() or "") + str(info)
    logged = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (entry,) = (line for line in logged if line.get("error_id") == info.metadata["error_id"])
    assert "ZeroDivisionError: secret detail" in entry["exception"]
    assert entry["method"] == "/treadle.v1.RunService/GetRun"


def test_a_long_message_fits_into_the_metadata() -> None:
    status = status_of_error(NotFound("x" * 100_000))
    assert len(status.SerializeToString()) < 8192
    assert status.message.endswith("…")


def test_tokens_open_what_their_role_may(tmp_path: Path) -> None:
    tokens: dict[str, str] = {}
    lines = []
    for name, namespace, role in (
        ("viewer", "default", "viewer"),
        ("client", "default", "client"),
        ("worker", "default", "worker:crm"),
        ("other", "prod", "client"),
    ):
        tokens[name], line = make_token(namespace, role)
        lines.append(line)
    path = tmp_path / "tokens"
    path.write_text("\n".join(lines))

    def meta(name: str) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {tokens.get(name, 'tdl_x_y')}"),)

    start = runs.StartRunRequest(run_id="r", request_id="q", workflow="w", pool="crm")
    hello = workers.SessionRequest(hello=workers.SessionHello(worker_id="w1", session_id="s1", sent_ms=1, pool="pay"))

    async def main() -> None:
        async with api_host(tokens_file=path) as host:
            health = health_pb2_grpc.HealthStub(host.channel)
            await health.Check(health_pb2.HealthCheckRequest(), timeout=T)
            stub = WorkerServiceStub(host.channel)
            assert (await host.runs.StartRun(start, timeout=T, metadata=meta("client"))).started
            await host.runs.GetRun(runs.GetRunRequest(run_id="r"), timeout=T, metadata=meta("viewer"))
            await stub.Beat(workers.BeatRequest(worker_id="w"), timeout=T, metadata=meta("worker"))
            unknown, denied = "UNAUTHENTICATED TOKEN_INVALID", "PERMISSION_DENIED"
            hello_of_worker = stub.Session(iter([hello]), metadata=meta("worker")).read()
            pools_of_worker = host.pools.ListPools(pools.ListPoolsRequest(), timeout=T, metadata=meta("worker"))
            for call, refused in (
                (host.runs.StartRun(start, timeout=T), unknown),
                (host.runs.StartRun(start, timeout=T, metadata=meta("?")), unknown),
                (host.runs.StartRun(start, timeout=T, metadata=meta("viewer")), f"{denied} ROLE_NOT_ALLOWED"),
                (host.runs.StartRun(start, timeout=T, metadata=meta("worker")), f"{denied} ROLE_NOT_ALLOWED"),
                (host.runs.StartRun(start, timeout=T, metadata=meta("other")), f"{denied} NAMESPACE_NOT_ALLOWED"),
                (hello_of_worker, f"{denied} POOL_NOT_ALLOWED"),
                (pools_of_worker, f"{denied} ROLE_NOT_ALLOWED"),
            ):
                with pytest.raises(aio.AioRpcError) as caught:
                    await call
                assert f"{caught.value.code().name} {reason(caught.value)}" == refused

    asyncio.run(main())


@pytest.mark.parametrize("guarded", [False, True])
def test_a_session_passes_the_guards_and_hears_of_the_end(tmp_path: Path, guarded: bool) -> None:
    token, line = make_token("default", "worker:crm")
    path = tmp_path / "tokens"
    path.write_text(line)
    metadata = (("authorization", f"Bearer {token}"),)

    async def main() -> None:
        async with api_host(tokens_file=path if guarded else None) as host:
            stub = WorkerServiceStub(host.channel)
            register = workers.RegisterRequest(worker_id="w1", pool="crm", workflows=["hello"])
            await stub.Register(register, timeout=T, metadata=metadata)
            call = stub.Session(metadata=metadata)

            async def down() -> workers.SessionResponse:
                frame = await call.read()
                assert isinstance(frame, workers.SessionResponse), "the stream ended"
                return frame

            hello = workers.SessionHello(worker_id="w1", session_id="s1", sent_ms=1, pool="crm", workflows=["hello"])
            await call.write(workers.SessionRequest(hello=hello))
            welcome = await asyncio.wait_for(down(), T)
            assert welcome.welcome.replica_id == host.engine.replica_id
            credits_ = workers.CreditStatement(credit_id=5, sent_ms=2, run_jobs=1)
            await call.write(workers.SessionRequest(credits=credits_))
            start = runs.StartRunRequest(run_id="r", request_id="q", workflow="hello", pool="crm")
            grants: list[workers.Grant] = []
            async with asyncio.timeout(T):
                while not (await down()).credits_taken:
                    pass
                await host.run_service.StartRun(start, cast("Context", None))
                while not grants:
                    grants += (await down()).grants
            assert (grants[0].claim_id, grants[0].job.run_id) == (5, "r")
            host.stop.set()
            async with asyncio.timeout(T):
                while not (await down()).goaway:
                    pass
            call.cancel()

    asyncio.run(main())


def make_certificates(folder: Path) -> None:
    """Write ca.pem, and server.pem/.key and client.pem/.key that it signed."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    openssl(*new, "-subj", "/CN=test ca", "-keyout", "ca.key", "-out", "ca.pem")
    for name in ("server", "client"):
        alt = ("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key")
        openssl(*new, *signed, *alt, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem")


def test_tls_and_client_certificates(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    paths = {name: tmp_path / name for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key")}
    data = {name: path.read_bytes() for name, path in paths.items()}
    config = ServerConfig(
        listen="127.0.0.1:0",
        amqp_url="",
        tls_cert=paths["server.pem"],
        tls_key=paths["server.key"],
        tls_ca=paths["ca.pem"],
    )
    assert server_credentials(ServerConfig()) is None

    async def main() -> None:
        async with api_host(config) as host:
            trusted = grpc.ssl_channel_credentials(data["ca.pem"], data["client.key"], data["client.pem"])
            async with aio.secure_channel(host.address, trusted) as channel:
                listed = await RunServiceStub(channel).ListRuns(runs.ListRunsRequest(), timeout=T)
                assert not listed.runs
            async with aio.secure_channel(host.address, grpc.ssl_channel_credentials(data["ca.pem"])) as channel:
                with pytest.raises(aio.AioRpcError):
                    await RunServiceStub(channel).ListRuns(runs.ListRunsRequest(), timeout=T)
            with pytest.raises(aio.AioRpcError):
                await host.runs.ListRuns(runs.ListRunsRequest(), timeout=T)

    asyncio.run(main())
