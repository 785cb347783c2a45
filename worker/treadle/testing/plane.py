"""The control plane of a lab: the real machine over the in-memory store, and a replica's memory. No server, no broker.

A request is decided and committed at once, so no commit can conflict with another. Nobody dies here, so leases, watches and
the retention of closed runs lie beyond every test; each timer that is left is one that somebody waits for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Final

from treadle.controlplane.machine import Decision, Request, Settings, children, deadlines, decide
from treadle.controlplane.machine.decide import want
from treadle.controlplane.machine.event_requests import AcceptEvent
from treadle.controlplane.machine.requests import Claimed, FireTimer, PushedGrant, Reply, StartRun
from treadle.controlplane.replica import Replica, Session
from treadle.controlplane.store.memory_core import MemoryCore
from treadle.controlplane.store.port import Loaded, Outcome, Want
from treadle.protocol.errors import ConfigError, RequestError
from treadle.protocol.ids import RECORD_MARK, RunKey
from treadle.v1.common_pb2 import NamedEvent
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.job_pb2 import JOB_KIND_RUN, Job
from treadle.v1.state_pb2 import RUN_STATE_NEEDS_ATTENTION, CommandRow, Letter, RunHead, StartByEvent, WorkerRecord
from treadle.v1.worker_service_pb2 import VERDICT_GO, ClaimItem, ClaimVerdict, SessionHello, SessionRequest

__all__ = ("NEVER_MS", "Plane")

NEVER_MS: Final = 2**50
"""35,000 years: further away than any sleep."""

_REPLICA: Final = "lab"
_PAGE: Final = 500
_SETTINGS: Final = Settings(
    lease_ms=NEVER_MS,
    lease_cap_ms=NEVER_MS,
    watch_ms=NEVER_MS,
    watch_cap_ms=NEVER_MS,
    look_ms=NEVER_MS,
    unseen_ms=NEVER_MS,
    retention_ms=NEVER_MS,
)


class Plane:
    """See the module.

    Args:
        now: The time, in milliseconds since 1970.
        rng: Where ids, and the jitter of retries, come from.

    Attributes:
        runs: All runs, in the order in which they began.
        attention: Runs that were stopped for a person.
        starts: What an event starts.
        code_of: What the name of a workflow means now, where it has versions.
    """

    def __init__(self, now: Callable[[], int], rng: Random) -> None:
        self._now = now
        self.store = MemoryCore(now)
        self.replica = Replica(
            _REPLICA,
            _SETTINGS,
            bits64=lambda: rng.getrandbits(64) or 1,
            token=lambda: rng.randbytes(16),
            share=rng.random,
        )
        self.runs: dict[RunKey, None] = {}
        self.attention: dict[RunKey, None] = {}
        self._shards: list[int] = []
        self._ended: dict[RunKey, list[tuple[RunHead, list[HistoryEvent]]]] = {}
        self.starts: Callable[[NamedEvent], Sequence[StartByEvent]] = lambda event: ()
        self.code_of: Callable[[str], str] = lambda workflow: workflow
        self._letters: deque[Letter] = deque()
        self._jobs: deque[Job] = deque()

    # --- deciding ----------------------------------------------------------------------------------------------------
    def ask(self, run: RunKey, request: Request) -> Reply:
        """Have a client's request decided and committed.

        Raises:
            RequestError: It was refused.
        """
        reply = self._commit(run, request)
        if isinstance(reply, RequestError):
            raise reply
        return reply

    def _commit(self, run: RunKey, request: Request, settle: Callable[[Reply], None] | None = None) -> Reply:
        now = self._now()
        loaded = self.store.load_now([want(run, [request])])[0]
        decision = decide(run, loaded, [request], self.replica.env(now, now))
        if decision.change is not None:
            if decision.change.restart:  # it goes on as new, and its history would be gone
                self._ended.setdefault(run, []).append((_head_of(loaded), list(self.history(run))))
            outcome = self.store.commit_now([decision.change])[0].outcome
            assert outcome is Outcome.OK, (
                f"{outcome} for {request} of {run}: nobody else commits, and time stands still"
            )
            if not loaded.head:
                if not run.run_id.startswith(RECORD_MARK):
                    self.runs[run] = None
                self._shards = sorted({*self._shards, run.shard})
        reply = decision.replies[0]
        if settle is not None:
            settle(reply)
        self._follow(run, decision)
        return reply

    def _follow(self, run: RunKey, decision: Decision) -> None:
        if decision.head is not None and decision.head.state == RUN_STATE_NEEDS_ATTENTION:
            self.attention[run] = None
        self._jobs += decision.jobs
        self._letters += decision.letters
        self.replica.done(run, decision)
        self._load_pages()

    def _load_pages(self) -> None:
        """Owners that are behind get their next page."""
        while self.replica.behind:
            for page in self.replica.pages():
                found = self._load(Want(page.run, events_after=page.after))
                self.replica.page(page, [HistoryEvent.FromString(data) for data in found.events], _head_of(found))

    # --- sessions ----------------------------------------------------------------------------------------------------
    def open_session(self, hello: SessionHello) -> Session:
        """A worker comes."""
        record = WorkerRecord(
            worker_id=hello.worker_id,
            namespace=hello.namespace,
            pool=hello.pool,
            session_id=hello.session_id,
            session_sent_ms=hello.sent_ms,
            replica_id=_REPLICA,
        )
        self.store.open_session_now(record)
        self.store.register_now(hello.namespace, hello.pool, hello.workflows, hello.steps)
        return self.replica.open_session(hello, lambda: None)

    def close_session(self, session: Session) -> None:
        """A worker has drained, and goes."""
        self.replica.close_session(session)
        self.store.close_session_now(session.worker_id, session.session_id, drained=True)

    def take(self, session: Session, frame: SessionRequest) -> None:
        """A worker sent a frame; what answers it waits in the session."""
        for run, request in self.replica.requests(session, frame, self._now()):

            def settle(reply: Reply, run: RunKey = run, request: Request = request) -> None:
                if isinstance(reply, RequestError):
                    raise reply  # no request of a worker is refused so
                self.replica.answer(session, run, request, reply)

            self._commit(run, request, settle)

    # --- what waits --------------------------------------------------------------------------------------------------
    def work(self) -> bool:
        """Do what is to be done now: letters, jobs, timers; whether there was anything."""
        worked = self._deliver()
        worked = self._give_jobs() or worked
        return self._fire() or worked

    def _deliver(self) -> bool:
        worked = bool(self._letters)
        while self._letters:
            letter = self._letters.popleft()
            run, request = children.request_of(letter)
            if isinstance(request, AcceptEvent):
                request.starts = self.starts(request.event)
            elif isinstance(request, StartRun) and letter.HasField("start_scheduled"):
                request.workflow = self.code_of(request.workflow)
            reply = self._commit(run, request)
            told = children.refusal_of(letter, reply) if isinstance(reply, RequestError) else None
            if told is not None:
                self._letters.append(told)
            elif isinstance(reply, RequestError) and not children.applied(reply):
                raise reply
            else:
                sender = RunKey(letter.namespace, letter.from_run_id)
                self.store.confirmed_now([(sender.shard, letter.letter_id)])
        return worked

    def _give_jobs(self) -> bool:
        """Jobs that found no credit when they were dispatched go to who states one now, as on the session lane."""
        worked = False
        for _ in range(len(self._jobs)):
            job = self._jobs.popleft()
            if self._give(job):
                worked = True
            else:
                self._jobs.append(job)
        return worked

    def _give(self, job: Job) -> bool:
        book = self.replica.credits
        credit = book.offer(job.namespace, job.pool, job.kind, job.name, "", self._now())
        if credit is None:
            if not book.known(job.namespace, job.pool, job.kind, job.name):
                what = "workflow" if job.kind == JOB_KIND_RUN else "step"
                raise ConfigError(
                    f"run {job.run_id} needs {what} {job.name!r} of pool {job.pool!r}, which the lab does not have: give "
                    "it the app or the function, as in Lab(app)"
                )
            return False
        run = RunKey(job.namespace, job.run_id)
        self.store.confirmed_now([(run.shard, job.dispatch_id)])
        item = ClaimItem(claim_id=credit.credit_id, sent_ms=credit.sent_ms, job=job)

        def settle(reply: Reply) -> None:
            if isinstance(reply, ClaimVerdict) and reply.verdict == VERDICT_GO:
                if not reply.grant.HasField("job"):
                    reply.grant.job.CopyFrom(job)
                self.replica.push(run, PushedGrant(credit, reply.grant))
            else:
                book.give_back(credit, job.kind)

        self._commit(run, Claimed(item, credit.worker_id, _REPLICA, credit.handler), settle)
        return True

    # --- time --------------------------------------------------------------------------------------------------------
    def next_ms(self) -> int | None:
        """When the next timer is due that somebody waits for; None: there is none."""
        found = self.store.due_now(self._shards, 1)
        due = found.due[0].due_ms if found.due else found.next_due_ms
        return None if due is None or due >= NEVER_MS else due

    def _fire(self) -> bool:
        due = self.store.due_now(self._shards, _PAGE).due
        for timer in due:
            closes = not timer.command_id and deadlines.run_closes(self.head(timer.run), self._now())
            self._commit(timer.run, FireTimer(timer.command_id, closes=closes))
        return bool(due)

    # --- reading -----------------------------------------------------------------------------------------------------
    def _load(self, need: Want) -> Loaded:
        return self.store.load_now([need])[0]

    def head(self, run: RunKey) -> RunHead:
        """Return how a run stands; it must be there."""
        return _head_of(self._load(Want(run)))

    def parts(self, run: RunKey) -> list[tuple[RunHead, list[HistoryEvent]]]:
        """Return head and history of each part of a run; one that never went on as new has one."""
        return [*self._ended.get(run, ()), (self.head(run), list(self.history(run)))]

    def note(self, run: RunKey, name: str) -> bytes | None:
        """Return what is kept under a name beside the run; None: nothing is."""
        return self._load(Want(run, fields=[name])).fields.get(name)

    def rows(self, run: RunKey) -> list[CommandRow]:
        """Return the open commands of a run."""
        fields = self._load(Want(run, all_fields=True, field_limit=1_000)).fields
        return [CommandRow.FromString(data) for name, data in fields.items() if name.startswith("c:")]

    def history(self, run: RunKey) -> Iterator[HistoryEvent]:
        """Yield the events of a run, in order."""
        position = 0
        while events := self._load(Want(run, events_after=position)).events:
            for data in events:
                event = HistoryEvent.FromString(data)
                position = event.position
                yield event


def _head_of(found: Loaded) -> RunHead:
    return RunHead.FromString(found.head)
