"""Runs that were to end while a saga undoes what was done, as the machine sees them: a retry goes on undoing."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.machine_rig import Owner, Rig

from treadle.controlplane.machine.requests import Reply, RetryRun, RunReply
from treadle.protocol.errors import WrongState
from treadle.v1.common_pb2 import Failure
from treadle.v1.worker_service_pb2 import CancelledRun, FailRun


def retry(rig: Rig, request_id: str = "r", **more: Any) -> Reply:
    return rig.ask(RetryRun(request_id, "", **more))


def undoing(*, by_timeout: bool = False) -> tuple[Rig, Owner]:
    """A run that was cancelled, or timed out, and whose owner has said that a saga undoes."""
    rig = Rig()
    request = rig.start_request()
    request.timeout_ms = 60_000 if by_timeout else 0
    rig.ask(request)
    owner = rig.open()
    if by_timeout:
        rig.wait(60_000)
        rig.fire()
    else:
        rig.cancel_run()
    owner.catch_up()
    ask = owner.request()
    ask.undoing = True
    owner.send(ask)
    assert rig.head.undoing
    return rig, owner


def end(rig: Rig, owner: Owner, how: str) -> None:
    if how == "terminated":
        rig.terminate()
    elif how == "could not undo":
        owner.say(fail=FailRun(failure=Failure(type="CompensationFailed")))
    else:
        rig.wait(60_000)  # for cleaning up: it is closed then
        rig.fire()
    assert rig.head.outcome


@pytest.mark.parametrize("how", ["terminated", "could not undo"])
def test_its_cancel_still_counts_when_it_goes_on(how: str) -> None:
    rig, owner = undoing()
    end(rig, owner, how)
    assert isinstance(retry(rig), RunReply)
    assert rig.last("run_retried").undoing
    assert (rig.head.cancel_requested, rig.head.cancel_reason) == (True, rig.last("cancel_requested").reason)
    assert not rig.head.undoing, "until its owner says so"
    rig.open().say(cancelled=CancelledRun(undone=True))
    refused = retry(rig, "again")
    assert isinstance(refused, WrongState) and refused.reason == "RUN_UNDONE"


@pytest.mark.parametrize("how", ["terminated", "could not undo", "closed"])
def test_so_does_the_end_of_its_timeout(how: str) -> None:
    rig, owner = undoing(by_timeout=True)
    end(rig, owner, how)
    assert isinstance(retry(rig), RunReply)
    assert rig.last("run_retried").undoing and rig.head.timed_out and not rig.head.close_at_ms
    rig.open().say(cancelled=CancelledRun(undone=True))
    assert rig.last("run_failed").failure.type == "RunTimedOut" and rig.head.undone


def test_from_a_step_it_goes_on_as_if_nobody_had_cancelled_it() -> None:
    rig, owner = undoing()
    end(rig, owner, "could not undo")
    assert isinstance(retry(rig, from_position=2, step="0/s#1", length=rig.head.length), RunReply)
    assert not rig.last("run_retried").undoing and not rig.head.cancel_requested


def test_one_that_is_through_with_it_does_not_go_on() -> None:
    rig, owner = undoing()
    owner.say(fail=FailRun(failure=Failure(type="Boom"), undone=True))
    assert rig.head.undone and not rig.head.undoing
    assert isinstance(retry(rig), WrongState)
