"""Control planes that die in the middle of many runs: one that comes back, and one of two that does not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.kill.conftest import Build
from tests.kill.house import House, Lane

pytestmark = [pytest.mark.kill, pytest.mark.redis, pytest.mark.rabbitmq]

RUNS = 60
SQUARES = 4
SUM = 2 * sum(i * i for i in range(SQUARES))


@contextmanager
def load(house: House, runs: int = RUNS) -> Iterator[dict[str, int]]:
    """Start runs one after the other from a thread, whatever happens meanwhile; yields what they will return."""
    expected = {f"r{n}": SUM for n in range(runs)}
    failed: list[BaseException] = []

    def start() -> None:
        try:
            for run in expected:
                house.start(run, "squares", n=SQUARES)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=start, name="load")
    thread.start()
    try:
        yield expected
    finally:
        thread.join()
    assert not failed, failed


def test_the_only_server_dies_and_comes_back(house: House) -> None:
    house.worker("flows")
    house.worker("steps")
    house.ready()
    server = house.servers[0]
    with load(house) as expected:
        for begun in (RUNS // 4 * SQUARES, RUNS // 2 * SQUARES):
            house.until_starts(begun)
            server.restart()
    house.check(expected)


@pytest.mark.parametrize("lane", ["amqp", "session"])
def test_one_of_two_servers_dies(build: Build, lane: Lane, request: pytest.FixtureRequest) -> None:
    house = build(lane, rabbit=request.getfixturevalue("rabbit"))
    first, second = house.server(), house.server()
    for pool in ("flows", "steps"):
        house.worker(pool, server=f"{first.address},{second.address}")
        house.worker(pool, server=f"{second.address},{first.address}")
    house.ready()
    with load(house) as expected:
        house.until_starts(RUNS // 2 * SQUARES)
        first.kill()
    house.check(expected)
