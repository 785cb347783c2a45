"""What the control plane asks of its store. Redis and the in-memory twin implement it; `tests/contract` pins both.

Everything that changes a run goes through `commit`. A store knows no rule about runs: it compares a revision, refuses
what is not due, and writes what it is told, all of one change or nothing of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import msgspec

from treadle.controlplane.store.cursors import SpanCursors
from treadle.protocol.ids import RunKey
from treadle.v1.state_pb2 import HeldToken, WorkerRecord

__all__ = (
    "Beat",
    "BeatResult",
    "Catalog",
    "Change",
    "CheckResult",
    "Committed",
    "DueTimers",
    "DutyStore",
    "Hint",
    "IndexEntry",
    "Loaded",
    "Outcome",
    "RunStore",
    "ShardRound",
    "StaleEntry",
    "Store",
    "Timer",
    "Want",
    "WorkerStore",
    "WorkerView",
)


@dataclass(slots=True)
class Want:
    """What a decision needs to see of one run.

    Attributes:
        run: The run.
        fields: Fields of the run's hash besides its head ("c:<command id>", "i:<command id>"). Missing ones are left
            out of the answer.
        all_fields: True: every field, at most `field_limit` of them, in no order but notes last (`limits.NOTES`).
        field_limit: See `all_fields`.
        event_at: Position of one event that is wanted (0: none).
        events_after: Events behind this position, at most 200 or 1 MiB but at least one (None: none).
        new: There is probably no such run: a cache may say so unread (see `Change.unread`).
    """

    run: RunKey
    fields: Sequence[str] = ()
    all_fields: bool = False
    field_limit: int = 200
    event_at: int = 0
    events_after: int | None = None
    new: bool = False


@dataclass(slots=True)
class Loaded:
    """One run as the store has it, read at one instant.

    Attributes:
        revision: Revision of the last commit; 0: there is no such run.
        head: Encoded RunHead; b"" when there is no such run.
        fields: The fields asked for that exist.
        event: The event asked for by `event_at`; None when the history is shorter.
        events: The page asked for by `events_after`, in order.
        tombstone: What a deleted run left behind; None when there is none.
        length: Length of the history.
        whole: The run has no fields besides these.
        cached: Not read now: another replica may have gone further. A change that was decided on it is checked by its
            commit; that nothing is to be done must be decided again on what was read.
    """

    revision: int = 0
    head: bytes = b""
    fields: dict[str, bytes] = field(default_factory=dict)
    event: bytes | None = None
    events: list[bytes] = field(default_factory=list)
    tombstone: bytes | None = None
    length: int = field(default=0, compare=False)
    whole: bool = field(default=False, compare=False)
    cached: bool = field(default=False, compare=False)


class Hint(msgspec.Struct, frozen=True, array_like=True):
    """A notice that a run changed. Only ever a hint: it may be lost, doubled or late.

    Attributes:
        namespace, run_id: The run.
        length: Length of its history now.
        closed: It has its outcome.
        replica_id: Replica whose session holds it open; "" when nobody does.
        cancels: Attempts to cut off: (worker id, token, reason).
    """

    namespace: str
    run_id: str
    length: int
    closed: bool
    replica_id: str
    cancels: tuple[tuple[str, bytes, str], ...] = ()


@dataclass(slots=True)
class Change:
    """One atomic write to one run, decided by the machine.

    Attributes:
        run: The run.
        expect: Revision that the decision was made on; 0: the run must not exist.
        revision: Random 64 bits, never 0: the run's revision from now on.
        head: Encoded RunHead.
        set_fields: Fields of the run's hash to write.
        del_fields: Fields to remove.
        events: Encoded events to append.
        not_before_ms: The store refuses with EARLY while its clock is behind this (0: no bound).
        outbox_add: Dispatch id -> encoded OutboxEntry.
        outbox_del: Dispatch ids whose publication was confirmed.
        timers_set: Command id ("" for the run itself) -> due time in ms; one timer a key.
        timers_del: Command ids ("" for the run itself) whose timer goes.
        index_add: (index name, member, score) triples; a member that is there gets the new score.
        index_del: (index name, member) pairs.
        hint: Published after the write; None: nobody needs to know.
        restart: True: history and fields that exist are dropped first (the same id is started again).
        delete: True: the run goes; `tombstone` stays for `tombstone_ms`. All else but `expect`, timers, index is ignored.
        tombstone: See `delete`.
        tombstone_ms: See `delete`.
        traced: Spans of the run are wanted (see SpanCursors).
        ended: The run has its outcome: nothing more of its trace is to be waited for.
        unread: It was decided that there is no such run without having looked: a tombstone is a CONFLICT too.
        cold: Nobody is expected to ask for the run soon (it is parked, waits, or is closed): caches need not keep it.
        keep_fields: With `restart`: fields that outlive it.
    """

    run: RunKey
    expect: int
    revision: int
    head: bytes
    set_fields: dict[str, bytes] = field(default_factory=dict)
    del_fields: list[str] = field(default_factory=list)
    events: list[bytes] = field(default_factory=list)
    not_before_ms: int = 0
    outbox_add: dict[str, bytes] = field(default_factory=dict)
    outbox_del: list[str] = field(default_factory=list)
    timers_set: dict[str, int] = field(default_factory=dict)
    timers_del: list[str] = field(default_factory=list)
    index_add: list[tuple[str, str, int]] = field(default_factory=list)
    index_del: list[tuple[str, str]] = field(default_factory=list)
    hint: Hint | None = None
    restart: bool = False
    delete: bool = False
    tombstone: bytes = b""
    tombstone_ms: int = 0
    traced: bool = False
    ended: bool = False
    unread: bool = False
    cold: bool = False
    keep_fields: list[str] = field(default_factory=list)


class Outcome(Enum):
    """What became of a change."""

    OK = 0
    CONFLICT = 1
    """The revision was another one: load and decide again."""
    EARLY = 2
    """The store's clock is behind `not_before_ms`."""


