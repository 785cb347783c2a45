"""A worker core on a bench: a clock that is set by hand, a scripted coroutine, and the server's side typed in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import count
from typing import Any, TypeVar

from treadle.v1.common_pb2 import EventsGiven, Failure, Payload, RetryPolicy
from treadle.v1.history_pb2 import (
    AttemptFailed,
    AttemptStarted,
    HistoryEvent,
    RunOpened,
    RunStarted,
    SignalReceived,
    StepCompleted,
)
from treadle.v1.job_pb2 import JOB_KIND_RUN, JOB_KIND_STEP, Job
from treadle.v1.worker_service_pb2 import (
    ANSWER_OK,
    LANE_AMQP,
    VERDICT_GO,
    Answer,
    ClaimItem,
    ClaimVerdict,
    Command,
    Grant,
    News,
    OwnerAnswer,
    OwnerRequest,
    ReportAnswer,
    RunGrant,
    SessionRequest,
    SessionResponse,
    StartTimer,
    Verdict,
)
from treadle.worker.core.core import WorkerCore
from treadle.worker.core.port import Action, CoreSettings, Note, WorkerCorePort
from treadle.worker.loop.port import Divergence, LocalCall, Outcome, RunContext, Turn, Waits

SETTINGS = CoreSettings(
    worker_id="w",
    namespace="default",
    pool="p",
    lane=LANE_AMQP,
    workflows=frozenset({"flow"}),
    steps=frozenset({"work"}),
    step_slots=2,
    run_slots=2,
)

A = TypeVar("A")
Plan = Callable[["Script", HistoryEvent], None]


class Script:
    """An execution whose code is a function of the event that is fed."""

    def __init__(self, context: RunContext, plan: Plan) -> None:
        self.context = context
        self.plan = plan
        self.events: list[HistoryEvent] = []
        self.turn = Turn()
        self.taken = 0
        self.outcome: Outcome | None = None
        self.divergence: Divergence | None = None
        self.closed = False
        self.waiting = Waits(1, 0, 0, None)
        self.awaited = ""
        self.untold, self.unheard, self.undoing = 0, False, False
        self.letters: list[SignalReceived] = []
        self.before: tuple[int, tuple[str, ...]] = (0, ())

    def passed(self, until: int, marks: Iterable[str]) -> None:
        self.before = until, tuple(marks)

    def unread(self) -> list[SignalReceived]:
        return self.letters

    def failing(self, failure: Failure) -> Outcome:
        return Outcome(failure=failure)

    def known_signals(self) -> list[str]:
        return [letter.signal_id for letter in self.letters]

    def events_given(self) -> EventsGiven:
        return EventsGiven()

    @property
    def fed(self) -> int:
        return self.events[-1].position if self.events else 0

    def feed(self, event: HistoryEvent) -> None:
        if event.position != self.fed + 1 or self.closed:
            raise ValueError(f"fed {event.position} after {self.fed}")
        self.events.append(event)
        self.plan(self, event)

    def take(self) -> Turn:
        self.taken += 1
        turn, self.turn = self.turn, Turn()
        return turn

    def waits(self) -> Waits:
        return self.waiting

    def awaits_only(self, command_id: str) -> bool:
        return command_id == self.awaited

    def close(self) -> None:
        self.closed = True


class Rig:
    """The core, and everything around it.

    Attributes:
        now: The worker's clock (ms).
        acts: Actions since they were last looked at; notes are kept apart in `notes`.
        sent: Frames that went up while time went by.
    """

    def __init__(self, plan: Plan | None = None, **changes: Any) -> None:
        self.now = 10_000
        self.plan: Plan = plan or (lambda script, event: None)
        self.scripts: list[Script] = []
        self.acts: list[Action] = []
        self.sent: list[SessionRequest] = []
        self.notes: list[Note] = []
        self.numbers = count(1)
        self.pushes = count(1)
        self.tags = count(1)
        self.revision = 1000
        self.settings = replace(SETTINGS, **changes)
        self.core: WorkerCorePort = WorkerCore(self.settings, self.make, lambda: next(self.numbers))

    def make(self, context: RunContext) -> Script:
        self.scripts.append(Script(context, lambda script, event: self.plan(script, event)))
        return self.scripts[-1]

    @property
    def script(self) -> Script:
        return self.scripts[-1]

    # --- the shell ---------------------------------------------------------------------------------------------
    def drained(self) -> list[Action]:
        for action in self.core.actions():
            if isinstance(action, Note):
                self.notes.append(action)
            else:
                self.acts.append(action)
        acts, self.acts = self.acts, []
        return acts

    def of(self, kind: type[A]) -> list[A]:
        """Take the actions of one kind; the others stay."""
        mine: list[A] = []
        rest: list[Action] = []
        for action in self.drained():
            if isinstance(action, kind):
                mine.append(action)
            else:
                rest.append(action)
        self.acts = rest
        return mine

    def open(self) -> Rig:
        self.core.session_opened(f"s{self.now}", self.now)
        return self

    def cut(self) -> None:
        self.core.session_ended(self.now)

    def reconnect(self) -> None:
        self.cut()
        self.open()

    def pass_ms(self, ms: int) -> None:
        """Let time go by, ticking whenever the core wants it; frames go up and nobody answers but credits."""
        end = self.now + ms
        while True:
            due = self.core.next_due()
            if due is None or due > end:
                break
            self.now = max(self.now, due)
            self.core.tick(self.now)
            self.sent.extend(self.frames())
        self.now = end
        self.core.tick(end)
        self.sent.extend(self.frames())

    def frames(self) -> list[SessionRequest]:
        frames = []
        while (frame := self.core.frame(self.now)) is not None:
            frames.append(frame)
            if frame.HasField("credits"):
                self.receive(credits_taken=frame.credits.credit_id)
        return frames

    # --- the server --------------------------------------------------------------------------------------------
    def receive(self, **fields: Any) -> None:
        self.core.receive(SessionResponse(**fields), self.now)

    def verdict(self, claim: ClaimItem, verdict: Verdict.ValueType, grant: Grant | None = None) -> None:
        self.receive(verdicts=[ClaimVerdict(claim_id=claim.claim_id, verdict=verdict, grant=grant)])

    def go(self, claim: ClaimItem, token: bytes, **fields: Any) -> None:
        grant = Grant(token=token, claim_id=claim.claim_id, sent_ms=claim.sent_ms, attempt=1, **fields)
        self.verdict(claim, VERDICT_GO, grant)

    def push(self, job: Job, token: bytes, **fields: Any) -> None:
        fields.setdefault("sent_ms", self.now)
        fields.setdefault("attempt", 1)
        self.receive(grants=[Grant(token=token, job=job, push_number=next(self.pushes), **fields)])

    def report_answer(self, token: bytes, answer: Answer.ValueType = ANSWER_OK) -> None:
        self.receive(report_answers=[ReportAnswer(token=token, answer=answer)])

    def answer(self, request: OwnerRequest, answer: Answer.ValueType = ANSWER_OK, **fields: Any) -> None:
        events = fields.get("events")
        if events:
            fields.setdefault("position", events[-1].position)
            fields.setdefault("revision", events[-1].revision)
        reply = OwnerAnswer(run_id=request.run_id, token=request.token, seq=request.seq, answer=answer, **fields)
        self.receive(owner_answers=[reply])

    def news(self, token: bytes, *events: HistoryEvent, length: int = 0) -> None:
        self.receive(news=[News(token=token, events=events, length=length)])

    # --- short ways --------------------------------------------------------------------------------------------
    def deliver(self, job: Job | None = None, body: bytes = b"") -> int:
        tag = next(self.tags)
        self.core.delivered(tag, job, body, self.now)
        return tag

    def claims(self) -> list[ClaimItem]:
        return [claim for frame in self.frames() for claim in frame.claims]

    def requests(self) -> list[OwnerRequest]:
        return [request for frame in self.frames() for request in frame.requests]

    def request(self) -> OwnerRequest:
        (request,) = self.requests()
        return request

    def held(self) -> set[bytes]:
        return {held.token for held in self.core.held()[1]}

    def granted_run(self, token: bytes = b"t", run_id: str = "r", *more: HistoryEvent, **fields: Any) -> Script:
        """Push a GO for a run whose history is RunStarted, RunOpened and `more`."""
        events = [started(), opened(2), *more]
        fields.setdefault("run", RunGrant(events=events, length=len(events), from_start=True))
        self.push(run_job(run_id), token, **fields)
        return self.script


def opened_rig(plan: Plan | None = None, **changes: Any) -> Rig:
    """A rig with an open session whose first frames and actions are out of the way."""
    rig = Rig(plan, **changes)
    rig.open()
    rig.frames()
    rig.drained()
    return rig


def step_job(n: int = 1, **fields: Any) -> Job:
    fields = {"name": "work", "input": Payload(data=b"{}"), **fields}
    return Job(
        namespace="default",
        run_id=f"run-{n}",
        incarnation=7,
        kind=JOB_KIND_STEP,
        pool="p",
        command_id="0/work#1",
        try_number=1,
        dispatch_id=f"d{n}",
        **fields,
    )


def run_job(run_id: str = "r", incarnation: int = 7, name: str = "flow") -> Job:
    return Job(
        namespace="default",
        run_id=run_id,
        incarnation=incarnation,
        kind=JOB_KIND_RUN,
        pool="p",
        name=name,
        dispatch_id="d",
    )


def event(position: int, revision: int = 0, time_ms: int = 0, **kind: Any) -> HistoryEvent:
    return HistoryEvent(
        position=position, revision=revision or 100 + position, time_ms=time_ms or 1_000_000 + position, **kind
    )


def started() -> HistoryEvent:
    return event(1, run_started=RunStarted(workflow="flow"))


def opened(position: int) -> HistoryEvent:
    return event(position, run_opened=RunOpened(worker_id="w"))


def completed(position: int, command_id: str = "l", result: bytes = b"1", local: bool = True) -> HistoryEvent:
    payload = Payload(data=result) if result else None
    return event(position, step_completed=StepCompleted(command_id=command_id, result=payload, local=local))


def local_started(position: int, command_id: str = "l", attempt: int = 1) -> HistoryEvent:
    return event(position, attempt_started=AttemptStarted(command_id=command_id, attempt=attempt, local=True))


def attempt_failed(position: int, command_id: str = "l", try_number: int = 1) -> HistoryEvent:
    return event(position, attempt_failed=AttemptFailed(command_id=command_id, try_number=try_number, local=True))


def timer(command_id: str = "0/sleep#1", delay_ms: int = 1000) -> Command:
    return Command(command_id=command_id, start_timer=StartTimer(delay_ms=delay_ms))


def local(command_id: str = "l", try_number: int = 1, at_most_once: bool = False) -> LocalCall:
    return LocalCall(
        command_id=command_id,
        digest=5,
        name="notify",
        step=None,
        input=Payload(data=b"[]"),
        try_number=try_number,
        retry=RetryPolicy(attempts=3),
        timeout_ms=0,
        at_most_once=at_most_once,
    )


def asks(at: dict[int, Callable[[Script], None]]) -> Plan:
    """A plan that does something at some positions."""

    def plan(script: Script, fed: HistoryEvent) -> None:
        act = at.get(fed.position)
        if act is not None:
            act(script)

    return plan


def asks_local(at: int = 1, *calls: LocalCall) -> Plan:
    return asks({at: lambda script: script.turn.local_calls.extend(calls or (local(),))})


def asks_timer(at: int = 1, *commands: Command) -> Plan:
    return asks({at: lambda script: script.turn.commands.extend(commands or (timer(),))})


def ends(at: int, outcome: Outcome) -> Plan:
    def end(script: Script) -> None:
        script.outcome = outcome

    return asks({at: end})
