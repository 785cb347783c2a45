"""Quarantined steps: listed, let go on by a person, and gone from the list with their run."""

from __future__ import annotations

import pytest
from tests.unit.machine_rig import Rig, quarantined

from treadle.controlplane.machine.requests import ReleaseSteps, Reply, RunReply
from treadle.protocol.errors import NotFound, RunClosed, WrongState
from treadle.v1.state_pb2 import COMMAND_STATE_QUEUED
from treadle.v1.worker_service_pb2 import ANSWER_OK

STEP = "0/s#1"


def release(rig: Rig, *command_ids: str, request_id: str = "r") -> Reply:
    return rig.ask(ReleaseSteps(request_id, "mended", "", command_ids))


def test_it_is_listed_until_it_is_released_and_then_the_same_try_starts_as_if_nobody_had_died() -> None:
    rig = quarantined()
    before = rig.the_row()
    assert "q:ns" in rig.indexes()
    assert isinstance(release(rig, STEP), RunReply)
    row = rig.the_row()
    assert (row.state, row.lost_count, row.try_number) == (COMMAND_STATE_QUEUED, 0, before.try_number)
    assert row.dispatch_id != before.dispatch_id and row.dispatch_id in rig.outbox()
    assert "q:ns" not in rig.indexes()
    assert rig.kinds()[-1] == "step_unquarantined" and rig.last("step_unquarantined").reason == "mended"
    grant = rig.hold("W9")
    assert grant.attempt == 6 and not grant.alone
    assert rig.report(grant.token).answer == ANSWER_OK


def test_the_same_request_releases_once() -> None:
    rig = quarantined()
    release(rig, STEP)
    length = rig.head.length
    assert isinstance(release(rig, STEP), RunReply) and rig.head.length == length


@pytest.mark.parametrize("ids", [(), ("0/other#1",)])
def test_what_is_not_quarantined_is_refused(ids: tuple[str, ...]) -> None:
    rig = quarantined()
    refused = release(rig, *ids)
    assert isinstance(refused, WrongState) and refused.reason == "NOT_QUARANTINED"


def test_one_that_was_released_and_kills_again_is_quarantined_again() -> None:
    rig = quarantined()
    release(rig, STEP)
    for n in range(5):
        rig.hold(f"X{n}")
        rig.kill()
    assert "q:ns" in rig.indexes()


def test_it_leaves_the_list_with_its_run() -> None:
    rig = quarantined()
    rig.terminate()
    rig.fire()
    assert "q:ns" not in rig.indexes()
    assert isinstance(release(rig, STEP), RunClosed)
    assert isinstance(release(Rig(), STEP), NotFound)
