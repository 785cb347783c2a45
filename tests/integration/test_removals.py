"""A worker that registers without names that open runs need: the server tells it which, and how many runs."""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.api_host import DEADLINE_S, ApiHost, api_host
from treadle.client import Client
from treadle.controlplane import removals
from treadle.controlplane.machine.requests import Asked
from treadle.protocol.ids import RunKey
from treadle.v1.common_pb2 import Payload
from treadle.v1.state_pb2 import WorkerRecord
from treadle.v1.worker_service_pb2 import ANSWER_OK, Command, MissingName, OwnerAnswer, RegisterRequest, ScheduleStep
from treadle.v1.worker_service_pb2_grpc import WorkerServiceStub


async def register(host: ApiHost, worker: str, workflows: list[str], steps: list[str]) -> list[MissingName]:
    stub = WorkerServiceStub(host.channel)
    request = RegisterRequest(worker_id=worker, pool="crm", workflows=workflows, steps=steps)
    return list((await stub.Register(request, timeout=DEADLINE_S)).missing)


async def at_a_step(host: ApiHost, run_id: str, step: str) -> None:
    """The run's code has asked for a pool step."""
    owner = await host.open(run_id)
    spec = ScheduleStep(name=step, pool="crm", input=Payload(data=b"1"))
    owner.commands.append(Command(command_id=f"0/{step}#1", digest=1, schedule_step=spec))
    answer = await host.engine.ask(RunKey("default", run_id), Asked(owner, "w1", "r1"))
    assert isinstance(answer, OwnerAnswer) and answer.answer == ANSWER_OK


def test_what_open_runs_still_need_is_told() -> None:
    async def main() -> None:
        async with api_host() as host, Client(host.address) as client:
            assert await register(host, "a", ["bill", "bill@1", "ship", "idle"], ["charge", "mail"]) == []
            for n in range(3):
                await client.start("bill@1", id=f"old{n}")
            await client.start("bill", id="plain", pool="crm")
            for n in range(2):
                await client.start("ship", id=f"s{n}")
                await at_a_step(host, f"s{n}", "charge")
            await host.finish("old0", result=b"1")
            record = WorkerRecord(worker_id="a", namespace="default", pool="crm", session_id="s", workflows=["bill@1"])
            await host.store.open_session(record)
            told = {one.name: one for one in await register(host, "b", ["bill@2"], ["mail"])}
            assert {name: one.runs for name, one in told.items()} == {"bill@1": 3, "ship": 2, "charge": 2}
            assert [name for name, one in told.items() if one.step] == ["charge"]
            assert {name: one.workers for name, one in told.items()} == {"bill@1": 1, "ship": 0, "charge": 0}
            assert not any(one.at_least for one in told.values())
            assert await register(host, "c", ["bill", "bill@1", "ship", "idle", "bill@2"], ["charge", "mail"]) == []
            for run in ("s0", "s1", "old1", "old2", "plain"):
                await client.run(run).terminate()
            assert await register(host, "d", ["new"], []) == [], "nobody needs them any more"

    asyncio.run(main())


def test_a_look_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(removals, "_RUNS", 2)
        monkeypatch.setattr(removals, "_LOOKED_UP", 3)
        async with api_host() as host, Client(host.address) as client:
            await register(host, "a", [f"w{n}" for n in range(9)], ["charge"])
            for n in range(4):
                await client.start(f"w{n}", id=f"r{n}")
                await at_a_step(host, f"r{n}", "charge")
            told = {one.name: one for one in await register(host, "b", ["other"], [])}
            assert set(told) == {"w0", "w1", "w2", "charge"}
            assert (told["charge"].runs, told["charge"].at_least) == (2, True)

    asyncio.run(main())
