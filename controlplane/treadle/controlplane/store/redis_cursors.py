"""Notes of unexported history and cursors, in Redis."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

from treadle.controlplane.store.cursors import LEFT_PAGE, Projected, Unprojected
from treadle.controlplane.store.keys import SEPARATOR, run_name
from treadle.controlplane.store.redis_runs import RedisPart
from treadle.protocol.ids import RunKey

__all__ = ("RedisCursors",)

_CURSOR = Struct(">QQ")  # incarnation, position
_AT_ONCE = 100


class RedisCursors(RedisPart):
    """The SpanCursors of Redis."""

    def trace(self) -> None:
        self._traced = True

    async def unprojected(self, shards: Sequence[int], limit: int) -> list[Unprojected]:
        found: list[Unprojected] = []
        for _, reply in await self._per_group("traces", shards, limit):
            pairs = iter(reply)
            found += [_unprojected(member, cursor) for member, cursor in zip(pairs, pairs, strict=True)]
        return found[:limit]

    async def left(self, item: Unprojected, after: int) -> tuple[bytes, list[bytes]]:
        key = self._keys.shards[item.run.shard] + b"left:" + _member(item.run, item.left)
        head, events = await self._link.commands(
            [("LINDEX", key, 0), ("LRANGE", key, after + 1, after + LEFT_PAGE)]  # the head stands in front
        )
        return (head, events) if head else (b"", [])

    async def projected(self, done: Sequence[Projected]) -> None:
        for start in range(0, len(done), _AT_ONCE):
            calls = [(self._route(one.run.shard), self._arguments(one)) for one in done[start : start + _AT_ONCE]]
            await self._link.run_each("projected", calls)

    def _arguments(self, one: Projected) -> tuple[bytes, bytes, bytes, bytes, int, int]:
        return (
            self._keys.shards[one.run.shard],
            _member(one.run, one.left),
            _CURSOR.pack(one.incarnation, one.position),
            one.revision.to_bytes(8, "big") if one.revision else b"",
            int(one.more),
            int(one.closed),
        )


def _member(run: RunKey, left: bytes) -> bytes:
    return run_name(run) + SEPARATOR + left if left else run_name(run)


def _unprojected(member: bytes, cursor: bytes | None) -> Unprojected:
    name, _, left = member.partition(SEPARATOR)
    namespace, _, run_id = name.decode().partition("/")
    return Unprojected(RunKey(namespace, run_id), left, *(_CURSOR.unpack(cursor) if cursor else (0, 0)))
