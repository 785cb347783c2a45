"""The real machine under the model of letters: each step of the model is done to it, and both must stand alike."""

from __future__ import annotations

from random import Random
from typing import Any

from tests.unit.plain_env import plain_env
from treadle.controlplane.machine import Request, Settings, decide
from treadle.controlplane.machine.children import applied, refusal_of, request_of
from treadle.controlplane.machine.decide import want
from treadle.controlplane.machine.requests import (
    Asked,
    Claimed,
    Decision,
    FireTimer,
    Reply,
    RetryRun,
    StartRun,
    TerminateRun,
)
from treadle.controlplane.store.memory import MemoryStore
from treadle.controlplane.store.port import Outcome, Want
from treadle.protocol.errors import RequestError, RunIdConflict
from treadle.protocol.ids import RunKey
from treadle.v1.common_pb2 import (
    ON_PARENT_CLOSE_CANCEL,
    ON_PARENT_CLOSE_LEAVE,
    ON_PARENT_CLOSE_TERMINATE,
    Failure,
    Payload,
    TraceContext,
)
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.job_pb2 import JOB_KIND_RUN, Job
from treadle.v1.run_service_pb2 import CONFLICT_POLICY_ALLOW_CLOSED
from treadle.v1.state_pb2 import (
    RUN_STATE_CLOSED,
    RUN_STATE_CONTINUING,
    RUN_STATE_QUEUED,
    CommandRow,
    RunHead,
    RunOutcome,
)
from treadle.v1.state_pb2 import Letter as RealLetter
from treadle.v1.worker_service_pb2 import (
    ANSWER_OK,
    CancelCommand,
    CancelledRun,
    ClaimItem,
    ClaimVerdict,
    Command,
    CompleteRun,
    ContinueRun,
    FailRun,
    FailureHook,
    OwnerAnswer,
    OwnerRequest,
    ScheduleChild,
)

from .letters_moves import Act
from .letters_state import Letter, Run, S, Scene

__all__ = ("Machine",)

_P, _C, _CALL = RunKey("ns", "p"), RunKey("ns", "c"), "0/c#1"
_POLICY = {"cancel": ON_PARENT_CLOSE_CANCEL, "terminate": ON_PARENT_CLOSE_TERMINATE, "leave": ON_PARENT_CLOSE_LEAVE}
_KINDS = {"start_child": "start", "child_closed": "closed", "stop_child": "stop"}


