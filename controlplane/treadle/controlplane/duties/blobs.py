"""Deletes the large values of runs that were deleted, and those that a run has left behind.

A value is deleted only where Redis shows that nobody can need it: its run left a tombstone; or the run is another start, or a
later part, than the one that made it, and does not name it; or it was sent to the run, which never took it. What Redis does
not know at all (another control plane's values in the same bucket, or a Redis that was restored) is left alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Final

import structlog

from treadle.client.blobs import Blob, BlobStore, owner_of
from treadle.controlplane.engine import Engine
from treadle.controlplane.machine.signals import STATE_FIELD, is_answer
from treadle.controlplane.store.port import Loaded, Want
from treadle.protocol.errors import BlobStoreUnavailable, Unavailable
from treadle.protocol.ids import RunKey
from treadle.protocol.sealing import values_of
from treadle.v1.history_pb2 import HistoryEvent, SignalAnswered, StatePublished
from treadle.v1.state_pb2 import RunHead

from .timers import TimerDuty

__all__ = ("BlobDuty",)

_log = structlog.stdlib.get_logger(__name__)

_PAGE: Final = 200
_FIRST_SHARD: Final = 0
_YOUNG_S: Final = 3600.0
"""A value this young may belong to a start that is still on its way."""
_ON_ITS_WAY_S: Final = 7 * 86_400.0
"""What was sent to a run that exists may be on its way for longer: a letter that starts a child waits while a shard is away."""
_FIELDS: Final = 5_000
"""A run takes up to 2,000 answers along; where there is more beside it, its values are looked at another time."""


class BlobDuty:
    """Runs where the lease of the first shard is.

    Args:
        engine, timers: Of this replica.
        store: Where the values are.
        every_s: How often.
        young_s: Younger values are left alone.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        engine: Engine,
        timers: TimerDuty,
        store: BlobStore,
        *,
        every_s: float = 3600.0,
        young_s: float = _YOUNG_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine, self._timers, self._store = engine, timers, store
        self._every_s, self._young_s = every_s, young_s
        self._clock = clock

    async def run(self) -> None:
        """Work for ever."""
        while True:
            await asyncio.sleep(self._every_s)
            if _FIRST_SHARD in self._timers.shards:
                try:
                    await self.sweep()
                except (Unavailable, BlobStoreUnavailable) as error:
                    _log.warning("blob_sweep_waits", error=str(error))

    async def sweep(self) -> int:
        """Look at every value once; returns how many were deleted.

        Raises:
            Unavailable, BlobStoreUnavailable: The rest is looked at next time.
        """
        blobs = iter(self._store.list())
        deleted = 0
        while page := await asyncio.to_thread(lambda: list(islice(blobs, _PAGE))):
            dead = await self._dead(page)
            if dead:
                await asyncio.to_thread(self._store.delete, dead)
                deleted += len(dead)
        if deleted:
            _log.info("blobs_deleted", count=deleted)
        return deleted

    async def _dead(self, page: Iterable[Blob]) -> list[str]:
        """Keys of those that nobody can need."""
        now = self._clock()
        old: dict[RunKey, list[tuple[Blob, int | None]]] = {}
        for blob in page:
            if blob.written <= now - self._young_s and (owner := owner_of(blob.key)):
                namespace, run_id, place = owner
                old.setdefault(RunKey(namespace, run_id), []).append((blob, place))
        if not old:
            return []
        found = await self._engine.store.load([Want(run, fields=[STATE_FIELD], event_at=1) for run in old])
        dead: list[str] = []
        for (run, blobs), loaded in zip(old.items(), found, strict=True):
            if loaded.revision:
                dead += await self._left_behind(run, loaded, blobs, now)
            elif loaded.tombstone is not None:
                dead += [blob.key for blob, _ in blobs]
        return dead

    async def _left_behind(
        self, run: RunKey, loaded: Loaded, blobs: Iterable[tuple[Blob, int | None]], now: float
    ) -> set[str]:
        """Keys of the values of a run that is there and does not need them."""
        head = RunHead.FromString(loaded.head)
        doubtful = {
            blob.key
            for blob, place in blobs
            if (blob.written <= now - _ON_ITS_WAY_S if place is None else place != head.incarnation)
        }
        doubtful.difference_update(_names(loaded))
        after = 0
        while doubtful:
            noted = (
                not after and head.first_incarnation != 0
            )  # only what was noted by a former part is of another place
            want = Want(run, all_fields=noted, field_limit=_FIELDS, events_after=after)
            (loaded,) = await self._engine.store.load([want])
            if not loaded.revision or RunHead.FromString(loaded.head).incarnation != head.incarnation:
                return set()  # it went on meanwhile: next time
            if noted and not loaded.whole:
                return set()
            doubtful.difference_update(_names(loaded))
            after += len(loaded.events)
            if not loaded.events or after >= loaded.length:
                break
        return doubtful


def _names(run: Loaded) -> Iterator[str]:
    """Keys that what was loaded of a run names."""
    for data in run.events if run.event is None else [run.event]:
        event = HistoryEvent.FromString(data)
        kind = event.WhichOneof("kind")
        if kind is not None:
            yield from _keys(getattr(event, kind))
    for name, data in run.fields.items():
        if name == STATE_FIELD:
            yield from _keys(StatePublished.FromString(data))
        elif is_answer(name):
            yield from _keys(SignalAnswered.FromString(data))


def _keys(message: Any) -> Iterator[str]:
    for name in values_of(message).payloads:
        yield from getattr(message, name).blob.keys
