"""Lists and counts of runs. A filter is a set of indexes that hold all that fit, and what their heads must show besides.

Where several indexes would do, the one with the fewest entries is walked, and the heads of its runs are looked at. Writes
nothing; a look is bounded, so a page may come back short with the place to go on from.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

from treadle.controlplane.api import checks
from treadle.controlplane.api.pages import Cursor
from treadle.controlplane.machine.indexes import (
    error_index,
    status_index,
    status_of,
    tag_index,
    trouble_index,
    troubles_of,
    workflow_index,
)
from treadle.controlplane.store.port import IndexEntry, Store, Want
from treadle.protocol.errors import FieldInvalid
from treadle.protocol.ids import SHARDS, RunKey
from treadle.protocol.tags import check_version, code_name, split_name, tags_of
from treadle.v1.common_pb2 import Tag
from treadle.v1.run_service_pb2 import CountRunsRequest, ListRunsRequest, RunStatus, RunTrouble
from treadle.v1.state_pb2 import RunHead

__all__ = ("RunFilter", "Search", "filter_of")

_ALL_SHARDS: Final = range(SHARDS)
_STEP: Final = 500
"""Heads that are read at once."""
_LIST_LIMIT: Final = 5_000
_COUNT_LIMIT: Final = 20_000
"""So many heads one call looks at."""


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs are meant: see ListRunsRequest. `until_ms` 0 means no bound."""

    namespace: str
    workflow: str
    version: str
    statuses: tuple[RunStatus.ValueType, ...]
    since_ms: int
    until_ms: int
    tags: tuple[tuple[str, str], ...] = ()
    error_type: str = ""
    troubles: tuple[RunTrouble.ValueType, ...] = ()

    @property
    def bounds(self) -> tuple[int, int]:
        """The times of start: from, and up to but without."""
        return self.since_ms, self.until_ms or 2**62

    @property
    def untimed(self) -> RunFilter:
        """What a page token is bound to: "the last two hours" are others at each page, and its cursor has the place."""
        return replace(self, since_ms=0, until_ms=0)

    def by_status(self) -> dict[RunStatus.ValueType, str]:
        """Return the index for each status, which knows nothing of tags, errors and troubles."""
        if not self.workflow:
            return {status: status_index(self.namespace, status) for status in self.statuses}
        name = code_name(self.workflow, self.version)
        return {status: workflow_index(self.namespace, name, status) for status in self.statuses}

    def ways(self) -> list[list[str]]:
        """Return sets of indexes, each of which holds all runs that are meant."""
        ways = [[tag_index(self.namespace, Tag(key=key, value=value))] for key, value in self.tags]
        if self.error_type:
            ways.append([error_index(self.namespace, self.error_type)])
        if self.troubles:
            ways.append([trouble_index(self.namespace, trouble) for trouble in self.troubles])
        return [*ways, list(self.by_status().values())]

    @property
    def plain(self) -> bool:
        """Whether the indexes by status hold nothing else."""
        return not (self.tags or self.error_type or self.troubles)

    def fits(self, head: RunHead) -> bool:
        """Whether a run is meant, by its head."""
        if status_of(head) not in self.statuses or (self.workflow and head.workflow != self.workflow):
            return False
        if (self.version and head.version != self.version) or (self.error_type and head.error_type != self.error_type):
            return False
        if self.tags and not {(tag.key, tag.value) for tag in head.tags}.issuperset(self.tags):
            return False
        return not self.troubles or not set(self.troubles).isdisjoint(troubles_of(head))


def filter_of(request: ListRunsRequest | CountRunsRequest) -> RunFilter:
    """Return what a request asks for.

    Raises:
        FieldInvalid: A filter is not allowed.
    """
    workflow, version = split_name(request.workflow)
    version = request.version or version
    if version and not workflow:
        raise FieldInvalid("version: give the workflow, too", field="version")
    error_type = request.error_type
    if len(error_type) > 200 or not (error_type.isprintable() or not error_type):
        raise FieldInvalid("error_type: give at most 200 printable characters", field="error_type")
    return RunFilter(
        namespace=checks.namespace_of(request.namespace),
        workflow=checks.workflow_of(workflow) if workflow else "",
        version=check_version(version) if version else "",
        statuses=tuple(checks.statuses_of(request.statuses)),
        since_ms=max(request.since_ms, 0),
        until_ms=max(request.until_ms, 0),
        tags=tuple((tag.key, tag.value) for tag in tags_of(request.tags)),
        error_type=error_type,
        troubles=tuple(checks.troubles_of(request.troubles)),
    )


