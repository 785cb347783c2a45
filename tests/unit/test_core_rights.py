"""Rights to start, held tokens and reports of pool steps (A4, A5, A8, A9)."""

from __future__ import annotations

import pytest
from tests.unit.core_rig import Rig, opened_rig, step_job

from treadle.v1.common_pb2 import Failure, Payload
from treadle.v1.worker_service_pb2 import (
    ANSWER_LEASE_LOST,
    ANSWER_OK,
    ANSWER_SETTLED,
    ANSWER_UNKNOWN,
    ANSWER_UNSPECIFIED,
    LANE_SESSION,
    REPORT_KIND_CANCELLED,
    REPORT_KIND_COMPLETED,
    REPORT_KIND_FAILED,
    REPORT_KIND_LOST,
    REPORT_KIND_RELEASED,
    Answer,
    AttemptReport,
    CancelAttempt,
    ReportKind,
)
from treadle.worker.core import port
from treadle.worker.core.port import Report, StartAttempt


def held_rig(**job: object) -> Rig:
    """A rig that was told to start one attempt with token t, whose claim was sent at `rig.now`."""
    rig = opened_rig()
    rig.deliver(step_job(**job))  # type: ignore[arg-type]
    rig.go(rig.claims()[0], b"t")
    assert len(rig.of(StartAttempt)) == 1
    rig.drained()
    return rig


def reports(rig: Rig) -> list[AttemptReport]:
    return [report for frame in rig.frames() for report in frame.reports]


@pytest.mark.parametrize(("later_ms", "may"), [(0, True), (3999, True), (4000, False)])
def test_a4_user_code_starts_only_inside_its_right(later_ms: int, may: bool) -> None:
    rig = held_rig()
    assert rig.core.may_start(b"t", rig.now + later_ms) is may


def test_a4_the_right_counts_from_the_first_send_time_of_the_claim() -> None:
    rig = opened_rig()
    rig.deliver(step_job())
    rig.claims()
    rig.now += 3000
    rig.reconnect()
    (claim,) = rig.claims()
    rig.go(claim, b"t")
    assert rig.core.may_start(b"t", rig.now + 1000) is False
    assert rig.core.may_start(b"t", rig.now + 999) is True


def test_a4_a_go_whose_right_is_over_is_acked_listed_and_released() -> None:
    rig = opened_rig()
    rig.deliver(step_job())
    (claim,) = rig.claims()
    rig.now += 4000
    rig.go(claim, b"t")
    assert rig.of(StartAttempt) == [] and rig.held() == {b"t"} and rig.core.counts() == (0, 0)
    (report,) = reports(rig)
    assert (report.kind, report.reason) == (REPORT_KIND_RELEASED, "right over")
    rig.reconnect()
    assert reports(rig) == [report]  # a release is kept until answered like other reports
    rig.report_answer(b"t")
    assert rig.held() == set()


def test_a4_the_end_of_the_session_voids_rights_that_were_not_used() -> None:
    rig = held_rig()
    rig.cut()
    assert rig.core.may_start(b"t", rig.now) is False
    rig.open()
    assert rig.core.may_start(b"t", rig.now) is False  # the next session does not bring it back
    rig.core.attempt_ended(b"t", Report("released"), rig.now)
    (report,) = reports(rig)
    assert (report.kind, report.reason) == (REPORT_KIND_RELEASED, "right over")


def test_a4_a_session_that_is_replaced_voids_rights_too() -> None:
    rig = held_rig()
    rig.open()
    assert rig.core.may_start(b"t", rig.now) is False


def test_a4_a_right_that_was_used_outlives_the_session() -> None:
    rig = held_rig()
    assert rig.core.may_start(b"t", rig.now)
    rig.reconnect()
    rig.core.attempt_ended(b"t", Report("completed", result=Payload(data=b"1")), rig.now)
    (report,) = reports(rig)
    assert report.kind == REPORT_KIND_COMPLETED and report.result.data == b"1"


def test_a4_a_right_is_used_once() -> None:
    rig = held_rig()
    assert rig.core.may_start(b"t", rig.now)
    assert not rig.core.may_start(b"t", rig.now)
    assert not rig.core.may_start(b"unknown", rig.now)


def test_a4_the_right_of_a_pushed_go_counts_from_its_credit() -> None:
    rig = opened_rig(lane=LANE_SESSION)
    rig.now += 3000
    rig.push(step_job(), b"t", sent_ms=rig.now - 3000)
    assert len(rig.of(StartAttempt)) == 1
    assert not rig.core.may_start(b"t", rig.now + 1000)
    rig.push(step_job(2), b"u", sent_ms=rig.now + 50_000)  # a time that cannot be
    assert not rig.core.may_start(b"u", rig.now + 4000)


