"""What a replica knows of its sessions' credits."""

from __future__ import annotations

import pytest

from treadle.controlplane.machine import Credit
from treadle.controlplane.replica.credits import CreditBook, Statement
from treadle.v1.job_pb2 import JOB_KIND_RUN, JOB_KIND_STEP, JobKind
from treadle.v1.worker_service_pb2 import CreditStatement


class Desk:
    """A book in which workers A and B, of one pool, have stated credits."""

    def __init__(self, **stated: CreditStatement) -> None:
        self.book = CreditBook()
        for worker_id, statement in stated.items():
            self.book.enter(Statement(worker_id, "ns", "p", frozenset({"wf"}), frozenset({"s"})))
            self.book.state(worker_id, statement, 0)

    def take(self, prefer: str = "", kind: JobKind.ValueType = JOB_KIND_RUN, now_ms: int = 0) -> Credit | None:
        return self.book.offer("ns", "p", kind, "wf" if kind == JOB_KIND_RUN else "s", prefer, now_ms)

    def takes(self, count: int, prefer: str = "") -> list[tuple[str, bool]]:
        credits = [self.take(prefer) for _ in range(count)]
        return [(credit.worker_id, credit.wakes) for credit in credits if credit is not None]


def test_a_parked_run_goes_to_the_worker_with_its_coroutine_then_to_its_slots_then_to_others() -> None:
    desk = Desk(A=CreditStatement(run_jobs=1, wakes=2), B=CreditStatement(run_jobs=1, wakes=5))
    assert desk.takes(9, "A") == [("A", True), ("A", True), ("A", False), ("B", False)]


def test_what_is_kept_for_parked_runs_is_not_given_to_others() -> None:
    desk = Desk(A=CreditStatement(wakes=5), B=CreditStatement(run_jobs=1))
    assert desk.takes(3) == [("B", False)]
    assert desk.takes(1, "unknown") == []


def test_who_has_most_to_give_is_asked_first() -> None:
    desk = Desk(A=CreditStatement(run_jobs=1), B=CreditStatement(run_jobs=3))
    assert [worker_id for worker_id, _ in desk.takes(5)] == ["B", "B", "A", "B"]


def test_a_credit_is_offered_again_once_its_push_was_read_and_stated_anew() -> None:
    desk = Desk(A=CreditStatement(run_jobs=1, wakes=1))
    wake, run = desk.take("A"), desk.take()
    assert wake is not None and run is not None and desk.take("A") is None
    desk.book.give_back(run, JOB_KIND_RUN)
    assert desk.book.use(wake, JOB_KIND_RUN) == 1
    assert desk.takes(2, "A") == [("A", False)]
    desk.book.state("A", CreditStatement(run_jobs=1, wakes=1, read=0), 0)
    assert desk.takes(2, "A") == [], "the push was not read, and the decision is not done"
    desk.book.state("A", CreditStatement(run_jobs=1, wakes=1, read=1), 0)
    assert desk.takes(2, "A") == [("A", True)]


def test_steps_have_their_own() -> None:
    desk = Desk(A=CreditStatement(run_jobs=1, step_jobs=1, wakes=1))
    credit = desk.take(kind=JOB_KIND_STEP)
    assert credit is not None and not credit.wakes and desk.take("", JOB_KIND_STEP) is None


def with_slots(desk: Desk, worker_id: str, slots: int, stated: int, *, pool: str = "p", step: str = "s") -> None:
    desk.book.enter(Statement(worker_id, "ns", pool, frozenset(), frozenset({step}), step_slots=slots))
    desk.book.state(worker_id, CreditStatement(step_jobs=stated), 0)


def test_a_step_that_follows_another_gets_its_slot_whatever_is_on_its_way() -> None:
    """Twice what was stated at most; others find no credit, and whoever has one comes first."""
    desk = Desk(B=CreditStatement(step_jobs=1))
    with_slots(desk, "A", 16, 8)
    follows = [desk.take("A", JOB_KIND_STEP) for _ in range(18)]
    assert [one and one.worker_id for one in follows] == [*["A"] * 8, "B", *["A"] * 8, None]
    assert desk.take("", JOB_KIND_STEP) is None and desk.take("unknown", JOB_KIND_STEP) is None
    desk.book.state("A", CreditStatement(step_jobs=8), 0)
    assert desk.take("A", JOB_KIND_STEP) is None, "the decisions are not done"


def test_a_step_that_follows_another_stays_unless_another_worker_has_clearly_more_to_give() -> None:
    desk = Desk()
    with_slots(desk, "A", 80, 79)
    with_slots(desk, "B", 80, 80)
    went = [one.worker_id for one in (desk.take("A", JOB_KIND_STEP) for _ in range(13)) if one is not None]
    assert went == [*["A"] * 10, "B", "A", "B"], "ten less of eighty are as many, more are not"
    assert [one.worker_id for one in (desk.take("", JOB_KIND_STEP) for _ in range(2)) if one] == ["B", "B"]


@pytest.mark.parametrize(
    ("slots", "stated", "beyond"), [(16, 8, True), (16, 7, False), (15, 15, False), (16, 0, False), (0, 0, False)]
)
def test_no_step_goes_beyond_the_credits_of_a_worker_that_is_small_or_busy(
    slots: int, stated: int, beyond: bool
) -> None:
    desk = Desk()
    with_slots(desk, "A", slots, stated)
    for _ in range(stated):
        assert desk.take("A", JOB_KIND_STEP) is not None
    assert (desk.take("A", JOB_KIND_STEP) is not None) is beyond


def test_nor_of_one_that_is_silent_lacks_the_name_or_is_of_another_pool() -> None:
    desk = Desk()
    with_slots(desk, "A", 16, 16)
    with_slots(desk, "elsewhere", 16, 16, pool="q")
    with_slots(desk, "lacks it", 16, 16, step="t")
    assert [desk.take("A", JOB_KIND_STEP) is not None for _ in range(17)] == [True] * 17
    for worker_id in ("elsewhere", "lacks it"):
        assert desk.take(worker_id, JOB_KIND_STEP) is None
    assert desk.take("A", JOB_KIND_STEP, now_ms=2_001) is None
    assert desk.take("A", JOB_KIND_STEP, now_ms=2_000) is not None


def test_they_end_after_two_seconds_and_with_their_session() -> None:
    desk = Desk(A=CreditStatement(run_jobs=9, wakes=9))
    assert desk.take("A", now_ms=2_000) is not None and desk.take("A", now_ms=2_001) is None
    credit = desk.take("A")
    desk.book.leave("A")
    assert credit is not None and desk.book.use(credit, JOB_KIND_RUN) == 0 and desk.take("A") is None
