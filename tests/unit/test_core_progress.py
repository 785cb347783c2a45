"""What attempts say while they run, in the worker's core: the newest counts, one message is under way, nothing is lost."""

from __future__ import annotations

from typing import Any

from tests.unit.core_rig import Rig, opened_rig, step_job

from treadle.v1.common_pb2 import Failure, Payload
from treadle.v1.worker_service_pb2 import (
    ANSWER_LEASE_LOST,
    ANSWER_OK,
    ANSWER_SETTLED,
    Answer,
    AttemptProgress,
    ReportAnswer,
)
from treadle.worker.core.port import CancelAttempt, Report, StartAttempt

T = b"token"
FIRST = (1 << 32) + 1


def begun(**grant: Any) -> Rig:
    """A rig whose attempt `T` runs user code."""
    rig = opened_rig()
    rig.push(step_job(), T, **grant)
    assert rig.core.may_start(T, rig.now)
    rig.frames()
    return rig


def said(rig: Rig) -> list[tuple[int, bytes | None]]:
    """Take the frames: (number, value) of what was said in them."""
    told = [one for frame in rig.frames() for one in frame.progress]
    assert all((one.run_id, one.command_id, one.token) == ("run-1", "0/work#1", T) for one in told)
    return [(one.number, one.value.data if one.HasField("value") else None) for one in told]


def answer(rig: Rig, answer: Answer.ValueType = ANSWER_OK) -> None:
    rig.receive(progress_answers=[ReportAnswer(token=T, answer=answer)])


def test_one_message_is_under_way_and_the_newest_follows() -> None:
    rig = begun()
    rig.core.progressed(T, 1, b"1")
    rig.core.progressed(T, 1, b"2")
    assert said(rig) == [(FIRST + 1, b"2")]
    rig.core.progressed(T, 1, b"3")
    rig.core.progressed(T, 1, b"4")
    assert said(rig) == [], "the one before is not answered"
    answer(rig)
    assert said(rig) == [(FIRST + 3, b"4")]
    answer(rig)
    assert said(rig) == []


def test_that_it_goes_on_does_not_hide_a_value() -> None:
    rig = begun()
    rig.core.progressed(T, 1, b"1")
    rig.core.progressed(T, 1, None)
    assert said(rig) == [(FIRST, b"1")]
    answer(rig)
    rig.core.progressed(T, 1, None)
    assert said(rig) == [(FIRST + 1, None)]


def test_a_new_session_says_again_what_was_not_answered() -> None:
    rig = begun()
    rig.core.progressed(T, 1, b"1")
    assert said(rig) == [(FIRST, b"1")]
    rig.core.progressed(T, 1, None)
    rig.reconnect()
    assert said(rig) == [(FIRST + 1, b"1")], "in one, under the newer number"
    rig.reconnect()
    assert said(rig) == [(FIRST + 1, b"1")]
    answer(rig)
    rig.reconnect()
    assert said(rig) == []


def test_an_answer_that_never_comes_holds_up_nothing_for_long() -> None:
    rig = begun()
    rig.core.progressed(T, 1, b"1")
    assert said(rig) == [(FIRST, b"1")]
    rig.core.progressed(T, 1, b"2")
    rig.now += 4_999
    assert said(rig) == []
    rig.now += 1
    assert said(rig) == [(FIRST + 1, b"2")]


def test_a_report_brings_the_last_word() -> None:
    rig = begun()
    rig.core.progressed(T, 1, b"1")
    said(rig)
    rig.core.progressed(T, 1, b"2")
    rig.core.attempt_ended(T, Report("failed", failure=Failure(type="X")), rig.now)
    frames = rig.frames()
    (report,) = [report for frame in frames for report in frame.reports]
    assert (report.progress.data, report.progress_number) == (b"2", FIRST + 1)
    assert not [one for frame in frames for one in frame.progress], "it is over"
    answer(rig, ANSWER_LEASE_LOST)
    assert not rig.of(CancelAttempt)


def test_a_result_needs_no_last_word() -> None:
    rig = begun()
    rig.core.progressed(T, 1, b"1")
    rig.core.attempt_ended(T, Report("completed", Payload(data=b"null")), rig.now)
    (report,) = [report for frame in rig.frames() for report in frame.reports]
    assert not report.HasField("progress") and not report.progress_number


def test_who_holds_it_no_longer_is_cut_off_once() -> None:
    """And why: what is abandoned goes on when its run has ended."""
    for refusal, reason in ((ANSWER_LEASE_LOST, "lease lost"), (ANSWER_SETTLED, "run closed")):
        rig = begun()
        rig.core.progressed(T, 1, b"1")
        said(rig)
        answer(rig, refusal)
        answer(rig, refusal)
        assert rig.of(CancelAttempt) == [CancelAttempt(T, reason)]


def test_nothing_is_said_before_the_start_or_for_others() -> None:
    rig = opened_rig()
    rig.push(step_job(), T)
    rig.core.progressed(T, 1, b"early")
    rig.core.progressed(b"other", 1, b"whose")
    assert said(rig) == []


def test_an_attempt_is_given_what_was_said_before_it() -> None:
    rig = opened_rig()
    rig.push(step_job(), T, attempt=3, progress=Payload(data=b"7"))
    (start,) = rig.of(StartAttempt)
    assert start.attempt.progress == Payload(data=b"7")
    assert rig.core.may_start(T, rig.now)
    rig.core.progressed(T, 3, b"8")
    assert said(rig) == [((3 << 32) + 1, b"8")], "later attempts say it under higher numbers"


def test_many_attempts_share_frames() -> None:
    rig = opened_rig(step_slots=300)
    tokens = [b"t%d" % n for n in range(250)]
    for n, token in enumerate(tokens):
        rig.push(step_job(n), token)
        assert rig.core.may_start(token, rig.now)
        rig.core.progressed(token, 1, b"x")
    frames = [frame for frame in rig.frames() if frame.progress]
    told: list[AttemptProgress] = [one for frame in frames for one in frame.progress]
    assert sorted(one.token for one in told) == sorted(tokens) and max(len(frame.progress) for frame in frames) <= 200
