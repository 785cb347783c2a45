"""What counts of the past of a continued run, table by table; replays of whole runs are in tests/replay."""

from __future__ import annotations

from typing import Any

import pytest

from treadle.protocol.past import Past, first_call, past_of
from treadle.v1 import history_pb2 as h


def past(*kinds: dict[str, Any]) -> Past:
    return past_of(h.HistoryEvent(position=n, **kind) for n, kind in enumerate(kinds, start=1))


def scheduled(c: str) -> dict[str, Any]:
    return {"step_scheduled": h.StepScheduled(command_id=c)}


def started(c: str, attempt: int, number: int = 1) -> dict[str, Any]:
    return {"attempt_started": h.AttemptStarted(command_id=c, attempt=attempt, try_number=number)}


def lost(c: str, attempt: int) -> dict[str, Any]:
    return {"attempt_lost": h.AttemptLost(command_id=c, attempt=attempt)}


def attempt_failed(c: str, attempt: int, number: int) -> dict[str, Any]:
    return {"attempt_failed": h.AttemptFailed(command_id=c, attempt=attempt, try_number=number)}


def again(c: str, number: int) -> dict[str, Any]:
    return {"step_retried": h.StepRetried(command_id=c, try_number=number)}


def done(c: str, attempt: int = 1) -> dict[str, Any]:
    return {"step_completed": h.StepCompleted(command_id=c, attempt=attempt)}


def broken(c: str, attempt: int = 1) -> dict[str, Any]:
    return {"step_failed": h.StepFailed(command_id=c, attempt=attempt)}


def run_failed(*because: str, all: bool = False) -> dict[str, Any]:
    return {"run_failed": h.RunFailed(because=because, because_all=all)}


def retried(number: int = 1, at: int = 0) -> dict[str, Any]:
    return {"run_retried": h.RunRetried(number=number, from_position=at)}


START = {"run_started": h.RunStarted()}
CANCEL = {"cancel_requested": h.CancelRequested()}


@pytest.mark.parametrize(
    ("events", "kept"),
    [
        ([START, scheduled("a"), done("a"), scheduled("b"), broken("b"), run_failed("b"), retried()], [1, 2, 3, 7]),
        ([START, scheduled("a"), broken("a"), scheduled("b"), broken("b"), run_failed("b"), retried()], [1, 2, 3, 7]),
        ([START, scheduled("a"), broken("a"), run_failed(all=True), retried()], [1, 5]),
        ([START, scheduled("a"), broken("a"), run_failed(), retried()], [1, 2, 3, 5]),
        ([START, scheduled("a"), started("a", 1), {"run_terminated": h.RunTerminated()}, retried()], [1, 5]),
        (
            [
                START,
                scheduled("a"),
                CANCEL,
                {"step_cancelled": h.StepCancelled(command_id="a")},
                scheduled("b"),
                done("b"),
                {"run_cancelled": h.RunCancelled()},
                retried(),
            ],
            [1, 2, 4, 5, 6, 8],
        ),
        (
            [
                START,
                {"timer_started": h.TimerStarted(command_id="t")},
                {"timer_fired": h.TimerFired(command_id="t")},
                {"timer_started": h.TimerStarted(command_id="u")},
                {"timer_cancelled": h.TimerCancelled(command_id="u")},
                {"timer_started": h.TimerStarted(command_id="v")},
                run_failed(),
                retried(),
            ],
            [1, 2, 3, 8],
        ),
        (
            [
                START,
                {"child_scheduled": h.ChildScheduled(command_id="c")},
                {"child_cancel_requested": h.ChildCancelRequested(command_id="c")},
                {"child_failed": h.ChildFailed(command_id="c")},
                {"signal_received": h.SignalReceived(signal_id="s")},
                {"state_published": h.StatePublished(command_id="n")},
                run_failed(),
                retried(),
            ],
            [1, 5, 8],
        ),
        # from a position: what was first recorded there or behind, not what only ended behind it
        (
            [
                START,
                scheduled("a"),
                scheduled("b"),
                done("b"),
                done("a"),
                scheduled("c"),
                done("c"),
                run_failed(),
                retried(at=3),
            ],
            [1, 2, 5, 9],
        ),
        # twice: what the second life kept is looked at again
        (
            [
                START,
                scheduled("a"),
                broken("a"),
                run_failed("a"),
                retried(),
                scheduled("a"),
                done("a"),
                scheduled("b"),
                broken("b"),
                run_failed("b"),
                retried(2),
            ],
            [1, 5, 6, 7, 11],
        ),
    ],
)
def test_what_is_kept(events: list[dict[str, Any]], kept: list[int]) -> None:
    assert [event.position for event in past(*events).events] == kept


