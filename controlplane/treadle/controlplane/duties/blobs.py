"""Deletes the large values of runs that were deleted, and those that earlier starts of a run's id left behind.

A value is deleted only where Redis shows that nobody can need it: its run left a tombstone, or was started anew. What Redis
does not know at all (another control plane's values in the same bucket, or a Redis that was restored) is left alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Final

import structlog

from treadle.client.blobs import Blob, BlobStore, owner_of
from treadle.controlplane.engine import Engine
from treadle.controlplane.store.port import Loaded, Want
from treadle.protocol.errors import BlobStoreUnavailable, Unavailable
from treadle.protocol.ids import RunKey
from treadle.v1.state_pb2 import RunHead

from .timers import TimerDuty

__all__ = ("BlobDuty",)

_log = structlog.stdlib.get_logger(__name__)

_PAGE: Final = 200
_FIRST_SHARD: Final = 0
_YOUNG_S: Final = 3600.0
"""A value this young may belong to a start that is still on its way."""


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
        self._every_s, self._young_s = every_s, min(young_s, every_s)
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
        before = self._clock() - self._young_s
        owners = {blob.key: owner for blob in page if blob.written <= before and (owner := owner_of(blob.key))}
        runs = {RunKey(namespace, run_id) for namespace, run_id, _ in owners.values()}
        if not runs:
            return []
        wants = [Want(run) for run in runs]
        found = dict(zip(runs, await self._engine.store.load(wants), strict=True))
        return [
            key for key, (namespace, run_id, place) in owners.items() if _gone(found[RunKey(namespace, run_id)], place)
        ]


def _gone(run: Loaded, incarnation: int | None) -> bool:
    if not run.revision:
        return run.tombstone is not None
    return incarnation is not None and RunHead.FromString(run.head).incarnation != incarnation
