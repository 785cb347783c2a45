"""Reads runs for clients: one run at one instant, pages of history, pages of lists. Writes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from treadle.controlplane.api.fleet import Fleet
from treadle.controlplane.api.pages import Cursor
from treadle.controlplane.api.progress import add_progress
from treadle.controlplane.api.views import brief, run_view, status_name
from treadle.controlplane.machine.view import status_of
from treadle.controlplane.store.port import IndexEntry, Store, Want
from treadle.protocol.errors import NotFound
from treadle.protocol.ids import SHARDS, RunKey
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.run_service_pb2 import Run, RunStatus
from treadle.v1.state_pb2 import (
    RUN_OUTCOME_FAILED,
    RUN_STATE_CLOSED,
    RUN_STATE_QUEUED,
    RUN_STATE_WAITING,
    RunHead,
)

__all__ = ("HistoryPage", "ListFilter", "Records")

_ALL_SHARDS = range(SHARDS)
_STUCK = (RUN_STATE_QUEUED, RUN_STATE_WAITING)


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """A run and some of its events, read at one instant."""

    head: RunHead
    events: list[HistoryEvent]


@dataclass(frozen=True, slots=True)
class ListFilter:
    """Which runs a list shows: see ListRunsRequest. `until_ms` 0 means no bound."""

    namespace: str
    workflow: str
    statuses: tuple[RunStatus.ValueType, ...]
    since_ms: int
    until_ms: int

    def indexes(self) -> list[str]:
        """Return the names of the indexes that hold these runs, one for each status."""
        scope = f"w:{self.namespace}:{self.workflow}" if self.workflow else f"s:{self.namespace}"
        return [f"{scope}:{status_name(status)}" for status in self.statuses]


class Records:
    """See the module."""

    def __init__(self, store: Store, fleet: Fleet) -> None:
        self._store = store
        self._fleet = fleet

    async def page(self, run: RunKey, after: int) -> HistoryPage:
        """Return the run and its events behind position `after`: at most 200 or 1 MiB, at least one if there is one.

        Raises:
            NotFound: There is no such run.
        """
        (loaded,) = await self._store.load([Want(run, events_after=after)])
        head = _head(run, loaded.head)
        return HistoryPage(head, [HistoryEvent.FromString(data) for data in loaded.events])

    async def head(self, run: RunKey) -> RunHead:
        """Return the run's head. Raises NotFound."""
        (loaded,) = await self._store.load([Want(run)])
        return _head(run, loaded.head)

    async def noted(self, run: RunKey, field: str) -> tuple[RunHead, bytes | None]:
        """Return the run's head, and what is kept in a field beside it. Raises NotFound."""
        (loaded,) = await self._store.load([Want(run, fields=[field])])
        return _head(run, loaded.head), loaded.fields.get(field)

    async def view(self, head: RunHead) -> Run:
        """Return the run as clients see it: with its outcome if closed, with the reason if it does not move."""
        if head.state == RUN_STATE_CLOSED:
            run = RunKey(head.namespace, head.run_id)
            (loaded,) = await self._store.load([Want(run, event_at=head.length)])
            last = HistoryEvent.FromString(loaded.event) if loaded.event else None
            return run_view(head, last if last and last.revision == head.last_revision else None)
        if head.state not in _STUCK:
            shown = run_view(head)
        else:
            fleet, now_ms = await self._fleet.pool(head.namespace, head.pool)
            shown = run_view(head, None, fleet, now_ms)
        if head.progressing:
            await add_progress(self._store, head, shown)
        return shown

    async def listing(self, wanted: ListFilter, cursor: Cursor | None, size: int) -> tuple[list[Run], Cursor | None]:
        """Return a page of runs, newest first, and where the next one begins (None: this is the last).

        A run that changes while it is read may leave its page one entry short; it is never shown twice in one.
        """
        entries = await self._entries(wanted, cursor, size + 1)
        shown = entries[:size]
        more = Cursor(shown[-1].score, shown[-1].member) if len(entries) > size else None
        wants = [Want(RunKey(wanted.namespace, entry.member)) for entry in shown]
        loaded = await self._store.load(wants) if wants else []
        heads = [RunHead.FromString(found.head) for found in loaded if found.head]
        heads = [head for head in heads if status_of(head) in wanted.statuses]
        return await self._briefs(heads), more

    async def _entries(self, wanted: ListFilter, cursor: Cursor | None, count: int) -> list[IndexEntry]:
        """Return the first `count` entries behind the cursor, merged from the indexes."""
        found: dict[str, IndexEntry] = {}
        parts = await asyncio.gather(*(self._behind(name, wanted, cursor, count) for name in wanted.indexes()))
        for entry in chain.from_iterable(parts):
            found.setdefault(entry.member, entry)
        return sorted(found.values(), key=_order, reverse=True)[:count]

    async def _behind(self, name: str, wanted: ListFilter, cursor: Cursor | None, count: int) -> Sequence[IndexEntry]:
        high = wanted.until_ms or 2**62
        if cursor is not None:
            high = min(high, cursor.score + 1)
        limit = count
        while True:
            entries = await self._store.index(
                name, _ALL_SHARDS, low=wanted.since_ms, high=high, limit=limit, newest_first=True
            )
            if cursor is None:
                return entries
            behind = [entry for entry in entries if _order(entry) < (cursor.score, cursor.member)]
            if len(behind) >= count or len(entries) < limit:
                return behind
            limit *= 2  # many runs of one millisecond, all of them shown before

    async def _briefs(self, heads: Sequence[RunHead]) -> list[Run]:
        failed = [head for head in heads if head.outcome == RUN_OUTCOME_FAILED]
        wants = [Want(RunKey(head.namespace, head.run_id), event_at=head.length) for head in failed]
        loaded = await self._store.load(wants) if wants else []
        last = {
            head.run_id: HistoryEvent.FromString(found.event)
            for head, found in zip(failed, loaded, strict=True)
            if found.event
        }
        runs = []
        for head in heads:
            fleet, now_ms = await self._fleet.pool(head.namespace, head.pool) if head.state in _STUCK else (None, 0)
            runs.append(brief(run_view(head, last.get(head.run_id), fleet, now_ms)))
        return runs


def _order(entry: IndexEntry) -> tuple[int, str]:
    return entry.score, entry.member


def _head(run: RunKey, data: bytes) -> RunHead:
    if not data:
        raise NotFound(
            f"no run {run.run_id!r} in namespace {run.namespace!r}",
            remedy="see `treadle run list`; closed runs are deleted after their retention",
        )
    return RunHead.FromString(data)