@dataclass(slots=True)
class Committed:
    """Answer to one change: what became of it, and the store's clock (ms since 1970)."""

    outcome: Outcome
    time_ms: int


@dataclass(frozen=True, slots=True)
class Timer:
    """An entry among the timers: a run ("" as command id) or one of its commands, and when it is due (ms)."""

    run: RunKey
    command_id: str
    due_ms: int


@dataclass(slots=True)
class DueTimers:
    """What is due, earliest first, the due time of the first that is not (None: nothing), and the store's clock."""

    due: list[Timer]
    next_due_ms: int | None
    time_ms: int


@dataclass(slots=True)
class Silent:
    """Workers that are silent, and the last beat of the one that may be next (None: there is no other)."""

    records: list[WorkerRecord]
    next_beat_ms: int | None


@dataclass(slots=True)
class StaleEntry:
    """An outbox entry that nobody has confirmed for long."""

    shard: int
    dispatch_id: str
    entry: bytes


@dataclass(frozen=True, slots=True)
class ShardRound:
    """When a shard's duties last ran, and since when they run without a gap of over 3 s; both by the store's clock."""

    last_round_ms: int
    back_at_ms: int


@dataclass(slots=True)
class WorkerView:
    """A worker record as a lease check reads it: the record (None: expired or never there), its shard's round, the clock."""

    record: WorkerRecord | None
    round: ShardRound
    time_ms: int
    _tokens: frozenset[bytes] | None = None

    def lists(self, token: bytes) -> bool:
        """Whether the worker said in its last list that it holds this. One view serves the checks of all that it holds."""
        if self._tokens is None:
            self._tokens = frozenset(held.token for held in self.record.held) if self.record else frozenset()
        return token in self._tokens


@dataclass(slots=True)
class Beat:
    """One beat. Changes nothing when the record names another session, is closed, or is newer by `sent_ms`."""

    worker_id: str
    session_id: str
    sent_ms: int
    list_id: int
    held: Sequence[HeldToken] | None
    loop_lag_ms: int = 0
    steps_running: int = 0
    runs_open: int = 0
    draining: bool = False


