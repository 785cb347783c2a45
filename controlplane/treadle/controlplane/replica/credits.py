"""Credits: how many jobs each session takes unasked.

A statement names the last pushed grant that its worker had read, so that no slot is offered twice; it is used for 2 s from
its receipt; a credit taken for a decision is given back if the commit fails. Parked runs have credits of their own at the
worker that keeps their coroutine: they need no free slot there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from treadle.controlplane.machine import Credit
from treadle.v1.common_pb2 import FailureHandler
from treadle.v1.job_pb2 import JOB_KIND_RUN, JobKind
from treadle.v1.worker_service_pb2 import CreditStatement

__all__ = ("CreditBook", "Statement")

_USED_FOR_MS = 2_000
_MANY = 16
_NEARLY = 8
"""A worker with fewer credits by so small a part of its slots has as much to give."""


@dataclass(slots=True)
class _Account:
    """Credits of one kind: stated, reserved by decisions, and used by pushes that had not been read."""

    stated: int = 0
    reserved: int = 0
    unread: deque[int] = field(default_factory=deque)

    @property
    def free(self) -> int:
        return self.stated - self.reserved - len(self.unread)

    def state(self, count: int, read: int) -> None:
        self.stated = count
        while self.unread and self.unread[0] <= read:
            self.unread.popleft()


@dataclass(slots=True)
class Statement:
    """What a session has stated, and what was taken of it since. `step_slots`: how many slots for steps its worker has."""

    worker_id: str
    namespace: str
    pool: str
    workflows: frozenset[str]
    steps: frozenset[str]
    handlers: Mapping[str, FailureHandler] = field(default_factory=dict)
    step_slots: int = 0
    credit_id: int = 0
    sent_ms: int = 0
    received_ms: int = 0
    pushes: int = 0
    run_jobs: _Account = field(default_factory=_Account)
    step_jobs: _Account = field(default_factory=_Account)
    parked_jobs: _Account = field(default_factory=_Account)

    @property
    def reserved(self) -> int:
        """Credits that decisions hold whose commit is not done."""
        return self.run_jobs.reserved + self.step_jobs.reserved + self.parked_jobs.reserved

    @property
    def until_ms(self) -> int:
        """Until when it is used."""
        return self.received_ms + _USED_FOR_MS

    def account(self, kind: JobKind.ValueType, *, wakes: bool = False) -> _Account:
        """Return the credits of a kind; `wakes`: those of parked runs."""
        if kind != JOB_KIND_RUN:
            return self.step_jobs
        return self.parked_jobs if wakes else self.run_jobs

    def free(self, kind: JobKind.ValueType, now_ms: int, *, wakes: bool = False) -> int:
        """Return how many more jobs of the kind may be given."""
        if now_ms > self.until_ms:
            return 0
        return self.account(kind, wakes=wakes).free

    def mostly_free(self, now_ms: int) -> bool:
        """Return whether a step may be given beyond the credits: they are used up by pushes that are still on their way.

        Half of the slots were free although work flows, so steps are short. Should they not be any more, what finds no slot is
        released: at most twice what was stated is pushed until the next statement.
        """
        mine = self.step_jobs
        if now_ms > self.until_ms or self.step_slots < _MANY or 2 * mine.stated < self.step_slots:
            return False
        return mine.reserved + len(mine.unread) < 2 * mine.stated

    def knows(self, kind: JobKind.ValueType, name: str) -> bool:
        """Return whether the worker has the name."""
        return name in (self.workflows if kind == JOB_KIND_RUN else self.steps)

    def take(self, kind: JobKind.ValueType, name: str, *, wakes: bool = False) -> Credit:
        """Reserve a credit for a job of this name."""
        self.account(kind, wakes=wakes).reserved += 1
        handler = self.handlers.get(name) if kind == JOB_KIND_RUN else None
        return Credit(self.worker_id, self.credit_id, self.sent_ms, wakes, handler)


class CreditBook:
    """The credits of all sessions of this replica. `now_ms` is any monotonic clock, the same in all calls."""

    def __init__(self) -> None:
        self._by_worker: dict[str, Statement] = {}

    def enter(self, statement: Statement) -> None:
        """A session began; it has stated nothing yet."""
        self._by_worker[statement.worker_id] = statement

    def leave(self, worker_id: str) -> None:
        """A session ended: its credits end with it."""
        self._by_worker.pop(worker_id, None)

    def state(self, worker_id: str, stated: CreditStatement, now_ms: int) -> None:
        """A statement replaces the one before."""
        mine = self._by_worker.get(worker_id)
        if mine is None:
            return
        mine.credit_id, mine.sent_ms, mine.received_ms = stated.credit_id, stated.sent_ms, now_ms
        mine.run_jobs.state(stated.run_jobs, stated.read)
        mine.step_jobs.state(stated.step_jobs, stated.read)
        mine.parked_jobs.state(stated.wakes, stated.read)

    def offer(
        self, namespace: str, pool: str, kind: JobKind.ValueType, name: str, prefer: str, now_ms: int
    ) -> Credit | None:
        """Take a credit for a job: of the one with most to give.

        A run goes to the worker that keeps its coroutine, if that has one. A step goes to the one that has just ended the
        step before it, unless another has clearly more to give: that slot is free, whatever was pushed since the last
        statement (see `Statement.mostly_free`).
        """
        preferred = self._by_worker.get(prefer) if prefer else None
        if preferred is not None and (
            (preferred.namespace, preferred.pool) != (namespace, pool) or not preferred.knows(kind, name)
        ):
            preferred = None
        if preferred is not None and kind == JOB_KIND_RUN:
            for wakes in (True, False):
                if preferred.free(kind, now_ms, wakes=wakes) > 0:
                    return preferred.take(kind, name, wakes=wakes)
        best: Statement | None = None
        most = 0
        for mine in self._of(namespace, pool):
            free = mine.free(kind, now_ms)
            if free > most and mine.knows(kind, name):
                best, most = mine, free
        if preferred is not None and kind != JOB_KIND_RUN:
            free = preferred.free(kind, now_ms)
            if (
                free + preferred.step_slots // _NEARLY >= most
                if free > 0
                else not most and preferred.mostly_free(now_ms)
            ):
                best = preferred
        return best.take(kind, name) if best is not None else None

    def _of(self, namespace: str, pool: str) -> Iterator[Statement]:
        return (mine for mine in self._by_worker.values() if mine.pool == pool and mine.namespace == namespace)

    def give_back(self, credit: Credit, kind: JobKind.ValueType) -> None:
        """The commit failed: the credit was not used."""
        mine = self._by_worker.get(credit.worker_id)
        if mine is not None:
            account = mine.account(kind, wakes=credit.wakes)
            account.reserved = max(0, account.reserved - 1)

    def use(self, credit: Credit, kind: JobKind.ValueType) -> int:
        """The commit is done: return the number of the push (0: the session is gone, and the grant with it)."""
        mine = self._by_worker.get(credit.worker_id)
        if mine is None:
            return 0
        self.give_back(credit, kind)
        mine.pushes += 1
        mine.account(kind, wakes=credit.wakes).unread.append(mine.pushes)
        return mine.pushes

    def total(self, namespace: str, pool: str, kind: JobKind.ValueType, now_ms: int) -> int:
        """Return how many jobs of a pool's queue could be given out now."""
        return sum(max(0, mine.free(kind, now_ms)) for mine in self._of(namespace, pool))

    def statement(self, worker_id: str) -> Statement | None:
        """Return what a session has stated."""
        return self._by_worker.get(worker_id)

    def known(self, namespace: str, pool: str, kind: JobKind.ValueType, name: str) -> bool:
        """Return whether a session of the pool has the name, with a credit or without."""
        return any(mine.knows(kind, name) for mine in self._of(namespace, pool))

    def any_of(self, namespace: str, pool: str, kind: JobKind.ValueType, now_ms: int) -> Statement | None:
        """Return a session of the pool that could take a job if it had its name."""
        return next((mine for mine in self._of(namespace, pool) if mine.free(kind, now_ms) > 0), None)
