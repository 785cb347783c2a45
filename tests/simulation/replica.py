"""A replica of the control plane in virtual time: the real machine, store twin, committer's folding and session memory."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from treadle.controlplane.batches import Item, fold
from treadle.controlplane.duties.leases import Holding, holder_in
from treadle.controlplane.machine import Decision, Request, Settings, children, deadlines, decide
from treadle.controlplane.machine.decide import want
from treadle.controlplane.machine.requests import Asked, CheckLease, FireTimer, Reply
from treadle.controlplane.replica import Replica, Session
from treadle.controlplane.store.cache import RunCache
from treadle.controlplane.store.port import Hint, Loaded, Outcome, Want
from treadle.protocol.errors import RequestError
from treadle.protocol.ids import RunKey
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.job_pb2 import Job
from treadle.v1.state_pb2 import (
    COMMAND_STATE_QUEUED,
    RUN_STATE_QUEUED,
    CommandRow,
    Letter,
    OutboxEntry,
    RunHead,
    WorkerRecord,
)
from treadle.v1.worker_service_pb2 import (
    ANSWER_NEWS,
    ANSWER_OK,
    ANSWER_REWIND,
    OwnerAnswer,
    SessionHello,
    SessionRequest,
)

from .ledger import Broken

if TYPE_CHECKING:
    from .world import World

__all__ = ("SimReplica",)

_LOSSES = 20
"""Conflicts in a row: each was lost to a commit of the other replica, which has at most one under way."""


class SimReplica:
    """See the module. A crash loses everything here; what was committed stays."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.schedule, self.store = world.schedule, world.store
        self.up = False
        self.epoch = 0
        self.settings = Settings(retention_ms=10**9, cleanup_ms=300_000)  # longer than any repair
        self.start()

    def start(self) -> None:
        rng = self.schedule.rng
        self.up = True
        self.epoch += 1
        self.core = Replica(
            f"{self.name}{self.epoch}",
            self.settings,
            bits64=lambda: rng.getrandbits(64) or 1,
            token=lambda: rng.randbytes(16),
            share=rng.random,
        )
        self.cache = RunCache()
        self._lost_in_a_row: Counter[RunKey] = Counter()
        self._waiting: dict[RunKey, deque[Item]] = {}
        self._busy: set[RunKey] = set()
        self.seen_empty: dict[str, int] = {}
        self._later(rng.randint(0, 200), self._round)
        self._later(rng.randint(0, 500), self._slow_duties)

    def crash(self) -> None:
        """kill -9: sessions break, what is in memory is gone."""
        self.up = False
        for session in list(self.core.sessions.values()):
            self.world.replica_lost(session)

    def _later(self, delay_ms: int, action: Callable[[], None]) -> None:
        epoch = self.epoch

        def guarded() -> None:
            if self.up and self.epoch == epoch:
                action()

        self.schedule.later(delay_ms, guarded)

    # --- committing ----------------------------------------------------------------------------------------------
    def ask(self, run: RunKey, request: Request, settle: Callable[[Reply | Exception], None] | None = None) -> None:
        self._waiting.setdefault(run, deque()).append(Item(request, settle or (lambda reply: None), 0))
        self._turn(run)

    def _turn(self, run: RunKey) -> None:
        if run not in self._busy and self._waiting.get(run):
            self._busy.add(run)
            items = fold(self._waiting[run])
            self._later(int(self.schedule.rng.random() * 2), lambda: self._load(run, items))

    def _load(self, run: RunKey, items: list[Item]) -> None:
        requests = [item.request for item in items]
        need = want(run, requests)
        env = self.core.env(self.schedule.now, self.schedule.now)
        loaded = self.cache.get(need) or self._read(need)
        decision = decide(run, loaded, requests, env)
        if self.may_be_outdated(loaded, decision):
            self.core.failed(decision)
            loaded = self._read(need)
            decision = decide(run, loaded, requests, env)
        if decision.change is None and loaded.revision != self.store.load_now([need])[0].revision:
            raise Broken(f"{self.name} answers about {run} from an outdated view")
        draw = self.schedule.rng.random()
        slow = draw < self.world.slow_commits
        self._later(
            self.schedule.rng.randint(500, 6000) if slow else int(draw * 2),
            lambda: self._commit(run, items, decision),
        )

    def may_be_outdated(self, loaded: Loaded, decision: Decision) -> bool:
        """As the committer does: that nothing is to be done is decided on what the store has now."""
        return loaded.cached and decision.change is None

    def _read(self, need: Want) -> Loaded:
        asked = self.cache.asked([need])
        loaded = self.store.load_now([need])
        self.cache.found(asked, [need], loaded)
        return loaded[0]

    def _commit(self, run: RunKey, items: list[Item], decision: Decision) -> None:
        self._busy.discard(run)
        if decision.change is not None:
            self.cache.committing([decision.change])
            answers = self.store.commit_now([decision.change])
            self.cache.committed([decision.change], answers)
            outcome = answers[0].outcome
            if outcome is not Outcome.OK:
                self._lost_in_a_row[run] += outcome is Outcome.CONFLICT
                if self._lost_in_a_row[run] > _LOSSES:
                    raise Broken(f"L: {self.name} meets a conflict on {run} again and again")
                self.core.failed(decision)
                self._waiting.setdefault(run, deque()).extendleft(reversed(items))
                self._later(1, lambda: self._turn(run))
                return
            del self._lost_in_a_row[run]
            self.world.ledger.committed(decision.change)
            self.world.observed(run, decision)
        if self.schedule.rng.random() < self.world.crash_after_commit:
            self.schedule.note(f"{self.name} dies right after a commit to {run}")
            self.world.crash_replica(self)
            return
        for item, reply in zip(items, decision.replies, strict=True):
            item.settle(reply)
        if decision.jobs:
            self.publish(decision.jobs)
        for letter in decision.letters:
            self.deliver(letter)
        self.core.done(run, decision)
        self._pages()
        if decision.change is not None and decision.change.hint is not None:
            self.world.hint(self, decision.change.hint)
        self._turn(run)

    def publish(self, jobs: list[Job]) -> None:
        epoch = self.epoch

        def confirmed(done: list[Job]) -> None:
            if self.up and self.epoch == epoch:
                self.store.confirmed_now([(RunKey(j.namespace, j.run_id).shard, j.dispatch_id) for j in done])

        self.world.broker.publish(jobs, confirmed)

    def deliver(self, letter: Letter) -> None:
        """As the engine does; it may be late, and a crash loses it."""
        run, request = children.request_of(letter)
        self.world.known(run)

        def settle(reply: Reply | Exception) -> None:
            told = children.refusal_of(letter, reply) if isinstance(reply, RequestError) else None
            if told is not None:
                self.deliver(told)
            elif children.applied(reply):
                if letter.HasField("use_keys"):
                    self.core.keys.note(letter, reply, self.schedule.now)
                self.store.confirmed_now([(RunKey(letter.namespace, letter.from_run_id).shard, letter.letter_id)])

        self._later(self.schedule.rng.choice((0, 0, 1, 700)), lambda: self.ask(run, request, settle))

    def _pages(self) -> None:
        for page in self.core.pages():
            need = Want(page.run, events_after=page.after)
            known = self.cache.get(need)
            found = known if known is not None and known.events else self._read(need)
            if found.head:
                events = [HistoryEvent.FromString(data) for data in found.events]
                self.core.page(page, events, RunHead.FromString(found.head))
                self._later(1, self._pages)

    def hinted(self, hint: Hint) -> None:
        if self.up:
            self.cache.hinted([hint])
            self.core.hinted(hint)
            self._pages()

    # --- sessions ------------------------------------------------------------------------------------------------
    def open_session(self, hello: SessionHello, ready: Callable[[], None]) -> Session | None:
        record = WorkerRecord(
            worker_id=hello.worker_id,
            namespace=hello.namespace,
            pool=hello.pool,
            session_id=hello.session_id,
            session_sent_ms=hello.sent_ms,
            replica_id=self.core.replica_id,
        )
        if not self.store.open_session_now(record):
            return None
        return self.core.open_session(hello, ready)

    def take(self, session: Session, frame: SessionRequest) -> None:
        for run, request in self.core.requests(session, frame, self.schedule.now):

            def settle(reply: Reply | Exception, run: RunKey = run, request: Request = request) -> None:
                if not isinstance(reply, Exception):
                    self._watch_guess(run, request, reply)
                    self.world.answered(session, request, reply)
                    self.core.answer(session, run, request, reply)

            self.ask(run, request, settle)

    def _watch_guess(self, run: RunKey, request: Request, reply: Reply) -> None:
        if isinstance(request, Asked) and isinstance(reply, OwnerAnswer) and request.request.HasField("foretold"):
            if reply.answer in (ANSWER_OK, ANSWER_NEWS):
                self.world.ledger.taken_ahead(run, request.request)
            elif reply.answer == ANSWER_REWIND:
                self.world.ledger.wrong += 1

    def session_ended(self, session: Session, *, drained: bool) -> None:
        """The worker's side ended it, as far as this replica can see."""
        granted = self.core.close_session(session)
        record = self.store.close_session_now(session.worker_id, session.session_id, drained=drained)
        if record is None:
            return
        held = {(RunKey(h.namespace, h.run_id), h.command_id) for h in record.held} | set(granted.values())
        self._later(self.settings.grace_ms + 5, lambda: self._check(sorted(held)))

    # --- duties --------------------------------------------------------------------------------------------------
    def _round(self) -> None:
        held = self.store.hold_now(self.core.replica_id, self.world.shards, 3000)
        if held:
            self.shards = sorted(held)
            found = self.store.due_now(self.shards, 500)
            for timer in found.due:
                self._fire(timer.run, timer.command_id)
            next_ms = 1000 if found.next_due_ms is None else min(1000, max(1, found.next_due_ms - found.time_ms))
            self._later(next_ms if not found.due else 20, self._round)
        else:
            self.shards = []
            self._later(1000, self._round)

    def _fire(self, run: RunKey, command_id: str) -> None:
        loaded = self.store.load_now([Want(run, fields=[f"c:{command_id}"] if command_id else ())])[0]
        holding = holder_in(loaded, run, command_id)
        if holding is not None:
            self._look(holding)
        if holding is None or not command_id:
            closes = not command_id and deadlines.run_closes(RunHead.FromString(loaded.head), self.schedule.now)
            gone = self._gone(loaded.head, loaded.fields, command_id)
            self.ask(run, FireTimer(command_id, gone=gone, closes=closes))

    def _gone(self, head_data: bytes, fields: dict[str, bytes], command_id: str) -> bool:
        """The broker is asked: a queued job that has no copy left, and none on its way, is gone."""
        if not head_data:
            return False
        head = RunHead.FromString(head_data)
        if command_id:
            data = fields.get(f"c:{command_id}")
            row = CommandRow.FromString(data) if data else CommandRow()
            waits, dispatch_id = row.state == COMMAND_STATE_QUEUED, row.dispatch_id
        else:
            waits, dispatch_id = head.state == RUN_STATE_QUEUED, head.wake_dispatch_id
        return waits and not self.world.broker.copies(dispatch_id)

    def _check(self, items: list[tuple[RunKey, str]]) -> None:
        for run, command_id in items:
            loaded = self.store.load_now([Want(run, fields=[f"c:{command_id}"] if command_id else ())])[0]
            holding = holder_in(loaded, run, command_id)
            if holding is not None:
                self._look(holding)

    def _look(self, holding: Holding) -> None:
        """The row was read; the record is read later, and the commit comes later still (A6)."""

        def read() -> None:
            view = self.store.view_workers_now([holding.holder.worker_id])[0]
            check = CheckLease(holding.command_id, holding.holder.token, holding.holder.lease_set_ms, view)
            self._later(self.schedule.rng.choice((0, 1, 5, 300)), lambda: self.ask(holding.run, check))

        self._later(self.schedule.rng.choice((0, 1, 5, 100)), read)

    def _slow_duties(self) -> None:
        """The outbox, and workers that went silent."""
        now = self.schedule.now
        if getattr(self, "shards", None):
            stale = self.store.stale_outbox_now(self.shards, now - 5000, 100)
            entries = [OutboxEntry.FromString(one.entry) for one in stale]
            jobs = [entry.job for entry in entries if entry.HasField("job")]
            if jobs:
                self.publish(jobs)
            for entry in entries:
                if entry.HasField("letter"):
                    self.deliver(entry.letter)
            for record in self.store.silent_now(self.world.shards, now - self.settings.silence_ms, 100).records:
                self._check([(RunKey(h.namespace, h.run_id), h.command_id) for h in record.held])
        self._later(500, self._slow_duties)
