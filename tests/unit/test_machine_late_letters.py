"""Letters that overtake each other, or come when their run's id is used again, as the machine sees them.

Each is the shortest schedule that the model of letters (`tests/model`) found before the rule was there.
"""

from __future__ import annotations

import pytest
from tests.unit.test_machine_redrive import CHILD, a_child, asked_again

from treadle.controlplane.machine.children import applied
from treadle.controlplane.machine.requests import RunReply, StopRun
from treadle.protocol.errors import RunClosed, RunIdConflict, Unavailable
from treadle.v1.common_pb2 import Failure, ParentRun
from treadle.v1.run_service_pb2 import CONFLICT_POLICY_ALLOW_CLOSED
from treadle.v1.worker_service_pb2 import CompleteRun, FailRun


@pytest.mark.parametrize("closed", [False, True])
def test_a_stop_that_overtakes_the_start_of_its_call_comes_again(closed: bool) -> None:
    """The start waits while the child is being cancelled, or swept; its stop must not be taken for done meanwhile."""
    rig = a_child()
    owner = rig.open()
    if closed:
        owner.say(fail=FailRun(failure=Failure(type="Boom")))
    stop = StopRun("stop", ParentRun(run_id="the-parent", incarnation=77, command_id=CHILD, retry=1), False, "closed")
    assert isinstance(rig.ask(stop), Unavailable) and not rig.head.cancel_requested
    assert isinstance(asked_again(rig, 1), RunReply)
    assert isinstance(rig.ask(stop), RunReply) and rig.head.cancel_requested


def test_a_late_copy_of_a_start_is_known_when_the_id_was_used_again() -> None:
    """Else the parent would be told that the id is taken, although its child was started."""
    rig = a_child()
    asked_again(rig, 1, letter="letter-1")
    rig.open().say(complete=CompleteRun())
    assert isinstance(rig.ask(rig.start_request("other", CONFLICT_POLICY_ALLOW_CLOSED)), RunReply)
    for number, letter in enumerate(("letter-0", "letter-1")):
        reply = asked_again(rig, number, letter=letter)
        assert isinstance(reply, RunClosed) and reply.reason == "RUN_REPLACED" and applied(reply)
    assert isinstance(asked_again(rig, 2, letter="letter-2"), RunIdConflict)