@pytest.mark.parametrize("answer", [ANSWER_OK, ANSWER_SETTLED, ANSWER_LEASE_LOST, ANSWER_UNKNOWN])
def test_a5_a_token_is_listed_until_its_report_is_answered(answer: Answer.ValueType) -> None:
    rig = held_rig()
    first, (held,) = rig.core.held()
    assert (held.run_id, held.command_id, held.token, held.namespace) == ("run-1", "0/work#1", b"t", "default")
    rig.core.may_start(b"t", rig.now)
    rig.core.attempt_ended(b"t", Report("completed"), rig.now)
    (report,) = reports(rig)
    assert rig.core.held()[0] == first  # the list did not change, nor does its id
    rig.reconnect()
    assert reports(rig) == [report]
    rig.report_answer(b"t", ANSWER_UNSPECIFIED)
    assert rig.held() == {b"t"}
    rig.report_answer(b"t", answer)
    assert rig.core.held()[1] == () and rig.core.held()[0] != first
    rig.reconnect()
    assert reports(rig) == []


def test_a5_the_slot_is_free_when_user_code_ended_not_when_the_report_is_answered() -> None:
    rig = held_rig()
    rig.core.may_start(b"t", rig.now)
    assert rig.core.counts() == (1, 0)
    rig.core.attempt_ended(b"t", Report("completed"), rig.now)
    assert rig.core.counts() == (0, 0) and rig.held() == {b"t"}


def test_a_second_end_of_an_attempt_changes_nothing() -> None:
    rig = held_rig()
    rig.core.may_start(b"t", rig.now)
    rig.core.attempt_ended(b"t", Report("completed"), rig.now)
    rig.core.attempt_ended(b"t", Report("failed", failure=Failure()), rig.now)
    rig.core.attempt_ended(b"unknown", Report("completed"), rig.now)
    assert [report.kind for report in reports(rig)] == [REPORT_KIND_COMPLETED]


@pytest.mark.parametrize(
    ("told", "at_most_once", "started", "kind"),
    [
        ("completed", False, True, REPORT_KIND_COMPLETED),
        ("failed", False, True, REPORT_KIND_FAILED),
        ("cancelled", False, True, REPORT_KIND_CANCELLED),
        ("lost", True, True, REPORT_KIND_LOST),
        ("released", False, True, REPORT_KIND_RELEASED),
        ("released", True, False, REPORT_KIND_RELEASED),
        ("released", True, True, REPORT_KIND_LOST),
    ],
)
def test_a9_kinds_of_reports(told: str, at_most_once: bool, started: bool, kind: ReportKind.ValueType) -> None:
    """A started at-most-once attempt is never released."""
    rig = held_rig(at_most_once=at_most_once)
    if started:
        assert rig.core.may_start(b"t", rig.now)
    failure = Failure(message="no") if told == "failed" else None
    rig.core.attempt_ended(b"t", Report(told, failure=failure, retry_after_ms=5, duration_ms=9), rig.now)  # type: ignore[arg-type]
    (report,) = reports(rig)
    assert (report.kind, report.token, report.run_id, report.incarnation) == (kind, b"t", "run-1", 7)
    assert (report.failure.message, report.retry_after_ms, report.duration_ms) == ("no" if failure else "", 5, 9)


def test_a_cancel_is_passed_on_once_and_the_report_still_goes() -> None:
    rig = held_rig()
    rig.core.may_start(b"t", rig.now)
    for _ in range(2):  # told again at each lease check
        rig.receive(cancels=[CancelAttempt(token=b"t", reason="cancelled")])
    assert rig.drained() == [port.CancelAttempt(b"t", "cancelled")]
    rig.core.attempt_ended(b"t", Report("cancelled"), rig.now)
    rig.receive(cancels=[CancelAttempt(token=b"t"), CancelAttempt(token=b"unknown")])
    assert rig.drained() == []
    assert [report.kind for report in reports(rig)] == [REPORT_KIND_CANCELLED]


def test_an_attempt_that_is_cancelled_before_its_start_does_not_start() -> None:
    rig = held_rig()
    rig.receive(cancels=[CancelAttempt(token=b"t", reason="cancelled")])
    assert not rig.core.may_start(b"t", rig.now)
    rig.core.attempt_ended(b"t", Report("released"), rig.now)
    assert [report.kind for report in reports(rig)] == [REPORT_KIND_CANCELLED]
