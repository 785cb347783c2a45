"""A replica without its I/O: turns frames into requests, and decisions and replies into frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from treadle.controlplane.events.known_keys import KnownKeys
from treadle.controlplane.machine import Credit, Decision, Env, Request, Settings
from treadle.controlplane.machine.requests import Asked, Claimed, Progressed, PushedGrant, Reply, Reported
from treadle.controlplane.store.port import Hint
from treadle.protocol.ids import RunKey
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.job_pb2 import JOB_KIND_RUN, JobKind
from treadle.v1.state_pb2 import RUN_STATE_CLOSED, RUN_STATE_OPEN, RunHead
from treadle.v1.worker_service_pb2 import (
    ANSWER_LEASE_LOST,
    ANSWER_OK,
    ANSWER_SETTLED,
    VERDICT_GO,
    ClaimVerdict,
    OwnerAnswer,
    ReportAnswer,
    SessionHello,
    SessionRequest,
)

from .credits import CreditBook, Statement
from .session import OpenRun, Session

__all__ = ("Page", "Replica")


class Page(NamedTuple):
    """A page of history to be loaded for an owner, and then told with `page()`."""

    worker_id: str
    token: bytes
    run: RunKey
    after: int


class Replica:
    """See the module.

    Args:
        replica_id: Random id of this process.
        settings: Times and limits of the machine.
        bits64, token, share: Chance, injected.
        lives: See `RunStore.lives`.
    """

    def __init__(
        self,
        replica_id: str,
        settings: Settings,
        *,
        bits64: Callable[[], int],
        token: Callable[[], bytes],
        share: Callable[[], float],
        lives: Callable[[], int] = lambda: 0,
    ) -> None:
        self.replica_id = replica_id
        self.settings = settings
        self.credits = CreditBook()
        self.keys = KnownKeys(lives)
        self.sessions: dict[str, Session] = {}
        self._bits64, self._token, self._share = bits64, token, share
        self._owners: dict[RunKey, tuple[Session, OpenRun]] = {}
        self._behind: dict[bytes, Page] = {}

    # --- sessions --------------------------------------------------------------------------------------------------
    def open_session(self, hello: SessionHello, ready: Callable[[], None]) -> Session:
        """A session was recorded in the store; it replaces an earlier one of the same worker here.

        `ready` is called whenever a batch for it begins.
        """
        before = self.sessions.get(hello.worker_id)
        if before is not None:
            self.close_session(before)
        handlers = dict(hello.on_failure)
        session = Session(hello.worker_id, hello.session_id, hello.namespace, hello.pool, hello.lane, ready, handlers)
        self.sessions[hello.worker_id] = session
        self.credits.enter(
            Statement(
                hello.worker_id,
                hello.namespace,
                hello.pool,
                frozenset(hello.workflows),
                frozenset(hello.steps),
                handlers,
                hello.step_slots,
            )
        )
        session.batch.welcome.replica_id = self.replica_id
        return session

    def close_session(self, session: Session) -> dict[bytes, tuple[RunKey, str]]:
        """A session ended; returns what was granted over it and not given back: token -> (run, command id)."""
        if self.sessions.get(session.worker_id) is session:
            del self.sessions[session.worker_id]
            self.credits.leave(session.worker_id)
        for mine in session.open.values():
            held = self._owners.get(mine.run)
            if held is not None and held[0] is session:
                del self._owners[mine.run]
        return session.granted

    def refuse_jobs(self) -> None:
        """Workers are about to go elsewhere: what were pushed to them now would be read by nobody."""
        for worker_id in self.sessions:
            self.credits.leave(worker_id)

    def requests(self, session: Session, frame: SessionRequest, now_ms: int) -> list[tuple[RunKey, Request]]:
        """Take a frame: credits are noted, the rest are requests for the machine, in order."""
        namespace, worker_id = session.namespace, session.worker_id
        found: list[tuple[RunKey, Request]] = []
        for item in frame.claims:
            if item.garbage or not item.job.run_id:
                continue  # kept aside by the shell
            handler = session.handlers.get(item.job.name) if item.job.kind == JOB_KIND_RUN else None
            found.append((RunKey(namespace, item.job.run_id), Claimed(item, worker_id, self.replica_id, handler)))
        found.extend((RunKey(namespace, report.run_id), Reported(report)) for report in frame.reports)
        found.extend((RunKey(namespace, told.run_id), Progressed(told)) for told in frame.progress)
        for ask in frame.requests:
            run = RunKey(namespace, ask.run_id)
            session.confirmed(ask.token, ask.seen)
            found.append((run, Asked(ask, worker_id, self.replica_id)))
        if frame.HasField("credits") and self.sessions.get(worker_id) is session:  # else they ended with it
            self.credits.state(worker_id, frame.credits, now_ms)
            session.took_credits(frame.credits.credit_id, waits=bool(found))
        return found

    def _attach(self, session: Session, run: RunKey, token: bytes, seen: int) -> OpenRun | None:
        """The store said that this token owns the run: its news go down this session, unless that was replaced."""
        if self.sessions.get(session.worker_id) is not session:
            return None
        mine = session.adopt(run, token, seen)
        session.confirmed(token, seen)
        self._owners[run] = (session, mine)
        return mine

    # --- deciding ----------------------------------------------------------------------------------------------------
    def env(self, store_now_ms: int, now_ms: int) -> Env:
        """Return the world for one decision: `store_now_ms` is the clock of Redis, `now_ms` this replica's own."""

        def offer(namespace: str, pool: str, kind: JobKind.ValueType, name: str, prefer: str) -> Credit | None:
            credit = self.credits.offer(namespace, pool, kind, name, prefer, now_ms)
            if credit is not None:
                taken.append((credit, kind))
            return credit

        taken: list[tuple[Credit, JobKind.ValueType]] = []
        return Env(
            store_now_ms,
            self.replica_id,
            self._bits64,
            self._token,
            self._share,
            offer,
            self.settings,
            lambda namespace, name, keys: self.keys.known(namespace, name, keys, now_ms),
            taken,
        )

    def failed(self, decision: Decision) -> None:
        """The commit of a decision did not happen: its credits were not used."""
        for pushed in decision.grants:
            self.credits.give_back(pushed.credit, pushed.grant.job.kind)

    def done(self, run: RunKey, decision: Decision) -> None:
        """The commit of a decision is done: push grants, cancels and news down the sessions of this replica."""
        for pushed in decision.grants:
            self.push(run, pushed)
        for order in decision.cancels:
            if order.worker_id in self.sessions:  # it may have come here since it got GO
                self.sessions[order.worker_id].cancel(order.token, order.reason)
        if decision.owner_gone is not None:
            held = self._owners.get(run)
            if held is not None and held[1].token == decision.owner_gone[2]:
                self._closed_under(*held)
        for job in decision.jobs:
            if job.kind == JOB_KIND_RUN:
                self.run_job_waits(job.namespace, job.pool)
        head = decision.head
        if head is not None and head.state == RUN_STATE_OPEN and head.owner.replica_id == self.replica_id:
            self.news(run, head.owner.token, decision.events, head.length, resend=decision.resend)

    def run_job_waits(self, namespace: str, pool: str) -> None:
        """No credit took a run job: workers of its pool should make room (R9)."""
        for session in self.sessions.values():
            if (session.namespace, session.pool) == (namespace, pool):
                session.batch.run_job_waits = True

    def push(self, run: RunKey, pushed: PushedGrant) -> None:
        """A GO for a credit is committed: send it down, if the session is still there."""
        grant = pushed.grant
        session = self.sessions.get(pushed.credit.worker_id)
        grant.push_number = self.credits.use(pushed.credit, grant.job.kind)
        if session is None or not grant.push_number:
            return  # the session is gone: the end of it, or the lease check, finds the token
        if grant.job.kind == JOB_KIND_RUN:
            mine = session.granted_run(run, grant, pushed.after)
            self._owners[run] = (session, mine)
            if mine.behind:
                self._behind[mine.token] = Page(session.worker_id, mine.token, run, mine.sent)
        else:
            session.granted_step(run, grant.job.command_id, grant.token)
        session.batch.grants.append(grant)

    def answer(self, session: Session, run: RunKey, request: Request, reply: Reply) -> None:
        """Put the reply to a request of this session into its next frame."""
        if isinstance(reply, ClaimVerdict) and isinstance(request, Claimed):
            if reply.verdict == VERDICT_GO:
                self._granted(session, run, request, reply)
            session.batch.verdicts.append(reply)
        elif isinstance(reply, ReportAnswer) and isinstance(request, Progressed):
            session.batch.progress_answers.append(reply)
        elif isinstance(reply, ReportAnswer):
            session.forget(reply.token)
            session.batch.report_answers.append(reply)
        elif isinstance(reply, OwnerAnswer) and isinstance(request, Asked):
            self._answered(session, run, request, reply)
            session.batch.owner_answers.append(reply)

    def _granted(self, session: Session, run: RunKey, request: Claimed, reply: ClaimVerdict) -> None:
        job = request.item.job
        if job.kind != JOB_KIND_RUN:
            session.granted_step(run, job.command_id, reply.grant.token)
            return
        after = 0 if reply.grant.run.from_start else request.item.after_position
        mine = session.granted_run(run, reply.grant, after)
        if self.sessions.get(session.worker_id) is not session:
            return  # its worker says again what it holds, over the session that replaced this one
        self._owners[run] = (session, mine)
        if mine.behind:
            self._behind[mine.token] = Page(session.worker_id, mine.token, run, mine.sent)

    def _answered(self, session: Session, run: RunKey, request: Asked, reply: OwnerAnswer) -> None:
        ask = request.request
        final = ask.WhichOneof("final")
        gone = reply.answer in (ANSWER_LEASE_LOST, ANSWER_SETTLED) or (reply.answer == ANSWER_OK and final is not None)
        if gone:
            session.forget(ask.token)
            held = self._owners.get(run)
            if held is not None and held[1].token == ask.token:
                del self._owners[run]
            return
        mine = self._attach(session, run, ask.token, ask.seen)
        if mine is None:
            return
        if reply.events:
            mine.sent = max(mine.sent, reply.events[-1].position)
            mine.length = max(mine.length, mine.sent)
        if mine.behind:
            self._behind[mine.token] = Page(session.worker_id, mine.token, run, mine.sent)

    # --- news --------------------------------------------------------------------------------------------------------
    def news(
        self, run: RunKey, token: bytes, events: Sequence[HistoryEvent], length: int, *, resend: bool = False
    ) -> None:
        """The history of a run that a session here holds open has grown (or its owner has not confirmed it)."""
        held = self._owners.get(run)
        if held is None or held[1].token != token:
            return
        session, mine = held
        if resend:
            session.resend(mine)
        session.news(mine, events, length)
        if mine.behind:
            self._behind[mine.token] = Page(session.worker_id, mine.token, run, mine.sent)

    def hinted(self, hint: Hint) -> None:
        """Another replica changed a run; only ever a hint."""
        run = RunKey(hint.namespace, hint.run_id)
        held = self._owners.get(run)
        if held is not None:
            session, mine = held
            if hint.replica_id == self.replica_id:
                mine.length = max(mine.length, hint.length)
            if mine.behind or hint.closed:  # a look tells whether it is this owner's run that was closed
                self._behind[mine.token] = Page(session.worker_id, mine.token, run, mine.sent)
        for worker_id, token, reason in hint.cancels:
            if worker_id in self.sessions:
                self.sessions[worker_id].cancel(token, reason)

    @property
    def behind(self) -> bool:
        """Whether an owner waits for a page."""
        return bool(self._behind)

    def pages(self, limit: int = 1_000) -> list[Page]:
        """Return pages that must be loaded now, at most `limit`; each is returned once."""
        wanted = [self._behind.pop(token) for token in list(islice(self._behind, limit))]
        return wanted

    def unloaded(self, wanted: Iterable[Page]) -> None:
        """These pages could not be loaded: they are still wanted."""
        for page in wanted:
            self._behind.setdefault(page.token, page)

    def page(self, wanted: Page, events: Iterable[HistoryEvent], head: RunHead) -> None:
        """A page was loaded; `events` are those behind `wanted.after`, in order."""
        held = self._owners.get(wanted.run)
        if held is None or held[1].token != wanted.token:
            return
        session, mine = held
        if head.state == RUN_STATE_CLOSED:
            self._closed_under(session, mine)
            return
        before = mine.sent
        session.news(mine, list(events), head.length)
        if mine.behind and mine.sent > before:
            self._behind[mine.token] = Page(session.worker_id, mine.token, wanted.run, mine.sent)

    def _closed_under(self, session: Session, mine: OpenRun) -> None:
        """Its run was ended by somebody else: the owner is told as if it had asked."""
        session.forget(mine.token)
        del self._owners[mine.run]
        session.batch.owner_answers.append(OwnerAnswer(run_id=mine.run.run_id, token=mine.token, answer=ANSWER_SETTLED))
