"""Runs in Redis: a batch of loads or commits is one call of one script, on a cluster one a shard, pipelined."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from treadle.controlplane.store.hint_feed import HintFeed
from treadle.controlplane.store.keys import Keys
from treadle.controlplane.store.link import Link
from treadle.controlplane.store.packing import pack_changes, pack_wants
from treadle.controlplane.store.port import Change, Committed, Hint, Loaded, Outcome, Want

__all__ = ("RedisPart", "RedisRuns")

_OUTCOMES = {ord("0"): Outcome.OK, ord("1"): Outcome.CONFLICT, ord("2"): Outcome.EARLY}


class RedisPart:
    """What all parts of the store share: the connection and the names."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys
        self._traced = False

    async def _now_ms(self) -> int:
        return int((await self._link.run("due", self._route(0), 0, 0))[0])

    def _groups(self, shards: Iterable[int]) -> list[list[int]]:
        """Return which positions of `shards` go into one call: all, or on a cluster those of one shard."""
        if not self._link.is_cluster:
            positions = list(range(len(list(shards))))
            return [positions] if positions else []
        groups: dict[int, list[int]] = {}
        for position, shard in enumerate(shards):
            groups.setdefault(shard, []).append(position)
        return list(groups.values())

    def _route(self, shard: int) -> bytes:
        """Return the key by which a call finds the node of a shard."""
        return self._keys.of_shard(shard, "times")

    async def _per_group(self, name: str, shards: Sequence[int], *arguments: Any) -> list[tuple[list[int], Any]]:
        """Call a script with `arguments` and the prefixes of the shards of each group: (positions, reply) pairs."""
        groups = self._groups(shards)
        calls = [
            (
                self._route(shards[group[0]]),
                (*arguments, *(self._keys.shards[shards[position]] for position in group)),
            )
            for group in groups
        ]
        return list(zip(groups, await self._link.run_each(name, calls), strict=True)) if calls else []


class RedisRuns(RedisPart):
    """The RunStore of Redis."""

    def __init__(self, link: Link, keys: Keys) -> None:
        super().__init__(link, keys)
        self._sender = os.urandom(8)
        self._feed = HintFeed(link, keys.hints, self._sender)

    @property
    def lives(self) -> int:
        return self._feed.lost

    def hints(self) -> AsyncIterator[list[Hint]]:
        return self._feed.listen()

    async def load(self, wants: Sequence[Want]) -> list[Loaded]:
        if not self._link.is_cluster:
            if not wants:
                return []
            replies = await self._link.run("load", self._route(wants[0].run.shard), pack_wants(wants, self._keys))
            return [_loaded(want, reply) for want, reply in zip(wants, replies, strict=True)]
        shards = [want.run.shard for want in wants]
        groups = self._groups(shards)
        calls = [
            (self._route(shards[group[0]]), (pack_wants([wants[i] for i in group], self._keys),)) for group in groups
        ]
        answers: dict[int, Loaded] = {}
        for group, replies in zip(groups, await self._link.run_each("load", calls) if calls else [], strict=True):
            for i, reply in zip(group, replies, strict=True):
                answers[i] = _loaded(wants[i], reply)
        return [answers[i] for i in range(len(wants))]

    async def commit(self, changes: Sequence[Change]) -> list[Committed]:
        if self._link.is_cluster:
            return await self._commit_by_shard(changes)
        if not changes:
            return []
        blob = pack_changes(changes, self._keys, traced=self._traced)
        route, mine = self._route(changes[0].run.shard), int(self._feed.subscribed)
        time_ms, digits = await self._link.run("commit", route, blob, self._keys.hints, self._sender, mine)
        return [Committed(_OUTCOMES[digit], time_ms) for digit in digits]

    async def _commit_by_shard(self, changes: Sequence[Change]) -> list[Committed]:
        """As `commit`; a node knows only its own subscribers, so that every hint is published."""
        groups = self._groups([change.run.shard for change in changes])
        calls = [
            (
                self._route(changes[group[0]].run.shard),
                (
                    pack_changes([changes[i] for i in group], self._keys, traced=self._traced),
                    self._keys.hints,
                    self._sender,
                    -1,
                ),
            )
            for group in groups
        ]
        answers: dict[int, Committed] = {}
        for group, (time_ms, digits) in zip(
            groups, await self._link.run_each("commit", calls) if calls else [], strict=True
        ):
            for i, digit in zip(group, digits, strict=True):
                answers[i] = Committed(_OUTCOMES[digit], time_ms)
        return [answers[i] for i in range(len(changes))]

    async def now(self) -> int:
        return await self._now_ms()


def _loaded(want: Want, reply: Sequence[Any]) -> Loaded:
    stored, tombstone, event, fields, events, length, all_fields = reply
    if stored is None:
        return Loaded(tombstone=tombstone)
    pairs = iter(fields)
    return Loaded(
        revision=int.from_bytes(stored[:8], "big"),
        head=stored[8:],
        fields={name.decode(): value for name, value in zip(pairs, pairs, strict=True)},
        event=event,
        events=events,
        length=length,
        whole=len(fields) == 2 * all_fields,
    )
