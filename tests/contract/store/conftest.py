"""The kinds of store: memory, Redis, Redis Cluster of three nodes, the Valkey of embedded mode; two behind a cache."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.contract.store.cases import Case
from tests.servers.redis_server import RedisCluster, RedisServer, external_url, redis_binary
from treadle.controlplane.store.embedded import server_binary


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    given = external_url()
    if given is not None:
        yield given
        return
    with RedisServer(binary=redis_binary()) as server:
        yield server.url


@pytest.fixture(scope="session")
def cluster_url() -> Iterator[str]:
    binary = shutil.which("redis-server") or server_binary()
    with RedisCluster(binary=binary) as cluster:
        yield cluster.url


@pytest.fixture(scope="session")
def valkey_url() -> Iterator[str]:
    with RedisServer(binary=server_binary()) as server:
        yield server.url


@pytest.fixture(
    params=[
        "memory",
        pytest.param("redis", marks=pytest.mark.redis),
        pytest.param("cluster", marks=pytest.mark.redis),
        pytest.param("valkey", marks=pytest.mark.redis),
        "cached memory",
        pytest.param("cached redis", marks=pytest.mark.redis),
    ]
)
def case(request: pytest.FixtureRequest) -> Case:
    kind = request.param.rpartition(" ")[2]
    cached = kind != request.param
    if kind == "memory":
        return Case(request.param, None, cached=cached)
    url: str = request.getfixturevalue(f"{kind}_url")
    return Case(request.param, url, cluster=kind == "cluster", cached=cached)
