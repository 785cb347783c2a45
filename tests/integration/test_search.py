"""Lists and counts of runs by tag, version, error and trouble, over a real socket; with the client and on the command line."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.integration.api_host import ApiHost, api_host
from tests.integration.test_cli_commands import treadle
from treadle.client import (
    Client,
    FieldInvalid,
    NotFound,
    RunFilters,
    RunIdConflict,
    RunStatus,
    RunTrouble,
    SyncClient,
    aio,
)
from treadle.controlplane.api import search
from treadle.controlplane.machine.requests import Claimed
from treadle.protocol.ids import RunKey
from treadle.v1.job_pb2 import JOB_KIND_RUN, Job
from treadle.v1.state_pb2 import WorkerRecord
from treadle.v1.worker_service_pb2 import ClaimItem


async def unregistered(host: ApiHost, run_id: str) -> None:
    """A worker that got the run's job has no such workflow."""
    head = host.head(run_id)
    job = Job(namespace="default", run_id=run_id, incarnation=head.incarnation, kind=JOB_KIND_RUN, name=head.workflow)
    item = ClaimItem(claim_id=99, sent_ms=1, job=job, unregistered=True)
    await host.engine.ask(RunKey("default", run_id), Claimed(item, "w1", "r1"))


async def ids(client: Client, **filters: Any) -> list[str]:
    return sorted([run.id async for run in client.list(**filters)])


async def some_runs(host: ApiHost, client: Client) -> None:
    """r0 to r9 of "ship", customers a and b in turn; r0 and r1 failed, r2 completed, r3 waits; x of "bill" at version 2."""
    for n in range(10):
        await client.start("ship", id=f"r{n}", pool="crm", tags={"customer": "ab"[n % 2], "number": n})
    await client.start("bill@2", id="x", pool="crm")
    await host.finish("r0", error="no")
    await host.finish("r1", error="no")
    await host.finish("r2", result=b"1")
    await unregistered(host, "r3")


EXPECTED: list[tuple[RunFilters, str]] = [
    ({"tags": {"customer": "a"}}, "r0 r2 r4 r6 r8"),
    ({"tags": {"customer": "a", "number": 4}}, "r4"),
    ({"tags": {"customer": "c"}}, ""),
    ({"tags": {"customer": "a"}, "status": "running"}, "r4 r6 r8"),
    ({"tags": {"customer": "a"}, "workflow": "bill"}, ""),
    ({"error": "ValueError"}, "r0 r1"),
    ({"error": "ValueError", "tags": {"customer": "b"}}, "r1"),
    ({"error": "KeyError"}, ""),
    ({"trouble": "waiting"}, "r3"),
    ({"trouble": [RunTrouble.WAITING, "attention"]}, "r3"),
    ({"trouble": "retrying"}, ""),
    ({"trouble": "waiting", "error": "ValueError"}, ""),
    ({"workflow": "bill"}, "x"),
    ({"workflow": "bill@2"}, "x"),
    ({"workflow": "bill@1"}, ""),
    ({"status": ["failed", "completed"], "workflow": "ship"}, "r0 r1 r2"),
    ({"since": timedelta(hours=1), "tags": {"number": 7}}, "r7"),
    ({"until": timedelta(hours=1), "tags": {"number": 7}}, ""),
]


def test_lists_and_counts_agree_with_every_filter() -> None:
    async def main() -> None:
        async with api_host() as host, Client(host.address) as client:
            await some_runs(host, client)
            for filters, expected in EXPECTED:
                found = await ids(client, **filters)
                assert found == expected.split(), filters
                assert (await client.count(**filters)).total == len(found), filters
            count = await client.count(workflow="ship")
            assert (count.total, count.at_least) == (10, False)
            by_status = count.by_status
            assert (by_status[RunStatus.COMPLETED], by_status[RunStatus.FAILED]) == (1, 2)
            assert by_status[RunStatus.RUNNING] + by_status.get(RunStatus.WAITING, 0) == 7, "r3 is asked for again"
            assert (await client.count(tags={"customer": "b"})).by_status[RunStatus.FAILED] == 1
            run = await client.run("r3").get()
            assert run.tags == {"customer": "b", "number": "3"} and run.troubles == (RunTrouble.WAITING,)
            assert "worker in pool 'crm'" in run.reason
            assert (await client.run("x").get()).version == "2"

    asyncio.run(main())