@pytest.mark.parametrize(
    ("events", "number"),
    [
        ([scheduled("a")], 1),
        ([scheduled("a"), started("a", 1), broken("a", 1)], 1),
        ([scheduled("a"), started("a", 1), lost("a", 1)], 2),
        ([scheduled("a"), started("a", 1), lost("a", 1), started("a", 2), lost("a", 2), started("a", 3)], 3),
        ([scheduled("a"), started("a", 1), attempt_failed("a", 1, 1)], 1),
        ([scheduled("a"), started("a", 1), attempt_failed("a", 1, 1), again("a", 2)], 2),
        ([scheduled("a"), started("a", 1), attempt_failed("a", 1, 1), again("a", 2), started("a", 2, 2)], 2),
        ([attempt_failed("a", 1, 1), again("a", 2), broken("a", 2)], 2),
    ],
)
def test_no_number_of_a_try_or_attempt_is_given_twice(events: list[dict[str, Any]], number: int) -> None:
    """Not even that of a dispatch which nobody claimed."""
    found = past(START, *events, run_failed("a"), retried()).tries["a"]
    assert found == number
    twice = past(START, *events, run_failed("a"), retried(), scheduled("a"), run_failed(), retried(2)).tries["a"]
    assert twice == number + 1, "the one that was dispatched after the first continuation counts"


def test_a_call_stands_where_it_was_asked_for_last() -> None:
    """Code that was mended asked for another step before the one that had failed."""
    history = (
        *(START, scheduled("0/ship#1"), broken("0/ship#1"), run_failed("0/ship#1"), retried()),
        *(scheduled("0/charge#1"), done("0/charge#1"), scheduled("0/ship#1"), done("0/ship#1")),
        *(scheduled("0/tell#1"), broken("0/tell#1"), run_failed("0/tell#1")),
    )
    events = [h.HistoryEvent(position=n, **kind) for n, kind in enumerate(history, start=1)]
    assert first_call(events, "ship") == first_call(events, "0/ship#1") == (8, "0/ship#1")
    assert first_call(events, "tell") == (10, "0/tell#1") and first_call(events[:5], "ship") is None
    again = past(*history, {"run_retried": h.RunRetried(number=2, from_position=8)})
    assert again.redone == {"0/ship#1": 2}, "not the charge"


def test_a_step_that_was_cancelled_and_asked_for_again_stands_behind_the_retry() -> None:
    cancelled = {"step_cancelled": h.StepCancelled(command_id="0/a#1")}
    history = (START, scheduled("0/a#1"), CANCEL, cancelled, {"run_cancelled": h.RunCancelled()}, retried())
    again = (scheduled("0/a#1"), done("0/a#1"), scheduled("0/b#1"), broken("0/b#1"), run_failed("0/b#1"))
    events = [h.HistoryEvent(position=n, **kind) for n, kind in enumerate((*history, *again), start=1)]
    assert first_call(events, "a") == (7, "0/a#1")
    assert past(*history, *again, retried(2, at=7)).redone == {"0/a#1": 2}, "what is named runs again"


def test_only_what_had_been_done_is_another_deed() -> None:
    found = past(START, scheduled("a"), done("a"), scheduled("b"), broken("b"), run_failed("b"), retried(7, at=2))
    assert found.redone == {"a": 7}
    plain = past(START, scheduled("a"), done("a"), scheduled("b"), broken("b"), run_failed("b"), retried(7))
    assert plain.redone == {}


@pytest.mark.parametrize("interrupt", [CANCEL, {"run_timed_out": h.RunTimedOut()}])
@pytest.mark.parametrize("end", [run_failed("u"), {"run_terminated": h.RunTerminated()}])
def test_what_a_saga_undoes_for_stays_until_it_is_through(interrupt: dict[str, Any], end: dict[str, Any]) -> None:
    events = [START, scheduled("a"), done("a"), interrupt, scheduled("u"), broken("u"), end]
    undoing = {"run_retried": h.RunRetried(number=1, undoing=True)}
    because = [] if "run_failed" in end else [5, 6]
    assert [event.position for event in past(*events, undoing).events] == [1, 2, 3, 4, *because, 8]
    assert [event.position for event in past(*events, undoing, end, retried(2)).events] == [1, 2, 3, *because, 8, 10]
