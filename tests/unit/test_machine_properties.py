"""Anything in any order: stale tokens, old claims, duplicates, other incarnations, timers early and late, conflicts."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from tests.unit.machine_invariants import check
from tests.unit.machine_rig import POLICY, RUN, Owner, Rig, local, schedule, sleep, value

from treadle.controlplane.batches import Item, fold
from treadle.controlplane.machine import Decision, Settings
from treadle.controlplane.machine.requests import (
    AcceptRun,
    Asked,
    CancelRun,
    Claimed,
    FireTimer,
    Progressed,
    Registered,
    ReleaseSteps,
    Reply,
    Reported,
    Request,
    RetryRun,
    SettleStep,
    TerminateRun,
)
from treadle.controlplane.store.port import Outcome
from treadle.protocol.deferral import make_token, read_token
from treadle.v1.common_pb2 import Failure, Payload
from treadle.v1.job_pb2 import JOB_KIND_RUN, JOB_KIND_STEP, Job
from treadle.v1.run_service_pb2 import CONFLICT_POLICY_ALLOW_CLOSED, ConflictPolicy
from treadle.v1.state_pb2 import (
    COMMAND_STATE_HELD,
    COMMAND_STATE_QUARANTINED,
    COMMAND_STATE_QUEUED,
    COMMAND_STATE_TIMER,
    COMMAND_STATE_WAITING,
    RUN_STATE_CLOSED,
    RUN_STATE_NEEDS_ATTENTION,
    RUN_STATE_OPEN,
    RUN_STATE_QUEUED,
    RUN_STATE_WAITING,
    CommandRow,
)
from treadle.v1.worker_service_pb2 import (
    AttemptProgress,
    AttemptReport,
    CancelCommand,
    ClaimItem,
    ClaimVerdict,
    Command,
    OwnerRequest,
    ReportKind,
)

T = TypeVar("T")
WORKERS = st.sampled_from("ABC")
SEED = st.integers(0, 2**32)
REPORTS = ReportKind.values()[1:]
LAST_WORDS = ("complete", "fail", "cancelled", "release", "diverged")
LOSSES = ("dies", "dies", "drains", "freezes", "denies")
PICK = st.integers(0, 2**16)
"""An index into whatever there is, modulo its length."""
LATER = RARELY = st.sampled_from((False, False, False, True))
REQUEST_IDS = st.sampled_from(("r1", "r2", "r3"))
COMMANDS = st.lists(
    st.sampled_from(("step", "once", "timed", "limited", "sleep", "again", "cancel", "local", "local once")),
    max_size=3,
)
WORDS = st.sampled_from(("", "", "", "", "park", "park", "complete", "fail", "cancelled", "release", "diverged"))


def pick(of: list[T], index: int) -> T:
    return of[-1 - index % len(of)]


class Anything(RuleBasedStateMachine):
    """One run id; three workers. What was ever sent may come again, at any time."""

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        limits = Settings(history_limit=40, max_lost=3, retention_ms=100_000, tombstone_ms=50_000)
        self.rig = Rig(limits, seed)
        self.pending: deque[Item] = deque()
        self.stalled: list[tuple[Decision, int]] = []
        self.jobs: list[Job] = []
        self.claims: list[tuple[ClaimItem, str]] = []
        self.tokens: list[tuple[str, bytes, int]] = []
        self.owners: list[tuple[Owner, int]] = []
        self.asked: list[tuple[OwnerRequest, str]] = []
        self.confirmed: set[str] = set()
        self.left_over = False
        self.made = 0
        for worker_id in "ABC":
            self.rig.session(worker_id)
        self.serve_some(Random(seed), 6)

    # --- how requests get to the store ---------------------------------------------------------------------------
    def put(self, request: Request, later: bool) -> None:
        self.pending.append(Item(request, lambda reply: None, 0))
        if not later:
            self.flush()

    def flush(self) -> None:
        while self.pending:
            requests = [item.request for item in fold(self.pending)]
            decision = self.rig.decide(*requests)
            assert self.rig.commit(decision) is Outcome.OK
            self.learn(requests, decision)
            check(self.rig, self.confirmed, left_over=self.left_over)

    def learn(self, requests: list[Request], decision: Decision) -> None:
        change, incarnation = decision.change, self.rig.head.incarnation
        self.left_over = self.left_over or (change is not None and change.restart)
        self.jobs += decision.jobs
        for pushed in decision.grants:
            self.granted(pushed.grant.job, pushed.grant.token, pushed.credit.worker_id)
        for request, reply in zip(requests, decision.replies, strict=True):
            self.answered(request, reply, incarnation)

    def answered(self, request: Request, reply: Reply, incarnation: int) -> None:
        if isinstance(reply, ClaimVerdict) and isinstance(request, Claimed) and reply.HasField("grant"):
            assert request.item.job.incarnation == incarnation
            self.granted(request.item.job, reply.grant.token, request.worker_id)

    def granted(self, job: Job, token: bytes, worker_id: str) -> None:
        if job.kind == JOB_KIND_STEP:
            self.tokens.append((job.command_id, token, job.incarnation))
        elif all(owner.token != token for owner, _ in self.owners):
            owner = Owner.__new__(Owner)
            owner.rig, owner.token, owner.worker_id, owner.seq, owner.seen = self.rig, token, worker_id, 0, 0
            self.owners.append((owner, job.incarnation))

    @rule()
    def apply_what_waits(self) -> None:
        self.flush()

    @precondition(lambda self: self.pending)
    @rule()
    def stall(self) -> None:
        """A replica decides, and commits much later."""
        requests = [item.request for item in fold(self.pending)]
        decision = self.rig.decide(*requests)
        if decision.change is not None:
            self.stalled.append((decision, self.rig.now))

    @precondition(lambda self: self.stalled)
    @rule(index=PICK)
    def commit_late(self, index: int) -> None:
        decision, _ = self.stalled.pop(index % len(self.stalled))
        if self.rig.commit(decision) is Outcome.OK:
            self.jobs += decision.jobs
            change = decision.change
            self.left_over = self.left_over or (change is not None and change.restart)
            for pushed in decision.grants:
                self.granted(pushed.grant.job, pushed.grant.token, pushed.credit.worker_id)
        check(self.rig, self.confirmed, left_over=self.left_over)

    # --- the way things should go: what the chaos of the other rules breaks into -----------------------------------------
    @rule(seed=SEED)
    def serve(self, seed: int) -> None:
        self.serve_some(Random(seed), 5)

    @rule(seed=SEED)
    def serve_much(self, seed: int) -> None:
        self.serve_some(Random(seed), 10)

    def serve_some(self, rng: Random, actions: int) -> None:
        self.flush()
        for _ in range(actions):
            rng.choice(self.next_actions(rng))()

    def next_actions(self, rng: Random) -> list[Callable[[], None]]:
        rig = self.rig
        state, worker_id = rig.head.state, rng.choice("ABC")
        if state in (0, RUN_STATE_CLOSED):
            self.made += 1
            start = rig.start_request(f"new-{self.made}", CONFLICT_POLICY_ALLOW_CLOSED)
            again = RetryRun(f"again-{self.made}", "why", 2)
            sweep = [lambda: self.fire_what_is_due(False)] * rig.head.sweeping
            return [lambda: self.put(start, False), lambda: self.put(again, False), *sweep]
        actions: list[Callable[[], None]] = [lambda: self.fire_what_is_due(False), lambda: self.time_passes(500)]
        if state == RUN_STATE_OPEN:
            actions += [lambda: self.lose("", rng.choice(LOSSES))] * (rng.random() < 0.3)
            kinds = rng.choices(
                ("step", "once", "timed", "limited", "sleep", "cancel", "local", "local once"), k=rng.randint(0, 3)
            )
            word = rng.choice(("", "", "", "park")) if rng.random() < 0.9 else rng.choice(LAST_WORDS)
            actions += [
                lambda: self.owner_asks(0, kinds, word, rng.randint(0, 999), 0, 0, rng.choice((0, 0, 1, 2)), False)
            ]
        elif state in (RUN_STATE_QUEUED, RUN_STATE_WAITING):
            actions += [lambda: self.ask_for(rig.run_job(), worker_id)] * 2
        elif state == RUN_STATE_NEEDS_ATTENTION:
            actions += [lambda: self.steer(AcceptRun, str(rng.random()), False)]
        for row in self.rows():
            if row.state in (COMMAND_STATE_QUEUED, COMMAND_STATE_WAITING):
                actions.append(lambda cid=row.command_id: self.ask_for(rig.step_job(cid), worker_id))  # type: ignore[misc]
            elif row.state == COMMAND_STATE_HELD and not row.local:
                actions.append(lambda cid=row.command_id: self.lose(cid, rng.choice(LOSSES)))  # type: ignore[misc]
                held = (row.command_id, row.holder.token, rig.head.incarnation)
                actions.append(lambda of=held: self.tell(of, rng.choice(REPORTS), final=rng.random() < 0.2))  # type: ignore[misc]
        return actions

    def lose(self, command_id: str, how: str) -> None:
        """Its worker dies, drains, freezes, or never read GO."""
        rig = self.rig
        worker_id = rig.holder(command_id).worker_id
        self.beat(worker_id, True)
        if how in ("dies", "drains"):
            rig.end_session(worker_id, drained=how == "drains")
            rig.wait(500)
        elif how == "freezes":
            rig.rounds(5_000, worker_id)
        else:
            rig.wait(4_000)
            rig.beat(worker_id)
        self.look(command_id, False)

    def ask_for(self, job: Job, worker_id: str) -> None:
        item = self.rig.item(job)
        self.claims.append((item, worker_id))
        self.put(Claimed(item, worker_id, "R"), False)

    def tell(
        self, held: tuple[str, bytes, int], kind: ReportKind.ValueType, *, final: bool, later: bool = False
    ) -> None:
        command_id, token, incarnation = held
        told = AttemptReport(run_id=RUN.run_id, incarnation=incarnation, command_id=command_id, kind=kind, token=token)
        told.failure.CopyFrom(Failure(type="Boom", final=final))
        self.put(Reported(told), later)

    # --- time, workers, broker ---------------------------------------------------------------------------------------
    @rule(ms=st.sampled_from((1, 200, 500, 1_000, 2_000, 4_000, 5_000, 10_000, 60_000)))
    def time_passes(self, ms: int) -> None:
        self.rig.wait(ms)

    @rule(worker_id=WORKERS, lists=st.booleans())
    def beat(self, worker_id: str, lists: bool) -> None:
        rig = self.rig
        record = rig.store.view_workers_now([worker_id])[0].record
        if record is None or record.closed_ms:
            rig.session(worker_id)
        held = [token for _, token, _ in self.tokens] + [owner.token for owner, _ in self.owners]
        rig.beat(worker_id, held if lists else ())

    @rule(worker_id=WORKERS, drained=st.booleans())
    def session_ends(self, worker_id: str, drained: bool) -> None:
        self.rig.store.close_session_now(worker_id, f"{worker_id}/1", drained=drained)

    @rule(worker_id=WORKERS, kind=st.sampled_from((JOB_KIND_RUN, JOB_KIND_STEP)))
    def state_a_credit(self, worker_id: str, kind: Any) -> None:
        self.rig.credit(kind, worker_id)

    @rule()
    def confirm(self) -> None:
        ids = self.rig.outbox()
        self.confirmed.update(ids)
        self.rig.store.confirmed_now([(RUN.shard, dispatch_id) for dispatch_id in ids])

    # --- clients -----------------------------------------------------------------------------------------------------
    @rule(request_id=REQUEST_IDS, policy=st.sampled_from(ConflictPolicy.values()), later=LATER)
    def start(self, request_id: str, policy: ConflictPolicy.ValueType, later: bool) -> None:
        self.put(self.rig.start_request(request_id, policy), later)

    @precondition(lambda self: self.rig.head.state)
    @rule(request_id=REQUEST_IDS, from_position=st.sampled_from((0, 0, 2)), over=RARELY, later=LATER)
    def retry(self, request_id: str, from_position: int, over: bool, later: bool) -> None:
        """A closed run goes on, or starts over."""
        again = RetryRun(f"retry-{request_id}-{self.made}", "why", from_position)
        again.input = value("other") if over else None
        self.put(again, later)

    @precondition(lambda self: any(row.state == COMMAND_STATE_QUARANTINED for row in self.rows()))
    @rule(later=LATER)
    def release_what_is_quarantined(self, later: bool) -> None:
        ids = [row.command_id for row in self.rows() if row.state == COMMAND_STATE_QUARANTINED]
        self.made += 1
        self.put(ReleaseSteps(f"release-{self.made}", "why", "", ids), later)

    @precondition(lambda self: self.rig.head.state)
    @rule(
        what=st.sampled_from((CancelRun, CancelRun, AcceptRun, AcceptRun, TerminateRun)),
        request_id=REQUEST_IDS,
        later=LATER,
    )
    def steer(self, what: Any, request_id: str, later: bool) -> None:
        self.put(what(f"{what.__name__}-{request_id}", "why"), later)

    # --- workers: claims, reports --------------------------------------------------------------------------------------
    @precondition(lambda self: self.jobs)
    @rule(
        index=st.one_of(st.integers(0, 3), PICK),
        worker_id=WORKERS,
        later=LATER,
        unregistered=RARELY,
    )
    def claim(self, index: int, worker_id: str, later: bool, unregistered: bool) -> None:
        item = self.rig.item(pick(self.jobs, index), unregistered=unregistered)
        self.claims.append((item, worker_id))
        self.put(Claimed(item, worker_id, "R"), later)

    @precondition(lambda self: self.claims)
    @rule(index=PICK, later=LATER)
    def claim_again(self, index: int, later: bool) -> None:
        item, worker_id = pick(self.claims, index)
        self.put(Claimed(item, worker_id, "S"), later)

    @precondition(lambda self: self.tokens)
    @rule(
        index=st.one_of(st.integers(0, 2), PICK),
        kind=st.sampled_from(REPORTS),
        final=st.booleans(),
        elsewhere=st.sampled_from((0, 0, 0, 1)),
        later=LATER,
    )
    def report(self, index: int, kind: ReportKind.ValueType, final: bool, elsewhere: int, later: bool) -> None:
        command_id, token, incarnation = pick(self.tokens, index)
        self.tell((command_id, token, incarnation + elsewhere), kind, final=final, later=later)

    @precondition(lambda self: self.tokens)
    @rule(index=st.one_of(st.integers(0, 2), PICK), number=st.integers(1, 5), says=st.booleans(), later=LATER)
    def progress(self, index: int, number: int, says: bool, later: bool) -> None:
        command_id, token, incarnation = pick(self.tokens, index)
        told = AttemptProgress(
            run_id=RUN.run_id, incarnation=incarnation, command_id=command_id, token=token, number=number
        )
        if says:
            told.value.data = b"%d" % number
        self.put(Progressed(told), later)

    @precondition(lambda self: self.rows())
    @rule(
        index=PICK,
        request_id=REQUEST_IDS,
        fails=st.booleans(),
        final=st.booleans(),
        of_try=st.sampled_from((0, 0, 0, -1, 1)),
        later=LATER,
    )
    def finish_from_outside(
        self, index: int, request_id: str, fails: bool, final: bool, of_try: int, later: bool
    ) -> None:
        row = pick(self.rows(), index)
        token = make_token(
            row.deferral_key or row.holder.token,
            namespace="ns",
            run_id=RUN.run_id,
            incarnation=self.rig.head.incarnation,
            command_id=row.command_id,
            try_number=max(row.try_number + of_try, 0),
        )
        failure = Failure(type="Rejected", final=final) if fails else None
        result = None if fails else Payload(data=b"1")
        self.put(SettleStep(read_token(token), request_id, result, failure), later)

    # --- owners ----------------------------------------------------------------------------------------------------------
    def command(self, kind: str, index: int) -> Command:
        self.made += 1
        new = f"{kind.replace(' ', '-')}#{self.made}"
        rows = self.rows()
        if kind in ("again", "cancel") and rows:
            row = pick(rows, index)
            if kind == "cancel" and not (row.local and row.state == COMMAND_STATE_HELD):
                return Command(command_id=row.command_id, cancel=CancelCommand())
            if row.state == COMMAND_STATE_TIMER:
                return sleep(row.command_id)
            if not row.local:
                return schedule(row.command_id)
        if kind == "sleep":
            return sleep(new, index % 20_000)
        if kind.startswith("local"):
            return local(new, at_most_once=kind == "local once")
        command = schedule(new, at_most_once=kind == "once", timeout_ms=3_000 if kind == "timed" else 0)
        if kind == "limited":
            spec = command.schedule_step
            spec.total_timeout_ms, spec.queue_timeout_ms = (0, 8_000, 30_000)[index % 3], (4_000, 0)[index % 2]
        return command

    def rows(self) -> list[CommandRow]:
        fields = self.rig.fields()
        return [CommandRow.FromString(data) for name, data in fields.items() if name.startswith("c:")]

    @precondition(lambda self: self.owners)
    @rule(
        index=st.sampled_from((0, 0, 0, 1, 2)),
        kinds=COMMANDS,
        word=WORDS,
        what=PICK,
        behind=st.sampled_from((0, 0, 0, 0, 0, 1, 3, -2)),
        skips=st.sampled_from((0, 0, 0, 0, 0, 0, 1)),
        ends=st.sampled_from((0, 0, 1, 2, 4)),
        later=LATER,
    )
    def owner_asks(
        self, index: int, kinds: list[str], word: str, what: int, behind: int, skips: int, ends: int, later: bool
    ) -> None:
        owner, incarnation = pick(self.owners, index)
        head = self.rig.head
        same = head.incarnation == incarnation
        applied = head.owner_seq if same and head.owner.token == owner.token else owner.seq
        owner.seq = applied + skips
        owner.seen = max(0, head.length - behind)
        ask = owner.request(*(self.command(kind, what) for kind in kinds), **({word: {}} if word else {}))
        ask.incarnation = incarnation
        ask.run_timeout_ms = 20_000 * (what % 5 == 0)
        if ends:
            ask.checkpoints.append(self.ended(ends, what))
        self.asked.append((ask, owner.worker_id))
        self.put(Asked(ask, owner.worker_id, "R"), later)

    def ended(self, kind: int, index: int) -> Any:
        """A local step that is open ends, or else a new one."""
        held = [row for row in self.rows() if row.local and row.state == COMMAND_STATE_HELD]
        self.made += 1
        command_id, number = (f"local#{self.made}", 1)
        if held:
            row = pick(held, index)
            command_id, number = row.command_id, row.try_number
        failure = Failure(type="Boom", final=index % 3 == 0)
        return self.rig.checkpoint(command_id, kind=kind, try_number=number, failure=failure, retry=POLICY)

    @precondition(lambda self: self.asked)
    @rule(index=st.one_of(st.integers(0, 2), PICK), later=LATER)
    def owner_asks_again(self, index: int, later: bool) -> None:
        ask, worker_id = pick(self.asked, index)
        self.put(Asked(ask, worker_id, "S"), later)

    # --- duties ------------------------------------------------------------------------------------------------------------
    @rule(index=PICK, gone=st.booleans(), soon=st.booleans(), later=LATER)
    def fire(self, index: int, gone: bool, soon: bool, later: bool) -> None:
        """Any timer that is there, due or not."""
        self.put(FireTimer(pick([*self.rig.timers(), "0/nothing#1"], index), gone, soon), later)

    @rule(later=LATER)
    def fire_what_is_due(self, later: bool) -> None:
        for command_id in self.rig.due():
            self.put(FireTimer(command_id), later)
            self.look(command_id, later)

    @rule(index=PICK, later=LATER)
    def check_a_lease(self, index: int, later: bool) -> None:
        self.look(pick(["", *(row.command_id for row in self.rows())], index), later)

    def look(self, command_id: str, later: bool) -> None:
        rig = self.rig
        row = rig.row(command_id) if command_id else None
        held = row is not None and row.state == COMMAND_STATE_HELD and not row.local
        if held or (not command_id and rig.head.state == RUN_STATE_OPEN):
            self.put(rig.look(command_id), later)

    @rule(index=PICK, later=LATER)
    def register(self, index: int, later: bool) -> None:
        self.put(Registered(pick(["", *(row.command_id for row in self.rows())], index)), later)

    @precondition(lambda self: self.rig.head.state == RUN_STATE_CLOSED)
    @rule()
    def retention_ends(self) -> None:
        self.flush()
        while self.rig.head.state:
            self.rig.now = max(self.rig.now, self.rig.timers()[""])
            self.put(FireTimer(""), later=False)
        assert self.left_over or not self.rig.timers()


TestAnything = Anything.TestCase
TestAnything.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
