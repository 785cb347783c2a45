"""The checker of the kill tests: it must see what it is there for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.kill.ledger import Entry, check_ledger
from treadle.v1.history_pb2 import HistoryEvent

COMMAND = "0/square#1"
NONE = {"W1": 0, "W2": 0, "W3": 0, "W4": 0}


def history(*kinds: tuple[int, str, dict[str, Any]]) -> list[HistoryEvent]:
    """Events at these times (ms)."""
    events = []
    for number, (ms, kind, fields) in enumerate(kinds, 1):
        what: dict[str, Any] = {kind: fields}
        events.append(HistoryEvent(position=number, time_ms=ms, **what))
    return events


def go(ms: int, attempt: int = 1) -> tuple[int, str, dict[str, Any]]:
    return ms, "attempt_started", {"command_id": COMMAND, "attempt": attempt}


def done(ms: int, attempt: int = 1) -> tuple[int, str, dict[str, Any]]:
    return ms, "step_completed", {"command_id": COMMAND, "attempt": attempt}


def closed(ms: int, kind: str = "run_completed") -> tuple[int, str, dict[str, Any]]:
    return ms, kind, {}


def began(ms: int, attempt: int = 1, *, key: str = "k", once: bool = False, local: bool = False) -> Entry:
    return Entry(
        what="start",
        wall=ms / 1000,
        boot=0,
        pid=1,
        run="r1",
        step="square",
        command=COMMAND,
        attempt=attempt,
        try_number=1,
        key=key,
        once=once,
        local=local,
    )


def check(entries: Sequence[Entry], events: Sequence[HistoryEvent], *windows: str) -> dict[str, int]:
    return check_ledger(entries, {"r1": events}, windows)


TWICE = history(go(1_000), go(9_000, 2), done(9_500, 2), closed(9_600))


def test_what_is_right_is_accepted() -> None:
    assert check([began(1_010), began(9_010, 2)], TWICE) == NONE
    assert check([began(1_010)], history(go(1_000), done(1_000), closed(1_001))) == NONE, "its own outcome comes later"


def test_a_start_after_the_recorded_result_is_seen() -> None:
    with pytest.raises(AssertionError, match="attempt 1 began 500 ms after its outcome"):
        check([began(9_010, 2), began(10_000)], TWICE)


@pytest.mark.parametrize("window", ["W1", "W2", "W3"])
def test_a_window_that_is_allowed_is_counted(window: str) -> None:
    assert check([began(9_010, 2), began(10_000)], TWICE, window) == NONE | {window: 1}


def test_windows_have_an_end() -> None:
    with pytest.raises(AssertionError, match="began 4500 ms after"):
        check([began(9_010, 2), began(14_000)], TWICE, "W2", "W4")


def test_a_start_after_the_run_was_terminated_is_w4() -> None:
    events = history(go(1_000), closed(2_000, "run_terminated"))
    assert check([began(2_500)], events, "W4") == NONE | {"W4": 1}
    with pytest.raises(AssertionError, match="began 500 ms after"):
        check([began(2_500)], events, "W1", "W2", "W3")


def test_a_local_body_of_a_fenced_owner_is_seen() -> None:
    events = history(done(1_000), closed(1_500))
    assert check([began(900, local=True)], events) == NONE
    with pytest.raises(AssertionError, match="began 200 ms after"):
        check([began(900, local=True), began(1_200, local=True)], events)


@pytest.mark.parametrize(
    ("entries", "events", "told"),
    [
        ([began(9_010, 2), began(1_010, 3)], TWICE, "attempt 3 began without a GO"),
        ([began(900)], history(go(1_000), done(1_100), closed(1_200)), "began 100 ms before its GO"),
        ([began(1_010), began(1_020)], history(go(1_000), done(1_100), closed(1_200)), "began more than once"),
        ([began(1_010), began(9_010, 2, key="other")], TWICE, "more than one idempotency key"),
        ([began(1_010, once=True), began(9_010, 2, once=True)], TWICE, "at most once, but began 2 times"),
        ([], TWICE, "its body never began"),
        ([began(1_010)], history(go(1_000), done(1_100), done(1_150), closed(1_200)), "a second outcome"),
        ([began(1_010)], history(go(1_000), done(1_100), closed(1_200), go(1_300, 2)), "after run_completed"),
        ([began(1_010)], history(go(1_000), done(1_100)), "not closed"),
        ([began(1_010)], [*history(go(1_000)), *history(done(1_100))], "position 1 where 2 should be"),
    ],
)
def test_other_faults_are_told(entries: list[Entry], events: list[HistoryEvent], told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        check(entries, events)


def test_bodies_of_an_unknown_run_are_told() -> None:
    with pytest.raises(AssertionError, match="no history of it was given"):
        check_ledger([began(1_010)], {}, ())
