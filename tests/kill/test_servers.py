"""Control planes that die in the middle of many runs: one that comes back, and one of two that does not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.kill.conftest import Build
from tests.kill.house import House, Lane

pytestmark = [pytest.mark.kill, pytest.mark.redis, pytest.mark.rabbitmq]

RUNS = 40
SQUARES = 4
SUM = 2 * sum(i * i for i in range(SQUARES))


@contextmanager
def load(house: House) -> Iterator[dict[str, int]]:
    """Start runs one after the other from a thread, whatever happens meanwhile; yields what they will return."""
    expected = {f"r{n}": SUM for n in range(RUNS)}
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


def until_busy(house: House, share: float) -> None:
    """Wait until this share of all steps has begun: the rest is in flight, or still to come."""
    everything = RUNS * 2 * SQUARES
    begun = house.until_starts(int(everything * share))
    assert len(begun) < everything, "all was done before anything was killed"


def test_the_only_server_dies_and_comes_back(house: House) -> None:
    house.worker("flows")
    house.worker("steps")
    house.ready()
    server = house.servers[0]
    with load(house) as expected:
        for share in (0.2, 0.5):
            until_busy(house, share)
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
        until_busy(house, 0.4)
        second.kill()
    house.check(expected)
