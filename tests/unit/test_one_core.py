"""When the threads of a server share a core: what is decided from look to look."""

from __future__ import annotations

import asyncio
import os
from itertools import pairwise
from pathlib import Path

import pytest

from treadle.controlplane import one_core
from treadle.controlplane.one_core import Binding, Times

LOOK_MS = 100.0


class Looks:
    """A server that is looked at: how long it computed and waited since the look before."""

    def __init__(self) -> None:
        self.times = Times(1_000.0, 200.0)  # what its start took counts for nothing
        self.binding = Binding(self.times)

    def look(self, ran: float, waited: float = 0.0) -> bool:
        self.times = Times(self.times.ran + ran, self.times.waited + waited)
        return self.binding.look(self.times, LOOK_MS)


def test_a_server_with_little_to_do_is_bound_and_one_that_is_busy_is_not() -> None:
    looks = Looks()
    assert looks.look(45.0)
    assert looks.look(55.0), "between calm and busy it stays as it is"
    assert not looks.look(65.0)
    assert not looks.look(55.0)
    assert looks.look(45.0)


def test_time_that_it_waits_for_a_core_is_time_that_it_wants() -> None:
    looks = Looks()
    assert looks.look(10.0)
    assert not looks.look(50.0, waited=12.0)


def test_it_leaves_a_core_that_others_want_and_stays_away_longer_each_time() -> None:
    looks = Looks()
    bound = [looks.look(20.0, waited=20.0) for _ in range(3_000)]
    settled = [i for i, (before, now) in enumerate(pairwise(bound)) if now and not before]
    away = [later - earlier for earlier, later in pairwise(settled)]
    assert away[:4] == [4, 6, 10, 18]
    assert away[-1] == away[-2] == 2 + 512


def test_what_it_waits_is_no_crowd_when_it_is_next_to_nothing() -> None:
    looks = Looks()
    assert looks.look(1.0)
    assert looks.look(1.0, waited=9.0), "a timer that met another program, once"


def test_a_core_that_was_crowded_once_is_as_good_as_any_after_a_while() -> None:
    looks = Looks()
    assert looks.look(10.0)
    for _ in range(4):  # crowded again and again
        while not looks.look(20.0, waited=20.0):
            pass
        assert not looks.look(20.0, waited=20.0)
    while not looks.look(20.0):
        pass
    assert all(looks.look(20.0) for _ in range(10))
    assert not looks.look(20.0, waited=20.0)
    away = 1
    while not looks.look(20.0):
        away += 1
    assert away == 2


def test_one_that_idles_is_looked_at_less_often() -> None:
    looks = Looks()
    looks.look(2.0)
    idle_s = looks.binding.next_s
    looks.look(30.0)
    assert looks.binding.next_s < idle_s


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs Linux and two cores"
)
@pytest.mark.parametrize("told", ["0 0 0\n", None])
def test_nothing_is_bound_where_the_kernel_keeps_no_account(
    told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if told is not None:
        (tmp_path / "schedstat").write_text(told)
        (tmp_path / "stat").write_text(Path("/proc/thread-self/stat").read_text())
    monkeypatch.setattr(one_core, "_SELF", tmp_path)
    everywhere = os.sched_getaffinity(0)

    async def main() -> None:
        async with asyncio.timeout(3):
            await one_core.stay_on_one_core()

    asyncio.run(main())
    assert os.sched_getaffinity(0) == everywhere
