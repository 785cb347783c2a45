"""Quarantined steps over the API's own code: pages of the list, and release by name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.unit.machine_rig import RUN, Rig, quarantined
from treadle.controlplane.api.admission import Admission
from treadle.controlplane.api.fleet import Fleet
from treadle.controlplane.api.records import Records
from treadle.controlplane.api.redrive import Redrives
from treadle.controlplane.machine import Request
from treadle.controlplane.machine.requests import Reply
from treadle.protocol.errors import RequestError
from treadle.protocol.ids import RunKey
from treadle.v1 import run_service_pb2 as pb
from treadle.v1.state_pb2 import COMMAND_STATE_QUEUED


class OneRun:
    """An engine that knows the run of a rig."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig

    async def ask(self, run: RunKey, request: Request) -> Reply:
        assert run == RUN
        reply = self.rig.ask(request)
        if isinstance(reply, RequestError):
            raise reply
        return reply

    def submit(self, run: RunKey, request: Request, settle: Callable[[Reply | Exception], None]) -> None:
        settle(self.rig.ask(request))

    async def declare(self, namespace: str, pool: str) -> None:
        """Nothing is declared here."""


def redrives(rig: Rig) -> Redrives:
    store = rig.store
    return Redrives(OneRun(rig), store, Records(store, Fleet(store)), Admission(store, 1000), 1 << 20)


def test_the_list_tells_what_a_person_wants_to_know() -> None:
    rig = quarantined()
    page = asyncio.run(redrives(rig).quarantined(pb.ListQuarantinedStepsRequest(namespace="ns")))
    (step,) = page.steps
    assert (step.run_id, step.command_id, step.name, step.pool) == (RUN.run_id, "0/s#1", "s", "p")
    assert (step.workflow, step.losses, step.since_ms) == ("wf", 5, rig.now)
    assert not page.next_page_token
    other = asyncio.run(redrives(rig).quarantined(pb.ListQuarantinedStepsRequest(namespace="another")))
    assert not other.steps


@pytest.mark.parametrize("step", ["", "s", "0/s#1"])
def test_it_is_released_by_name_by_call_or_with_all_others(step: str) -> None:
    rig = quarantined()
    request = pb.ReleaseStepRequest(namespace="ns", run_id=RUN.run_id, request_id="r", reason="mended", step=step)
    answer = asyncio.run(redrives(rig).release(request))
    assert list(answer.command_ids) == ["0/s#1"]
    assert rig.the_row().state == COMMAND_STATE_QUEUED
    page = asyncio.run(redrives(rig).quarantined(pb.ListQuarantinedStepsRequest(namespace="ns")))
    assert not page.steps
    asyncio.run(redrives(rig).release(request))  # sent again: it is known
    assert rig.kinds().count("step_unquarantined") == 1


def test_another_name_is_refused() -> None:
    rig = quarantined()
    request = pb.ReleaseStepRequest(namespace="ns", run_id=RUN.run_id, request_id="r", step="other")
    with pytest.raises(RequestError, match="'other'"):
        asyncio.run(redrives(rig).release(request))
