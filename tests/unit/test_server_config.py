"""Settings, tokens and metrics of the control plane: what is taken, and what is refused with which words."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
    MetricsServiceServicer,
    add_MetricsServiceServicer_to_server,
)

from treadle.controlplane.api.auth import Grantee, TokenFile, make_token
from treadle.controlplane.config import ServerConfig, masked, split_address
from treadle.controlplane.telemetry import Metrics, otlp_provider
from treadle.protocol.errors import ConfigError, Refused
from treadle.v1.job_pb2 import Job
from treadle.v1.run_service_pb2 import GetRunRequest
from treadle.v1.worker_service_pb2 import ClaimItem, RegisterRequest, SessionHello, SessionRequest


def test_defaults_listen_on_loopback() -> None:
    config = ServerConfig.from_env({})
    assert (config.listen, config.amqp_url[:7], config.max_payload_bytes) == ("127.0.0.1:7430", "amqp://", 1 << 20)
    assert config.replica_id != ServerConfig.from_env({}).replica_id


def test_variables_are_read_and_overruled() -> None:
    environ = {
        "TREADLE_REDIS_URL": "rediss://u:p@r:6379/2",
        "TREADLE_REDIS_CLUSTER": "yes",
        "TREADLE_AMQP_URL": "memory",
        "TREADLE_LISTEN": "0.0.0.0:1",
        "TREADLE_INSECURE": "true",
        "TREADLE_OUTBOX_MAX": "10_000",
        "TREADLE_RETENTION": "3d",
        "TREADLE_SHUTDOWN_GRACE": "10s",
        "TREADLE_REFLECTION": "0",
        "TREADLE_LOG_LEVEL": " ",
    }
    config = ServerConfig.from_env(environ, listen="[::1]:7430", insecure=None)
    assert (config.redis_url, config.redis_cluster, config.amqp_url) == ("rediss://u:p@r:6379/2", True, "")
    assert (config.listen, config.insecure, config.outbox_max) == ("[::1]:7430", True, 10_000)
    assert (config.retention_ms, config.shutdown_grace_s, config.reflection) == (259_200_000, 10.0, False)
    assert config.log_level == "info"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"redis_url": "http://x"}, "redis_url 'http://x': use redis://"),
        ({"redis_url": "redis://:pw@h:99999"}, r"redis_url .*: use"),
        ({"amqp_url": "localhost:5672"}, "amqp_url"),
        ({"amqp_url": "", "worker_amqp_url": "amqp://b/"}, "another broker"),
        ({"listen": "7430"}, "listen '7430': write it like"),
        ({"listen": "h:70000"}, "listen 'h:70000'"),
        ({"listen": "0.0.0.0:7430"}, "tls_cert and tokens_file not set.*--insecure"),
        ({"max_payload_bytes": 100}, "max_payload_bytes 100: give a number from 1,024"),
        ({"outbox_max": 0}, "outbox_max"),
        ({"tls_cert": Path("/nowhere.pem")}, "tls_cert '/nowhere.pem': there is no such file"),
        ({"replica_id": ""}, "replica_id"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServerConfig(**values)  # type: ignore[arg-type]


def test_a_bad_variable_is_named() -> None:
    with pytest.raises(ConfigError, match=r"TREADLE_OUTBOX_MAX 'many'"):
        ServerConfig.from_env({"TREADLE_OUTBOX_MAX": "many"})
    with pytest.raises(ConfigError, match=r"TREADLE_INSECURE 'maybe'"):
        ServerConfig.from_env({"TREADLE_INSECURE": "maybe"})
    with pytest.raises(ConfigError, match=r"TREADLE_RETENTION '3 days'"):
        ServerConfig.from_env({"TREADLE_RETENTION": "3 days"})


def test_an_open_address_needs_tls_and_tokens(tmp_path: Path) -> None:
    pem = tmp_path / "x.pem"
    pem.write_text("")
    with pytest.raises(ConfigError, match="belong together"):
        ServerConfig(tls_cert=pem)
    with pytest.raises(ConfigError, match="tls_ca demands"):
        ServerConfig(tls_ca=pem)
    ServerConfig(listen="0.0.0.0:1", tls_cert=pem, tls_key=pem, tokens_file=pem)
    ServerConfig(listen="0.0.0.0:1", insecure=True)
    assert split_address("[::1]:80") == ("::1", 80)


def test_passwords_are_masked() -> None:
    assert masked("amqp://me:secret@h:5672/v") == "amqp://me:***@h:5672/v"
    assert masked("redis://h") == "redis://h"


NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_tokens_are_found_until_they_are_over_and_the_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    token, line = make_token("prod", "worker:crm", "2026-06-01")
    path.write_text(f"# people\n\n{line}\n")
    tokens = TokenFile(path)
    found = tokens.find(token, NOW)
    assert found is not None
    assert (found.namespace, found.role, found.pool) == ("prod", "worker", "crm")
    assert tokens.find(token, NOW + timedelta(days=200)) is None
    assert tokens.find(token + "x", NOW) is None
    other, other_line = make_token("*", "admin")
    path.write_text(f"{line}\n{other_line}\n")
    assert tokens.find(other, NOW) is not None
    path.write_text("a wrong line\n")
    assert tokens.find(other, NOW) is not None, "a broken file keeps the tokens before it"
    path.write_text("")
    assert tokens.find(other, NOW) is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("default admin", "found 2 words"),
        (f"default boss {'0' * 64} never", "role 'boss'"),
        (f"default worker {'0' * 64} never", "worker:<pool>"),
        (f"default admin:x {'0' * 64} never", "role 'admin:x'"),
        ("default admin 123 never", "64 hex digits"),
        (f"default admin {'0' * 64} soon", "expiry 'soon'"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(line)
    with pytest.raises(ConfigError, match=f"tokens:1: .*{message}"):
        TokenFile(path)


@pytest.mark.parametrize(
    ("role", "allowed", "refused"),
    [
        ("viewer", "RunService/GetRun PoolService/ListPools", "RunService/StartRun WorkerService/Beat"),
        ("client", "RunService/StartRun RunService/CancelRun", "RunService/TerminateRun WorkerService/Register"),
        ("operator", "RunService/TerminateRun RunService/AcceptRun", "WorkerService/Session"),
        ("viewer", "ScheduleService/ListSchedules ScheduleService/GetSchedule", "ScheduleService/TriggerSchedule"),
        ("client", "ScheduleService/TriggerSchedule", "ScheduleService/CreateSchedule ScheduleService/DeleteSchedule"),
        ("operator", "ScheduleService/CreateSchedule ScheduleService/BackfillSchedule", "WorkerService/Register"),
        ("worker", "WorkerService/Session WorkerService/Beat", "RunService/GetRun PoolService/ListPools"),
        ("admin", "RunService/TerminateRun WorkerService/Session", ""),
    ],
)
def test_roles(role: str, allowed: str, refused: str) -> None:
    grantee = Grantee("default", role, pool="crm" if role == "worker" else "")
    for method in allowed.split():
        grantee.check_method(f"/treadle.v1.{method}")
    for method in refused.split():
        with pytest.raises(Refused, match=role) as caught:
            grantee.check_method(f"/treadle.v1.{method}")
        assert caught.value.reason == "ROLE_NOT_ALLOWED"


def test_a_token_reaches_its_namespace_and_pool_only() -> None:
    worker = Grantee("prod", "worker", pool="crm")
    worker.check_message(RegisterRequest(namespace="prod", pool="crm"))
    worker.check_message(SessionRequest(hello=SessionHello(namespace="prod", pool="crm")))
    worker.check_message(SessionRequest(claims=[ClaimItem(garbage=b"x")]))
    wrong = {
        "POOL_NOT_ALLOWED": [
            RegisterRequest(namespace="prod", pool="pay"),
            SessionRequest(hello=SessionHello(namespace="prod", pool="pay")),
            SessionRequest(claims=[ClaimItem(job=Job(namespace="prod", pool="pay"))]),
        ],
        "NAMESPACE_NOT_ALLOWED": [
            RegisterRequest(pool="crm"),
            SessionRequest(hello=SessionHello(namespace="test", pool="crm")),
        ],
    }
    for reason, messages in wrong.items():
        for message in messages:
            with pytest.raises(Refused) as caught:
                worker.check_message(message)
            assert caught.value.reason == reason
    Grantee("*", "viewer").check_message(GetRunRequest(namespace="anything"))
    with pytest.raises(Refused):
        Grantee("prod", "viewer").check_message(GetRunRequest())


def test_metrics_count_only_known_names() -> None:
    metrics = Metrics()
    metrics.count("treadle.runs", outcome="completed")
    metrics.count("treadle.runs", 2, outcome="completed")
    metrics.gauge("treadle.outbox.size", 7)
    metrics.observe("treadle.attempt.duration", 3)
    metrics.observe("treadle.attempt.duration", 5)
    assert metrics.value("treadle.runs", outcome="completed") == 3
    assert metrics.value("treadle.runs", outcome="failed") == 0
    assert metrics.value("treadle.outbox.size") == 7
    assert metrics.summary("treadle.attempt.duration").largest == 5
    with pytest.raises(ConfigError, match=r"telemetry\.METRICS"):
        metrics.count("treadle.wrong")
    with pytest.raises(ConfigError, match="no gauge named"):
        metrics.gauge("treadle.runs", 1)
    assert otlp_provider({}, "r1", metrics) is None
    assert (
        otlp_provider({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}, "r1", metrics) is None
    )


def test_metrics_reach_opentelemetry() -> None:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    metrics = Metrics()
    metrics.export(provider.get_meter("treadle"))
    metrics.count("treadle.runs", 3, outcome="completed")
    data = reader.get_metrics_data()
    provider.shutdown()
    assert data is not None
    found = {metric.name: metric for metric in data.resource_metrics[0].scope_metrics[0].metrics}
    (point,) = found["treadle.runs"].data.data_points
    assert (point.value, dict(point.attributes or {})) == (3, {"outcome": "completed"})  # type: ignore[union-attr]


@pytest.mark.parametrize("temporality", ["cumulative", "delta"])
def test_histograms_reach_a_receiver(monkeypatch: pytest.MonkeyPatch, temporality: str) -> None:
    came: list[ExportMetricsServiceRequest] = []

    class Receiver(MetricsServiceServicer):
        def Export(self, request: ExportMetricsServiceRequest, context: object) -> ExportMetricsServiceResponse:
            came.append(request)
            return ExportMetricsServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    add_MetricsServiceServicer_to_server(Receiver(), server)  # type: ignore[no-untyped-call]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", temporality)
    server.start()
    metrics = Metrics()
    provider = otlp_provider(os.environ, "r1", metrics)
    assert provider is not None
    try:
        metrics.gauge("treadle.outbox.size", 1)
        for value in (0.004, 0.005, 200_000):
            metrics.observe("treadle.attempt.duration", value, namespace="ns")
        assert provider.force_flush()
        metrics.observe("treadle.attempt.duration", 3, namespace="ns")
        assert provider.force_flush()
    finally:
        provider.shutdown()
        server.stop(None).wait()
    points = [
        point
        for request in came[:2]
        for scope in request.resource_metrics[0].scope_metrics
        for metric in scope.metrics
        if metric.name == "treadle.attempt.duration"
        for point in metric.histogram.data_points
    ]
    buckets = [dict(zip([*point.explicit_bounds, 0], point.bucket_counts, strict=True)) for point in points]
    whole = temporality == "cumulative"
    assert [point.count for point in points] == ([3, 4] if whole else [3, 1])
    assert (buckets[0][0.005], buckets[0][0], buckets[1][5], buckets[1][0]) == (2, 1, 1, int(whole))
    assert points[1].sum == pytest.approx(200_003.009 if whole else 3)
    assert points[1].time_unix_nano > points[0].time_unix_nano >= points[0].start_time_unix_nano > 0
