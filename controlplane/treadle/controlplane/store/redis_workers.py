"""Records of worker processes in Redis. The rules are those of worker_rules.py, in Lua, because each must be atomic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from treadle.controlplane.store.packing import pack_beats
from treadle.controlplane.store.port import Beat, BeatResult, ShardRound, Silent, WorkerView
from treadle.controlplane.store.redis_runs import RedisPart
from treadle.controlplane.store.worker_rules import RECORD_TTL_MS
from treadle.protocol.ids import SHARDS, worker_shard
from treadle.v1.state_pb2 import WorkerRecord

__all__ = ("RedisWorkers",)

_ANSWERS = {
    ord("0"): (False, False),
    ord("1"): (True, False),
    ord("2"): (False, True),
}


class RedisWorkers(RedisPart):
    """The WorkerStore of Redis."""

    async def open_session(self, record: WorkerRecord) -> bool:
        shard = worker_shard(record.worker_id)
        plain = WorkerRecord()
        plain.CopyFrom(record)
        del plain.held[:]
        reply = await self._link.run(
            "open_session",
            self._route(shard),
            self._keys.shards[shard],
            record.worker_id,
            record.session_id,
            record.session_sent_ms,
            plain.SerializeToString(),
            record.started_ms,
            RECORD_TTL_MS,
        )
        return bool(reply)

    async def close_session(self, worker_id: str, session_id: str, *, drained: bool) -> WorkerRecord | None:
        shard = worker_shard(worker_id)
        prefix = self._keys.shards[shard]
        reply = await self._link.run("close_session", self._route(shard), prefix, worker_id, session_id, int(drained))
        return None if reply is None else _record(reply)

    async def beat(self, beats: Sequence[Beat]) -> list[BeatResult]:
        shards = [worker_shard(beat.worker_id) for beat in beats]
        groups = self._groups(shards)
        calls = [
            (
                self._route(shards[group[0]]),
                (pack_beats([beats[i] for i in group], self._keys), RECORD_TTL_MS),
            )
            for group in groups
        ]
        answers: dict[int, BeatResult] = {}
        for group, reply in zip(groups, await self._link.run_each("beat", calls) if calls else [], strict=True):
            for i, digit in zip(group, reply, strict=True):
                answers[i] = BeatResult(*_ANSWERS[digit])
        return [answers[i] for i in range(len(beats))]

    async def view_workers(self, worker_ids: Sequence[str]) -> list[WorkerView]:
        shards = [worker_shard(worker_id) for worker_id in worker_ids]
        groups = self._groups(shards)
        calls = []
        for group in groups:
            arguments: list[Any] = []
            for i in group:
                arguments += (self._keys.shards[shards[i]], worker_ids[i])
            calls.append((self._route(shards[group[0]]), tuple(arguments)))
        views: dict[int, WorkerView] = {}
        for group, reply in zip(groups, await self._link.run_each("view", calls) if calls else [], strict=True):
            for i, (fields, last, back) in zip(group, reply[1:], strict=True):
                seen = ShardRound(int(last or 0), int(back or 0))
                views[i] = WorkerView(_record(fields) if fields else None, seen, int(reply[0]))
        return [views[i] for i in range(len(worker_ids))]

    async def silent(self, shards: Sequence[int], before_ms: int, limit: int) -> Silent:
        found: list[WorkerRecord] = []
        later: list[int] = []
        for _, (first, replies) in await self._per_group("silent", shards, before_ms, limit):
            found += [_record(fields) for fields in replies]
            later += [] if first is None else [int(first)]
        found.sort(key=lambda record: (record.last_beat_ms, record.worker_id))
        return Silent(found[:limit], min(later, default=None))

    async def workers(self, namespace: str) -> list[WorkerRecord]:
        found: list[WorkerRecord] = []
        for _, replies in await self._per_group("workers", range(SHARDS)):
            found += [record for record in map(_record, replies) if record.namespace == namespace]
        found.sort(key=lambda record: record.worker_id)
        return found


def _record(fields: Sequence[bytes]) -> WorkerRecord:
    """Return the record from the fields of its hash: what opened the session, and what beats and a close changed."""
    pairs = iter(fields)
    stored = dict(zip(pairs, pairs, strict=True))
    record = WorkerRecord.FromString(stored[b"record"])
    record.MergeFromString(stored.get(b"held", b""))
    record.list_id = int.from_bytes(stored[b"list"], "big")
    record.closed_ms = int(stored[b"closed"])
    record.drained = stored[b"drained"] == b"1"
    record.last_beat_ms = int(stored[b"beat"])
    record.beat_sent_ms = int(stored[b"beat_sent"])
    record.started_ms = int(stored[b"started"])
    if b"lag" in stored:
        record.loop_lag_ms = int(stored[b"lag"])
        record.steps_running = int(stored[b"steps"])
        record.runs_open = int(stored[b"runs"])
        record.draining = stored[b"draining"] == b"1"
    return record
