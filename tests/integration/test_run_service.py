"""RunService over a real socket: every RPC, and what bad input gets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import cast

import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, ResourceInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode
from grpc.aio import AioRpcError

from tests.integration.api_host import DEADLINE_S, ApiHost, api_host
from treadle.client.status import from_rpc_error
from treadle.controlplane.api import run_service
from treadle.controlplane.api.errors import Context
from treadle.controlplane.store.port import Want
from treadle.protocol.errors import NotFound, RunClosed
from treadle.protocol.ids import RunKey
from treadle.v1 import run_service_pb2 as pb
from treadle.v1.common_pb2 import Payload
from treadle.v1.run_service_pb2 import RunStatus

T = DEADLINE_S


def start_request(run_id: str, **more: object) -> pb.StartRunRequest:
    """A start of the workflow "hello" in pool "crm"."""
    base = pb.StartRunRequest(
        run_id=run_id, request_id=f"q-{run_id}", workflow="hello", pool="crm", input=Payload(data=b"[]")
    )
    base.MergeFrom(pb.StartRunRequest(**more))  # type: ignore[arg-type]
    return base


async def refused(call: Awaitable[object]) -> tuple[StatusCode, str, ErrorInfo, Status]:
    """Wait for a call that must be refused; returns code, text, ErrorInfo and the whole status."""
    with pytest.raises(AioRpcError) as caught:
        await call
    details = dict(caught.value.trailing_metadata() or ())
    raw = details["grpc-status-details-bin"]
    assert isinstance(raw, bytes)
    status = Status.FromString(raw)
    info = ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "treadle"
    return caught.value.code(), caught.value.details() or "", info, status


def test_start_get_history_and_result() -> None:
    async def main() -> None:
        async with api_host() as host:
            first = await host.runs.StartRun(start_request("r1"), timeout=T)
            assert first.started
            assert first.run.status == RunStatus.RUN_STATUS_RUNNING
            assert first.run.reason.startswith("no live worker in pool 'crm'")
            again = await host.runs.StartRun(start_request("r1"), timeout=T)
            assert (again.started, again.run.incarnation) == (True, first.run.incarnation), "same request, same answer"
            await host.finish("r1", result=b'"hi"')
            got = (await host.runs.GetRun(pb.GetRunRequest(run_id="r1"), timeout=T)).run
            assert (got.status, got.result.data) == (RunStatus.RUN_STATUS_COMPLETED, b'"hi"')
            assert (len(got.trace_id), got.reason) == (32, "")
            history = await host.runs.GetHistory(pb.GetHistoryRequest(run_id="r1"), timeout=T)
            kinds = [event.WhichOneof("kind") for event in history.events]
            assert kinds == ["run_started", "run_opened", "run_completed"]
            assert history.length == 3
            page = pb.GetHistoryRequest(run_id="r1", after_position=1, page_size=1)
            (event,) = (await host.runs.GetHistory(page, timeout=T)).events
            assert event.position == 2
            assert (host.metrics.value("treadle.runs", namespace="default", outcome="started")) >= 1

    asyncio.run(main())


def test_what_cannot_be_started_is_refused_with_a_remedy() -> None:
    async def main() -> None:
        async with api_host(max_payload_bytes=1024) as host:
            code, text, info, status = await refused(
                host.runs.StartRun(
                    pb.StartRunRequest(run_id="r", request_id="q", workflow="unknown", namespace="prod"), timeout=T
                )
            )
            assert (code, info.reason) == (StatusCode.NOT_FOUND, "WORKFLOW_NOT_FOUND")
            assert text.startswith("nobody ever registered 'unknown' in namespace 'prod'")
            assert info.metadata["remedy"]
            resource = ResourceInfo()
            assert any(detail.Unpack(resource) for detail in status.details)
            assert (resource.resource_type, resource.resource_name) == ("workflow", "unknown")

            for request, field in (
                (start_request("r", namespace="Not Allowed"), "namespace"),
                (start_request("a\nb"), "run_id"),
                (start_request("r", pool="no_underscores"), "pool"),
                (pb.StartRunRequest(run_id="r", workflow="w", pool="p"), "request_id"),
                (pb.StartRunRequest(run_id="r", request_id="q", pool="p"), "workflow"),
            ):
                code, _, info, status = await refused(host.runs.StartRun(request, timeout=T))
                assert (code, info.reason) == (StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
                violation = BadRequest()
                assert any(detail.Unpack(violation) for detail in status.details)
                assert violation.field_violations[0].field == field

            big = start_request("r", input=Payload(data=b"x" * 2000))
            code, text, info, _ = await refused(host.runs.StartRun(big, timeout=T))
            assert (code, info.reason) == (StatusCode.RESOURCE_EXHAUSTED, "PAYLOAD_TOO_LARGE")
            assert "the limit is 1,024" in text

            code, _, info, _ = await refused(host.runs.GetRun(pb.GetRunRequest(run_id="r"), timeout=T))
            assert (code, info.reason) == (StatusCode.NOT_FOUND, "RUN_NOT_FOUND")

    asyncio.run(main())


def test_a_full_outbox_refuses_starts_and_says_when_to_come_back() -> None:
    async def main() -> None:
        async with api_host(outbox_max=1) as host:
            await host.runs.StartRun(start_request("r1"), timeout=T)
            full = RunKey("default", "r1")
            assert host.store.load_now([Want(full)])[0].head
            status = Status()
            async with asyncio.timeout(T):
                while not status.code:  # the size of the outbox may be known from a second ago
                    try:
                        await host.runs.StartRun(start_request("r2"), timeout=T)
                    except AioRpcError as error:
                        (raw,) = (v for k, v in error.trailing_metadata() or () if k == "grpc-status-details-bin")
                        status = Status.FromString(raw)
            info, retry = ErrorInfo(), RetryInfo()
            status.details[0].Unpack(info)
            assert info.reason == "OUTBOX_FULL"
            assert any(detail.Unpack(retry) for detail in status.details)
            assert retry.retry_delay.seconds == 5

    asyncio.run(main())


def test_conflicts_and_closed_runs() -> None:
    async def main() -> None:
        async with api_host() as host:
            await host.runs.StartRun(start_request("r1"), timeout=T)
            other = start_request("r1")
            other.request_id = "another"
            code, _, info, _ = await refused(host.runs.StartRun(other, timeout=T))
            assert (code, info.reason) == (StatusCode.ALREADY_EXISTS, "RUN_ID_CONFLICT")
            other.conflict_policy = pb.CONFLICT_POLICY_USE_EXISTING
            assert not (await host.runs.StartRun(other, timeout=T)).started
            cancel = pb.CancelRunRequest(run_id="r1", request_id="c", reason="not needed")
            assert (await host.runs.CancelRun(cancel, timeout=T)).run.cancel_requested
            end = pb.TerminateRunRequest(run_id="r1", request_id="t", reason="wrong file")
            ended = (await host.runs.TerminateRun(end, timeout=T)).run
            assert (ended.status, ended.reason) == (RunStatus.RUN_STATUS_TERMINATED, "wrong file")
            cancel.request_id = "c2"
            code, _, info, _ = await refused(host.runs.CancelRun(cancel, timeout=T))
            assert (code, info.reason) == (StatusCode.FAILED_PRECONDITION, "RUN_CLOSED")
            unknown = pb.AcceptRunRequest(run_id="nope", request_id="a")
            code, _, info, _ = await refused(host.runs.AcceptRun(unknown, timeout=T))
            assert (code, info.reason) == (StatusCode.NOT_FOUND, "RUN_NOT_FOUND")

    asyncio.run(main())


async def every_page(host: ApiHost, size: int, **more: object) -> list[str]:
    """Return the ids of all runs of a list, read page by page."""
    found: list[str] = []
    token = ""
    while True:
        request = pb.ListRunsRequest(page_size=size, page_token=token, **more)  # type: ignore[arg-type]
        answer = await host.runs.ListRuns(request, timeout=T)
        assert len(answer.runs) <= size
        found += [run.run_id for run in answer.runs]
        token = answer.next_page_token
        if not token:
            return found


def test_lists_are_paged_newest_first_and_filtered() -> None:
    async def main() -> None:
        async with api_host() as host:
            ids = [f"r{number:02}" for number in range(25)]
            for run_id in ids:
                workflow = "hello" if run_id < "r20" else "bye"
                await host.runs.StartRun(start_request(run_id, workflow=workflow), timeout=T)
            await host.finish("r03", result=b"1")
            await host.finish("r04", error="no such city " * 60)
            created = {run_id: host.head(run_id).created_ms for run_id in ids}
            newest = sorted(ids, key=lambda run_id: (created[run_id], run_id), reverse=True)
            for size in (1, 7, 25, 100):
                assert await every_page(host, size) == newest, size
            assert await every_page(host, 2, workflow="bye") == [i for i in newest if i >= "r20"]
            closed = [RunStatus.RUN_STATUS_COMPLETED, RunStatus.RUN_STATUS_FAILED]
            assert sorted(await every_page(host, 1, statuses=closed)) == ["r03", "r04"]
            middle = created["r10"]
            assert set(await every_page(host, 10, since_ms=middle)) == {i for i in ids if created[i] >= middle}
            assert set(await every_page(host, 10, until_ms=middle)) == {i for i in ids if created[i] < middle}
            failed = pb.ListRunsRequest(statuses=[RunStatus.RUN_STATUS_FAILED])
            (run,) = (await host.runs.ListRuns(failed, timeout=T)).runs
            assert (run.failure.type, len(run.failure.message), run.failure.traceback) == ("ValueError", 300, "")

            token = (await host.runs.ListRuns(pb.ListRunsRequest(page_size=2), timeout=T)).next_page_token
            elsewhere = pb.ListRunsRequest(page_size=2, page_token=token, workflow="bye")
            code, _, info, _ = await refused(host.runs.ListRuns(elsewhere, timeout=T))
            assert (code, info.metadata["field"]) == (StatusCode.INVALID_ARGUMENT, "page_token")

    asyncio.run(main())


def test_wait_returns_at_the_close_or_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_service, "_ANSWER_S", 9.0)  # a busy machine needs longer than a quarter of a second

    async def main() -> None:
        async with api_host() as host:
            await host.runs.StartRun(start_request("r1"), timeout=T)
            open_still = await host.runs.WaitRun(pb.WaitRunRequest(run_id="r1", wait_ms=50), timeout=T)
            assert open_still.run.status == RunStatus.RUN_STATUS_RUNNING
            short = await host.runs.WaitRun(pb.WaitRunRequest(run_id="r1", wait_ms=60_000), timeout=9.5)
            assert not short.run.closed_ms, "answered inside the caller's deadline"
            waiting = asyncio.ensure_future(host.runs.WaitRun(pb.WaitRunRequest(run_id="r1"), timeout=T))
            await host.finish("r1", result=b"7")
            assert (await waiting).run.result.data == b"7"

    asyncio.run(main())


def test_watch_streams_every_event_once_until_the_close() -> None:
    async def main() -> None:
        async with api_host() as host:
            await host.runs.StartRun(start_request("r1"), timeout=T)
            call = aiter(host.runs.WatchRun(pb.WatchRunRequest(run_id="r1")))
            first = await asyncio.wait_for(anext(call), T)
            assert [event.position for event in first.events] == [1]
            await host.finish("r1", result=b"7")
            positions, last = [1], first
            async with asyncio.timeout(T):
                async for answer in call:
                    positions += [event.position for event in answer.events]
                    last = answer
            assert positions == [1, 2, 3]
            assert (last.run.status, last.run.result.data) == (RunStatus.RUN_STATUS_COMPLETED, b"7")
            late = [answer async for answer in host.runs.WatchRun(pb.WatchRunRequest(run_id="r1", after_position=2))]
            assert [event.position for answer in late for event in answer.events] == [3]
            with pytest.raises(AioRpcError) as caught:
                await host.runs.WatchRun(pb.WatchRunRequest(run_id="nope")).read()
            assert isinstance(from_rpc_error(caught.value), NotFound)

    asyncio.run(main())


def test_a_watch_ends_when_its_run_is_replaced() -> None:
    async def main() -> None:
        async with api_host() as host:
            await host.runs.StartRun(start_request("r1"), timeout=T)
            watch = host.run_service.WatchRun(pb.WatchRunRequest(run_id="r1"), cast("Context", None))
            assert (await anext(watch)).run.run_id == "r1"
            other = start_request("r1", conflict_policy=pb.CONFLICT_POLICY_TERMINATE_EXISTING)
            other.request_id = "another"
            first, second = [await host.runs.StartRun(other, timeout=T) for _ in range(2)]
            assert first.started
            assert first.run.incarnation == second.run.incarnation, "the same request replaces once"
            with pytest.raises(RunClosed) as caught:
                await anext(watch)
            assert caught.value.reason == "RUN_REPLACED"

    asyncio.run(main())


def test_many_watchers_leave_nothing_behind() -> None:
    async def main() -> None:
        async with api_host() as host:
            await host.runs.StartRun(start_request("r1"), timeout=T)
            calls = [host.runs.WatchRun(pb.WatchRunRequest(run_id="r1")) for _ in range(20)]
            await asyncio.gather(*(asyncio.wait_for(call.read(), T) for call in calls))
            for call in calls:
                call.cancel()
            async with asyncio.timeout(T):
                while host.engine.hub._waiting:
                    await asyncio.sleep(0.01)

    asyncio.run(main())
