"""Notes of unexported history and cursors, in Redis."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

from treadle.controlplane.store.cursors import LEFT_PAGE, Projected, Unprojected
from treadle.controlplane.store.keys import SEPARATOR, Keys, run_name
from treadle.controlplane.store.packing import lengths_before
from treadle.controlplane.store.redis_runs import RedisPart
from treadle.protocol.ids import RunKey

__all__ = ("RedisCursors",)

_CURSOR = Struct(">QQ")  # incarnation, position
_REVISION = Struct(">Q")
_FLAGS, _LATER = (b"\0", b"\1", b"\2", b"\3"), b"\4"  # there is more, it is closed, both


class RedisCursors(RedisPart):
    """The SpanCursors of Redis."""

    def trace(self) -> None:
        self._traced = True

    async def unprojected(self, shards: Sequence[int], limit: int, ahead_ms: int = 0) -> list[Unprojected]:
        found: list[Unprojected] = []
        for _, reply in await self._per_group("traces", shards, limit, ahead_ms):
            values = iter(reply)
            found += [_unprojected(*one) for one in zip(values, values, values, strict=True)]
        return found[:limit]

    async def left(self, item: Unprojected, after: int) -> tuple[bytes, list[bytes]]:
        key = self._keys.shards[item.run.shard] + b"left:" + _member(item.run, item.left)
        head, events = await self._link.commands(
            [("LINDEX", key, 0), ("LRANGE", key, after + 1, after + LEFT_PAGE)]  # the head stands in front
        )
        return (head, events) if head else (b"", [])

    async def projected(self, done: Sequence[Projected]) -> None:
        await self._mark([(one.run, _packed(one, self._keys)) for one in done])

    async def postpone(self, items: Sequence[Unprojected]) -> None:
        await self._mark([(item.run, _postponed(item, self._keys)) for item in items])

    async def _mark(self, marks: Sequence[tuple[RunKey, bytes]]) -> None:
        shards = [run.shard for run, _ in marks]
        calls = [
            (self._route(shards[group[0]]), (b"".join([marks[i][1] for i in group]),)) for group in self._groups(shards)
        ]
        if calls:
            await self._link.run_each("projected", calls)


def _packed(one: Projected, keys: Keys) -> bytes:
    """Return an entry for scripts/projected.lua."""
    flags = _FLAGS[one.more + 2 * one.closed]
    revision = _REVISION.pack(one.revision) if one.revision else b""
    cursor = _CURSOR.pack(one.incarnation, one.position)
    parts = keys.shards[one.run.shard], _member(one.run, one.left), cursor, revision
    return b"".join([flags, *lengths_before(parts)])


def _postponed(item: Unprojected, keys: Keys) -> bytes:
    parts = keys.shards[item.run.shard], _member(item.run, item.left), b"", b""
    return b"".join([_LATER, *lengths_before(parts)])


def _member(run: RunKey, left: bytes) -> bytes:
    return run_name(run) + SEPARATOR + left if left else run_name(run)


def _unprojected(member: bytes, cursor: bytes | None, revision: bytes) -> Unprojected:
    name, _, left = member.partition(SEPARATOR)
    namespace, _, run_id = name.decode().partition("/")
    incarnation, position = _CURSOR.unpack(cursor) if cursor else (0, 0)
    now = _REVISION.unpack(revision)[0] if revision else 0
    return Unprojected(RunKey(namespace, run_id), left, incarnation, position, now)
