"""RabbitMQ and Redis that die under load and come back; everything that dies at once; and what sleeps meanwhile."""

from __future__ import annotations

import time

import pytest

from tests.kill.conftest import Build
from tests.kill.house import House
from tests.kill.process import until
from tests.kill.record import timing
from tests.kill.test_servers import load, until_busy

pytestmark = [pytest.mark.kill, pytest.mark.redis, pytest.mark.rabbitmq]

BROKER_AWAY_S = 10.0


def staffed(house: House, *, each: int = 1) -> House:
    """Start so many workers of each pool."""
    for _ in range(each):
        house.worker("flows")
        house.worker("steps")
    house.ready()
    return house


def test_rabbitmq_is_away_for_ten_seconds(build: Build) -> None:
    house = build("amqp")
    house.server()
    staffed(house)
    assert house.rabbit is not None
    with load(house) as expected:
        until_busy(house, 0.2)
        house.rabbit.kill()
        killed = time.monotonic()
        house.start("meanwhile", "one", n=3, gate="")
        until("RabbitMQ was away for ten seconds", lambda: time.monotonic() - killed > BROKER_AWAY_S)
        house.rabbit.start()
        back = time.monotonic()
    house.check(expected | {"meanwhile": 9})
    timing("until all runs are done, once RabbitMQ is back", time.monotonic() - back)


def test_redis_dies_under_load(house: House) -> None:
    staffed(house)
    with load(house) as expected:
        for share in (0.2, 0.5):
            until_busy(house, share)
            house.redis.restart()
    house.check(expected)


def test_everything_dies_at_once(build: Build) -> None:
    house = build("amqp")
    house.server()
    staffed(house, each=2)
    with load(house) as expected:
        house.start("asleep", "sleeper", n=3, seconds=2.0)
        until_busy(house, 0.2)
        house.kill_all()
        house.start_all()
        back = time.monotonic()
    house.check(expected | {"asleep": 18})
    timing("until all runs are done, once everything is back", time.monotonic() - back)


def test_embedded_mode_dies_as_a_whole(build: Build) -> None:
    house = build("session", embedded=True)
    house.dev()
    sleepers = {f"asleep{seconds}": 2 * seconds * seconds for seconds in (1, 2, 5)}
    for seconds in (1, 2, 5):
        house.start(f"asleep{seconds}", "sleeper", n=seconds, seconds=float(seconds))
    house.until_starts(len(sleepers), step="local_square")
    with load(house) as expected:
        until_busy(house, 0.2)
        house.kill_all()
        house.start_all()
        back = time.monotonic()
    house.check(expected | sleepers)
    timing("until all runs are done, once embedded mode is back", time.monotonic() - back)
