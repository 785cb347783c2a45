"""Reads runs for clients: one run at one instant, pages of history, pages of lists. Writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from treadle.controlplane.api.fleet import Fleet
from treadle.controlplane.api.progress import add_progress
from treadle.controlplane.api.views import brief, run_view
from treadle.controlplane.store.port import Store, Want
from treadle.protocol.errors import NotFound
from treadle.protocol.ids import RunKey
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.run_service_pb2 import Run
from treadle.v1.state_pb2 import (
    RUN_OUTCOME_FAILED,
    RUN_STATE_CLOSED,
    RUN_STATE_QUEUED,
    RUN_STATE_WAITING,
    RunHead,
)

__all__ = ("HistoryPage", "Records")

_STUCK = (RUN_STATE_QUEUED, RUN_STATE_WAITING)


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """A run and some of its events, read at one instant."""

    head: RunHead
    events: list[HistoryEvent]


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

    async def briefs(self, heads: Sequence[RunHead]) -> list[Run]:
        """Return these runs as a list shows them."""
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


def _head(run: RunKey, data: bytes) -> RunHead:
    if not data:
        raise NotFound(
            f"no run {run.run_id!r} in namespace {run.namespace!r}",
            remedy="see `treadle run list`; closed runs are deleted after their retention",
        )
    return RunHead.FromString(data)
