from __future__ import annotations

import pytest

from treadle.protocol.errors import (
    AttemptTimedOut,
    Fatal,
    PayloadError,
    QueueTimedOut,
    RunCancelled,
    RunFailed,
    RunTerminated,
    RunTimedOut,
    StepCancelled,
    StepError,
    StepLost,
    StepTimedOut,
)
from treadle.protocol.failures import CauseError, failure_of, run_error, step_error
from treadle.v1.common_pb2 import (
    FAILURE_KIND_APPLICATION,
    FAILURE_KIND_CANCELLED,
    FAILURE_KIND_LOST,
    FAILURE_KIND_PAYLOAD,
    FAILURE_KIND_QUEUE_TIMED_OUT,
    FAILURE_KIND_RUN_TIMED_OUT,
    FAILURE_KIND_STEP_TIMED_OUT,
    FAILURE_KIND_STUCK,
    FAILURE_KIND_TERMINATED,
    FAILURE_KIND_TIMED_OUT,
    Failure,
    FailureKind,
)


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_type_message_and_traceback() -> None:
    failure = failure_of(raised(ValueError("row 3")))
    assert (failure.kind, failure.type, failure.message) == (FAILURE_KIND_APPLICATION, "ValueError", "row 3")
    assert "raise error" in failure.traceback
    assert not failure.final


def test_fatal_and_payload_errors_are_final() -> None:
    assert failure_of(Fatal("no")).final
    failure = failure_of(PayloadError("no"))
    assert failure.final
    assert failure.kind == FAILURE_KIND_PAYLOAD


def test_sizes_are_bounded() -> None:
    failure = failure_of(raised(ValueError("ä" * 50_000)))
    assert len(failure.message.encode()) <= 8 << 10
    assert len(failure.traceback.encode()) <= 32 << 10


def test_causes_are_kept_eight_deep_and_rebuilt() -> None:
    error: BaseException = KeyError("0")
    for number in range(1, 12):
        outer = RuntimeError(str(number))
        outer.__cause__ = error
        error = outer
    failure = failure_of(error)
    back = step_error("s", failure)
    messages = []
    cause = back.__cause__
    while cause is not None:
        assert isinstance(cause, CauseError)
        messages.append(cause.message)
        cause = cause.__cause__
    assert messages == ["11", "10", "9", "8", "7", "6", "5", "4", "3"]


def test_circular_causes_end() -> None:
    one, two = ValueError("1"), ValueError("2")
    one.__cause__, two.__cause__ = two, one
    assert failure_of(one).cause.message == "2"
    assert not failure_of(one).cause.HasField("cause")


def test_suppressed_context_is_left_out() -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError:
            raise ValueError("outer") from None
    except ValueError as error:
        assert not failure_of(error).HasField("cause")


def test_groups_list_their_members() -> None:
    group = ExceptionGroup("two", [ValueError("a"), ExceptionGroup("deep", [KeyError("b")])])
    failure = failure_of(raised(group))
    assert failure.type == "ExceptionGroup"
    assert "- ValueError: a" in failure.message
    assert "    - KeyError: 'b'" in failure.message


def test_a_broken_message_does_not_hide_the_failure() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise ZeroDivisionError

    failure = failure_of(raised(Broken()))
    assert failure.type == "Broken"
    assert "cannot be shown" in failure.message


@pytest.mark.parametrize(
    ("kind", "cls"),
    [
        (FAILURE_KIND_APPLICATION, StepError),
        (FAILURE_KIND_TIMED_OUT, AttemptTimedOut),
        (FAILURE_KIND_STEP_TIMED_OUT, StepTimedOut),
        (FAILURE_KIND_QUEUE_TIMED_OUT, QueueTimedOut),
        (FAILURE_KIND_LOST, StepLost),
        (FAILURE_KIND_CANCELLED, StepCancelled),
    ],
)
def test_step_errors(kind: FailureKind.ValueType, cls: type[StepError]) -> None:
    failure = Failure(kind=kind, type="OSError", message="disk", traceback="tb", attempts=3)
    error = step_error("write", failure)
    assert type(error) is cls
    assert (error.step, error.type_name, error.message, error.attempts) == ("write", "OSError", "disk", 3)
    assert error.traceback_text == "tb"
    assert "step write" in str(error)
    assert "after 3 attempts: OSError: disk" in str(error)
    assert step_error("write", failure) is not error


def test_run_errors() -> None:
    failed = run_error("r1", Failure(type="ValueError", message="x"))
    assert type(failed) is RunFailed
    assert str(failed) == "run r1 failed: ValueError: x"
    assert str(failed.__cause__) == "ValueError: x"
    assert failed.run_id == "r1"
    assert type(run_error("r", Failure(kind=FAILURE_KIND_CANCELLED))) is RunCancelled
    assert type(run_error("r", Failure(kind=FAILURE_KIND_TERMINATED))) is RunTerminated
    late = run_error("r", Failure(kind=FAILURE_KIND_RUN_TIMED_OUT, type="RunTimedOut", message="10 s"))
    assert (type(late), RunTimedOut.__base__) == (RunTimedOut, RunFailed)
    assert "run r timed out" in str(late)
    assert "is stuck" in str(run_error("r", Failure(kind=FAILURE_KIND_STUCK, type="Stuck", message="m")))


def test_a_failure_that_is_raised_on_keeps_the_first_one_as_its_cause() -> None:
    first = step_error("write", Failure(type="OSError", message="disk", attempts=2))
    outer = RuntimeError("import failed")
    outer.__cause__ = first
    failure = failure_of(outer)
    assert failure.cause.type == "StepError"
    assert failure.cause.cause.type == "OSError"