class Search:
    """See the module."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(self, wanted: RunFilter, cursor: Cursor | None, size: int) -> tuple[list[RunHead], Cursor | None]:
        """Return a page of runs, newest first, and where the next one begins (None: this is the last).

        A run that changes while it is read may be left out; it is never shown twice in one page.
        """
        names = await self._cheapest(wanted)
        step = size if wanted.plain else max(size, _STEP)
        kept: list[RunHead] = []
        for _ in range(0, _LIST_LIMIT, step):
            entries = await self._entries(names, wanted, cursor, step + 1)
            for entry, head in zip(entries, await self._heads(wanted.namespace, entries[:step]), strict=False):
                cursor = Cursor(entry.score, entry.member)
                if head is not None and wanted.fits(head):
                    kept.append(head)
                if len(kept) == size:
                    return kept, cursor if entry is not entries[-1] else None
            if len(entries) <= step:
                return kept, None
        return kept, cursor

    async def count(self, wanted: RunFilter) -> tuple[Mapping[RunStatus.ValueType, int], bool]:
        """Return how many runs there are of each status, and whether there may be more."""
        if wanted.plain:
            indexes = wanted.by_status()
            counts = await asyncio.gather(*(self._count(name, wanted) for name in indexes.values()))
            return dict(zip(indexes, counts, strict=True)), False
        names = await self._cheapest(wanted)
        found: Counter[RunStatus.ValueType] = Counter()
        cursor: Cursor | None = None
        for _ in range(0, _COUNT_LIMIT, _STEP):
            entries = await self._entries(names, wanted, cursor, _STEP + 1)
            heads = await self._heads(wanted.namespace, entries[:_STEP])
            found.update(status_of(head) for head in heads if head is not None and wanted.fits(head))
            if len(entries) <= _STEP:
                return found, False
            cursor = Cursor(entries[_STEP - 1].score, entries[_STEP - 1].member)
        return found, True

    async def _cheapest(self, wanted: RunFilter) -> Sequence[str]:
        """Return the set of indexes with the fewest entries among those that hold all that fit."""
        ways = wanted.ways()
        if len(ways) == 1:
            return ways[0]
        names = list(dict.fromkeys(chain.from_iterable(ways)))
        counts = await asyncio.gather(*(self._count(name, wanted) for name in names))
        entries = dict(zip(names, counts, strict=True))
        return min(ways, key=lambda way: sum(entries[name] for name in way))

    async def _count(self, name: str, wanted: RunFilter) -> int:
        low, high = wanted.bounds
        return await self._store.count(name, low=low, high=high)

    async def _heads(self, namespace: str, entries: Sequence[IndexEntry]) -> list[RunHead | None]:
        if not entries:
            return []
        loaded = await self._store.load([Want(RunKey(namespace, entry.member)) for entry in entries])
        return [RunHead.FromString(found.head) if found.head else None for found in loaded]

    async def _entries(
        self, names: Sequence[str], wanted: RunFilter, cursor: Cursor | None, count: int
    ) -> list[IndexEntry]:
        """Return the first `count` entries behind the cursor, merged from these indexes."""
        found: dict[str, IndexEntry] = {}
        parts = await asyncio.gather(*(self._behind(name, wanted, cursor, count) for name in names))
        for entry in chain.from_iterable(parts):
            found.setdefault(entry.member, entry)
        return sorted(found.values(), key=_order, reverse=True)[:count]

    async def _behind(self, name: str, wanted: RunFilter, cursor: Cursor | None, count: int) -> Sequence[IndexEntry]:
        low, high = wanted.bounds
        if cursor is not None:
            high = min(high, cursor.score + 1)
        limit = count
        while True:
            entries = await self._store.index(name, _ALL_SHARDS, low=low, high=high, limit=limit, newest_first=True)
            if cursor is None:
                return entries
            behind = [entry for entry in entries if _order(entry) < (cursor.score, cursor.member)]
            if len(behind) >= count or len(entries) < limit:
                return behind
            limit *= 2  # many runs of one millisecond, all of them shown before


def _order(entry: IndexEntry) -> tuple[int, str]:
    return entry.score, entry.member
