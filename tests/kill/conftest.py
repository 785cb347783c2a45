"""Houses for the kill tests; when a test fails, what their processes said is in its report."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.kill.house import House, Lane
from tests.kill.record import lines
from tests.servers.rabbit_server import RabbitServer

_FAILED = pytest.StashKey[bool]()

Build = Callable[..., House]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[_FAILED] = report.failed
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found = lines()
    if found:
        terminalreporter.section("kill tests")
        for line in found:
            terminalreporter.write_line(line)


@pytest.fixture
def build(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Build]:
    """Make a house: `build("amqp")` on the node that all tests share, `build("session")` without RabbitMQ."""
    houses: list[House] = []
    with ExitStack() as stack:

        def make(lane: Lane, **more: Any) -> House:
            rabbit: RabbitServer | None = request.getfixturevalue("rabbit") if lane == "amqp" else None
            house = House(tmp_path, lane=lane, **{"rabbit": rabbit} | more)
            houses.append(stack.enter_context(house))
            return house

        yield make
        if request.node.stash.get(_FAILED, False):
            for house in houses:
                house.show()


@pytest.fixture(params=["amqp", "session"])
def lane(request: pytest.FixtureRequest) -> Lane:
    """Both lanes, one after the other."""
    found: Lane = request.param
    return found


@pytest.fixture
def house(build: Build, lane: Lane) -> House:
    """A house with one server, on each lane."""
    made = build(lane)
    made.server()
    return made
