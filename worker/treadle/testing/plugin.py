"""The pytest fixture `lab`. It is not installed by itself: name it in the conftest.py at the root of your tests,

    pytest_plugins = ["treadle.testing.plugin"]

so that projects which do not want it load nothing of it, and have the name `lab` for themselves.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

from .lab import Lab

__all__ = ("lab",)

_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note whether a test failed, for its fixture."""
    report = yield
    if report.when == "call":
        item.stash[_FAILED] = report.failed
    return report


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Generator[Lab, None, None]:
    """A lab of the test's own. Its runs are replayed when the test has passed."""
    lab = Lab()
    try:
        yield lab
        if not request.node.stash.get(_FAILED, False):
            lab.check_replay()
    finally:
        lab.close()
