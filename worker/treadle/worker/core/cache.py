"""Coroutines of parked runs, least recently parked first out (R6).

Only a cache: one is used with a GO whose history it extends, or dropped.
"""

from __future__ import annotations

from treadle.v1.worker_service_pb2 import RunGrant

from .feed import Feed

__all__ = ("Cache",)


class Cache:
    """At most `limit` coroutines, one per run id, that were fed at most `limit_bytes` of history together."""

    __slots__ = ("_feeds", "_limit", "_limit_bytes", "_size")

    def __init__(self, limit: int, limit_bytes: int) -> None:
        self._limit, self._limit_bytes = limit, limit_bytes
        self._feeds: dict[str, Feed] = {}
        self._size = 0

    def __len__(self) -> int:
        return len(self._feeds)

    def put(self, feed: Feed) -> None:
        self.drop(feed.context.run_id)
        self._feeds[feed.context.run_id] = feed
        self._size += feed.size
        while len(self._feeds) > self._limit or self._size > self._limit_bytes:
            self.drop(next(iter(self._feeds)))

    def has(self, run_id: str, incarnation: int) -> bool:
        """Whether the coroutine of a run is kept."""
        feed = self._feeds.get(run_id)
        return feed is not None and feed.context.incarnation == incarnation

    def place(self, run_id: str, incarnation: int) -> tuple[int, int]:
        """How far the coroutine of a run was fed, and the revision there; (0, 0) when there is none."""
        feed = self._feeds.get(run_id)
        if feed is None or feed.context.incarnation != incarnation:
            return 0, 0
        return feed.fed, feed.revision

    def take(self, run_id: str, incarnation: int, grant: RunGrant) -> Feed | None:
        """Return the coroutine if the granted history extends what it was fed; it is in the cache no more."""
        feed = self._pop(run_id)
        if feed is None:
            return None
        if feed.context.incarnation != incarnation or not _extends(grant, feed):
            feed.execution.close()
            return None
        feed.resume()
        return feed

    def drop(self, run_id: str) -> None:
        feed = self._pop(run_id)
        if feed is not None:
            feed.execution.close()

    def _pop(self, run_id: str) -> Feed | None:
        feed = self._feeds.pop(run_id, None)
        if feed is not None:
            self._size -= feed.size
        return feed

    def clear(self) -> None:
        for run_id in tuple(self._feeds):
            self.drop(run_id)


def _extends(grant: RunGrant, feed: Feed) -> bool:
    """Whether the granted events, or those that follow as news, go on where the coroutine is."""
    if grant.from_start or grant.length < feed.fed or grant.accepted_until != feed.context.accepted_until:
        return False
    if grant.retried_at != feed.context.retried_at:
        return False
    if not grant.events:
        return True  # they follow; one that does not fit shows when it comes
    behind = feed.fed + 1 - grant.events[0].position  # events of the grant that were fed already
    if behind == 0:
        return True
    return 0 < behind <= len(grant.events) and grant.events[behind - 1].revision == feed.revision
