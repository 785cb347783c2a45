"""ScheduleService and declared schedules over a real socket, with real time where time is what is tested."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

from tests.integration.api_host import DEADLINE_S, ApiHost, api_host
from tests.integration.test_cli_commands import treadle
from treadle.client import Client, FieldInvalid, NotFound, PayloadError, Refused, RunIdConflict, ScheduleStatus
from treadle.client.encryption import AesGcm
from treadle.client.vault import Vault
from treadle.protocol.errors import ConfigError, PayloadUnreadable, RequestError
from treadle.protocol.ids import RunKey
from treadle.v1 import schedule_service_pb2 as pb
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.schedule_pb2 import ScheduleSpec
from treadle.v1.worker_service_pb2 import RegisterRequest, WorkflowSpec
from treadle.v1.worker_service_pb2_grpc import WorkerServiceStub
from treadle.worker.loop.port import RunContext
from treadle.worker.seals import EventSeals

T = DEADLINE_S


async def until_run(host: ApiHost, run_id: str) -> HistoryEvent:
    """Wait until the run is there; returns its first event."""
    async with asyncio.timeout(T):
        while not host.head(run_id).run_id:
            await asyncio.sleep(0.01)
    return (await host.engine.events(RunKey("default", run_id), 0))[0][0]


async def register(host: ApiHost, *specs: WorkflowSpec, workflows: tuple[str, ...] = ("nightly", "other")) -> None:
    request = RegisterRequest(worker_id="w1", pool="flows", workflows=workflows, specs=specs)
    await WorkerServiceStub(host.channel).Register(request, timeout=T)


def nightly(**timing: object) -> WorkflowSpec:
    return WorkflowSpec(name="nightly", schedule=ScheduleSpec(**timing))  # type: ignore[arg-type]


def test_a_schedule_lives_and_starts_runs() -> None:
    async def main() -> None:
        async with api_host() as host, Client(host.address) as client:
            made = await client.schedules.create(
                "ticks", "hello", {"name": "Ada"}, every="1s", overlap="queue-all", pool="crm"
            )
            assert (made.status, made.every, made.overlap) == (ScheduleStatus.ACTIVE, timedelta(seconds=1), "queue-all")
            assert len(made.upcoming) == 5 and made.next_at is not None and made.next_at > made.created_at
            assert made.reason == "no worker of pool 'crm' has workflow 'hello'"
            first = f"ticks-{made.next_at.isoformat()}"
            started = (await until_run(host, first)).run_started
            assert (started.workflow, started.pool, started.trigger) == ("hello", "crm", "schedule")
            assert (started.input.data, started.occurrence.schedule_id) == (b'{"name":"Ada"}', "ticks")
            assert started.occurrence.scheduled_ms == round(made.next_at.timestamp() * 1000)
            async with asyncio.timeout(T):
                while not (shown := await client.schedules.get("ticks")).queued:
                    await asyncio.sleep(0.05)
            assert shown.open_runs == (first,) and shown.recent[-1].fate == "queued"
            waiting = shown.recent[-1].run_id
            await host.finish(first, result=b"1")
            await until_run(host, waiting)
            await client.schedules.pause("ticks", "enough")
            assert [one.id async for one in client.schedules.list()] == ["ticks"]
            await client.schedules.delete("ticks")
            assert [one async for one in client.schedules.list()] == []
            with pytest.raises(NotFound, match="no schedule 'ticks'"):
                await client.schedules.get("ticks")

    asyncio.run(main())


def test_what_people_do_to_a_schedule() -> None:
    async def main() -> None:
        async with api_host() as host, Client(host.address) as client:
            schedules = client.schedules
            await schedules.create("n", "w", cron="0 6 * * *", tz="Europe/Berlin", pool="p", paused=True)
            changed = await schedules.change("n", cron="0 7 * * MON", jitter="10m", arguments={"a": 1})
            assert (changed.cron, changed.timezone, changed.jitter) == (
                "0 7 * * MON",
                "Europe/Berlin",
                timedelta(minutes=10),
            )
            assert changed.input is not None and json.loads(changed.input.data) == {"a": 1}
            assert changed.status is ScheduleStatus.PAUSED and changed.upcoming == ()
            resumed = await schedules.resume("n")
            assert resumed.next_at is not None
            assert (resumed.next_at.hour, resumed.next_at.weekday()) == (7, 0)
            run = await schedules.trigger("n")
            assert (await until_run(host, run.id)).run_started.occurrence.schedule_id == "n"
            with pytest.raises(Refused, match="has an open run") as busy:
                await schedules.trigger("n")
            assert busy.value.reason == "SCHEDULE_BUSY"
            beside = await schedules.trigger("n", overlap="allow")
            await until_run(host, beside.id)
            await schedules.change("n", every="1h")
            now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
            count = await schedules.backfill("n", now - timedelta(hours=2), now, at_once=True)
            assert count == 3
            for hours in (0, 1, 2):
                at = (now - timedelta(hours=hours)).astimezone(resumed.next_at.tzinfo)
                await until_run(host, f"n-{at.isoformat()}")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"cron": "0 25 * * *"}, r"field 2 \(hour\) is '25'"),
        ({"cron": "@daily", "timezone": "Nowhere"}, "'Nowhere' is not known"),
        ({"every_ms": 10}, "every_ms 10"),
        ({"cron": "@daily", "workflow": ""}, "workflow ''"),
        ({"cron": "@daily", "workflow": "never", "pool": ""}, "nobody ever registered 'never'"),
    ],
)
def test_what_cannot_be_kept_is_refused(fields: dict[str, object], said: str) -> None:
    async def main() -> None:
        async with api_host() as host, Client(host.address) as client:
            spec = ScheduleSpec(**({"workflow": "w", "pool": "p"} | fields))  # type: ignore[arg-type]
            request = pb.CreateScheduleRequest(schedule_id="s", request_id="r", spec=spec)
            with pytest.raises(RequestError, match=said):
                await client.call(client.schedule_stub.CreateSchedule, request)

    asyncio.run(main())


def test_names_and_inputs_have_an_end() -> None:
    async def main() -> None:
        async with api_host() as host, Client(host.address) as client:
            for name in ("", "x" * 121, "~s", "a\nb"):
                with pytest.raises(FieldInvalid, match="schedule_id"):
                    await client.schedules.get(name)
            with pytest.raises(PayloadError, match="65,536"):
                await client.schedules.create("s", "w", {"a": "x" * 70_000}, every="1h", pool="p")

    asyncio.run(main())


def test_a_name_is_taken_once_and_lists_have_pages() -> None:
    async def main() -> None:
        async with api_host() as host, Client(host.address) as client:
            for name in ("c", "a", "b"):
                await client.schedules.create(name, "w", every="1h", pool="p")
            with pytest.raises(RunIdConflict, match="exists already"):
                await client.schedules.create("a", "w", every="1h", pool="p")
            stub = client.schedule_stub
            first = await client.call(stub.ListSchedules, pb.ListSchedulesRequest(page_size=2))
            rest = pb.ListSchedulesRequest(page_size=2, page_token=first.next_page_token)
            second = await client.call(stub.ListSchedules, rest)
            names = [one.record.schedule_id for one in (*first.schedules, *second.schedules)]
            assert names == ["a", "b", "c"] and second.next_page_token == ""
            assert [run.id async for run in client.list()] == [], "a schedule is no run"
            with pytest.raises(FieldInvalid, match="must not begin with '~'"):
                await client.run("~schedule/a").terminate()

    asyncio.run(main())


# --- declared in code ------------------------------------------------------------------------------------------------
def test_a_worker_declares_changes_and_drops_schedules() -> None:
    async def main() -> None:
        async with api_host() as host, Client(host.address) as client:
            await register(host, nightly(cron="0 6 * * *", timezone="Europe/Berlin"))
            one = await client.schedules.get("nightly")
            assert one.declared and (one.workflow, one.pool, one.cron) == ("nightly", "flows", "0 6 * * *")
            await client.schedules.pause("nightly", "incident")
            await register(host, nightly(every_ms=60_000))
            one = await client.schedules.get("nightly")
            assert one.status is ScheduleStatus.PAUSED and one.every == timedelta(minutes=1), (
                "a pause survives a deploy"
            )
            with pytest.raises(Refused, match="declared in code"):
                await client.schedules.change("nightly", every="1h")
            await client.schedules.resume("nightly")
            await register(host, workflows=("other",))
            assert (await client.schedules.get("nightly")).status is ScheduleStatus.ACTIVE, "another app of the pool"
            await register(host)
            one = await client.schedules.get("nightly")
            assert one.status is ScheduleStatus.ORPHANED and one.next_at is None
            kept = await client.schedules.resume("nightly")
            assert kept.status is ScheduleStatus.ACTIVE and not kept.declared

    asyncio.run(main())


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (nightly(cron="0 6 * * 8"), r"workflow 'nightly': cron '0 6 \* \* 8': field 5 \(day-of-week\) is '8'"),
        (nightly(cron="@daily", timezone="Mars"), "workflow 'nightly': timezone 'Mars'"),
        (WorkflowSpec(name="unknown", schedule=ScheduleSpec(cron="@daily")), "needs a workflow of the worker"),
    ],
)
def test_a_worker_with_a_wrong_schedule_is_refused(spec: WorkflowSpec, said: str) -> None:
    async def main() -> None:
        async with api_host() as host, Client(host.address) as client:
            request = RegisterRequest(worker_id="w1", pool="flows", workflows=["nightly"], specs=[spec])
            with pytest.raises(FieldInvalid, match=said):
                await client.call(WorkerServiceStub(host.channel).Register, request)
            assert [one async for one in client.schedules.list()] == []

    asyncio.run(main())


def test_a_schedule_ends_and_its_runs_are_found_by_their_tags() -> None:
    async def main() -> None:
        async with api_host() as host, Client(host.address) as client:
            yesterday = datetime.now(UTC) - timedelta(days=1)
            made = await client.schedules.create(
                "s",
                "w",
                every="1h",
                pool="p",
                overlap="allow",
                start=yesterday,
                until=datetime.now(UTC),
                tags={"team": "crm"},
            )
            assert (made.status, made.upcoming, made.tags) == (ScheduleStatus.ENDED, (), {"team": "crm"})
            assert made.start is not None and abs(made.start - yesterday) < timedelta(seconds=1)
            run = await client.schedules.trigger("s")
            await until_run(host, run.id)
            assert [one.id async for one in client.list(tags={"team": "crm"})] == [run.id]
            assert await client.schedules.backfill("s", timedelta(days=3)) == 24, "between the bounds"
            later = await client.schedules.change("s", until=0, tags={})
            assert (later.status, later.until, later.tags) == (ScheduleStatus.ACTIVE, None, {})
            with pytest.raises(FieldInvalid, match="no occurrence"):
                await client.schedules.create(
                    "n", "w", every="1h", pool="p", until=datetime(1970, 1, 1, 0, 1, tzinfo=UTC)
                )
            with pytest.raises(ConfigError, match="with a zone"):
                await client.schedules.change("s", until=datetime(2099, 1, 1))

    asyncio.run(main())


# --- the command line ------------------------------------------------------------------------------------------------
def test_the_command_line() -> None:
    async def main() -> None:
        async with api_host() as host:
            words = ["schedules", "create", "nightly", "imports", "--cron", "0 6 * * *", "--tz", "Europe/Berlin"]
            made = await treadle(host, *words, "-i", '{"path": "x"}', "--pool", "crm")
            assert (made.code, made.out) == (0, "") and "is created; next: " in made.err
            listed = await treadle(host, "schedules", "list")
            head, row = listed.out.splitlines()
            assert head.split() == ["schedule", "workflow", "status", "when", "next", "missed", "note"]
            assert row.startswith("nightly") and "0 6 * * * Europe/Berlin" in row and "▶ active" in row
            changed = await treadle(host, "schedules", "change", "nightly", "--every", "1h30m", "-o", "json")
            assert (changed.json["every_s"], changed.json["cron"]) == (5400.0, None)
            paused = await treadle(host, "schedules", "pause", "nightly", "--reason", "incident", "-o", "json")
            assert (paused.json["status"], paused.json["pause_reason"]) == ("paused", "incident")
            triggered = await treadle(host, "schedules", "trigger", "nightly")
            assert triggered.out.startswith("nightly-triggered-") and triggered.code == 0
            busy = await treadle(host, "schedules", "trigger", "nightly")
            assert busy.code == 1 and "has an open run" in busy.err and "allow" in busy.err
            assert "goes on" in (await treadle(host, "schedules", "resume", "nightly")).err
            filled = await treadle(host, "schedules", "backfill", "nightly", "--since", "4h", "-o", "json")
            assert filled.json["occurrences"] in (2, 3)
            shown = await treadle(host, "schedules", "show", "nightly")
            assert 'input {"path": "x"}' in shown.out and triggered.out.strip() in shown.out
            as_json = (await treadle(host, "schedules", "show", "nightly", "-o", "json")).json
            assert as_json["recent"][0]["cause"] == "trigger" and len(as_json["upcoming"]) == 5
            span = (
                "--start",
                "2099-01-01T00:00+01:00",
                "--until",
                "2099-01-02T00:00Z",
                "--tag",
                "team=crm",
                "--tag",
                "n=1",
            )
            bound = (await treadle(host, "schedules", "change", "nightly", *span, "-o", "json")).json
            assert (bound["start"], bound["until"]) == (
                "2099-01-01T00:00:00.000+01:00",
                "2099-01-02T01:00:00.000+01:00",
            )
            assert (bound["tags"], bound["upcoming"][0]) == ({"n": "1", "team": "crm"}, "2099-01-01T01:00:00.000+01:00")
            drawn = (await treadle(host, "schedules", "show", "nightly")).out
            assert (
                "from 2099-01-01 00:00:00+01:00 until 2099-01-02 01:00:00+01:00" in drawn and "n=1, team=crm" in drawn
            )
            freed = ("--start", "0", "--until", "0", "--untagged")
            free = (await treadle(host, "schedules", "change", "nightly", *freed, "-o", "json")).json
            assert (free["start"], free["until"], free["tags"]) == (None, None, {}) and free["upcoming"][0] < "2099"
            zoneless = await treadle(host, "schedules", "change", "nightly", "--until", "2099-01-01T00:00")
            assert zoneless.code == 2 and "with its zone" in zoneless.err
            assert (await treadle(host, "schedules", "delete", "nightly")).code == 0
            assert (await treadle(host, "schedules", "show", "nightly")).code == 3
            wrong = await treadle(host, "schedules", "create", "n", "w", "--cron", "* *", "--pool", "p")
            assert wrong.code == 2 and "5 fields" in wrong.err

    asyncio.run(main())


def test_a_schedule_means_the_newest_version_and_only_its_workers_have_a_say() -> None:
    async def main() -> None:
        async with api_host() as host, Client(host.address) as client:

            async def worker(version: str, **timing: object) -> None:
                code = f"nightly@{version}"
                specs = [WorkflowSpec(name=code, schedule=ScheduleSpec(**timing))] if timing else []  # type: ignore[arg-type]
                request = RegisterRequest(
                    worker_id=f"w{version}", pool="flows", workflows=[code], specs=specs, session_id=version, sent_ms=1
                )
                await WorkerServiceStub(host.channel).Register(request, timeout=T)

            async def version_of(schedule: str) -> str:
                run = await client.schedules.trigger(schedule, overlap="allow")
                return (await until_run(host, run.id)).run_started.version

            await worker("1", every_ms=3_600_000)
            await client.schedules.create("mine", "nightly", every="1h")
            await client.schedules.create("pinned", "nightly@1", every="1h")
            assert [await version_of(name) for name in ("nightly", "mine", "pinned")] == ["1", "1", "1"]
            assert (await client.schedules.get("mine")).reason == "", "a live worker has a version of it"
            await worker("2", cron="0 6 * * *")
            assert [await version_of(name) for name in ("nightly", "mine", "pinned")] == ["2", "2", "1"]
            await worker("1", every_ms=3_600_000)  # it came again, for the runs that are pinned to it
            await worker("1")
            one = await client.schedules.get("nightly")
            assert (one.cron, one.status) == ("0 6 * * *", ScheduleStatus.ACTIVE)
            await worker("2")
            assert (await client.schedules.get("nightly")).status is ScheduleStatus.ORPHANED

    asyncio.run(main())


def test_arguments_are_sealed_for_the_runs_of_a_schedule() -> None:
    async def main() -> None:
        codec = AesGcm({"k": bytes(32)})
        async with api_host() as host, Client(host.address, codec=codec) as client, Client(host.address) as blind:
            made = await client.schedules.create("s", "w", {"secret": "x"}, every="1h", pool="p")
            assert made.input is not None and made.input.data == b'{"secret":"x"}'
            changed = await client.schedules.change("s", arguments={"secret": "y"})
            assert changed.input is not None and changed.input.data == b'{"secret":"y"}'
            seen = (await blind.schedules.get("s")).input
            assert seen is not None and seen.encoding and b"secret" not in seen.SerializeToString()
            run = await client.schedules.trigger("s")
            event = await until_run(host, run.id)
            assert b"secret" not in event.SerializeToString()
            seals = EventSeals(Vault("default", codec=codec), RunContext("default", run.id, 1, "w"))
            assert seals.open(event) and event.run_started.input.data == b'{"secret":"y"}'
            stolen = HistoryEvent(position=1, run_started=event.run_started)
            stolen.run_started.input.CopyFrom(seen)
            stolen.run_started.occurrence.schedule_id = "another"
            with pytest.raises(PayloadUnreadable):
                seals.open(stolen)

    asyncio.run(main())
