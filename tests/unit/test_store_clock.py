"""The estimate of the store's clock: tight replies set it, slow ones do not spoil it, and a new store is followed."""

from __future__ import annotations

import pytest

from treadle.controlplane.clock import StoreClock


class Own:
    """The process's own clock, moved by hand."""

    def __init__(self) -> None:
        self.ms = 1_000

    def __call__(self) -> int:
        return self.ms


def test_it_must_be_read_first() -> None:
    with pytest.raises(RuntimeError, match="not been read"):
        StoreClock(Own()).now()


def test_a_slow_reply_does_not_spoil_what_a_quick_one_told() -> None:
    own = Own()
    clock = StoreClock(own)
    clock.observe(50_000, 999)  # offset 49,000, give or take a millisecond
    own.ms = 2_000
    clock.observe(50_900, 1_900)  # read at the very beginning of a round trip of 100 ms
    assert clock.now() == 51_000
    clock.observe(50_999, 1_900)  # or at its very end
    assert clock.now() == 51_000


def test_a_first_slow_reply_is_corrected_by_the_next() -> None:
    own = Own()
    clock = StoreClock(own)
    clock.observe(50_000, 800)  # the middle is a guess that is wrong by 100 ms: it was read just now
    assert clock.now() == 50_100
    own.ms = 1_100
    clock.observe(50_100, 1_099)
    assert clock.now() == 50_101


def test_another_clock_is_followed_but_time_never_goes_back() -> None:
    own = Own()
    clock = StoreClock(own)
    clock.observe(50_000, 1_000)
    own.ms = 1_010
    clock.observe(49_000, 1_010)
    assert clock.now() == 50_000
    own.ms = 3_000
    assert clock.now() == 50_990
