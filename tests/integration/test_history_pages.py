"""A history that is read in pages while its run continues as new: its parts are not taken for one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest

from tests.integration.api_host import ApiHost, api_host
from tests.integration.test_run_service import T, start_request
from treadle.client import Client, NotFound, RunHandle, WrongState, runs
from treadle.client.whole_history import present_history, whole_history
from treadle.controlplane.machine.requests import Asked, SignalRun
from treadle.protocol.ids import RunKey
from treadle.v1 import run_service_pb2 as pb
from treadle.v1.common_pb2 import Payload
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.worker_service_pb2 import ContinueRun

RUN = RunKey("default", "r1")


async def continued(host: ApiHost) -> None:
    """The run goes on as new, and its next part is there."""
    part = max(host.head("r1").part, 1)
    owner = await host.open("r1")
    owner.continue_run.CopyFrom(ContinueRun(input=Payload(data=b"{}")))
    await host.engine.ask(RUN, Asked(owner, "w1", "r1"))
    async with asyncio.timeout(T):
        while host.head("r1").part != part + 1:
            await asyncio.sleep(0.01)
    await told(host)


async def told(host: ApiHost) -> None:
    """Its history gets a second event."""
    await host.engine.ask(RUN, SignalRun(f"s{host.head('r1').part}", "news", Payload(data=b"1")))


async def started(host: ApiHost) -> pb.Run:
    run = (await host.runs.StartRun(start_request("r1"), timeout=T)).run
    await told(host)
    return run


class Interrupted(RunHandle[Any]):
    """Something happens after the first event that it reads, as often as there is something left to happen."""

    happens: list[Callable[[], Awaitable[None]]]

    async def history(self, *, after: int = 0, incarnation: int = 0) -> AsyncGenerator[HistoryEvent, None]:
        async for event in super().history(after=after, incarnation=incarnation):
            yield event
            if self.happens:
                await self.happens.pop()()


def interrupted(client: Client, *happens: Callable[[], Awaitable[None]]) -> Interrupted:
    handle = Interrupted(client, "r1")
    handle.happens = list(happens)
    return handle


@pytest.fixture(autouse=True)
def an_event_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_PAGE", 1)


def test_a_page_names_the_part_that_it_is_of_and_the_next_one_must_be_of_the_same() -> None:
    async def main() -> None:
        async with api_host() as host, Client(host.address) as client:
            first = await started(host)
            page = await host.runs.GetHistory(pb.GetHistoryRequest(run_id="r1"), timeout=T)
            assert (page.incarnation, page.first_incarnation) == (first.incarnation, first.incarnation)
            await continued(host)
            head = host.head("r1")
            page = await host.runs.GetHistory(pb.GetHistoryRequest(run_id="r1"), timeout=T)
            assert (page.incarnation, page.first_incarnation) == (head.incarnation, first.incarnation)
            behind = pb.GetHistoryRequest(run_id="r1", after_position=1, incarnation=first.incarnation)
            with pytest.raises(WrongState, match="in part 2 now") as refused:
                await client.call(client.stub.GetHistory, behind)
            assert refused.value.reason == "HISTORY_REPLACED" and "from its beginning" in refused.value.remedy
            behind.incarnation = head.incarnation
            assert (await host.runs.GetHistory(behind, timeout=T)).length == head.length

    asyncio.run(main())


def test_reading_on_over_the_end_of_a_part_is_refused_and_never_mixed() -> None:
    async def main() -> None:
        async with api_host() as host, Client(host.address) as client:
            await started(host)
            events = client.run("r1").history()
            assert (await anext(events)).run_started.part == 0
            await continued(host)
            with pytest.raises(WrongState) as refused:
                await anext(events)
            assert refused.value.reason == "HISTORY_REPLACED"

    asyncio.run(main())


def test_who_wants_all_of_it_gets_that_of_one_part() -> None:
    async def main() -> None:
        async with api_host() as host, Client(host.address) as client:
            await started(host)
            twice = (lambda: continued(host), lambda: continued(host))
            info, events = await present_history(interrupted(client, *twice))
            assert (info.part, info.incarnation) == (3, host.head("r1").incarnation)
            assert [event.position for event in events] == list(range(1, host.head("r1").length + 1))
            assert events[0].run_started.part == 3
            saved = await whole_history(client, "r1")
            assert (saved.incarnation, list(saved.events)) == (info.incarnation, events)
            again = interrupted(client, *[lambda: continued(host)] * 20)
            with pytest.raises(WrongState):
                await present_history(again)

    asyncio.run(main())


def test_watching_on_from_a_part_that_is_over_shows_the_next_one_from_its_beginning() -> None:
    async def main() -> None:
        async with api_host() as host, Client(host.address) as client:
            await started(host)
            info, events = await present_history(client.run("r1"))
            await continued(host)
            watch = client.run("r1").watch(after=len(events), incarnation=info.incarnation)
            first = await anext(watch)
            assert (first.position, first.run_started.part) == (1, 2)
            await watch.aclose()

    asyncio.run(main())


def test_the_handle_of_a_start_reads_no_history_of_another_one() -> None:
    async def main() -> None:
        async with api_host() as host, Client(host.address) as client:
            run = await client.start("imports", {}, id="r1", pool="crm")
            await continued(host)
            assert (await anext(run.history())).run_started.part == 2, "a part is of the same start"
            await run.terminate()
            await client.start("imports", {}, id="r1", pool="crm", on_conflict="allow_closed")
            with pytest.raises(NotFound, match="started anew"):
                await anext(run.history())
            other = pb.GetHistoryRequest(run_id="r1", after_position=1, incarnation=run.incarnation)
            with pytest.raises(WrongState, match="was started again"):
                await client.call(client.stub.GetHistory, other)

    asyncio.run(main())
