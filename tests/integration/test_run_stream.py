"""StreamRuns over a real socket: many starts and ends in a frame, what is refused, what is bounded, what is left behind."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google.rpc.status_pb2 import Status
from grpc import StatusCode, aio

from tests.integration.api_host import DEADLINE_S, ApiHost, api_host
from treadle.client.config import auth_metadata
from treadle.client.status import from_rpc_error, from_status
from treadle.controlplane.api.ends import OneEnd, RunEnds, Watch
from treadle.controlplane.api.run_stream import Limits
from treadle.controlplane.broker.memory import MemoryBroker
from treadle.controlplane.hints import HintHub
from treadle.controlplane.plane import ControlPlane
from treadle.controlplane.store.port import Loaded, Want
from treadle.protocol.errors import NotFound, Refused, RunIdConflict, Unavailable
from treadle.protocol.ids import RunKey
from treadle.v1 import run_service_pb2 as pb
from treadle.v1.common_pb2 import Payload
from treadle.v1.run_service_pb2 import RunStatus

if TYPE_CHECKING:
    from grpc.aio import StreamStreamCall

T = DEADLINE_S


def start(number: int, run_id: str, **more: Any) -> pb.StartItem:
    """A start of the workflow "hello" in pool "crm", which is watched."""
    fields: dict[str, Any] = {"workflow": "hello", "pool": "crm", "request_id": f"q-{run_id}-{number}"}
    request = pb.StartRunRequest(run_id=run_id, **(fields | {"input": Payload(data=b"[]")} | more))
    return pb.StartItem(number=number, request=request, watch=True)


class Stream:
    """A client by hand."""

    def __init__(self, call: StreamStreamCall[pb.StreamRunsRequest, pb.StreamRunsResponse]) -> None:
        self.call = call
        self.answers: dict[int, pb.StartAnswer] = {}
        self.ends: dict[int, pb.RunEnd] = {}
        self.frames = 0

    async def send(self, *starts: pb.StartItem, watches: Sequence[pb.WatchItem] = (), **more: Any) -> None:
        await self.call.write(pb.StreamRunsRequest(starts=starts, watches=watches, **more))

    async def until(self, *, answers: int = 0, ends: int = 0) -> None:
        """Read until so many have come, of all times."""
        async with asyncio.timeout(T):
            while len(self.answers) < answers or len(self.ends) < ends:
                frame = await self.call.read()
                assert isinstance(frame, pb.StreamRunsResponse)
                self.frames += 1
                self.answers |= {answer.number: answer for answer in frame.starts}
                self.ends |= {end.number: end for end in frame.ends}

    async def ended_with(self) -> Exception:
        """Read to the end of the stream, which must be an error; returns it as a client sees it."""
        with pytest.raises(aio.AioRpcError) as caught:
            async with asyncio.timeout(T):
                while isinstance(await self.call.read(), pb.StreamRunsResponse):
                    pass
        return from_rpc_error(caught.value)


@asynccontextmanager
async def scene(**settings: Any) -> AsyncIterator[tuple[ApiHost, Stream]]:
    """An API, and a stream of it."""
    async with api_host(**settings) as host:
        call = host.runs.StreamRuns()
        yield host, Stream(call)
        call.cancel()
        async with asyncio.timeout(T):
            while len(host.run_service.ends):  # nothing is left behind
                await asyncio.sleep(0.01)


def error_of(status: bytes) -> Exception:
    return from_status(Status.FromString(status))


def test_many_starts_in_a_frame_are_answered_and_their_ends_told_without_a_load() -> None:
    async def main() -> None:
        async with scene() as (host, stream):
            await stream.send(*(start(n, f"r{n}") for n in range(1, 101)))
            await stream.until(answers=100)
            assert stream.frames < 20, "answers of one commit batch come together"
            heads = {n: host.head(f"r{n}") for n in range(1, 101)}
            assert {n: a.incarnation for n, a in stream.answers.items()} == {n: h.incarnation for n, h in heads.items()}
            assert all(answer.watched and not answer.existed for answer in stream.answers.values())
            assert host.metrics.value("treadle.runs", namespace="default", outcome="started") == 100
            loads: list[Want] = []
            load = host.store.load

            async def counted(wants: Sequence[Want]) -> list[Loaded]:
                loads.extend(want for want in wants if not want.fields and want.events_after is None)
                return await load(wants)

            host.store.load = counted  # type: ignore[method-assign]
            await host.finish("r7", result=b"7")
            await host.finish("r8", error="boom")
            await stream.until(ends=2)
            assert (stream.ends[7].run.status, stream.ends[7].run.result.data) == (RunStatus.RUN_STATUS_COMPLETED, b"7")
            assert stream.ends[8].run.failure.message == "boom"
            assert [want for want in loads if want.event_at == 3] == [], "told from the commit"
            unary = (await host.runs.GetRun(pb.GetRunRequest(run_id="r7"), timeout=T)).run
            assert stream.ends[7].run == unary, "the same record"

    asyncio.run(main())


def test_refusals_are_those_of_the_unary_call() -> None:
    async def main() -> None:
        async with scene(max_payload_bytes=1024) as (host, stream):
            await stream.send(start(1, "r1"))
            await stream.until(answers=1)
            bad = [
                start(2, "r1"),
                start(3, "bad\n"),
                start(4, "r4", pool="", workflow="nobody"),
                start(5, "r5", input=Payload(data=b"x" * 2000)),
                start(6, "r6", request_id=""),
                start(7, "r7", pool="Not_A_Name"),
                start(8, "r8", conflict_policy=99),
            ]
            await stream.send(*bad, start(9, "r9"))
            await stream.until(answers=9)
            for item in bad:
                with pytest.raises(aio.AioRpcError) as caught:
                    await host.runs.StartRun(item.request, timeout=T)
                details = dict(caught.value.trailing_metadata() or ())
                assert stream.answers[item.number].status == details["grpc-status-details-bin"], item
            assert isinstance(error_of(stream.answers[2].status), RunIdConflict)
            assert not stream.answers[9].status, "its neighbours do not matter"
            await stream.send(start(10, "r10", namespace="other"))
            await stream.until(answers=10)
            assert "frame of 'default'" in str(error_of(stream.answers[10].status))
            await stream.send(start(11, "r11"), namespace="Not_A_Name")
            assert "namespace" in str(await stream.ended_with())

    asyncio.run(main())


def test_the_same_start_again_is_one_run_and_policies_hold() -> None:
    async def main() -> None:
        async with scene() as (host, stream):
            first, again = start(1, "r1"), start(2, "r1", request_id="q-r1-1")
            await stream.send(first, again)
            await stream.until(answers=2)
            assert stream.answers[1].incarnation == stream.answers[2].incarnation != 0
            assert host.head("r1").length == 1
            await host.finish("r1", result=b"1")
            await stream.until(ends=2)
            late = start(3, "r1", request_id="q-r1-1")  # as after a reconnect
            await stream.send(late, start(4, "r1", conflict_policy=pb.CONFLICT_POLICY_USE_EXISTING))
            await stream.until(answers=4, ends=4)
            assert [stream.answers[n].existed for n in (3, 4)] == [False, True]
            assert stream.ends[3].run.result.data == stream.ends[4].run.result.data == b"1", (
                "of a run that is closed already"
            )
            await stream.send(start(5, "r5"))
            await stream.until(answers=5)
            await stream.send(start(6, "r5", conflict_policy=pb.CONFLICT_POLICY_TERMINATE_EXISTING))
            await stream.until(answers=6, ends=5)
            assert stream.ends[5].run.status == RunStatus.RUN_STATUS_TERMINATED
            assert stream.answers[6].incarnation not in (0, stream.answers[5].incarnation)
            await host.finish("r5", result=b"2")
            await stream.until(ends=6)
            assert stream.ends[6].run.result.data == b"2", "the end of the new one, not of the one that it replaced"

    asyncio.run(main())


def test_watches_tell_ends_before_and_after_and_that_there_is_nothing() -> None:
    async def main() -> None:
        async with scene() as (host, stream):
            for run_id in ("open", "closed", "left"):
                await host.runs.StartRun(start(0, run_id).request, timeout=T)
            await host.finish("closed", result=b"1")
            watches = [
                pb.WatchItem(number=n, run_id=r) for n, r in enumerate(("open", "closed", "none", "left", ""), 1)
            ]
            watches.append(pb.WatchItem(number=6, run_id="open", incarnation=99))
            await stream.send(watches=watches)
            await stream.until(ends=4)
            assert stream.ends[2].run.result.data == b"1"
            for number in (3, 6):
                assert isinstance(error_of(stream.ends[number].status), NotFound)
            assert "started anew" in str(error_of(stream.ends[6].status))
            assert "run_id" in str(error_of(stream.ends[5].status))
            await stream.send(unwatch=[4])
            await host.finish("open", result=b"2")
            await stream.until(ends=5)
            await host.finish("left", result=b"3")
            await stream.send(watches=[pb.WatchItem(number=7, run_id="closed")])
            await stream.until(ends=6)
            assert sorted(stream.ends) == [1, 2, 3, 5, 6, 7], "what was given up is not told"

    asyncio.run(main())


def test_ends_of_another_replica_are_hinted_and_read_together() -> None:
    async def main() -> None:
        async with scene() as (host, stream):
            other = ControlPlane(host.config, host.store, MemoryBroker())
            stop, ready = asyncio.Event(), asyncio.Event()
            serving = asyncio.create_task(other.run(stop, lambda _: ready.set()))
            await asyncio.wait_for(ready.wait(), T)
            try:
                await stream.send(*(start(n, f"r{n}") for n in range(1, 41)))
                await stream.until(answers=40)
                there = replace(host, engine=other.engine)
                await asyncio.gather(*(there.finish(f"r{n}", result=b"%d" % n) for n in range(1, 41)))
                await stream.until(ends=40)
                assert all(end.run.result.data == b"%d" % n for n, end in stream.ends.items())
            finally:
                stop.set()
                await serving

    asyncio.run(main())


def test_a_lost_hint_delays_an_end_but_does_not_lose_it() -> None:
    async def main() -> None:
        async with api_host() as host:
            deaf = RunEnds(host.store, HintHub(), pace_s=0.05)  # a hub that nobody feeds
            working = asyncio.create_task(deaf.run())
            waiters = []
            for n in range(300):
                await host.runs.StartRun(start(0, f"r{n}").request, timeout=T)
                waiters.append(OneEnd())
                deaf.add(Watch(RunKey("default", f"r{n}"), 0, waiters[-1]))
            for n in range(0, 300, 3):
                await host.finish(f"r{n}", result=b"1")
            for n in range(0, 300, 3):
                found = await waiters[n].wait(T)
                assert found is not None and found.run_id == f"r{n}"
            assert len(deaf) == 200
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    asyncio.run(main())


def test_a_stream_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Limits, "undecided", 10)
    monkeypatch.setattr(Limits, "own_watches", 5)
    monkeypatch.setattr(Limits, "watches", 8)
    monkeypatch.setattr(Limits, "waiting_bytes", 1 << 20)

    async def main() -> None:
        async with scene() as (host, stream):
            for n in range(1, 101):
                await stream.send(start(n, f"r{n}"))
            await stream.until(answers=100)
            assert sum(answer.watched for answer in stream.answers.values()) == 5, (
                "the others are watched when asked for"
            )
            await stream.send(watches=[pb.WatchItem(number=n, run_id=f"r{n}") for n in range(50, 60)])
            await stream.until(ends=7)
            refused = error_of(next(iter(stream.ends.values())).status)
            assert isinstance(refused, Refused) and refused.reason == "WATCH_LIMIT"
            big = b'"%s"' % (b"x" * 900_000)
            watched = [n for n, answer in stream.answers.items() if answer.watched] + [50, 51, 52]
            for n in watched:  # nobody reads meanwhile
                await host.finish(f"r{n}", result=big)
            await stream.until(ends=7 + len(watched))
            assert all(stream.ends[n].run.result.data == big for n in watched), "put off, not lost"

    asyncio.run(main())


def test_the_stream_ends_when_all_is_told_or_the_replica_stops() -> None:
    async def main() -> None:
        async with scene() as (host, stream):
            await stream.send(start(1, "r1"))
            await stream.call.done_writing()
            await stream.until(answers=1)
            await host.finish("r1", result=b"1")
            await stream.until(ends=1)
            assert await stream.call.read() is aio.EOF
            assert await stream.call.code() == StatusCode.OK
            other = Stream(host.runs.StreamRuns())
            await other.send(start(1, "r2"))
            await other.until(answers=1)
            host.stop.set()
            assert isinstance(await other.ended_with(), Unavailable)

    asyncio.run(main())


def test_tokens_hold_on_the_stream_as_on_calls(tmp_path: Path) -> None:
    def line(name: str, role: str, namespace: str = "default") -> str:
        return f"{namespace} {role} {hashlib.sha256(f'tdl_1_{name}'.encode()).hexdigest()} never\n"

    tokens = tmp_path / "tokens"
    tokens.write_text(line("viewer", "viewer") + line("client", "client") + line("worker", "worker:crm"))

    async def main() -> None:
        async with api_host(tokens_file=tokens) as host:

            def stream(name: str) -> Stream:
                return Stream(host.runs.StreamRuns(metadata=auth_metadata(f"tdl_1_{name}" if name else None)))

            client, viewer = stream("client"), stream("viewer")
            await client.send(start(1, "r1"))
            await client.until(answers=1)
            assert not client.answers[1].status
            await viewer.send(start(1, "r2"), watches=[pb.WatchItem(number=2, run_id="r1")])
            await viewer.until(answers=1)
            refused = error_of(viewer.answers[1].status)
            assert isinstance(refused, Refused) and refused.reason == "ROLE_NOT_ALLOWED"
            await host.finish("r1", result=b"1")
            await viewer.until(ends=1)
            assert viewer.ends[2].run.result.data == b"1", "who may read may wait"
            for name, reason in (("", "TOKEN_INVALID"), ("wrong", "TOKEN_INVALID"), ("worker", "ROLE_NOT_ALLOWED")):
                other = stream(name)
                await other.send(start(1, "r3"))
                assert getattr(await other.ended_with(), "reason", "") == reason
            await viewer.send(watches=[pb.WatchItem(number=3, run_id="r1")], namespace="other")
            assert getattr(await viewer.ended_with(), "reason", "") == "NAMESPACE_NOT_ALLOWED"
            tokens.write_text(line("viewer", "viewer"))
            await client.send(start(2, "r4"))
            assert getattr(await client.ended_with(), "reason", "") == "TOKEN_INVALID", "withdrawn while it was open"

    asyncio.run(main())
