"""What the model of limits (tests/model) found: tries behind their limit, and checks that read something long ago."""

from __future__ import annotations

import pytest
from tests.unit.machine_rig import Rig, schedule
from tests.unit.test_machine_deadlines import failed, limited
from tests.unit.test_machine_progress import long_step

from treadle.v1.common_pb2 import FAILURE_KIND_QUEUE_TIMED_OUT, FAILURE_KIND_STEP_TIMED_OUT
from treadle.v1.job_pb2 import JOB_KIND_STEP
from treadle.v1.state_pb2 import COMMAND_STATE_HELD
from treadle.v1.worker_service_pb2 import REPORT_KIND_RELEASED, Command

STEP = "0/s#1"


@pytest.mark.parametrize("how", ["lost", "released"])
def test_a_try_that_comes_back_behind_its_total_timeout_is_given_to_no_credit(how: str) -> None:
    rig = Rig()
    rig.with_step(limited(total_ms=1_000))
    token = rig.hold().token
    rig.wait(2_000)
    rig.credit(JOB_KIND_STEP, "B")
    if how == "lost":
        rig.kill()
    else:
        rig.report(token, REPORT_KIND_RELEASED)
    assert failed(rig).kind == FAILURE_KIND_STEP_TIMED_OUT
    assert rig.decision.grants == [] and rig.decision.jobs == []


def test_a_worker_that_brings_the_name_too_late_is_given_nothing() -> None:
    rig = Rig()
    rig.with_step(limited(queue_ms=1_000))
    rig.claim(rig.step_job(), unregistered=True)
    rig.wait(2_000)
    rig.credit(JOB_KIND_STEP, "B")
    rig.register(STEP)
    assert failed(rig).kind == FAILURE_KIND_QUEUE_TIMED_OUT
    assert rig.decision.grants == [] and rig.indexes() == {"s:ns:running", "w:ns:wf:running"}


@pytest.mark.parametrize("command", [schedule(timeout_ms=3_000), long_step()], ids=["timeout", "heartbeat"])
def test_a_holder_that_died_behind_the_look_of_a_check_is_lost_and_costs_no_try(command: Command) -> None:
    """The replica stood still between reading the worker's record and its commit."""
    rig = Rig()
    rig.with_step(command)
    rig.session()
    token = rig.hold().token
    rig.beat(tokens=[token])
    look = rig.look()
    rig.wait(20_000)
    rig.ask(look)
    row = rig.the_row()
    assert (row.state, row.try_number) == (COMMAND_STATE_HELD, 1)
    assert row.due_ms <= rig.now, "it is looked at again at once"
    rig.kill()
    assert rig.kinds()[-1] == "attempt_lost" and rig.the_row().try_number == 1
