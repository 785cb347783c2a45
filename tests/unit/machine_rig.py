"""A bench for the machine: the in-memory store under a clock that a test moves, and what workers, owners and clients say."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from treadle.controlplane.machine import Credit, Decision, Env, Request, Settings, deadlines, decide
from treadle.controlplane.machine.decide import want
from treadle.controlplane.machine.requests import (
    AcceptRun,
    Asked,
    CancelRun,
    CheckLease,
    Claimed,
    FireTimer,
    Registered,
    Reply,
    Reported,
    RunReply,
    StartRun,
    TerminateRun,
)
from treadle.controlplane.store.memory import MemoryStore
from treadle.controlplane.store.port import Beat, Change, Outcome, Want
from treadle.protocol.ids import SHARDS, RunKey, worker_shard
from treadle.protocol.tags import code_name
from treadle.v1.common_pb2 import Failure, Payload, RetryPolicy, TraceContext
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.job_pb2 import JOB_KIND_RUN, JOB_KIND_STEP, Job, JobKind
from treadle.v1.run_service_pb2 import CONFLICT_POLICY_UNSPECIFIED, ConflictPolicy
from treadle.v1.state_pb2 import COMMAND_STATE_QUARANTINED, CommandRow, HeldToken, Holder, RunHead, WorkerRecord
from treadle.v1.worker_service_pb2 import (
    REPORT_KIND_COMPLETED,
    REPORT_KIND_FAILED,
    VERDICT_GO,
    AttemptReport,
    Checkpoint,
    ClaimItem,
    ClaimVerdict,
    Command,
    Grant,
    OwnerAnswer,
    OwnerRequest,
    ReportAnswer,
    ReportKind,
    ScheduleStep,
    StartLocalStep,
    StartTimer,
)

__all__ = ("POLICY", "RUN", "Owner", "Rig", "local", "quarantined", "schedule", "sleep", "swept", "value")

RUN = RunKey("ns", "run-1")
POLICY = RetryPolicy(attempts=3, initial_ms=1000, factor=2, cap_ms=60_000, jitter=0.5)
"""Three tries; 500 to 1,000 ms before the second, 1 to 2 s before the third."""


def value(text: str = "x") -> Payload:
    """Return an encoded value."""
    return Payload(data=text.encode())


def schedule(
    command_id: str = "0/s#1",
    *,
    pool: str = "p",
    retry: RetryPolicy = POLICY,
    timeout_ms: int = 0,
    at_most_once: bool = False,
    data: bytes = b"in",
    digest: int = 1,
) -> Command:
    """Return the command of a pool step named "s"."""
    spec = ScheduleStep(name="s", pool=pool, input=Payload(data=data), retry=retry, timeout_ms=timeout_ms)
    spec.at_most_once = at_most_once
    return Command(command_id=command_id, digest=digest, schedule_step=spec)


def sleep(command_id: str = "0/sleep#1", delay_ms: int = 10_000) -> Command:
    """Return the command of a timer."""
    return Command(command_id=command_id, digest=2, start_timer=StartTimer(delay_ms=delay_ms))


def local(command_id: str = "0/l#1", *, try_number: int = 1, at_most_once: bool = True) -> Command:
    """Return the announcement of a local step."""
    spec = StartLocalStep(name="l", try_number=try_number, at_most_once=at_most_once)
    return Command(command_id=command_id, digest=3, start_local_step=spec)


class Owner:
    """What a worker's code of a run knows: its token, what it was fed and told, and the number of its next request."""

    def __init__(self, rig: Rig, grant: Grant, worker_id: str) -> None:
        self.rig, self.token, self.worker_id = rig, grant.token, worker_id
        self.seq = 0
        self.seen = 0

    def catch_up(self) -> Owner:
        """Be fed everything that is there."""
        self.seen = self.rig.head.length
        return self

    def request(self, *commands: Command, **kind: Any) -> OwnerRequest:
        """Build the next request; keywords are fields of OwnerRequest."""
        self.seq += 1
        ask = OwnerRequest(
            run_id=RUN.run_id,
            incarnation=self.rig.head.incarnation,
            token=self.token,
            seq=self.seq,
            seen=self.seen,
            told=self.seen,
            told_revision=self.rig.revision_at(self.seen),
            sent_ms=self.rig.sent_ms,
            commands=commands,
        )
        ask.MergeFrom(OwnerRequest(**kind))
        for name in ("park", "cancelled", "release"):  # an empty message must still be there
            if name in kind:
                getattr(ask, name).SetInParent()
        return ask

    def send(self, ask: OwnerRequest, replica_id: str = "R") -> OwnerAnswer:
        reply = self.rig.ask(Asked(ask, self.worker_id, replica_id))
        assert isinstance(reply, OwnerAnswer)
        return reply

    def say(self, *commands: Command, **kind: Any) -> OwnerAnswer:
        """Be fed everything, then send the next request."""
        self.catch_up()
        return self.send(self.request(*commands, **kind))