def test_a_filtered_list_comes_in_pages_each_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few of many fit: the walk goes on over pages, and a look is bounded."""

    async def main() -> None:
        monkeypatch.setattr(search, "_STEP", 4)
        monkeypatch.setattr(search, "_LIST_LIMIT", 8)
        monkeypatch.setattr(search, "_COUNT_LIMIT", 8)
        async with api_host() as host, Client(host.address) as client:
            for n in range(40):
                await client.start("ship", id=f"r{n:02}", pool="crm", tags={"all": "1", "third": n % 3})
            wanted: RunFilters = {"tags": {"all": "1", "third": 0}}
            assert await ids(client, **wanted) == [f"r{n:02}" for n in range(0, 40, 3)]
            pages, token = [], ""
            while True:
                page = await client.list_page(size=3, token=token, **wanted)
                assert len(page.runs) <= 3
                pages.append([run.id for run in page.runs])
                token = page.next_token
                if not token:
                    break
            seen = [run_id for one in pages for run_id in one]
            assert len(seen) == len(set(seen)) == 14
            with pytest.raises(FieldInvalid, match="page_token"):
                token = (await client.list_page(size=3, **wanted)).next_token
                await client.list_page(size=3, token=token, tags={"all": "1"})
            counted = await client.count(**wanted)
            assert counted.at_least and counted.total == 8, "it says that it has not looked at all"

    asyncio.run(main())


def test_a_time_that_counts_back_from_now_means_the_same_on_each_page(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(aio, "_PAGE", 2)
        async with api_host() as host, Client(host.address) as client:
            for n in range(5):
                await client.start("ship", id=f"r{n}", pool="crm")
                await later(client)  # runs of one millisecond have no order
            bounds: RunFilters = {"since": timedelta(hours=1), "until": timedelta(seconds=-60)}
            both = (run.status for run in [await client.run("r0").get(), await client.run("r1").get()])
            assert await ids(client, **bounds, status=both) == [f"r{n}" for n in range(5)]
            first = await client.list_page(size=3, **bounds)
            await later(client)
            second = await client.list_page(size=3, token=first.next_token, **bounds)
            assert [run.id for run in (*first.runs, *second.runs)] == ["r4", "r3", "r2", "r1", "r0"]

            def blocking() -> list[str]:
                with SyncClient(host.address) as sync:
                    return [run.id for run in sync.list(**bounds)]

            assert len(await asyncio.to_thread(blocking)) == 5

    asyncio.run(main())


async def later(client: Client) -> None:
    """Return in another millisecond."""
    now = datetime.now(UTC)
    while datetime.now(UTC) < now + timedelta(milliseconds=2):
        await client.check_health()


BAD: list[tuple[RunFilters, str]] = [
    ({"tags": {"": "x"}}, "key"),
    ({"tags": {"a=b": "x"}}, "key"),
    ({"tags": {"k" * 65: "x"}}, "key"),
    ({"tags": {"k": "v" * 201}}, "value"),
    ({"tags": {f"k{n}": "v" for n in range(21)}}, "20"),
    ({"error": "x" * 201}, "error_type"),
    ({"trouble": "nonsense"}, "nonsense"),
    ({"workflow": "bill@"}, ""),
    ({"workflow": "bill@ö"}, "version"),
]


def test_what_is_not_allowed_is_refused_with_its_name() -> None:
    async def main() -> None:
        async with api_host() as host, Client(host.address) as client:
            for filters, word in BAD:
                if not word:
                    assert await ids(client, **filters) == []
                    continue
                with pytest.raises(FieldInvalid, match=word):
                    await client.count(**filters)
            with pytest.raises(FieldInvalid, match="tag"):
                await client.start("ship", pool="crm", tags={"a\n": "b"})
            with pytest.raises(FieldInvalid, match="21 tags"):
                await client.start("ship", pool="crm", tags={f"k{n}": "v" for n in range(21)})
            with pytest.raises(FieldInvalid, match="version"):
                await client.start("ship@no good", pool="crm")

    asyncio.run(main())


def test_policies_of_a_taken_id() -> None:
    async def main() -> None:
        async with api_host() as host, Client(host.address) as client:
            first = await client.start("ship", id="r", pool="crm")
            assert (await client.start("ship", id="r", pool="crm", on_conflict="use_open")).existed
            with pytest.raises(RunIdConflict, match="open"):
                await client.start("ship", id="r", pool="crm", on_conflict="allow_failed")
            await host.finish("r", error="no")
            again = await client.start("ship", id="r", pool="crm", on_conflict="allow_failed")
            assert not again.existed and again.incarnation != first.incarnation
            await host.finish("r", result=b"1")
            with pytest.raises(RunIdConflict, match="completed"):
                await client.start("ship", id="r", pool="crm", on_conflict="allow_failed")
            third = await client.start("ship", id="r", pool="crm", on_conflict="use_open")
            assert not third.existed and third.incarnation != again.incarnation

    asyncio.run(main())


def test_a_start_by_name_means_the_newest_version_that_lives() -> None:
    async def main() -> None:
        async with api_host() as host, Client(host.address) as client:
            store, now = host.store, host.engine.clock.now()

            async def comes(worker: str, *names: str, first_ms: int) -> None:
                await store.register("default", "crm", names, (), first_ms)
                record = WorkerRecord(
                    worker_id=worker, namespace="default", pool="crm", session_id="s", workflows=names
                )
                await store.open_session(record)

            async def started(name: str) -> str:
                run = await client.start(name)
                return (await run.get()).version

            with pytest.raises(NotFound):
                await client.start("bill")
            await comes("w1", "bill@1", "plain", first_ms=now - 300_000)
            assert [await started("bill"), await started("plain")] == ["1", ""]
            await comes("w2", "bill@2", first_ms=now)
            assert await started("bill") == "2", "it has just come"
            assert await started("bill@1") == "1", "a client may name one"
            await comes("w1", "bill@1", first_ms=now)
            assert await started("bill") == "2", "an old worker that registers again is not newer"
            await comes("w4", "late@7", first_ms=now - 100_000)
            await comes("w5", "late@8", first_ms=now - 90_000)
            await store.close_session("w5", "s", drained=True)
            async with asyncio.timeout(20):
                while await started("late") != "7":  # what is known of workers is a second old
                    await asyncio.sleep(0.1)
            with pytest.raises(NotFound):
                await client.start("bill@3")

    asyncio.run(main())


def test_the_blocking_client_and_the_command_line() -> None:
    async def main() -> None:
        async with api_host() as host, Client(host.address) as client:
            await some_runs(host, client)

            def blocking() -> tuple[list[str], int]:
                with SyncClient(host.address) as sync:
                    sync.start("ship", id="s", pool="crm", tags={"customer": "sync"})
                    return [run.id for run in sync.list(tags={"customer": "sync"})], sync.count(status="failed").total

            assert await asyncio.to_thread(blocking) == (["s"], 2)
            words = ["--tag", "customer=a", "--status", "running", "-o", "jsonl"]
            listed = await treadle(host, "run", "list", *words)
            found = [json.loads(line) for line in listed.out.splitlines()]
            assert [run["id"] for run in found] == ["r8", "r6", "r4"], listed.err
            assert found[0]["tags"] == {"customer": "a", "number": "8"}
            counted = await treadle(host, "run", "count", "--error", "ValueError", "-o", "json")
            assert counted.json == {"total": 2, "at_least": False, "by_status": {"failed": 2}}
            table = (await treadle(host, "run", "list", "--waiting")).out
            assert "r3" in table and "customer=b" in table and "worker in pool 'crm'" in table
            assert (await treadle(host, "run", "list", "--attention", "--retrying", "--count")).out.split()[-1] == "0"
            started = await treadle(host, "run", "start", "bill@3", "--pool", "crm", "--id", "y", "--tag", "k=v=w")
            assert started.out == "y\n", started.err
            shown = (await treadle(host, "run", "show", "y")).out
            assert "bill@3" in shown and "k=v=w" in shown and "waiting for version 3" in shown
            wrong = await treadle(host, "run", "list", "--tag", "novalue")
            assert wrong.code == 2 and "customer=42" in wrong.err and not wrong.out

    asyncio.run(main())