class Machine:
    """Both runs in a store in memory, and the letters that are in their outboxes or under way."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.now, self.rng, self.asked = 1_000_000, Random(1), 0
        self.store = MemoryStore(lambda: self.now)
        self.owners: dict[RunKey, tuple[bytes, int]] = {}
        self.letters: dict[Letter, RealLetter] = {}
        self.posted: list[RealLetter] = []
        if scene.c != "-":
            self.ask(_C, self.start())
        if scene.c == "T":
            self.ask(_C, TerminateRun(self.id(), ""))
            self.now += Settings().retention_ms
            self.fire(_C)
        self.ask(_P, self.start())
        self.posted.clear()

    # --- asking ------------------------------------------------------------------------------------------------------
    def decide(self, run: RunKey, request: Request) -> Decision:
        loaded = self.store.load_now([want(run, [request])])[0]
        return decide(run, loaded, [request], plain_env(self.now, self.rng))

    def ask(self, run: RunKey, request: Request) -> Reply:
        self.now += 1
        decision = self.decide(run, request)
        if decision.change is not None:
            assert self.store.commit_now([decision.change])[0].outcome is Outcome.OK
        self.posted += decision.letters
        return decision.replies[0]

    def id(self) -> str:
        self.asked += 1
        return f"r{self.asked}"

    def start(self) -> StartRun:
        return StartRun("w", "p", Payload(), self.id(), CONFLICT_POLICY_ALLOW_CLOSED, TraceContext())

    def head(self, run: RunKey) -> RunHead:
        return RunHead.FromString(self.store.load_now([Want(run)])[0].head)

    def say(self, run: RunKey, *commands: Command, **final: Any) -> None:
        """The owner of the run says something, having seen everything."""
        head = self.head(run)
        if head.state == RUN_STATE_QUEUED:
            job = Job(
                namespace="ns", run_id=run.run_id, incarnation=head.incarnation, kind=JOB_KIND_RUN, pool="p", name="w"
            )
            verdict = self.ask(run, Claimed(ClaimItem(claim_id=1, sent_ms=self.now, job=job), "A", "R"))
            assert isinstance(verdict, ClaimVerdict)
            self.owners[run] = verdict.grant.token, 0
            head = self.head(run)
        token, seq = self.owners[run]
        self.owners[run] = token, seq + 1
        last = self.store.load_now([Want(run, event_at=head.length)])[0].event
        request = OwnerRequest(
            run_id=run.run_id,
            incarnation=head.incarnation,
            token=token,
            seq=seq + 1,
            seen=head.length,
            told=head.length,
            told_revision=HistoryEvent.FromString(last or b"").revision,
            commands=commands,
            **final,
        )
        answer = self.ask(run, Asked(request, "A", "R"))
        assert isinstance(answer, OwnerAnswer)
        assert answer.answer == ANSWER_OK

    def fire(self, run: RunKey) -> None:
        self.ask(run, FireTimer(""))

    def sweep(self, run: RunKey) -> None:
        if self.head(run).state == RUN_STATE_CONTINUING:
            self.fire(run)  # another one begins the next part
            return
        while self.head(run).sweeping:
            self.fire(run)

    # --- the steps of the model ----------------------------------------------------------------------------------------
    def do(self, act: Act, before: S, after: S) -> None:
        """Do what the model does, and take down which letters it posts."""
        self.posted.clear()
        if act.letter is not None:
            self.deliver(act, act.letter, act.letter in after.told - before.told)
        else:
            self.run_act(act)
        fresh = after.out - before.out
        assert sorted(one.kind for one in fresh) == sorted(self.kind(one) for one in self.posted), act
        for one in fresh:
            self.letters[one] = next(real for real in self.posted if self.kind(real) == one.kind)

    @staticmethod
    def kind(real: RealLetter) -> str:
        kind = _KINDS[real.WhichOneof("kind") or ""]
        return "hook" if kind == "start" and not real.start_child.HasField("parent") else kind

    def run_act(self, act: Act) -> None:
        run = _P if "P" in act.what else _C
        failure = Failure(type="Boom")
        match act.what:
            case "P asks for its child":
                retries = self.head(_P).retries
                spec = ScheduleChild(run_id="c", workflow="w", pool="p", on_parent_close=_POLICY[self.scene.policy])
                spec.over = self.scene.over and retries > 0
                self.say(_P, Command(command_id=_CALL, digest=1, schedule_child=spec))
            case "P's code cancels its child":
                self.say(_P, Command(command_id=_CALL, cancel=CancelCommand()))
            case "P fails":
                self.say(_P, fail=FailRun(failure=failure, hook=FailureHook(workflow="h", pool="p")))
            case "P returns":
                self.say(_P, complete=CompleteRun())
            case "C ends" if act.outcome == "done":
                self.say(_C, complete=CompleteRun())
            case "C ends" if act.outcome == "failed":
                self.say(_C, fail=FailRun(failure=failure))
            case "C ends":
                self.say(_C, cancelled=CancelledRun(undone=False))
            case "P ends, to go on as new" | "C ends, to go on as new":
                self.say(run, continue_run=ContinueRun(unheard=self.head(run).cancel_requested))
            case "P goes on as new" | "C goes on as new":
                while self.head(run).state == RUN_STATE_CONTINUING:
                    self.fire(run)
            case "P is swept" | "C is swept":
                self.sweep(run)
            case "a client terminates P" | "a client terminates C":
                self.ask(run, TerminateRun(self.id(), ""))
            case "a client lets P go on" | "a client lets C go on":
                self.ask(run, RetryRun(self.id(), ""))
            case _:
                assert "a client starts" in act.what
                self.ask(run, self.start())

    def deliver(self, act: Act, letter: Letter, taken: bool) -> None:
        if act.what.startswith("killed"):
            return
        real = self.letters[letter]
        run, request = request_of(real)
        if act.what == "tell of the refusal":
            told = refusal_of(real, RunIdConflict("taken"))
            assert told is not None
            self.ask(*request_of(told))
            return
        reply = self.ask(run, request)
        refused = isinstance(reply, RequestError) and refusal_of(real, reply) is not None
        assert refused == taken, (act, reply)
        assert refused or applied(reply) or act.what == "deliver late", (act, reply)

    # --- how both stand --------------------------------------------------------------------------------------------------
    def waits(self, letter: Letter) -> bool:
        """Whether a letter would be refused now, and come again."""
        run, request = request_of(self.letters[letter])
        reply = self.decide(run, request).replies[0]
        return (
            isinstance(reply, RequestError) and refusal_of(self.letters[letter], reply) is None and not applied(reply)
        )

    def check(self, s: S) -> None:
        """Both runs stand as in the model."""
        p, c = self.head(_P), self.head(_C)
        self.alike(s.P, p)
        self.alike(s.C, c)
        found = self.store.load_now([Want(_P, fields=[f"c:{_CALL}"])])[0].fields
        row = CommandRow.FromString(found[f"c:{_CALL}"]) if found else None
        assert (s.P.row, s.P.row_cancel) == ((row.retry_number, row.cancel_requested) if row else (-1, False))
        if s.C.state not in "-T":
            whose = c.parent.retry if c.HasField("parent") else None
            assert (s.C.whose[1] if s.C.whose else None) == whose
            assert s.C.cancel == c.cancel_requested

    @staticmethod
    def alike(mine: Run, head: RunHead) -> None:
        state = {0: "-", RUN_STATE_CLOSED: "X", RUN_STATE_CONTINUING: "N"}.get(head.state, "A")
        assert (mine.state.replace("T", "-"), mine.retries) == (state, head.retries)
        outcome = RunOutcome.Name(head.outcome).removeprefix("RUN_OUTCOME_").lower() if state == "X" else ""
        assert (mine.outcome if state == "X" else "") == outcome.replace("completed", "done")