class Rig:
    """See the module. `sent_ms` is a worker's clock; it runs with the store's, from another beginning."""

    def __init__(self, settings: Settings | None = None, seed: int = 1) -> None:
        self.now = 1_000_000
        self.store = MemoryStore(lambda: self.now)
        self.settings = settings or Settings()
        self.rng = Random(seed)
        self.share = 0.0
        self.credits: list[tuple[JobKind.ValueType, Credit]] = []
        self.offers: list[tuple[JobKind.ValueType, str, str]] = []
        self.decision = Decision()
        self.shards = range(SHARDS)
        self._claims = 0

    @property
    def sent_ms(self) -> int:
        return self.now - 900_000

    # --- the store, as it stands -----------------------------------------------------------------------------------
    @property
    def head(self) -> RunHead:
        return RunHead.FromString(self.store.load_now([Want(RUN)])[0].head)

    def row(self, command_id: str = "0/s#1") -> CommandRow | None:
        found = self.store.load_now([Want(RUN, fields=[f"c:{command_id}"])])[0].fields
        return CommandRow.FromString(found[f"c:{command_id}"]) if found else None

    def the_row(self, command_id: str = "0/s#1") -> CommandRow:
        row = self.row(command_id)
        assert row is not None, f"{command_id} is settled"
        return row

    def fields(self) -> dict[str, bytes]:
        return self.store.load_now([Want(RUN, all_fields=True, field_limit=10**6)])[0].fields

    def history(self) -> list[HistoryEvent]:
        events: list[HistoryEvent] = []
        while page := self.store.load_now([Want(RUN, events_after=len(events))])[0].events:
            events += [HistoryEvent.FromString(data) for data in page]
        return events

    def kinds(self) -> list[str]:
        return [str(event.WhichOneof("kind")) for event in self.history()]

    def last(self, kind: str) -> Any:
        """Return the latest event of a kind."""
        return next(getattr(e, kind) for e in reversed(self.history()) if e.WhichOneof("kind") == kind)

    def revision_at(self, position: int) -> int:
        events = self.history()
        return events[position - 1].revision if 0 < position <= len(events) else 0

    def timers(self) -> dict[str, int]:
        """Return the timers of the run: command id -> due."""
        shard = self.store.snapshot().timers.get(RUN.shard, {})
        return {command_id: due for (run, command_id), due in shard.items() if run == RUN}

    def outbox(self) -> list[str]:
        return list(self.store.snapshot().outbox.get(RUN.shard, {}))

    def indexes(self) -> set[str]:
        """Return the names of the indexes that have a member of the run."""
        return {
            name
            for (name, _), members in self.store.snapshot().index.items()
            for member in members
            if member.split("\x1f")[0] == RUN.run_id
        }

    # --- asking ------------------------------------------------------------------------------------------------------
    def env(self) -> Env:
        return Env(
            now_ms=self.now,
            replica_id="R",
            bits64=lambda: self.rng.getrandbits(64) or 1,
            token=lambda: self.rng.randbytes(16),
            share=lambda: self.share,
            offer=self._offer,
            settings=self.settings,
        )

    def _offer(self, ns: str, pool: str, kind: JobKind.ValueType, name: str, prefer: str) -> Credit | None:
        self.offers.append((kind, name, prefer))
        fits = [item for item in self.credits if item[0] == kind]
        fits.sort(key=lambda item: item[1].worker_id != prefer)
        if not fits:
            return None
        self.credits.remove(fits[0])
        return fits[0][1]

    def credit(self, kind: JobKind.ValueType, worker_id: str = "A") -> Credit:
        """A worker takes one job of the kind unasked."""
        credit = Credit(worker_id, self.rng.getrandbits(64), self.sent_ms)
        self.credits.append((kind, credit))
        return credit

    def decide(self, *requests: Request) -> Decision:
        """Load and decide a batch; nothing is committed."""
        loaded = self.store.load_now([want(RUN, requests)])[0]
        self.decision = decide(RUN, loaded, requests, self.env())
        return self.decision

    def commit(self, decision: Decision) -> Outcome:
        if decision.orphans:
            gone = Change(RUN, 0, 1, b"", delete=True, timers_del=list(decision.orphans))
            self.store.commit_now([gone])
        if decision.change is None:
            return Outcome.OK
        return self.store.commit_now([decision.change])[0].outcome

    def batch(self, *requests: Request) -> list[Reply]:
        decision = self.decide(*requests)
        assert self.commit(decision) is Outcome.OK
        return decision.replies

    def ask(self, request: Request) -> Reply:
        return self.batch(request)[0]

    # --- what clients say ----------------------------------------------------------------------------------------------
    def start(
        self, request_id: str = "start", policy: ConflictPolicy.ValueType = CONFLICT_POLICY_UNSPECIFIED
    ) -> RunReply:
        reply = self.ask(self.start_request(request_id, policy))
        assert isinstance(reply, RunReply), reply
        return reply

    @staticmethod
    def start_request(
        request_id: str = "start", policy: ConflictPolicy.ValueType = CONFLICT_POLICY_UNSPECIFIED
    ) -> StartRun:
        return StartRun("wf", "p", value("in"), request_id, policy, TraceContext())

    def cancel_run(self, request_id: str = "c") -> Reply:
        return self.ask(CancelRun(request_id, "why"))

    def terminate(self, request_id: str = "t") -> Reply:
        return self.ask(TerminateRun(request_id, "why"))

    def accept(self, request_id: str = "a") -> Reply:
        return self.ask(AcceptRun(request_id, "fine"))

    # --- what workers say ------------------------------------------------------------------------------------------------
    def run_job(self) -> Job:
        head = self.head
        job = Job(namespace="ns", run_id=RUN.run_id, incarnation=head.incarnation, kind=JOB_KIND_RUN)
        job.pool, job.name, job.dispatch_id = "p", code_name(head.workflow, head.version), head.wake_dispatch_id
        return job

    def step_job(self, command_id: str = "0/s#1") -> Job:
        """Return the job of the present try, as it lies in the queue."""
        row = self.the_row(command_id)
        return Job(
            namespace="ns",
            run_id=RUN.run_id,
            incarnation=self.head.incarnation,
            kind=JOB_KIND_STEP,
            pool=row.pool,
            name=row.name,
            dispatch_id=row.dispatch_id,
            command_id=command_id,
            try_number=row.try_number,
        )

    def item(self, job: Job, **kind: Any) -> ClaimItem:
        """Return a new claim, sent now; keywords are fields of ClaimItem."""
        self._claims += 1
        return ClaimItem(**{"claim_id": self._claims, "sent_ms": self.sent_ms, "job": job, **kind})

    def send(self, item: ClaimItem, worker_id: str = "A", replica_id: str = "R") -> ClaimVerdict:
        reply = self.ask(Claimed(item, worker_id, replica_id))
        assert isinstance(reply, ClaimVerdict)
        return reply

    def claim(self, job: Job, worker_id: str = "A", **kind: Any) -> ClaimVerdict:
        return self.send(self.item(job, **kind), worker_id)

    def open(self, worker_id: str = "A") -> Owner:
        """Claim the run job: its owner, fed nothing yet."""
        verdict = self.claim(self.run_job(), worker_id)
        assert verdict.verdict == VERDICT_GO, verdict
        return Owner(self, verdict.grant, worker_id)

    def with_step(self, *commands: Command, worker_id: str = "O") -> Owner:
        """Start the run, open it, and schedule (a pool step unless given)."""
        self.start()
        owner = self.open(worker_id)
        owner.say(*(commands or (schedule(),)))
        return owner

    def hold(self, worker_id: str = "A", command_id: str = "0/s#1") -> Grant:
        """Claim the step: GO."""
        verdict = self.claim(self.step_job(command_id), worker_id)
        assert verdict.verdict == VERDICT_GO, verdict
        return verdict.grant

    def report(
        self,
        token: bytes,
        kind: ReportKind.ValueType = REPORT_KIND_COMPLETED,
        *,
        command_id: str = "0/s#1",
        incarnation: int | None = None,
        **more: Any,
    ) -> ReportAnswer:
        told = AttemptReport(
            run_id=RUN.run_id,
            incarnation=self.head.incarnation if incarnation is None else incarnation,
            command_id=command_id,
            token=token,
            kind=kind,
            **more,
        )
        reply = self.ask(Reported(told))
        assert isinstance(reply, ReportAnswer)
        return reply

    def fail(self, token: bytes, type: str = "Boom", *, final: bool = False, **more: Any) -> ReportAnswer:
        return self.report(token, REPORT_KIND_FAILED, failure=Failure(type=type, message="m", final=final), **more)

    @staticmethod
    def checkpoint(command_id: str = "0/l#1", **kind: Any) -> Checkpoint:
        return Checkpoint(**{"command_id": command_id, "digest": 3, "name": "l", "try_number": 1, "kind": 1, **kind})

    # --- time, timers and workers' records -----------------------------------------------------------------------------
    def wait(self, ms: int) -> None:
        self.now += ms

    def fire(self, command_id: str = "", *, gone: bool = False, soon: bool = False) -> Decision:
        closes = not command_id and deadlines.run_closes(self.head, self.now)
        self.ask(FireTimer(command_id, gone=gone, soon=soon, closes=closes))
        return self.decision

    def due(self) -> list[str]:
        """Return the command ids of timers that are due."""
        return [timer.command_id for timer in self.store.due_now([RUN.shard], 10_000).due if timer.run == RUN]

    def register(self, command_id: str = "") -> None:
        self.ask(Registered(command_id))

    def session(self, worker_id: str = "A") -> None:
        record = WorkerRecord(worker_id=worker_id, namespace="ns", pool="p", session_id=f"{worker_id}/1")
        record.session_sent_ms = self.sent_ms
        assert self.store.open_session_now(record)
        self.round(worker_id)

    def end_session(self, worker_id: str = "A", *, drained: bool = False) -> None:
        assert self.store.close_session_now(worker_id, f"{worker_id}/1", drained=drained)

    def round(self, worker_id: str = "A") -> None:
        """The duties of the worker's shard have their round."""
        self.store.hold_now("R", [worker_shard(worker_id)], 3_000)

    def rounds(self, ms: int, worker_id: str = "A") -> None:
        """Time passes, a round every second."""
        for _ in range(ms // 1000):
            self.wait(1000)
            self.round(worker_id)
        self.wait(ms % 1000)

    def beat(self, worker_id: str = "A", tokens: Sequence[bytes] = (), *, sent_ms: int | None = None) -> None:
        held = [HeldToken(run_id=RUN.run_id, token=token, namespace="ns") for token in tokens]
        at = self.sent_ms if sent_ms is None else sent_ms
        result = self.store.beat_now([Beat(worker_id, f"{worker_id}/1", at, self.rng.getrandbits(63), held)])[0]
        assert not result.ignored
        self.round(worker_id)

    def holder(self, command_id: str) -> Holder:
        return self.the_row(command_id).holder if command_id else self.head.owner

    def look(self, command_id: str = "0/s#1") -> CheckLease:
        """Read the row, then the worker's record (A6)."""
        holder = self.holder(command_id)
        view = self.store.view_workers_now([holder.worker_id])[0]
        return CheckLease(command_id, holder.token, holder.lease_set_ms, view)

    def check(self, command_id: str = "0/s#1") -> Decision:
        self.ask(self.look(command_id))
        return self.decision

    def kill(self, command_id: str = "0/s#1") -> None:
        """The holder's session ends without a drain; the grace passes; the check."""
        worker_id = self.holder(command_id).worker_id
        self.session(worker_id)
        self.end_session(worker_id)
        self.wait(self.settings.grace_ms)
        self.check(command_id)


def quarantined() -> Rig:
    """A step that killed five workers; its run has no owner."""
    rig = Rig()
    owner = rig.with_step()
    owner.say(release={"reason": "drain"})
    for n in range(5):
        rig.hold(f"W{n}")
        rig.kill()
    assert rig.the_row().state == COMMAND_STATE_QUARANTINED
    return rig


def swept(rig: Rig) -> Rig:
    """Let the sweep of a run that has closed come to its end."""
    while rig.head.sweeping:
        rig.fire()
    return rig
