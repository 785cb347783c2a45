"""Credits: how many jobs each session takes unasked.

A statement names the last pushed grant that its worker had read, so that no slot is offered twice; it is used for 2 s from
its receipt; a credit taken for a decision is given back if the commit fails.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from treadle.controlplane.machine import Credit
from treadle.v1.job_pb2 import JOB_KIND_RUN, JobKind
from treadle.v1.worker_service_pb2 import CreditStatement

__all__ = ("CreditBook", "Statement")

_USED_FOR_MS = 2_000


@dataclass(slots=True)
class Statement:
    """What a session has stated, and what was taken of it since."""

    worker_id: str
    namespace: str
    pool: str
    workflows: frozenset[str]
    steps: frozenset[str]
    credit_id: int = 0
    sent_ms: int = 0
    received_ms: int = 0
    run_jobs: int = 0
    step_jobs: int = 0
    pushes: int = 0
    unread: deque[tuple[int, JobKind.ValueType]] = field(default_factory=deque)
    unread_of: Counter[JobKind.ValueType] = field(default_factory=Counter)
    reserved: Counter[JobKind.ValueType] = field(default_factory=Counter)

    def free(self, kind: JobKind.ValueType, now_ms: int) -> int:
        """Return how many more jobs of the kind may be given."""
        if now_ms - self.received_ms > _USED_FOR_MS:
            return 0
        stated = self.run_jobs if kind == JOB_KIND_RUN else self.step_jobs
        return stated - self.reserved[kind] - self.unread_of[kind]

    def knows(self, kind: JobKind.ValueType, name: str) -> bool:
        """Return whether the worker has the name."""
        return name in (self.workflows if kind == JOB_KIND_RUN else self.steps)


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
        mine.run_jobs, mine.step_jobs = stated.run_jobs, stated.step_jobs
        while mine.unread and mine.unread[0][0] <= stated.read:
            mine.unread_of[mine.unread.popleft()[1]] -= 1

    def offer(
        self, namespace: str, pool: str, kind: JobKind.ValueType, name: str, prefer: str, now_ms: int
    ) -> Credit | None:
        """Take a credit for a job: of the preferred worker if it has one, else of the one with most to give."""
        best: Statement | None = None
        most = 0
        preferred = self._by_worker.get(prefer) if prefer else None
        for mine in [preferred] if preferred is not None else self._by_worker.values():
            if (mine.namespace, mine.pool) != (namespace, pool) or not mine.knows(kind, name):
                continue
            free = mine.free(kind, now_ms)
            if free > most:
                best, most = mine, free
        if best is None and preferred is not None:
            return self.offer(namespace, pool, kind, name, "", now_ms)
        if best is None:
            return None
        best.reserved[kind] += 1
        return Credit(best.worker_id, best.credit_id, best.sent_ms)

    def give_back(self, credit: Credit, kind: JobKind.ValueType) -> None:
        """The commit failed: the credit was not used."""
        mine = self._by_worker.get(credit.worker_id)
        if mine is not None and mine.reserved[kind]:
            mine.reserved[kind] -= 1

    def use(self, credit: Credit, kind: JobKind.ValueType) -> int:
        """The commit is done: return the number of the push (0: the session is gone, and the grant with it)."""
        mine = self._by_worker.get(credit.worker_id)
        if mine is None:
            return 0
        if mine.reserved[kind]:
            mine.reserved[kind] -= 1
        mine.pushes += 1
        mine.unread.append((mine.pushes, kind))
        mine.unread_of[kind] += 1
        return mine.pushes

    def total(self, namespace: str, pool: str, kind: JobKind.ValueType, now_ms: int) -> int:
        """Return how many jobs of a pool's queue could be given out now."""
        return sum(
            max(0, mine.free(kind, now_ms))
            for mine in self._by_worker.values()
            if (mine.namespace, mine.pool) == (namespace, pool)
        )

    def statement(self, worker_id: str) -> Statement | None:
        """Return what a session has stated."""
        return self._by_worker.get(worker_id)

    def known(self, namespace: str, pool: str, kind: JobKind.ValueType, name: str) -> bool:
        """Return whether a session of the pool has the name, with a credit or without."""
        return any(
            (mine.namespace, mine.pool) == (namespace, pool) and mine.knows(kind, name)
            for mine in self._by_worker.values()
        )

    def any_of(self, namespace: str, pool: str, kind: JobKind.ValueType, now_ms: int) -> Statement | None:
        """Return a session of the pool that could take a job if it had its name."""
        for mine in self._by_worker.values():
            if (mine.namespace, mine.pool) == (namespace, pool) and mine.free(kind, now_ms) > 0:
                return mine
        return None
