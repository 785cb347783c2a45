"""Schedules of a namespace: create, change, pause, trigger, backfill, delete, look at them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4
from zoneinfo import ZoneInfo

from treadle.client.calls import WorkflowLike, scheduled_call
from treadle.client.runs import RunHandle
from treadle.client.views import to_ms
from treadle.protocol.durations import Duration, positive_ms
from treadle.protocol.durations import to_ms as to_whole_ms
from treadle.protocol.errors import ConfigError
from treadle.protocol.schedules import Overlap, overlap_name, overlap_of, timing
from treadle.v1.common_pb2 import Payload
from treadle.v1.schedule_pb2 import OccurrenceCause, OccurrenceFate, OccurrenceRecord, OverlapPolicy
from treadle.v1.schedule_service_pb2 import (
    BackfillScheduleRequest,
    ChangeScheduleRequest,
    CreateScheduleRequest,
    DeleteScheduleRequest,
    GetScheduleRequest,
    ListSchedulesRequest,
    PauseScheduleRequest,
    ResumeScheduleRequest,
    Schedule,
    TriggerScheduleRequest,
)
from treadle.v1.schedule_service_pb2 import ScheduleStatus as WireStatus

if TYPE_CHECKING:
    from treadle.client.aio import Client

__all__ = ("OccurrenceInfo", "ScheduleInfo", "ScheduleStatus", "Schedules", "schedule_info")

_PAGE = 200


class ScheduleStatus(Enum):
    """How a schedule stands."""

    ACTIVE = "active"
    """It waits for its next occurrence."""
    PAUSED = "paused"
    """A person has paused it."""
    ORPHANED = "orphaned"
    """It was declared in code, and is not any more: nothing is started until it is declared again, resumed or deleted."""
    ENDED = "ended"
    """It will never occur again."""


@dataclass(frozen=True, slots=True)
class OccurrenceInfo:
    """An occurrence, and what became of it.

    Attributes:
        scheduled_at: When it was due, in the zone of the schedule.
        decided_at: When what became of it was decided (UTC).
        run_id: Its run, if it has one or will have one.
        cause: "time", "trigger" or "backfill".
        fate: "started", "queued", "skipped", or "existed": there was a run with its id already.
    """

    scheduled_at: datetime
    decided_at: datetime
    run_id: str
    cause: str
    fate: str


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """How a schedule stands. Times are in its zone, where this machine knows it; else in UTC.

    Attributes:
        id: Its name.
        namespace: Where it lives.
        workflow, pool: What it starts, and where.
        status: In one word.
        cron, timezone, every: When. `every` is None for a cron line, `cron` is "" for an interval; "" is UTC.
        overlap, catch_up, jitter, timeout, start, until, tags: See `Schedules.create`.
        declared: It comes from `@workflow(cron=…)` or `every=`.
        pause_reason: Why it is paused.
        reason: Why its runs would not get on (no worker has the workflow); "" otherwise.
        created_at, changed_at: When (UTC).
        upcoming: The next occurrences, without jitter, five at most (in lists: one).
        open_runs: Ids of runs that have not closed.
        queued: Occurrences that wait for an open run.
        backfilling: Occurrences that are still to be backfilled.
        recent: What was decided last, newest last (not in lists).
        missed: The last 100 missed occurrences, newest last (not in lists).
        missed_count, skipped_count, started_count: How many, since it was created.
        input: Encoded arguments of its runs; None: none (or not told, in lists).
    """

    id: str
    namespace: str
    workflow: str
    pool: str
    status: ScheduleStatus
    cron: str
    timezone: str
    every: timedelta | None
    overlap: str
    catch_up: timedelta
    jitter: timedelta
    timeout: timedelta | None
    start: datetime | None
    until: datetime | None
    tags: Mapping[str, str]
    declared: bool
    pause_reason: str
    reason: str
    created_at: datetime
    changed_at: datetime
    upcoming: tuple[datetime, ...]
    open_runs: tuple[str, ...]
    queued: int
    backfilling: int
    recent: tuple[OccurrenceInfo, ...]
    missed: tuple[datetime, ...]
    missed_count: int
    skipped_count: int
    started_count: int
    input: Payload | None

    @property
    def next_at(self) -> datetime | None:
        """The next occurrence, without jitter; None while nothing is started by itself."""
        return self.upcoming[0] if self.upcoming else None


class Schedules:
    """The schedules of a client's namespace: `client.schedules`.

    await client.schedules.create("nightly", import_contacts, upload, cron="0 6 * * *", tz="Europe/Berlin")
    """

    __slots__ = ("_client",)

    def __init__(self, client: Client) -> None:
        self._client = client

    async def create(
        self,
        id: str,
        workflow: WorkflowLike[..., Any] | str,
        /,
        *args: Any,
        cron: str | None = None,
        tz: str | None = None,
        every: Duration | None = None,
        overlap: Overlap = "skip",
        catch_up: Duration = "1m",
        jitter: Duration | None = None,
        timeout: Duration | None = None,
        start: datetime | None = None,
        until: datetime | None = None,
        tags: Mapping[str, str | int] | None = None,
        pool: str | None = None,
        paused: bool = False,
    ) -> ScheduleInfo:
        """Create a schedule.

        Args:
            id: Its name, 1 to 120 characters; its runs are named after it and their occurrence.
            workflow: The function made by `@workflow`, or its name.
            args: Arguments of each run, 64 KiB at most; by name: one mapping. An `Occurrence` is left out.
            cron: Five fields, or @daily and the like.
            tz: IANA name of the zone in which `cron` is read; None: UTC.
            every: Instead of `cron`: an interval, a second at least; its multiples since 1970 UTC.
            overlap: What happens while a run of the schedule is open: "skip", "queue-one", "queue-all", "cancel",
                "terminate" or "allow".
            catch_up: What could not be started in so long, because no server was there, is missed.
            jitter: Each run starts up to so much later, always before the next occurrence.
            timeout: Longest duration of each run; None: the function's own, or no limit.
            start, until: The first and the last time at which an occurrence may be due, both included; with a zone. None: no
                bound.
            tags: Of each run.
            pool: Pool whose workers execute the workflow; None: the function's own, or where the name is registered.
            paused: Nothing is started until somebody resumes it.

        Raises:
            RunIdConflict: There is one of that name (reason SCHEDULE_EXISTS).
            FieldInvalid, ConfigError: The timing cannot be kept.
            NotFound: No worker ever registered the workflow, and no pool is given.
        """
        spec, payload = scheduled_call(workflow, args)
        spec.MergeFrom(
            timing(
                f"schedule {id}",
                cron=cron,
                tz=tz,
                every=every,
                overlap=overlap,
                catch_up=catch_up,
                jitter=jitter,
                start=start,
                until=until,
                tags=tags,
            )
        )
        spec.pool = pool or spec.pool
        if timeout is not None:
            spec.timeout_ms = positive_ms(timeout, name=f"schedule {id}: timeout")
        request = CreateScheduleRequest(
            namespace=self._client.namespace,
            schedule_id=id,
            request_id=uuid4().hex,
            spec=spec,
            input=self._client.values.seal_schedule(id, payload),
            paused=paused,
        )
        return self._info((await self._client.call(self._client.schedule_stub.CreateSchedule, request)).schedule)

    async def get(self, id: str, /) -> ScheduleInfo:
        """Return how a schedule stands. Raises NotFound."""
        request = GetScheduleRequest(namespace=self._client.namespace, schedule_id=id)
        return self._info((await self._client.call(self._client.schedule_stub.GetSchedule, request)).schedule)

    async def list(self) -> AsyncGenerator[ScheduleInfo, None]:
        """Yield the schedules by name, page by page."""
        token = ""
        while True:
            request = ListSchedulesRequest(namespace=self._client.namespace, page_size=_PAGE, page_token=token)
            page = await self._client.call(self._client.schedule_stub.ListSchedules, request)
            for schedule in page.schedules:
                yield self._info(schedule)
            if not (token := page.next_page_token):
                return

    async def change(
        self,
        id: str,
        /,
        *,
        cron: str | None = None,
        tz: str | None = None,
        every: Duration | None = None,
        overlap: Overlap | None = None,
        catch_up: Duration | None = None,
        jitter: Duration | None = None,
        timeout: Duration | None = None,
        start: datetime | Literal[0] | None = None,
        until: datetime | Literal[0] | None = None,
        tags: Mapping[str, str | int] | None = None,
        workflow: str | None = None,
        pool: str | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> ScheduleInfo:
        """Change what is given, and leave the rest: see `create`. `cron` replaces `every`, and the other way round.

        Args:
            timeout, start, until: 0 takes the limit away.
            tags: All of them; an empty mapping takes them away.
            arguments: Of each run, by parameter name.

        Raises:
            NotFound: There is no such schedule.
            Refused: It is declared in code (reason SCHEDULE_DECLARED): change it there.
            ConfigError, FieldInvalid: Nothing is given, or the timing cannot be kept.
        """
        spec = timing(
            f"schedule {id}",
            cron=cron,
            tz=tz,
            every=every,
            overlap=overlap,
            catch_up=catch_up,
            jitter=jitter,
            start=start,
            until=until,
            tags=tags,
        )
        spec.workflow, spec.pool = workflow or "", pool or ""
        spec.timeout_ms = to_whole_ms(timeout, name=f"schedule {id}: timeout") if timeout is not None else 0
        given = {
            "cron": cron,
            "timezone": tz,
            "every_ms": every,
            "overlap": overlap,
            "catch_up_ms": catch_up,
            "jitter_ms": jitter,
            "timeout_ms": timeout,
            "start_ms": start,
            "until_ms": until,
            "tags": tags,
            "workflow": workflow,
            "pool": pool,
            "input": arguments,
        }
        names = [name for name, value in given.items() if value is not None]
        if not names:
            raise ConfigError(f"schedule {id}: nothing to change is given")
        request = ChangeScheduleRequest(
            namespace=self._client.namespace,
            schedule_id=id,
            request_id=uuid4().hex,
            fields=names,
            spec=spec,
            input=None if arguments is None else self._sealed(id, arguments),
        )
        return self._info((await self._client.call(self._client.schedule_stub.ChangeSchedule, request)).schedule)

    async def pause(self, id: str, reason: str = "", /) -> ScheduleInfo:
        """Let nothing be started by itself until `resume`. What falls due meanwhile is left out. Raises NotFound."""
        request = PauseScheduleRequest(namespace=self._client.namespace, schedule_id=id, reason=reason)
        return self._info((await self._client.call(self._client.schedule_stub.PauseSchedule, request)).schedule)

    async def resume(self, id: str, /) -> ScheduleInfo:
        """Go on with the next occurrence; an orphaned schedule is kept as one that is not declared. Raises NotFound."""
        request = ResumeScheduleRequest(namespace=self._client.namespace, schedule_id=id)
        return self._info((await self._client.call(self._client.schedule_stub.ResumeSchedule, request)).schedule)

    async def trigger(self, id: str, /, *, overlap: Overlap | None = None) -> RunHandle[Any]:
        """Start a run now, also while the schedule is paused.

        Args:
            overlap: Instead of the schedule's own policy. A run that is queued starts when the open one has closed.

        Raises:
            Refused: A run is open, and the policy says skip, or too many wait (reason SCHEDULE_BUSY).
            NotFound: There is no such schedule.
        """
        request = TriggerScheduleRequest(
            namespace=self._client.namespace,
            schedule_id=id,
            request_id=uuid4().hex,
            overlap=overlap_of(overlap) if overlap is not None else OverlapPolicy.OVERLAP_POLICY_UNSPECIFIED,
        )
        answer = await self._client.call(self._client.schedule_stub.TriggerSchedule, request)
        return RunHandle(self._client, answer.run_id)

    async def backfill(
        self,
        id: str,
        /,
        since: datetime | timedelta,
        until: datetime | timedelta | None = None,
        *,
        at_once: bool = False,
    ) -> int:
        """Start the occurrences of a past span that have no run, one after another.

        Args:
            since, until: The span, both included; a timedelta counts back from now. Without `until` it ends now.
            at_once: True: start all of them beside each other.

        Returns:
            How many occurrences are in the span, 1,000 at most.

        Raises:
            Refused: There are more (reason BACKFILL_TOO_LARGE), or ten backfills are not done yet.
            NotFound: There is no such schedule.
        """
        now = datetime.now(UTC)
        request = BackfillScheduleRequest(
            namespace=self._client.namespace,
            schedule_id=id,
            request_id=uuid4().hex,
            since_ms=to_ms(since, now=now),
            until_ms=to_ms(until, now=now),
            allow=at_once,
        )
        return (await self._client.call(self._client.schedule_stub.BackfillSchedule, request)).occurrences

    async def delete(self, id: str, /) -> None:
        """Delete a schedule; its open runs go on. One that code declares comes back with the next worker. Raises NotFound."""
        request = DeleteScheduleRequest(namespace=self._client.namespace, schedule_id=id, request_id=uuid4().hex)
        await self._client.call(self._client.schedule_stub.DeleteSchedule, request)

    def _sealed(self, id: str, arguments: Mapping[str, Any]) -> Payload:
        return self._client.values.seal_schedule(id, scheduled_call(id, (arguments,))[1])

    def _info(self, schedule: Schedule) -> ScheduleInfo:
        if schedule.HasField("input"):
            opened = self._client.values.open_schedule(schedule.record.schedule_id, schedule.input)
            schedule.input.CopyFrom(opened)
        return schedule_info(schedule)


def schedule_info(schedule: Schedule) -> ScheduleInfo:
    """Return the message as a value."""
    record, spec = schedule.record, schedule.record.spec
    zone = _zone(spec.timezone)
    return ScheduleInfo(
        id=record.schedule_id,
        namespace=schedule.namespace,
        workflow=spec.workflow,
        pool=spec.pool,
        status=ScheduleStatus(WireStatus.Name(schedule.status).removeprefix("SCHEDULE_STATUS_").lower()),
        cron=spec.cron,
        timezone=spec.timezone,
        every=timedelta(milliseconds=spec.every_ms) if spec.every_ms else None,
        overlap=overlap_name(spec.overlap),
        catch_up=timedelta(milliseconds=spec.catch_up_ms or 60_000),
        jitter=timedelta(milliseconds=spec.jitter_ms),
        timeout=timedelta(milliseconds=spec.timeout_ms) if spec.timeout_ms else None,
        start=_when(spec.start_ms, zone) if spec.start_ms else None,
        until=_when(spec.until_ms, zone) if spec.until_ms else None,
        tags={tag.key: tag.value for tag in spec.tags},
        declared=record.declared,
        pause_reason=record.pause_reason,
        reason=schedule.reason,
        created_at=_when(schedule.created_ms, UTC),
        changed_at=_when(record.changed_ms, UTC),
        upcoming=tuple(_when(at, zone) for at in schedule.upcoming),
        open_runs=tuple(one.run_id for one in record.open),
        queued=schedule.queued,
        backfilling=sum(one.left for one in record.backfills),
        recent=tuple(_occurrence(one, zone) for one in record.recent),
        missed=tuple(_when(at, zone) for at in record.missed),
        missed_count=record.missed_count,
        skipped_count=record.skipped_count,
        started_count=record.started_count,
        input=schedule.input if schedule.HasField("input") else None,
    )


def _occurrence(one: OccurrenceRecord, zone: tzinfo) -> OccurrenceInfo:
    return OccurrenceInfo(
        scheduled_at=_when(one.scheduled_ms, zone),
        decided_at=_when(one.decided_ms, UTC),
        run_id=one.run_id,
        cause=OccurrenceCause.Name(one.cause).removeprefix("OCCURRENCE_CAUSE_").lower(),
        fate=OccurrenceFate.Name(one.fate).removeprefix("OCCURRENCE_FATE_").lower(),
    )


def _when(ms: int, zone: tzinfo) -> datetime:
    return datetime.fromtimestamp(ms / 1000, zone)


@lru_cache(64)
def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name) if name else UTC
    except (KeyError, OSError, ValueError):
        return UTC
