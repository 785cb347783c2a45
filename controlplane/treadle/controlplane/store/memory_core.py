"""The in-memory store without its event loop: plain methods that a simulation drives with virtual time.

Deterministic: everything is in insertion or sorted order, and time comes from the clock that was given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from treadle.controlplane.store.limits import (
    ASIDE_BYTES,
    ASIDE_TTL_MS,
    ROUND_GAP_MS,
    first_fields,
    page,
)
from treadle.controlplane.store.memory_cursors import MemoryCursors
from treadle.controlplane.store.memory_state import RunData, State
from treadle.controlplane.store.port import (
    Beat,
    BeatResult,
    Change,
    Committed,
    DueTimers,
    Hint,
    IndexEntry,
    Loaded,
    Outcome,
    ShardRound,
    Silent,
    StaleEntry,
    Timer,
    Want,
    WorkerView,
)
from treadle.controlplane.store.worker_rules import RECORD_TTL_MS, apply_beat, close_record, open_record
from treadle.protocol.ids import SHARDS, RunKey, worker_shard
from treadle.protocol.tags import split_name
from treadle.v1.state_pb2 import WorkerRecord

__all__ = ("MemoryCore",)


def wall_clock_ms() -> int:
    """Return milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class MemoryCore(MemoryCursors):
    """Runs, duties, workers and catalog, synchronous. `MemoryStore` is the port over it.

    Args:
        clock_ms: The store's clock: milliseconds since 1970, never going backwards.
    """

    def __init__(self, clock_ms: Callable[[], int] = wall_clock_ms) -> None:
        self._clock_ms = clock_ms
        self._state = State()
        self._generation = 0
        self._lives = 0
        self._listeners: list[Callable[[list[Hint]], None]] = []

    @property
    def lives(self) -> int:
        """See RunStore.lives."""
        return self._lives

    def snapshot(self) -> State:
        """Return the state as it is now, for `restore`. A shallow copy; runs are copied when next written."""
        self._generation += 1
        return self._state.copy()

    def restore(self, state: State) -> None:
        """Go back to a snapshot, as Redis does that lost its last commits. It can be restored again."""
        self._generation += 1
        self._lives += 1
        self._state = state.copy()

    def listen(self, listener: Callable[[list[Hint]], None]) -> Callable[[], None]:
        """Call `listener` with the hints of each later commit, inside it; returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def now_ms(self) -> int:
        """The store's clock."""
        return self._clock_ms()

    # Runs

    def load_now(self, wants: Sequence[Want]) -> list[Loaded]:
        """See RunStore.load."""
        now = self._clock_ms()
        return [self._load(want, now) for want in wants]

    def _load(self, want: Want, now: int) -> Loaded:
        run = self._state.runs.get(want.run)
        if run is None:
            return Loaded(tombstone=self._tombstone(want.run, now))
        loaded = Loaded(run.revision, run.head, length=len(run.events))
        if want.all_fields:
            loaded.fields = first_fields(run.fields, want.field_limit)
        else:
            loaded.fields = {name: run.fields[name] for name in want.fields if name in run.fields}
        loaded.whole = len(loaded.fields) == len(run.fields)
        if 0 < want.event_at <= len(run.events):
            loaded.event = run.events[want.event_at - 1]
        if want.events_after is not None:
            loaded.events = page(run.events, want.events_after)
        return loaded

    def _tombstone(self, run: RunKey, now: int) -> bytes | None:
        kept = self._state.tombstones.get(run)
        return kept[0] if kept is not None and kept[1] > now else None

    def commit_now(self, changes: Sequence[Change]) -> list[Committed]:
        """See RunStore.commit. Listeners are called before it returns."""
        now = self._clock_ms()
        answers: list[Committed] = []
        hints: list[Hint] = []
        for change in changes:
            outcome = self._commit(change, now)
            answers.append(Committed(outcome, now))
            if outcome is Outcome.OK and change.hint is not None and not change.delete:
                hints.append(change.hint)
        if hints:
            for listener in tuple(self._listeners):
                listener(hints)
        return answers

    def _commit(self, change: Change, now: int) -> Outcome:
        run = self._state.runs.get(change.run)
        if (run.revision if run is not None else 0) != change.expect:
            return Outcome.CONFLICT
        if change.unread and self._tombstone(change.run, now) is not None:
            return Outcome.CONFLICT
        if change.delete:
            if run is not None:
                self._leave(change.run, run, now)
            self._state.runs.pop(change.run, None)
            if change.tombstone_ms > 0:
                self._state.tombstones[change.run] = (change.tombstone, now + change.tombstone_ms)
        elif now < change.not_before_ms:
            return Outcome.EARLY
        else:
            self._write(change, run, now)
        self._write_timers(change)
        self._write_index(change)
        return Outcome.OK

    def _write(self, change: Change, run: RunData | None, now: int) -> None:
        kept: dict[str, bytes] = {}
        if run is not None and change.restart:
            self._leave(change.run, run, now)
            kept = {name: run.fields[name] for name in change.keep_fields if name in run.fields}
        if run is None or change.restart:
            run = self._state.runs[change.run] = RunData(self._generation, fields=kept)
        elif run.generation != self._generation:
            run = self._state.runs[change.run] = run.copy(self._generation)
        run.revision = change.revision
        run.head = change.head
        for name in () if change.restart else change.del_fields:
            run.fields.pop(name, None)
        run.fields.update(change.set_fields)
        run.events.extend(change.events)
        self._note_trace(change, now)
        outbox = self._state.outbox.setdefault(change.run.shard, {})
        for dispatch_id in change.outbox_del:
            outbox.pop(dispatch_id, None)
        for dispatch_id, entry in change.outbox_add.items():
            outbox[dispatch_id] = (now, entry)

    def _write_timers(self, change: Change) -> None:
        if not change.timers_set and not change.timers_del:
            return
        timers = self._state.timers.setdefault(change.run.shard, {})
        for command_id in change.timers_del:
            timers.pop((change.run, command_id), None)
        for command_id, due_ms in change.timers_set.items():
            timers[change.run, command_id] = due_ms

    def _write_index(self, change: Change) -> None:
        for name, member in change.index_del:
            self._state.index.get((name, change.run.shard), {}).pop(member, None)
        for name, member, score in change.index_add:
            self._state.index.setdefault((name, change.run.shard), {})[member] = score

    # Duties

    def hold_now(self, replica_id: str, shards: Iterable[int], ttl_ms: int) -> dict[int, ShardRound]:
        """See DutyStore.hold."""
        now = self._clock_ms()
        held: dict[int, ShardRound] = {}
        for shard in shards:
            owner, ends = self._state.leases.get(shard, ("", 0))
            if owner != replica_id and now < ends:
                continue
            self._state.leases[shard] = (replica_id, now + ttl_ms)
            last = self._state.rounds.get(shard)
            gap = last is None or now - last.last_round_ms > ROUND_GAP_MS
            held[shard] = ShardRound(now, now if last is None or gap else last.back_at_ms)
            self._state.rounds[shard] = held[shard]
        return held

    def let_go_now(self, replica_id: str, shards: Iterable[int]) -> None:
        """See DutyStore.let_go."""
        for shard in shards:
            if self._state.leases.get(shard, ("", 0))[0] == replica_id:
                del self._state.leases[shard]

    def due_now(self, shards: Sequence[int], limit: int, ahead_ms: int = 0) -> DueTimers:
        """See DutyStore.due."""
        now = self._clock_ms()
        due: list[Timer] = []
        next_due_ms: int | None = None
        for shard in shards:
            for (run, command_id), due_ms in self._state.timers.get(shard, {}).items():
                if due_ms <= now + ahead_ms:
                    due.append(Timer(run, command_id, due_ms))
                elif next_due_ms is None or due_ms < next_due_ms:
                    next_due_ms = due_ms
        due.sort(key=lambda timer: (timer.due_ms, timer.run, timer.command_id))
        return DueTimers(due[:limit], next_due_ms, now)

    def stale_outbox_now(self, shards: Sequence[int], older_than_ms: int, limit: int) -> list[StaleEntry]:
        """See DutyStore.stale_outbox."""
        found = [
            StaleEntry(shard, dispatch_id, entry)
            for shard in shards
            for dispatch_id, (written_ms, entry) in self._state.outbox.get(shard, {}).items()
            if written_ms <= older_than_ms
        ]
        return found[:limit]

    def outbox_size_now(self) -> int:
        """See DutyStore.outbox_size."""
        return sum(len(entries) for entries in self._state.outbox.values())

    def confirmed_now(self, entries: Iterable[tuple[int, str]]) -> None:
        """See DutyStore.confirmed."""
        for shard, dispatch_id in entries:
            self._state.outbox.get(shard, {}).pop(dispatch_id, None)

    # Workers

    def _record(self, worker_id: str, now: int) -> WorkerRecord | None:
        record = self._state.workers.get(worker_id)
        if record is not None and now - record.last_beat_ms >= RECORD_TTL_MS:
            del self._state.workers[worker_id]
            return None
        return record

    def open_session_now(self, record: WorkerRecord) -> bool:
        """See WorkerStore.open_session."""
        now = self._clock_ms()
        opened = open_record(self._record(record.worker_id, now), record, now)
        if opened is None:
            return False
        self._state.workers[record.worker_id] = opened
        return True

    def close_session_now(self, worker_id: str, session_id: str, *, drained: bool) -> WorkerRecord | None:
        """See WorkerStore.close_session."""
        now = self._clock_ms()
        closed = close_record(self._record(worker_id, now), session_id, drained, now)
        if closed is None:
            return None
        self._state.workers[worker_id] = closed
        return _copy(closed)

    def beat_now(self, beats: Sequence[Beat]) -> list[BeatResult]:
        """See WorkerStore.beat."""
        now = self._clock_ms()
        answers: list[BeatResult] = []
        for beat in beats:
            record, answer = apply_beat(self._record(beat.worker_id, now), beat, now)
            if record is not None:
                self._state.workers[beat.worker_id] = record
            answers.append(answer)
        return answers

    def view_workers_now(self, worker_ids: Sequence[str]) -> list[WorkerView]:
        """See WorkerStore.view_workers."""
        now = self._clock_ms()
        views: list[WorkerView] = []
        for worker_id in worker_ids:
            record = self._record(worker_id, now)
            seen = self._state.rounds.get(worker_shard(worker_id), ShardRound(0, 0))
            views.append(WorkerView(_copy(record) if record is not None else None, seen, now))
        return views

    def silent_now(self, shards: Sequence[int], before_ms: int, limit: int) -> Silent:
        """See WorkerStore.silent."""
        wanted = frozenset(shards)
        known = [
            record
            for worker_id in list(self._state.workers)
            if worker_shard(worker_id) in wanted
            and (record := self._record(worker_id, self._clock_ms())) is not None
            and not record.closed_ms
        ]
        known.sort(key=lambda record: (record.last_beat_ms, record.worker_id))
        found = [record for record in known if record.last_beat_ms < before_ms]
        first = known[len(found)].last_beat_ms if len(known) > len(found) else None
        return Silent([_copy(record) for record in found[:limit]], first)

    def workers_now(self, namespace: str) -> list[WorkerRecord]:
        """See WorkerStore.workers. Sorted by worker id."""
        now = self._clock_ms()
        found = (self._record(worker_id, now) for worker_id in sorted(self._state.workers))
        return [_copy(record) for record in found if record is not None and record.namespace == namespace]

    # Catalog

    def register_now(
        self, namespace: str, pool: str, workflows: Sequence[str], steps: Sequence[str], now_ms: int = 0
    ) -> None:
        """See Catalog.register."""
        state = self._state
        state.registry.setdefault(namespace, {}).update(dict.fromkeys(workflows, pool))
        state.steps.setdefault(namespace, {}).update(dict.fromkeys(steps, pool))
        versions = state.versions.setdefault(namespace, {})
        for name in workflows:
            if split_name(name)[1]:
                versions.setdefault(name, now_ms)
        state.pools.add((namespace, pool))

    def registry_now(self, namespace: str) -> dict[str, str]:
        """See Catalog.registry."""
        return dict(self._state.registry.get(namespace, {}))

    def steps_now(self, namespace: str) -> dict[str, str]:
        """See Catalog.steps."""
        return dict(self._state.steps.get(namespace, {}))

    def versions_now(self, namespace: str) -> dict[str, int]:
        """See Catalog.versions."""
        return dict(self._state.versions.get(namespace, {}))

    def pools_now(self) -> list[tuple[str, str]]:
        """See Catalog.pools."""
        return sorted(self._state.pools)

    def index_now(
        self,
        name: str,
        shards: Sequence[int],
        *,
        low: int = 0,
        high: int = 2**62,
        limit: int = 1000,
        newest_first: bool = True,
    ) -> list[IndexEntry]:
        """See Catalog.index."""
        found = [
            IndexEntry(shard, member, score)
            for shard in shards
            for member, score in self._state.index.get((name, shard), {}).items()
            if low <= score < high
        ]
        found.sort(key=lambda entry: (entry.score, entry.member, entry.shard), reverse=newest_first)
        return found[:limit]

    def count_now(self, name: str, *, low: int = 0, high: int = 2**62) -> int:
        """See Catalog.count."""
        parts = (self._state.index.get((name, shard), {}) for shard in range(SHARDS))
        return sum(low <= score < high for part in parts for score in part.values())

    def put_aside_now(self, shard: int, kind: str, data: bytes) -> bool:
        """See Catalog.put_aside."""
        now = self._clock_ms()
        kept = self._state.aside.setdefault((kind, shard), [])
        while kept and now - kept[0][0] >= ASIDE_TTL_MS:
            kept.pop(0)
        if sum(len(other) for _, other in kept) + len(data) > ASIDE_BYTES:
            return False
        kept.append((now, data))
        return True

    def aside_now(self, kind: str, limit: int) -> list[tuple[int, bytes]]:
        """See Catalog.aside."""
        now = self._clock_ms()
        found = [
            kept
            for (of_kind, _), entries in self._state.aside.items()
            if of_kind == kind
            for kept in entries
            if now - kept[0] < ASIDE_TTL_MS
        ]
        found.sort(key=lambda kept: kept[0], reverse=True)
        return found[:limit]


def _copy(record: WorkerRecord) -> WorkerRecord:
    copy = WorkerRecord()
    copy.CopyFrom(record)
    return copy
