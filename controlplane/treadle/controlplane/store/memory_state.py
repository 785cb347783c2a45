"""The data of the in-memory store, and how it is copied when a snapshot is taken."""

from __future__ import annotations

from dataclasses import dataclass, field

from treadle.controlplane.store.port import ShardRound
from treadle.protocol.ids import RunKey
from treadle.v1.state_pb2 import WorkerRecord

__all__ = ("LeftHistory", "RunData", "State")


@dataclass(slots=True)
class RunData:
    """One run. `generation`: after which snapshot it was made; an older one is shared, never written."""

    generation: int
    revision: int = 0
    head: bytes = b""
    fields: dict[str, bytes] = field(default_factory=dict)
    events: list[bytes] = field(default_factory=list)

    def copy(self, generation: int) -> RunData:
        return RunData(generation, self.revision, self.head, dict(self.fields), list(self.events))


@dataclass(frozen=True, slots=True)
class LeftHistory:
    """What a run left that was deleted or started again before its history was exported; goes at `until_ms`."""

    head: bytes
    events: list[bytes]
    until_ms: int


@dataclass(slots=True)
class State:
    """Everything that Redis would have on disk. Values are never changed in place; for runs see `RunData`.

    Attributes:
        runs: Runs.
        tombstones: What deleted runs left, and when it goes (ms).
        timers: Shard -> (run, command id) -> due time (ms).
        outbox: Shard -> dispatch id -> (time written in ms, entry).
        index: (name, shard) -> member -> score.
        leases: Shard -> (replica id, when the lease ends in ms).
        rounds: Shard -> its duty round.
        workers: Worker id -> record.
        registry: Namespace -> workflow -> pool.
        steps: Namespace -> step -> pool.
        versions: Namespace -> workflow with a version -> when it was first registered.
        pools: (namespace, pool) pairs.
        aside: (kind, shard) -> (time in ms, data), oldest first.
        traces: Shard -> (run, name of what it left or b"") with unexported history -> when it is due.
        cursors: The same -> (incarnation, position) up to which it was exported.
        left: The same -> what was left.
    """

    runs: dict[RunKey, RunData] = field(default_factory=dict)
    tombstones: dict[RunKey, tuple[bytes, int]] = field(default_factory=dict)
    timers: dict[int, dict[tuple[RunKey, str], int]] = field(default_factory=dict)
    outbox: dict[int, dict[str, tuple[int, bytes]]] = field(default_factory=dict)
    index: dict[tuple[str, int], dict[str, int]] = field(default_factory=dict)
    leases: dict[int, tuple[str, int]] = field(default_factory=dict)
    rounds: dict[int, ShardRound] = field(default_factory=dict)
    workers: dict[str, WorkerRecord] = field(default_factory=dict)
    registry: dict[str, dict[str, str]] = field(default_factory=dict)
    steps: dict[str, dict[str, str]] = field(default_factory=dict)
    versions: dict[str, dict[str, int]] = field(default_factory=dict)
    pools: set[tuple[str, str]] = field(default_factory=set)
    aside: dict[tuple[str, int], list[tuple[int, bytes]]] = field(default_factory=dict)
    traces: dict[int, dict[tuple[RunKey, bytes], int]] = field(default_factory=dict)
    cursors: dict[tuple[RunKey, bytes], tuple[int, int]] = field(default_factory=dict)
    left: dict[tuple[RunKey, bytes], LeftHistory] = field(default_factory=dict)

    def copy(self) -> State:
        """Return a copy that shares its values with this one."""
        return State(
            runs=dict(self.runs),
            tombstones=dict(self.tombstones),
            timers={shard: dict(timers) for shard, timers in self.timers.items()},
            outbox={shard: dict(entries) for shard, entries in self.outbox.items()},
            index={key: dict(members) for key, members in self.index.items()},
            leases=dict(self.leases),
            rounds=dict(self.rounds),
            workers=dict(self.workers),
            registry={namespace: dict(names) for namespace, names in self.registry.items()},
            steps={namespace: dict(names) for namespace, names in self.steps.items()},
            versions={namespace: dict(names) for namespace, names in self.versions.items()},
            pools=set(self.pools),
            aside={key: list(kept) for key, kept in self.aside.items()},
            traces={shard: dict(noted) for shard, noted in self.traces.items()},
            cursors=dict(self.cursors),
            left=dict(self.left),
        )
