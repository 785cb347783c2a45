"""Steps that are finished from outside, line by line: who may, when, how often, and what stays when nobody does."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.machine_rig import RUN, Rig, schedule, value

from treadle.controlplane.machine.requests import RunReply, SettleStep
from treadle.protocol.deferral import make_token, read_token
from treadle.protocol.errors import FieldInvalid, NotFound, Refused, RequestError, StepSettled, Unavailable
from treadle.v1.common_pb2 import FAILURE_KIND_STEP_TIMED_OUT, FAILURE_KIND_TIMED_OUT, Failure
from treadle.v1.job_pb2 import JOB_KIND_STEP
from treadle.v1.state_pb2 import (
    COMMAND_STATE_BACKOFF,
    COMMAND_STATE_DEFERRED,
    COMMAND_STATE_HELD,
    COMMAND_STATE_QUARANTINED,
    COMMAND_STATE_QUEUED,
    RUN_STATE_PARKED,
    RUN_STATE_QUEUED,
)
from treadle.v1.worker_service_pb2 import (
    ANSWER_OK,
    ANSWER_SETTLED,
    REPORT_KIND_COMPLETED,
    REPORT_KIND_DEFERRED,
    VERDICT_STALE,
    CancelCommand,
    Command,
    Grant,
)

STEP = "0/s#1"


def token_of(rig: Rig, grant: Grant, *, try_number: int = 0, **other: Any) -> str:
    """What `defer` makes in the attempt of a grant."""
    said: dict[str, Any] = {
        "namespace": "ns",
        "run_id": RUN.run_id,
        "incarnation": rig.head.incarnation,
        "command_id": STEP,
        "try_number": try_number or rig.the_row().try_number,
    }
    return make_token(grant.deferral_key or grant.token, **said | other)


def settle(rig: Rig, token: str, request_id: str = "r", *, failure: Failure | None = None) -> RunReply | RequestError:
    result = value("approved") if failure is None else None
    reply = rig.ask(SettleStep(read_token(token), request_id, result, failure))
    assert isinstance(reply, RunReply | RequestError)
    return reply


def deferred(**more: Any) -> tuple[Rig, str]:
    """A step whose attempt has ended, and its token."""
    rig = Rig()
    rig.with_step(schedule(**more))
    grant = rig.hold()
    token = token_of(rig, grant)
    assert rig.report(grant.token, REPORT_KIND_DEFERRED).answer == ANSWER_OK
    return rig, token


# --- waiting ----------------------------------------------------------------------------------------------------------
def test_a_deferred_step_is_held_by_nobody() -> None:
    rig, _ = deferred()
    row, event = rig.the_row(), rig.last("step_deferred")
    assert row.state == COMMAND_STATE_DEFERRED and not row.HasField("holder") and row.due_ms == 0
    assert (event.command_id, event.attempt, event.due_ms) == (STEP, 1, 0)
    assert STEP not in rig.timers()
    assert rig.claim(rig.step_job()).verdict == VERDICT_STALE


def test_no_secret_stands_in_the_history() -> None:
    rig, token = deferred()
    settle(rig, token)
    signature = read_token(token).signature
    history = b"".join(event.SerializeToString() for event in rig.history())
    assert signature not in history and token.encode() not in history
    kept = b"".join(rig.fields().values())
    assert signature not in kept and token.encode() not in kept


def test_the_result_wakes_the_run() -> None:
    rig, token = deferred()
    owner_seen = rig.head.state
    assert owner_seen != RUN_STATE_PARKED
    reply = settle(rig, token)
    assert isinstance(reply, RunReply)
    event = rig.last("step_completed")
    assert (event.result, event.attempt, event.from_outside) == (value("approved"), 1, True)
    assert rig.row() is None


def test_a_parked_run_is_woken_by_it() -> None:
    rig = Rig()
    owner = rig.with_step()
    grant = rig.hold()
    token = token_of(rig, grant)
    rig.report(grant.token, REPORT_KIND_DEFERRED)
    owner.say(park={"cached": False})
    assert rig.head.state == RUN_STATE_PARKED
    settle(rig, token)
    assert rig.head.state == RUN_STATE_QUEUED


# --- once -------------------------------------------------------------------------------------------------------------
def test_the_same_call_again_changes_nothing_and_another_one_is_refused() -> None:
    rig, token = deferred()
    settle(rig, token, "one")
    length = rig.head.length
    assert isinstance(settle(rig, token, "one"), RunReply)
    assert isinstance(settle(rig, token, "one", failure=Failure(type="X")), RunReply), "whatever it says now"
    refused = settle(rig, token, "two")
    assert isinstance(refused, StepSettled) and refused.reason == "STEP_SETTLED"
    rig.terminate()
    assert isinstance(settle(rig, token, "one"), RunReply), "also when the run has closed"
    assert isinstance(settle(rig, token, "two"), StepSettled)
    assert rig.kinds().count("step_completed") == 1 and rig.head.length == length + 1


def test_who_knows_the_request_id_but_not_the_token_learns_nothing() -> None:
    rig, token = deferred()
    settle(rig, token, "one")
    forged = token_of(rig, Grant(token=b"x" * 16), try_number=1)
    assert isinstance(settle(rig, forged, "one"), StepSettled)


def test_a_report_that_came_first_stands() -> None:
    rig = Rig()
    rig.with_step()
    grant = rig.hold()
    token = token_of(rig, grant)
    rig.report(grant.token, REPORT_KIND_COMPLETED, result=value("mine"))
    assert isinstance(settle(rig, token), StepSettled)


# --- before the attempt has ended -------------------------------------------------------------------------------------
def test_a_token_may_come_while_its_attempt_runs() -> None:
    rig = Rig()
    rig.with_step()
    grant = rig.hold()
    token = token_of(rig, grant)
    assert isinstance(settle(rig, token), RunReply)
    (order,) = rig.decision.cancels
    assert (order.worker_id, order.token, order.reason) == ("A", grant.token, "settled")
    assert rig.report(grant.token, REPORT_KIND_DEFERRED).answer == ANSWER_SETTLED
    assert rig.kinds().count("step_completed") == 1


def test_all_attempts_of_a_try_make_the_same_token() -> None:
    rig = Rig()
    rig.with_step()
    tokens = set()
    for n in range(3):
        grant = rig.hold(f"W{n}")
        tokens.add(token_of(rig, grant))
        assert bool(grant.deferral_key) == (n > 0), "nothing more is sent where it is not needed"
        rig.kill()
    assert len(tokens) == 1
    (token,) = tokens
    assert rig.the_row().state == COMMAND_STATE_QUEUED
    assert isinstance(settle(rig, token), RunReply), "handed out before its worker died"
    assert rig.row() is None


def test_a_quarantined_step_can_be_finished() -> None:
    rig = Rig()
    rig.with_step()
    token = ""
    for n in range(5):
        token = token_of(rig, rig.hold(f"W{n}"))
        rig.kill()
    assert rig.the_row().state == COMMAND_STATE_QUARANTINED
    assert isinstance(settle(rig, token), RunReply)


def test_a_later_attempt_that_may_be_about_to_begin_is_waited_for() -> None:
    """A11: nobody but its holder settles a held step before lease set + 5 s; the first attempt has proved that it began."""
    rig = Rig()
    rig.with_step()
    token = token_of(rig, rig.hold("A"))
    rig.kill()
    second = rig.hold("B")
    refused = settle(rig, token)
    assert isinstance(refused, Unavailable) and refused.reason == "STEP_STARTING"
    assert rig.the_row().state == COMMAND_STATE_HELD
    rig.wait(4_999)
    assert isinstance(settle(rig, token), Unavailable)
    rig.wait(1)
    assert isinstance(settle(rig, token), RunReply)
    assert rig.decision.cancels[0].token == second.token


def test_the_token_of_a_try_that_is_over_is_refused() -> None:
    rig = Rig()
    rig.with_step()
    grant = rig.hold()
    first = token_of(rig, grant)
    rig.fail(grant.token)
    assert isinstance(settle(rig, first), StepSettled)
    rig.now = rig.the_row().due_ms
    rig.fire(STEP)
    again = rig.hold()
    second = token_of(rig, again)
    assert second != first and isinstance(settle(rig, first), StepSettled)
    rig.report(again.token, REPORT_KIND_DEFERRED)
    assert isinstance(settle(rig, second), RunReply)


def test_a_credit_is_given_the_key_too() -> None:
    rig = Rig()
    rig.with_step()
    grant = rig.hold()
    rig.credit(JOB_KIND_STEP, "B")
    rig.kill()
    assert rig.decision.grants[0].grant.deferral_key == grant.token


# --- who may not ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("other", [{"namespace": "other"}, {"try_number": 2}, {"command_id": STEP}])
def test_a_forged_token_is_refused_and_changes_nothing(other: dict[str, Any]) -> None:
    rig, _ = deferred()
    revision = rig.head.last_revision
    key = Grant(token=b"k" * 16) if "command_id" in other else Grant(token=rig.the_row().deferral_key)
    forged = token_of(rig, key, **other)
    refused = settle(rig, forged)
    assert isinstance(refused, Refused | StepSettled)
    if "try_number" not in other:
        assert isinstance(refused, Refused) and refused.reason == "STEP_TOKEN_INVALID"
    assert rig.the_row().state == COMMAND_STATE_DEFERRED and rig.head.last_revision == revision


def test_a_step_that_nobody_has_held_has_no_token() -> None:
    rig = Rig()
    rig.with_step()
    assert isinstance(settle(rig, token_of(rig, Grant(token=b""))), Refused)
    assert isinstance(settle(rig, token_of(rig, Grant(token=b"none"))), Refused)


def test_another_start_of_the_run_has_other_tokens() -> None:
    rig, token = deferred()
    wrong = make_token(
        rig.the_row().deferral_key, namespace="ns", run_id=RUN.run_id, incarnation=5, command_id=STEP, try_number=1
    )
    assert isinstance(settle(rig, wrong), StepSettled)
    assert isinstance(settle(Rig(), token), NotFound), "the run is gone"


@pytest.mark.parametrize("text", ["", "x", "tds_", "tds_!!!!", "tds_AAAA", "tds_" + "A" * 5000, "tdl_abc_def"])
def test_what_is_no_token_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(FieldInvalid) as refused:
        read_token(text)
    assert refused.value.field == "token" and (len(text) < 5 or text not in str(refused.value))


def test_a_token_tells_what_it_is_for_and_hides_its_signature() -> None:
    rig, token = deferred()
    read = read_token(token)
    assert (read.run_id, read.command_id, read.try_number) == (RUN.run_id, STEP, 1)
    assert read.signature.hex() not in repr(read) and repr(read.signature) not in repr(read)
    assert token.startswith("tds_") and token.isascii() and "=" not in token
    assert rig.the_row().deferral_key


# --- failing, timing out, cancelling ----------------------------------------------------------------------------------
def test_a_failure_from_outside_is_retried_by_the_policy() -> None:
    rig, token = deferred()
    assert isinstance(settle(rig, token, failure=Failure(type="Rejected", message="no")), RunReply)
    row, event = rig.the_row(), rig.last("attempt_failed")
    assert (row.state, row.try_number) == (COMMAND_STATE_BACKOFF, 2)
    assert (event.failure.type, event.attempt, event.from_outside) == ("Rejected", 1, True)
    assert isinstance(settle(rig, token, failure=Failure(type="Rejected")), RunReply), "the same call"


def test_a_final_failure_from_outside_fails_the_step() -> None:
    rig, token = deferred()
    settle(rig, token, failure=Failure(type="Rejected", message="no", final=True))
    event = rig.last("step_failed")
    assert (event.failure.type, event.failure.attempts, event.from_outside) == ("Rejected", 1, True)
    assert rig.row() is None


def test_nobody_finishes_it_in_time() -> None:
    rig = Rig()
    rig.with_step()
    grant = rig.hold()
    token = token_of(rig, grant)
    rig.report(grant.token, REPORT_KIND_DEFERRED, deferred_for_ms=60_000)
    assert rig.the_row().due_ms == rig.now + 60_000 == rig.last("step_deferred").due_ms
    rig.wait(2_000)  # an entry that stands earlier is moved when it comes up
    rig.fire(STEP)
    assert rig.the_row().state == COMMAND_STATE_DEFERRED and rig.timers()[STEP] == rig.now + 58_000
    rig.wait(58_000)
    rig.fire(STEP)
    event = rig.last("attempt_failed")
    assert event.failure.kind == FAILURE_KIND_TIMED_OUT and "within 60 s" in event.failure.message
    assert isinstance(settle(rig, token), StepSettled)


def test_the_timeout_of_the_step_counts_on() -> None:
    rig = Rig()
    rig.with_step(schedule(timeout_ms=10_000))
    grant = rig.hold()
    rig.wait(3_000)
    rig.report(grant.token, REPORT_KIND_DEFERRED)
    assert rig.timers()[STEP] == rig.now + 7_000
    rig.fire(STEP)
    assert rig.the_row().state == COMMAND_STATE_DEFERRED, "it is not due"
    rig.wait(7_000)
    rig.fire(STEP)
    assert rig.the_row().state == COMMAND_STATE_BACKOFF


def test_a_step_that_may_run_once_fails_for_good_when_its_time_is_over() -> None:
    rig, _ = deferred(at_most_once=True, timeout_ms=1_000)
    rig.wait(1_000)
    rig.fire(STEP)
    assert rig.last("step_failed").failure.kind == FAILURE_KIND_TIMED_OUT


def test_a_cancel_settles_it() -> None:
    rig = Rig()
    owner = rig.with_step()
    grant = rig.hold()
    token = token_of(rig, grant)
    rig.report(grant.token, REPORT_KIND_DEFERRED)
    owner.say(Command(command_id=STEP, digest=1, cancel=CancelCommand()))
    assert rig.kinds()[-1] == "step_cancelled"
    assert isinstance(settle(rig, token), StepSettled)


def test_deferring_what_is_to_be_cancelled_cancels_it() -> None:
    rig = Rig()
    owner = rig.with_step()
    grant = rig.hold()
    owner.say(Command(command_id=STEP, digest=1, cancel=CancelCommand()))
    rig.report(grant.token, REPORT_KIND_DEFERRED)
    assert rig.kinds()[-1] == "step_cancelled"


def test_the_notes_of_finished_steps_do_not_hold_up_a_sweep() -> None:
    rig = Rig()
    owner = rig.with_step(*(schedule(command_id=f"0/s#{n}") for n in range(250)))
    for n in range(250):
        grant = rig.hold("A", f"0/s#{n}")
        token = token_of(rig, grant, try_number=1, command_id=f"0/s#{n}")
        rig.ask(SettleStep(read_token(token), f"r{n}", value("x")))
    owner.say(schedule(command_id="0/s#left"))
    rig.terminate()
    for _ in range(20):
        if not rig.head.sweeping:
            break
        rig.fire()
    assert not rig.head.sweeping and rig.row("0/s#left") is None


def test_all_tries_together_have_their_limit_while_it_waits_too() -> None:
    command = schedule()
    command.schedule_step.total_timeout_ms = 20_000
    rig = Rig()
    rig.with_step(command)
    grant = rig.hold()
    token = token_of(rig, grant)
    rig.wait(5_000)
    rig.report(grant.token, REPORT_KIND_DEFERRED, deferred_for_ms=60_000)
    assert rig.the_row().due_ms == rig.now + 15_000
    rig.wait(15_000)
    rig.fire(STEP)
    assert rig.last("step_failed").failure.kind == FAILURE_KIND_STEP_TIMED_OUT
    assert isinstance(settle(rig, token), StepSettled)
