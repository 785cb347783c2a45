"""Registry, pools, indexes and what is kept aside, in Redis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from struct import unpack_from
from typing import Any

from treadle.controlplane.store.limits import ASIDE_BYTES, ASIDE_TTL_MS
from treadle.controlplane.store.port import IndexEntry
from treadle.controlplane.store.redis_runs import RedisPart
from treadle.protocol.ids import SHARDS
from treadle.protocol.tags import split_name

__all__ = ("RedisCatalog",)


class RedisCatalog(RedisPart):
    """The Catalog of Redis."""

    async def register(
        self, namespace: str, pool: str, workflows: Sequence[str], steps: Sequence[str], now_ms: int = 0
    ) -> None:
        commands: list[tuple[Any, ...]] = [("SADD", self._keys.pools, f"{namespace}/{pool}")]
        for key, names in (("registry", workflows), ("steps", steps)):
            if names:
                pairs = [part for name in names for part in (name, pool)]
                commands.append(("HSET", self._keys.of_namespace(namespace, key), *pairs))
        versions = self._keys.of_namespace(namespace, "versions")
        commands += [("HSETNX", versions, name, now_ms) for name in workflows if split_name(name)[1]]
        await self._link.commands(commands)

    async def registry(self, namespace: str) -> Mapping[str, str]:
        return await self._names(namespace, "registry")

    async def steps(self, namespace: str) -> Mapping[str, str]:
        return await self._names(namespace, "steps")

    async def versions(self, namespace: str) -> Mapping[str, int]:
        return {name: int(first) for name, first in (await self._names(namespace, "versions")).items()}

    async def _names(self, namespace: str, key: str) -> dict[str, str]:
        with self._link.errors():
            stored = await self._link.client.hgetall(self._keys.of_namespace(namespace, key))
        return {name.decode(): value.decode() for name, value in stored.items()}

    async def pools(self) -> list[tuple[str, str]]:
        with self._link.errors():
            stored = await self._link.client.smembers(self._keys.pools)
        pairs = (member.decode().partition("/") for member in stored)
        return sorted((namespace, pool) for namespace, _, pool in pairs)

    async def index(
        self,
        name: str,
        shards: Sequence[int],
        *,
        low: int = 0,
        high: int = 2**62,
        limit: int = 1000,
        newest_first: bool = True,
    ) -> list[IndexEntry]:
        command = "ZREVRANGEBYSCORE" if newest_first else "ZRANGEBYSCORE"
        bounds = (f"({high}", str(low)) if newest_first else (str(low), f"({high}")
        replies = await self._link.commands(
            [
                (command, self._keys.of_shard(shard, f"i:{name}"), *bounds, "WITHSCORES", "LIMIT", 0, limit)
                for shard in shards
            ]
        )
        found = [
            IndexEntry(shard, member.decode(), int(score))
            for shard, reply in zip(shards, replies, strict=True)
            for member, score in _scored(reply)
        ]
        found.sort(key=lambda entry: (entry.score, entry.member, entry.shard), reverse=newest_first)
        return found[:limit]

    async def count(self, name: str, *, low: int = 0, high: int = 2**62) -> int:
        keys = [self._keys.of_shard(shard, f"i:{name}") for shard in range(SHARDS)]
        whole = not low and high >= 2**62
        counts = await self._link.commands(
            [("ZCARD", key) if whole else ("ZCOUNT", key, str(low), f"({high}") for key in keys]
        )
        return sum(counts)

    async def put_aside(self, shard: int, kind: str, data: bytes) -> bool:
        key = self._keys.of_shard(shard, kind)
        reply = await self._link.run("put_aside", self._route(shard), data, key, ASIDE_BYTES, ASIDE_TTL_MS)
        return bool(reply)

    async def aside(self, kind: str, limit: int) -> list[tuple[int, bytes]]:
        if limit <= 0:
            return []
        oldest_ms = await self._now_ms() - ASIDE_TTL_MS
        replies = await self._link.commands(
            [("LRANGE", self._keys.of_shard(shard, kind), -limit, -1) for shard in range(SHARDS)]
        )
        kept = [(int(unpack_from(">d", entry)[0]), entry[8:]) for reply in replies for entry in reply]
        found = [item for item in kept if item[0] > oldest_ms]
        found.sort(key=lambda item: item[0], reverse=True)
        return found[:limit]


def _scored(reply: Sequence[Any]) -> list[tuple[bytes, float]]:
    """Return (member, score) pairs of a reply in either protocol version: flat in RESP2, pairs in RESP3."""
    if reply and isinstance(reply[0], (list, tuple)):
        return [(member, float(score)) for member, score in reply]
    pairs = iter(reply)
    return [(member, float(score)) for member, score in zip(pairs, pairs, strict=True)]
