"""The blocking twin of `client.schedules`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from treadle.client.calls import WorkflowLike
from treadle.client.schedules import ScheduleInfo, Schedules
from treadle.protocol.durations import Duration
from treadle.protocol.schedules import Overlap

if TYPE_CHECKING:
    from treadle.client.sync import LoopThread, SyncRunHandle

__all__ = ("SyncSchedules",)


class SyncSchedules:
    """The schedules of a client's namespace, blocking. Same names and arguments as Schedules."""

    __slots__ = ("_schedules", "_thread")

    def __init__(self, thread: LoopThread, schedules: Schedules) -> None:
        self._thread, self._schedules = thread, schedules

    def create(
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
        """See Schedules.create."""
        return self._thread.run(
            self._schedules.create(
                id,
                workflow,
                *args,
                cron=cron,
                tz=tz,
                every=every,
                overlap=overlap,
                catch_up=catch_up,
                jitter=jitter,
                timeout=timeout,
                start=start,
                until=until,
                tags=tags,
                pool=pool,
                paused=paused,
            )
        )

    def get(self, id: str, /) -> ScheduleInfo:
        """See Schedules.get."""
        return self._thread.run(self._schedules.get(id))

    def list(self) -> Iterator[ScheduleInfo]:
        """See Schedules.list."""
        return self._thread.iterate(self._schedules.list())

    def change(
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
        """See Schedules.change."""
        return self._thread.run(
            self._schedules.change(
                id,
                cron=cron,
                tz=tz,
                every=every,
                overlap=overlap,
                catch_up=catch_up,
                jitter=jitter,
                timeout=timeout,
                start=start,
                until=until,
                tags=tags,
                workflow=workflow,
                pool=pool,
                arguments=arguments,
            )
        )

    def pause(self, id: str, reason: str = "", /) -> ScheduleInfo:
        """See Schedules.pause."""
        return self._thread.run(self._schedules.pause(id, reason))

    def resume(self, id: str, /) -> ScheduleInfo:
        """See Schedules.resume."""
        return self._thread.run(self._schedules.resume(id))

    def trigger(self, id: str, /, *, overlap: Overlap | None = None) -> SyncRunHandle[Any]:
        """See Schedules.trigger."""
        from treadle.client.sync import SyncRunHandle

        return SyncRunHandle(self._thread, self._thread.run(self._schedules.trigger(id, overlap=overlap)))

    def backfill(
        self,
        id: str,
        /,
        since: datetime | timedelta,
        until: datetime | timedelta | None = None,
        *,
        at_once: bool = False,
    ) -> int:
        """See Schedules.backfill."""
        return self._thread.run(self._schedules.backfill(id, since, until, at_once=at_once))

    def delete(self, id: str, /) -> None:
        """See Schedules.delete."""
        self._thread.run(self._schedules.delete(id))
