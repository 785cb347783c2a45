"""Ids that are used again, over a real socket: what the run before left behind is cleared away first."""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.api_host import DEADLINE_S, ApiHost, api_host
from treadle.client import Client
from treadle.controlplane.machine.requests import Asked
from treadle.protocol.ids import RunKey
from treadle.v1 import run_service_pb2 as pb
from treadle.v1.common_pb2 import ON_PARENT_CLOSE_TERMINATE, Payload
from treadle.v1.state_pb2 import RUN_OUTCOME_TERMINATED, RUN_STATE_QUEUED
from treadle.v1.worker_service_pb2 import ANSWER_OK, Command, OwnerAnswer, ScheduleChild

PARENTS = 20


async def with_child(host: ApiHost, run_id: str) -> str:
    """Start a run that has a child; returns the id of the child, which is there."""
    start = pb.StartRunRequest(run_id=run_id, request_id=f"q-{run_id}", workflow="hello", pool="crm")
    await host.runs.StartRun(start, timeout=DEADLINE_S)
    owner = await host.open(run_id)
    child = ScheduleChild(run_id=f"child-of-{run_id}", workflow="ship", pool="crm", input=Payload(data=b"[]"))
    child.on_parent_close = ON_PARENT_CLOSE_TERMINATE
    owner.commands.append(Command(command_id="0/ship#1", digest=4, schedule_child=child))
    answer = await host.engine.ask(RunKey("default", run_id), Asked(owner, "w1", "r1"))
    assert isinstance(answer, OwnerAnswer) and answer.answer == ANSWER_OK
    async with asyncio.timeout(DEADLINE_S):
        while host.head(child.run_id).state != RUN_STATE_QUEUED:
            await asyncio.sleep(0.002)
    return child.run_id


@pytest.mark.parametrize("way", ["call", "stream", "retry"])
def test_the_children_of_a_run_that_is_replaced_are_stopped(way: str) -> None:
    """The sweep of a close and the start behind it are not in step: many, so that no order is left out."""

    async def replace(host: ApiHost, client: Client, run_id: str) -> None:
        again = pb.StartRunRequest(run_id=run_id, request_id=f"again-{run_id}", workflow="hello", pool="crm")
        again.conflict_policy = pb.CONFLICT_POLICY_TERMINATE_EXISTING
        if way == "call":
            assert (await host.runs.StartRun(again, timeout=DEADLINE_S)).started
        elif way == "stream":
            await client.start("hello", pool="crm", id=run_id, on_conflict="terminate_existing")
        else:
            await host.runs.TerminateRun(pb.TerminateRunRequest(run_id=run_id, request_id=f"t-{run_id}"))
            over = pb.RetryRunRequest(run_id=run_id, request_id=f"over-{run_id}", input=Payload(data=b"[]"))
            await host.runs.RetryRun(over, timeout=DEADLINE_S)

    async def main() -> None:
        async with api_host() as host, Client(host.address) as client:
            parents = [f"r{n}" for n in range(PARENTS)]
            children = [await with_child(host, run_id) for run_id in parents]
            before = [host.head(run_id).incarnation for run_id in parents]
            await asyncio.gather(*(replace(host, client, run_id) for run_id in parents))
            assert [host.head(run_id).state for run_id in parents] == [RUN_STATE_QUEUED] * PARENTS
            assert not {host.head(run_id).incarnation for run_id in parents} & set(before)
            async with asyncio.timeout(DEADLINE_S):
                while any(host.head(child).outcome != RUN_OUTCOME_TERMINATED for child in children):
                    await asyncio.sleep(0.005)

    asyncio.run(main())
