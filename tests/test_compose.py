"""docker-compose.yml is valid, and everything it names exists in the project."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tests.commands import missing_flags, server_variables, treadle_help
from treadle.controlplane.config import ServerConfig

ROOT = Path(__file__).resolve().parents[1]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILES = {"server": ROOT / "controlplane" / "Dockerfile", "worker": ROOT / "worker" / "Dockerfile"}


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
    return found


def own_services() -> dict[str, dict[str, Any]]:
    """Return the services built from this repository."""
    return {name: service for name, service in services().items() if "build" in service}


def subcommand(service: dict[str, Any]) -> tuple[str, list[str]]:
    """Return which `treadle` command a service runs, and its arguments, from entrypoint and command."""
    entrypoint = re.search(r"^ENTRYPOINT (\[.*\])$", (ROOT / service["build"]["dockerfile"]).read_text(), re.M)
    assert entrypoint is not None
    words: list[str] = json.loads(entrypoint[1]) + service["command"]
    assert words[0] == "treadle"
    return words[1], words[2:]


def sources(*components: str) -> str:
    files = [path for component in components for path in (ROOT / component / "treadle").rglob("*.py")]
    return "\n".join(path.read_text() for path in files)


def test_file_follows_the_compose_specification() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_service_may_be_scaled_or_has_a_published_port() -> None:
    """A container name or a fixed host port would stop `--scale worker-csv=4`."""
    for name, service in services().items():
        assert "container_name" not in service, name
        if name.startswith("worker"):
            assert "ports" not in service, name


def test_ports_are_published_on_loopback_only() -> None:
    for service in services().values():
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", []))


def test_every_dependency_has_a_health_check() -> None:
    everything = services()
    for service in everything.values():
        for needed, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in everything[needed], needed


def test_every_variable_is_read_by_the_process_that_gets_it() -> None:
    """A setting given to the wrong process would be ignored without a word. OTEL_* are the SDK's own."""
    workers = sources("client", "worker") + (ROOT / "examples" / "contacts" / "app.py").read_text()
    for name, service in own_services().items():
        given = {variable for variable in service["environment"] if not variable.startswith("OTEL_")}
        if name == "server":
            assert given <= server_variables()
        else:
            assert sorted(variable for variable in given if variable not in workers) == [], name


def test_server_accepts_its_settings() -> None:
    environment = {name: str(value) for name, value in services()["server"]["environment"].items()}
    command, arguments = subcommand(services()["server"])
    assert (command, arguments) == ("server", ["--listen", "0.0.0.0:7430", "--insecure"])
    config = ServerConfig.from_env(environment, listen="0.0.0.0:7430", insecure=True)
    assert config.redis_url == "redis://redis:6379/0"


def test_every_addressed_service_exists_and_listens_there() -> None:
    """Addresses among the variables point at a service of the file and the port its server really uses."""
    listening = {"redis": "6379", "rabbitmq": "5672", "jaeger": "4317", "server": "7430"}
    for service in own_services().values():
        for value in service.get("environment", {}).values():
            for host, port in re.findall(r"(?:^|//|@)([a-z]+):(\d+)", str(value)):
                assert listening[host] == port, value
    assert "0.0.0.0:7430" in services()["server"]["command"]
    assert "EXPOSE 7430" in DOCKERFILES["server"].read_text()
    jaeger = (ROOT / "deploy" / "jaeger" / "config.yaml").read_text()
    assert all(f"0.0.0.0:{port}" in jaeger for port in ("4317", "16686", "13133"))


def test_every_published_port_is_listened_on() -> None:
    known = {"rabbitmq": {"15672"}, "jaeger": {"16686"}, "server": {"7430"}}
    for name, service in services().items():
        assert {str(port).rsplit(":", 1)[1] for port in service.get("ports", [])} == known.get(name, set())


def test_every_mounted_and_built_path_exists() -> None:
    volumes = yaml.safe_load(COMPOSE.read_text())["volumes"]
    for service in services().values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in volumes, mount
    for service in own_services().values():
        assert (ROOT / service["build"]["dockerfile"]).is_file()


def test_jaeger_is_given_the_files_that_its_configuration_names() -> None:
    jaeger = services()["jaeger"]
    inside = {mount.split(":")[1] for mount in jaeger["volumes"]}
    config = yaml.safe_load((ROOT / "deploy" / "jaeger" / "config.yaml").read_text())
    assert jaeger["command"][1] in inside
    assert config["extensions"]["jaeger_query"]["ui"]["config_file"] in inside
    json.loads((ROOT / "deploy" / "jaeger" / "jaeger-ui.json").read_text())
    directories = config["extensions"]["jaeger_storage"]["backends"]["main"]["badger"]["directories"].values()
    assert all(any(path.startswith(f"{mount}/") for mount in inside) for path in directories)


@pytest.mark.parametrize("name", sorted(own_services()))
def test_every_command_and_flag_exists(name: str) -> None:
    command, arguments = subcommand(own_services()[name])
    assert missing_flags(treadle_help(command), arguments) == []


def test_workers_run_the_example_and_serve_each_of_its_pools() -> None:
    workers = {name: service for name, service in own_services().items() if name.startswith("worker")}
    apps = {subcommand(service)[1][0] for service in workers.values()}
    assert apps == {"examples/contacts/app.py"}
    mounted = {mount.split(":")[0]: mount.split(":")[1] for mount in workers["worker"]["volumes"]}
    assert mounted["./examples"] == "/srv/treadle/examples"
    assert "WORKDIR /srv/treadle" in DOCKERFILES["worker"].read_text()
    pools = set(re.findall(r'pool="([^"]+)"', (ROOT / apps.pop()).read_text())) | {"default"}
    assert {service["environment"]["TREADLE_POOL"] for service in workers.values()} == pools


@pytest.mark.parametrize("dockerfile", sorted(DOCKERFILES))
def test_images_copy_what_exists_and_the_context_holds(dockerfile: str) -> None:
    """.dockerignore lets in only what it names: a COPY of anything else would fail the build."""
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in DOCKERFILES[dockerfile].read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            sources_, _target = line.split()[1:-1], line.split()[-1]
            assert all((ROOT / source).exists() and source in let_in for source in sources_), line


@pytest.mark.parametrize("dockerfile", sorted(DOCKERFILES))
def test_images_run_as_nobody_special_in_pinned_versions(dockerfile: str) -> None:
    text = DOCKERFILES[dockerfile].read_text()
    assert re.search(r"^USER treadle$", text, re.M)
    assert "--constraint constraints.txt" in text


def test_server_health_check_is_in_the_image() -> None:
    script = services()["server"]["healthcheck"]["test"][2]
    assert f"COPY deploy/healthcheck.py {script}" in DOCKERFILES["server"].read_text()


def test_server_health_check_tells_serving_from_not() -> None:
    servicer = health.HealthServicer()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    check = [sys.executable, str(ROOT / "deploy" / "healthcheck.py"), f"127.0.0.1:{port}"]
    try:
        servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        assert subprocess.run(check, capture_output=True, check=False).returncode == 0
        servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert subprocess.run(check, capture_output=True, check=False).returncode == 1
    finally:
        server.stop(grace=None).wait()
    gone = subprocess.run(check, capture_output=True, text=True, check=False)
    assert gone.returncode == 1
    assert "UNAVAILABLE" in gone.stderr
