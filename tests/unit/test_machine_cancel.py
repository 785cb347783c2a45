"""Steps that nobody wants any more, and steps that kill their workers."""

from __future__ import annotations

import pytest
from tests.unit.machine_rig import Rig, quarantined

from treadle.v1.state_pb2 import (
    COMMAND_STATE_HELD,
    COMMAND_STATE_QUARANTINED,
)
from treadle.v1.worker_service_pb2 import (
    ANSWER_OK,
    REPORT_KIND_CANCELLED,
    REPORT_KIND_COMPLETED,
    REPORT_KIND_FAILED,
    REPORT_KIND_RELEASED,
    VERDICT_STALE,
    CancelCommand,
    Command,
    ReportKind,
)

STEP = "0/s#1"
CANCEL = Command(command_id=STEP, cancel=CancelCommand())


# --- cancel ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("state", ["queued", "waiting", "backoff", "quarantined"])
def test_what_nobody_holds_is_cancelled_at_once(state: str) -> None:
    rig = quarantined() if state == "quarantined" else Rig()
    owner = rig.open("Z") if state == "quarantined" else rig.with_step()
    job = rig.step_job()
    if state == "waiting":
        rig.claim(job, unregistered=True)
    elif state == "backoff":
        rig.fail(rig.hold().token)
        job = rig.step_job()
    assert owner.say(CANCEL).answer == ANSWER_OK
    assert rig.kinds()[-1] == "step_cancelled"
    assert rig.row() is None and rig.head.retrying == 0 and STEP not in rig.timers()
    assert "n:ns:p:s" not in rig.indexes()
    assert rig.claim(job).verdict == VERDICT_STALE
    length = rig.head.length
    assert owner.say(CANCEL).answer == ANSWER_OK and rig.head.length == length, "settled before: nothing"


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        (REPORT_KIND_CANCELLED, "step_cancelled"),
        (REPORT_KIND_FAILED, "step_cancelled"),
        (REPORT_KIND_RELEASED, "step_cancelled"),
        (REPORT_KIND_COMPLETED, "step_completed"),
    ],
)
def test_a_holder_is_told_of_a_cancel_and_its_report_decides(kind: ReportKind.ValueType, outcome: str) -> None:
    rig = Rig()
    owner = rig.with_step()
    token = rig.hold().token
    owner.say(CANCEL)
    order = rig.decision.cancels[0]
    assert (order.token, order.worker_id, order.reason) == (token, "A", "cancelled")
    hint = rig.decision.change.hint if rig.decision.change else None
    assert hint is not None and hint.cancels == (("A", token, "cancelled"),)
    assert rig.kinds()[-1] == "step_cancel_requested" and rig.the_row().state == COMMAND_STATE_HELD
    owner.say(CANCEL)
    assert rig.kinds().count("step_cancel_requested") == 1
    assert rig.report(token, kind).answer == ANSWER_OK
    assert rig.kinds()[-1] == outcome and rig.row() is None


def test_a_result_before_the_cancel_of_its_step_wins() -> None:
    rig = Rig()
    owner = rig.with_step()
    rig.report(rig.hold().token)
    assert owner.say(CANCEL).answer == ANSWER_OK
    assert rig.kinds()[-1] == "step_completed"


# --- poison --------------------------------------------------------------------------------------------------------------
def test_from_the_second_loss_it_runs_alone_and_after_five_nobody_runs_it() -> None:
    rig = Rig()
    rig.with_step()
    alone = []
    for n in range(5):
        item = rig.item(rig.step_job())
        alone.append(rig.send(item, f"W{n}").grant.alone)
        assert rig.send(item, f"W{n}").grant.alone == alone[-1] == rig.last("attempt_started").alone
        rig.kill()
        assert rig.last("attempt_lost").counted and rig.last("attempt_lost").worker_id == f"W{n}"
    assert alone == [False, False, True, True, True]
    row = rig.the_row()
    assert (row.state, row.lost_count) == (COMMAND_STATE_QUARANTINED, 5)
    assert rig.last("step_quarantined").losses == 5 and not rig.decision.jobs
    assert row.due_ms == rig.now + 3_600_000, "an hourly watch"
    assert rig.timers()[STEP] <= row.due_ms


def test_a_quarantined_step_keeps_its_watch() -> None:
    rig = quarantined()
    for _ in range(3):
        rig.now = rig.the_row().due_ms
        rig.fire(STEP)
        assert rig.the_row().due_ms == rig.now + 3_600_000 == rig.timers()[STEP]
    assert rig.the_row().state == COMMAND_STATE_QUARANTINED
