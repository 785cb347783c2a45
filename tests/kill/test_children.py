"""Runs that start runs while workers and the control plane are killed: exactly one child each, and its outcome once."""

from __future__ import annotations

import json

import pytest

from tests.kill.conftest import Build
from tests.kill.house import Lane

pytestmark = [pytest.mark.kill, pytest.mark.redis, pytest.mark.rabbitmq]

RUNS = 3
CHILDREN = 12
KILLS = 4


@pytest.mark.parametrize("lane", ["amqp", "session"])
def test_each_child_is_started_once_whoever_dies(build: Build, lane: Lane, request: pytest.FixtureRequest) -> None:
    house = build(lane, rabbit=request.getfixturevalue("rabbit"))
    server = house.server()
    owners = [house.worker("flows"), house.worker("flows", options=("--always-replay",))]
    house.worker("steps")
    house.ready()
    parents = [f"r{n}" for n in range(RUNS)]
    for parent in parents:
        house.start(parent, "family", n=CHILDREN)
    for kill in range(KILLS):
        house.until_starts(RUNS * CHILDREN * kill // KILLS + 1, step="square")
        victim = owners[kill % 2]
        victim.kill()
        if kill % 2:
            server.kill()
            server.restart()
        victim.start()
    expected: dict[str, int] = {}
    for parent in parents:
        expected[parent] = house.client.run(parent).result("60s")
        scheduled = [e.child_scheduled for e in house.history(parent) if e.HasField("child_scheduled")]
        expected |= {child.run_id: json.loads(child.input.data)["n"] ** 2 for child in scheduled}
        kinds = house.kinds(parent)
        assert kinds.count("child_scheduled") == kinds.count("child_completed") == CHILDREN
        assert expected[parent] == sum(n * n for n in range(CHILDREN))
    house.check(expected)
    assert {run.id for run in house.client.list(workflow="member")} == expected.keys() - set(parents)


@pytest.mark.parametrize("lane", ["amqp", "session"])
def test_children_of_a_cancelled_parent_are_cancelled_though_the_server_dies(
    build: Build, lane: Lane, request: pytest.FixtureRequest
) -> None:
    house = build(lane, rabbit=request.getfixturevalue("rabbit"))
    server = house.server()
    house.worker("flows")
    house.worker("steps")
    house.ready()
    run = house.start("parent", "gated_family", n=CHILDREN, gate="never")
    house.until_starts(CHILDREN, step="square")
    run.cancel("enough")
    server.kill()
    server.restart()
    client = house.client
    assert client.run("parent").wait("60s").status.value == "cancelled"
    children = [run.id for run in client.list(workflow="gated_member")]
    assert len(children) == CHILDREN
    assert [client.run(child).wait("60s").status.value for child in children] == ["cancelled"] * CHILDREN