@dataclass(slots=True)
class BeatResult:
    """ignored: it changed nothing. want_list: the record has another list than `list_id`."""

    ignored: bool
    want_list: bool


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One member of an index."""

    shard: int
    member: str
    score: int


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One start-up check: what, whether it is fine, what was found, what to do, and whether it is only a warning."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    fatal: bool = True


class RunStore(Protocol):
    """Runs: load and commit, in batches."""

    @property
    def lives(self) -> int:
        """How often another server may have come in place of the one before: commits that were answered may be gone."""
        ...

    async def load(self, wants: Sequence[Want]) -> list[Loaded]:
        """Read a batch in one round trip (one a node on a cluster); answers in the order of `wants`."""
        ...

    async def commit(self, changes: Sequence[Change]) -> list[Committed]:
        """Write a batch in one call (one a shard's node on a cluster); answers in the order of `changes`.

        At most one change a run in a batch. Each is atomic by itself.

        Raises:
            Unavailable: The store did not answer: each change may or may not have been written.
        """
        ...

    async def now(self) -> int:
        """The store's clock, milliseconds since 1970. The only clock."""
        ...

    def hints(self) -> AsyncIterator[list[Hint]]:
        """Hints of commits by other replicas, from when iteration begins. Survives reconnects.

        Who commits knows: its own hints need not come back to it.
        """
        ...


class DutyStore(Protocol):
    """Timers, outbox and the duty leases of shards."""

    async def hold(self, replica_id: str, shards: Iterable[int], ttl_ms: int) -> dict[int, ShardRound]:
        """Take or extend the duty lease of each shard that nobody else holds, and note the round; returns those held.

        A round that comes over 3 s after the one before (or is the first) sets `back_at_ms` to the clock.
        """
        ...

    async def let_go(self, replica_id: str, shards: Iterable[int]) -> None:
        """Give up the duty leases that this replica holds of `shards`."""
        ...

    async def due(self, shards: Sequence[int], limit: int, ahead_ms: int = 0) -> DueTimers:
        """The earliest timers of these shards that are due by the store's clock, or will be in `ahead_ms`; at most `limit`.

        Fewer may be answered when more are due (at least 50, or all); none is left out that is due before the last of them.
        """
        ...

    async def stale_outbox(self, shards: Sequence[int], older_than_ms: int, limit: int) -> list[StaleEntry]:
        """Outbox entries written at or before `older_than_ms` (store's clock); 2**62 means all."""
        ...

    async def outbox_size(self) -> int:
        """Entries in the outbox of all shards."""
        ...

    async def confirmed(self, entries: Iterable[tuple[int, str]]) -> None:
        """Remove exactly these (shard, dispatch id) entries."""
        ...


class WorkerStore(Protocol):
    """Records of worker processes; they expire 1 h after the last beat."""

    async def open_session(self, record: WorkerRecord) -> bool:
        """Write the session of a worker and reopen its record, which counts as a beat.

        The later `session_sent_ms` wins: False when the record already has a later one. Keeps the list of held tokens.
        """
        ...

    async def close_session(self, worker_id: str, session_id: str, *, drained: bool) -> WorkerRecord | None:
        """Close the record if it still names this session; returns it as it is then (None: it names another)."""
        ...

    async def beat(self, beats: Sequence[Beat]) -> list[BeatResult]:
        """Record a batch of beats in one round trip."""
        ...

    async def view_workers(self, worker_ids: Sequence[str]) -> list[WorkerView]:
        """Read records as lease checks need them, in the order of `worker_ids`."""
        ...

    async def silent(self, shards: Sequence[int], before_ms: int, limit: int) -> Silent:
        """Open records of these shards whose last beat was before `before_ms`, longest silent first."""
        ...

    async def workers(self, namespace: str) -> list[WorkerRecord]:
        """All records of a namespace."""
        ...


class Catalog(Protocol):
    """What is registered, indexes, and what is kept aside."""

    async def register(
        self, namespace: str, pool: str, workflows: Sequence[str], steps: Sequence[str], now_ms: int = 0
    ) -> None:
        """Note that these names exist in this pool; kept for ever. Of workflows with a version ("name@version") it is noted
        when they first came."""
        ...

    async def registry(self, namespace: str) -> Mapping[str, str]:
        """Workflow -> pool where it was registered last."""
        ...

    async def steps(self, namespace: str) -> Mapping[str, str]:
        """Step -> pool where it was registered last."""
        ...

    async def versions(self, namespace: str) -> Mapping[str, int]:
        """Workflow with a version -> when it was first registered (ms)."""
        ...

    async def pools(self) -> list[tuple[str, str]]:
        """(namespace, pool) pairs that were ever registered or started into, sorted."""
        ...

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
        """Members of one index over these shards with low <= score < high, merged by (score, member), at most `limit`."""
        ...

    async def count(self, name: str, *, low: int = 0, high: int = 2**62) -> int:
        """Members of an index over all shards with low <= score < high."""
        ...

    async def put_aside(self, shard: int, kind: str, data: bytes) -> bool:
        """Keep a job, report or garbage that belongs to nothing ("unknown" or "garbage") for 7 days.

        False when the shard's 64 MiB (here: 1 MiB a shard) are full: then nothing may be acknowledged.
        """
        ...

    async def aside(self, kind: str, limit: int) -> list[tuple[int, bytes]]:
        """(time in ms, data) of what was kept aside, newest first."""
        ...


class Store(RunStore, DutyStore, WorkerStore, Catalog, SpanCursors, Protocol):
    """The whole port, and its life."""

    async def start(self) -> None:
        """Connect. Raises Unavailable naming the address when nothing answers."""
        ...

    async def stop(self) -> None:
        """Close all connections."""
        ...

    async def check(self) -> list[CheckResult]:
        """Persistence, maxmemory-policy, version, cluster and clock; what `treadle server` refuses to start over."""
        ...
