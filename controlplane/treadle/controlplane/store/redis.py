"""The store on Redis or Valkey 6.2 and later, standalone or cluster: the adapter of production and of embedded mode."""

from __future__ import annotations

from treadle.controlplane.store.checks import check_server
from treadle.controlplane.store.keys import Keys
from treadle.controlplane.store.link import Link
from treadle.controlplane.store.port import CheckResult
from treadle.controlplane.store.redis_catalog import RedisCatalog
from treadle.controlplane.store.redis_cursors import RedisCursors
from treadle.controlplane.store.redis_duties import RedisDuties
from treadle.controlplane.store.redis_runs import RedisRuns
from treadle.controlplane.store.redis_workers import RedisWorkers

__all__ = ("RedisStore",)


class RedisStore(RedisRuns, RedisDuties, RedisWorkers, RedisCatalog, RedisCursors):
    """The `Store` port on Redis. Nothing is cached: a Redis that went back in time is seen by the next load.

    Args:
        url: redis://[user:password@]host:port[/db], rediss://… or unix://<path>.
        cluster: True: `url` names any node of a Redis Cluster.
        prefix: What all keys and the channel begin with; deployments that share a Redis differ in it.
        timeout: Seconds until a command is given up with Unavailable.
    """

    def __init__(self, url: str, *, cluster: bool = False, prefix: str = "treadle", timeout: float = 5.0) -> None:
        super().__init__(Link(url, cluster=cluster, timeout=timeout), Keys(prefix))

    @property
    def address(self) -> str:
        """The URL without its password."""
        return self._link.address

    async def start(self) -> None:
        await self._link.start()
        try:
            await self._feed.start()
        except BaseException:
            await self._link.stop()
            raise

    async def stop(self) -> None:
        await self._feed.stop()
        await self._link.stop()

    async def check(self) -> list[CheckResult]:
        return await check_server(self._link)
