"""The lab: runs workflows in this process, in virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from random import Random
from types import ModuleType, TracebackType
from typing import Any, Final, Literal, ParamSpec, TypeVar, overload

from treadle.controlplane.machine import Request
from treadle.controlplane.machine.requests import StartRun
from treadle.protocol.durations import Duration, to_ms
from treadle.protocol.errors import ConfigError
from treadle.protocol.ids import RunKey, check_run_id
from treadle.v1.common_pb2 import TraceContext
from treadle.v1.run_service_pb2 import CONFLICT_POLICY_REJECT
from treadle.v1.state_pb2 import RUN_STATE_CLOSED, RUN_STATE_NEEDS_ATTENTION, RunHead
from treadle.worker.app import Registry, collect
from treadle.worker.loop import guard
from treadle.worker.loop.execution import WorkflowExecution, execution_factory
from treadle.worker.loop.port import Execution, RunContext
from treadle.worker.steps import Step
from treadle.worker.workflows import Workflow

from .agenda import Agenda
from .crew import NAMESPACE, Member, Watch
from .discover import add_reachable
from .doubles import NOT_GIVEN, Call, make_double
from .errors import NeedsAttention, Stuck
from .plane import Plane
from .replay_check import check_replay
from .run import Run
from .stage import Stage
from .understudy import Understudies
from .waits import told_stuck

__all__ = ("Lab",)

P = ParamSpec("P")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
R = TypeVar("R")

START: Final = datetime(2030, 1, 1, tzinfo=UTC)
_PARK_MS: Final = 31_000
"""Before a longer jump idle runs are parked, when they would be: half a minute after they came to rest."""
_MAX_JUMPS: Final = 100_000
_MAX_TURNS: Final = 100_000


class Lab:
    """Runs workflows in this process, with the rules of production and a clock that jumps.

        with Lab() as lab:
            lab.replace(charge, returns="receipt 7")
            run = lab.start(order, Order("book", 12))
            lab.later("2d", run.signal, "approve", Approval(by="Ada"))
            assert run.result() == "receipt 7"
            assert run.steps == ["reserve", "charge"]

    The machine of the control plane decides, over a store in memory; the worker's core and durable loop run the code. When
    nothing is left to do at an instant, the clock jumps to the next timer. Steps take no time, unless they are given some.
    At the end of the block every run is replayed, and must do the same again.

    A lab belongs to one thread.

    Args:
        apps: Modules, registries, workflows and steps that are there. What a workflow names in its code, and what stands in
            its module, need not be listed.
        start: What time it is at first, with a time zone. Default: 2030-01-01, midnight UTC.
        seed: Where run ids, `treadle.worker.random()` and the jitter of retries come from; one seed is one course of things.
        check_replay: Whether runs are replayed at the end. Default: yes.

    Raises:
        ConfigError: Two workflows or steps have the same name, or `start` has no time zone.
    """

    def __init__(
        self,
        *apps: ModuleType | Registry | Workflow[..., Any] | Step[..., Any],
        start: datetime = START,
        seed: int = 0,
        check_replay: bool = True,
    ) -> None:
        if start.tzinfo is None:
            raise ConfigError(f"Lab(start={start!r}): give it a time zone, as in datetime(2030, 1, 1, tzinfo=UTC)")
        guard.install()  # the refusals of production: no files, sockets and threads in workflow code
        self._rng = Random(seed)
        self._agenda = Agenda(round(start.timestamp() * 1000))
        self.plane = Plane(lambda: self._agenda.now, self._rng)
        self._stage = Stage(self._agenda)
        self._registry = Registry()
        self._understudies = Understudies(lambda error: self._stage.heard(error, is_double=True))
        self._executions = execution_factory(self._registry)
        self._watch = Watch(self._make)
        self._members: list[Member] = []
        self._employed: set[tuple[str, str]] = set()
        self._runs: dict[str, Run[Any]] = {}
        self._numbers = 0
        self._working = False
        self._closed = False
        self._check_replay = check_replay
        for app in apps:
            found = _registry_of(app)
            self._registry.add(*found.workflows.values(), *found.steps.values())

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None and self._check_replay:
                self.check_replay()
        finally:
            self.close()

    def close(self) -> None:
        """Drop what is open. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            for member in self._members:
                member.leave()
        finally:
            self._stage.close()

    # --- starting ----------------------------------------------------------------------------------------------------
    # As the client's: with an id, arguments are positional.
    @overload
    def start(self, workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Run[R]: ...
    @overload
    def start(self, workflow: Workflow[[], R], /, *, id: str | None = None) -> Run[R]: ...
    @overload
    def start(self, workflow: Workflow[[A], R], a: A, /, *, id: str | None = None) -> Run[R]: ...
    @overload
    def start(self, workflow: Workflow[[A, B], R], a: A, b: B, /, *, id: str | None = None) -> Run[R]: ...
    @overload
    def start(self, workflow: Workflow[[A, B, C], R], a: A, b: B, c: C, /, *, id: str | None = None) -> Run[R]: ...
    @overload
    def start(
        self, workflow: Workflow[[A, B, C, D], R], a: A, b: B, c: C, d: D, /, *, id: str | None = None
    ) -> Run[R]: ...
    def start(self, workflow: Workflow[..., Any], /, *args: Any, id: Any = None, **kwargs: Any) -> Run[Any]:
        """Start a run. Its code goes on at once as far as it can; no time passes.

        Args:
            workflow: The function made by `@workflow`.
            args: Arguments of the workflow.
            id: Name of the run; None: "<workflow>-<number>".
            kwargs: Arguments of the workflow. (One called `id` is passed by position.)

        Raises:
            RunIdConflict: The id is taken.
            TypeError: Arguments are missing, too many or unknown.
            PayloadError: An argument cannot be encoded.
            NotDeterministic: The workflow calls what only a step may call.
        """
        payload = workflow.signature.encode_call(args, kwargs)
        add_reachable(self._registry, workflow)
        key = RunKey(NAMESPACE, self.new_id(workflow.name) if id is None else check_run_id(id))
        self._employ()
        request = StartRun(
            workflow=workflow.name,
            pool=workflow.pool,
            input=payload,
            request_id=self.new_id("start"),
            policy=CONFLICT_POLICY_REJECT,
            caller=TraceContext(),
            sampled=False,
        )
        self.request(key, request)
        run = self.find(key.run_id)
        assert run is not None
        return run

    def find(self, id: str) -> Run[Any] | None:
        """Return a run by its id; None: there is no such run."""
        key = RunKey(NAMESPACE, id)
        if key not in self.plane.runs:
            return None
        if id not in self._runs:
            self._runs[id] = Run(self, key, self._registry.workflows[self.plane.head(key).workflow].signature)
        return self._runs[id]

    @property
    def runs(self) -> list[Run[Any]]:
        """All runs, children included, in the order in which they began."""
        return [run for key in self.plane.runs if (run := self.find(key.run_id)) is not None]

    # --- replacing ---------------------------------------------------------------------------------------------------
    @overload
    def replace(self, what: Step[P, R] | Workflow[P, R], /, *, returns: R, takes: Duration = 0) -> None: ...
    @overload
    def replace(
        self,
        what: Step[..., Any] | Workflow[..., Any],
        /,
        *,
        raises: BaseException | type[BaseException],
        takes: Duration = 0,
    ) -> None: ...
    @overload
    def replace(
        self,
        what: Step[P, R] | Workflow[P, R],
        /,
        *,
        calls: Callable[P, R] | Callable[P, Awaitable[R]],
        takes: Duration = 0,
    ) -> None: ...
    @overload
    def replace(
        self,
        what: Step[..., Any] | Workflow[..., Any],
        /,
        *,
        outcomes: Sequence[object],
        takes: Duration = 0,
    ) -> None: ...
    @overload
    def replace(self, what: Step[..., Any] | Workflow[..., Any], /, *, hangs: Literal[True]) -> None: ...
    def replace(
        self,
        what: Step[..., Any] | Workflow[..., Any],
        /,
        *,
        returns: Any = NOT_GIVEN,
        raises: Any = None,
        calls: Any = None,
        outcomes: Any = None,
        hangs: bool = False,
        takes: Duration = 0,
    ) -> None:
        """Have something else happen where a step, or a child workflow, is called. Retries, timeouts and cancelling stay.

        Args:
            what: The step or workflow.
            returns: What each call returns.
            raises: What each attempt raises.
            calls: Called instead, with the same arguments. An AssertionError in it fails the test at once.
            outcomes: One for each attempt, in order: a value is returned, an error is raised.
            hangs: True: it never ends by itself, only by a timeout or by being cancelled.
            takes: How long each attempt lasts, in virtual time. Default: no time.

        Raises:
            ConfigError: Not exactly one of these is given.
        """
        double = make_double(
            f"{'step' if isinstance(what, Step) else 'workflow'} {what.name}",
            returns=returns,
            raises=raises,
            calls=calls,
            outcomes=outcomes,
            hangs=hangs,
            takes_ms=to_ms(takes, name="takes"),
        )
        if isinstance(what, Step):
            self._stage.doubles[what.name] = double
        else:
            self._registry.add(what)
            self._understudies.add(what, double)

    def calls(self, step: Step[..., Any] | None = None) -> list[Call]:
        """Return every attempt that began, in order; with `step`, those of this step."""
        return [call for call in self._stage.calls if step is None or call.step == step.name]

    # --- time --------------------------------------------------------------------------------------------------------
    @property
    def now(self) -> datetime:
        """The virtual time, in UTC."""
        return datetime.fromtimestamp(self._agenda.now / 1000, UTC)

    def advance(self, duration: Duration) -> None:
        """Let time pass, and happen what is due until then.

        Args:
            duration: How long, in seconds or as text ("2d").
        """
        self._advance_to(self._agenda.now + to_ms(duration, name="advance"))

    def advance_to(self, when: datetime) -> None:
        """Let time pass until then; a time that is over changes nothing."""
        self._advance_to(round(when.timestamp() * 1000))

    def later(self, delay: Duration, call: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Plan a call: `lab.later("2d", run.signal, "approve", approval)`. What it raises is raised to the test.

        Args:
            delay: How long after now, in virtual time.
            call: Any function.
            args, kwargs: Its arguments.
        """
        self._plan(self._agenda.now + to_ms(delay, name="delay"), lambda: call(*args, **kwargs))

    def at(self, when: datetime, call: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Plan a call for a point in time."""
        if when.tzinfo is None:
            raise ConfigError(f"at({when!r}): give it a time zone")
        self._plan(round(when.timestamp() * 1000), lambda: call(*args, **kwargs))

    def _plan(self, when_ms: int, call: Callable[[], object]) -> None:
        self._agenda.plan(when_ms, call)

    def _advance_to(self, until_ms: int) -> None:
        self._drive(lambda: False, until_ms)
        if until_ms > self._agenda.now:
            self._jump(until_ms)
            self._settle()

    def restart(self, *apps: ModuleType | Registry | Workflow[..., Any] | Step[..., Any]) -> None:
        """Replace the workers by fresh ones, as a deploy does: what is open is released, and replayed from its history.

        Steps under way are cut off and begin again.

        Args:
            apps: New code: it takes the place of what has its names. Default: the code stays.

        Raises:
            NeedsAttention: An open run has another history than its new code.
            NotDeterministic: The old code does otherwise in a replay.
        """
        if apps and self._check_replay:
            self.check_replay()
        members, self._members = self._members, []
        self._employed.clear()
        for app in apps:
            found = _registry_of(app)
            self._registry.workflows |= found.workflows
            self._registry.steps |= found.steps
            for name in found.workflows:  # how its code before went on is no measure for the new one
                self._watch.forget(name)
        for member in members:
            member.leave()
        self._employ()
        self._settle()

    # --- checking ----------------------------------------------------------------------------------------------------
    def check_replay(self) -> None:
        """Replay every run up to each place where its code was asked something, and compare.

        Raises:
            NotDeterministic: The code does otherwise in a replay.
        """
        for run in self.plane.runs:
            for head, history in self.plane.parts(run):
                looked = sorted(self._watch.looked.get((run.run_id, head.incarnation), ()))
                if looked and not self._understudies.plays(head.workflow):
                    asked = self._watch.asked[run.run_id, head.incarnation]
                    check_replay(_context(head), self._watch.make, history, asked, looked)

    # --- what runs use -----------------------------------------------------------------------------------------------
    def request(self, run: RunKey, request: Request) -> None:
        """Have a request of a client committed, and let everybody go on as far as they can."""
        if self._closed:
            raise ConfigError("this lab is closed: make a new one")
        self.plane.ask(run, request)
        self._settle()

    def new_id(self, what: str) -> str:
        """Return an id that is not used in this lab."""
        self._numbers += 1
        return f"{what}-{self._numbers}"

    def drive(self, run: RunKey, done: Callable[[], bool]) -> None:
        """Let time pass until `done`.

        Raises:
            Stuck: It will never be, because the run waits for something that nothing will bring.
            NeedsAttention: The run was stopped.
        """
        head = self.plane.head(run)
        if head.state == RUN_STATE_NEEDS_ATTENTION:
            raise NeedsAttention(f"run {run.run_id} needs attention: {head.attention}")
        if not self._drive(done, None):
            raise Stuck(told_stuck(self.plane, run, self._signals))

    def close_run(self, run: RunKey) -> None:
        """Let time pass until a run has closed. Raises as `drive`."""
        self.drive(run, lambda: self.plane.head(run).state == RUN_STATE_CLOSED)

    # --- inside ------------------------------------------------------------------------------------------------------
    def _drive(self, done: Callable[[], bool], until_ms: int | None) -> bool:
        """Go on until `done`, or nothing is left that is due until then; returns whether it was done."""
        for _ in range(_MAX_JUMPS):
            self._settle()
            if done():
                return True
            if self._stage.awaits:
                self._wait()
                continue
            coming = [ms for ms in (self._agenda.next_ms(), self.plane.next_ms()) if ms is not None]
            if not coming or (until_ms is not None and min(coming) > until_ms):
                return False
            self._jump(min(coming))
        raise Stuck(f"the time went on {_MAX_JUMPS:,} times, now to {self.now:%Y-%m-%d}, and there is no end to it")

    def _wait(self) -> None:
        self._working = True
        try:
            self._stage.wait()
        finally:
            self._working = False

    def _jump(self, when_ms: int) -> None:
        if when_ms - self._agenda.now > _PARK_MS and any(member.core.counts()[1] for member in self._members):
            self._move(self._agenda.now + _PARK_MS)
            self._settle()
        self._move(when_ms)

    def _move(self, when_ms: int) -> None:
        self._agenda.now = when_ms
        for member in self._members:
            member.tick()
            member.work()

    def _settle(self) -> None:
        """Do everything that is to be done at this instant."""
        if self._working:
            return  # a step or a planned call asks for something: whoever called it goes on
        self._working = True
        try:
            for _ in range(_MAX_TURNS):
                if not self._turn():
                    return
            raise Stuck(f"there is no end to what happens at {self.now:%Y-%m-%d %H:%M:%S}, without any time passing")
        finally:
            self._working = False

    def _turn(self) -> bool:
        worked = False
        for member in self._members:
            worked = member.work() or worked
        self._speak()
        if self.plane.work() or worked:
            return True
        action = self._agenda.take_due()
        if action is not None:
            action()
        return action is not None

    def _speak(self) -> None:
        """Raise what a test must hear of."""
        broken, self._stage.broken = self._stage.broken, None
        if broken is not None:
            raise broken
        for run in list(self.plane.attention):
            del self.plane.attention[run]
            raise NeedsAttention(f"run {run.run_id} needs attention: {self.plane.head(run).attention}")

    def _employ(self) -> None:
        """Each name has a worker of its pool."""
        things: list[Workflow[..., Any] | Step[..., Any]] = [*self._registry.workflows.values()]
        things += [step for step in self._registry.steps.values() if step.pool]
        new = [thing for thing in things if (type(thing).__name__, thing.name) not in self._employed]
        for pool in dict.fromkeys(thing.pool for thing in new if thing.pool):
            mine = [thing for thing in new if thing.pool == pool]
            self._employed |= {(type(thing).__name__, thing.name) for thing in mine}
            member = Member(
                self.plane,
                self._stage,
                self._registry,
                self._watch,
                now=lambda: self._agenda.now,
                rng=self._rng,
                name=self.new_id("worker"),
                pool=pool,
                workflows=frozenset(thing.name for thing in mine if isinstance(thing, Workflow)),
                steps=frozenset(thing.name for thing in mine if isinstance(thing, Step)),
            )
            self._members.append(member)
            member.work()

    def _make(self, context: RunContext) -> Execution:
        plays = self._understudies.plays(context.workflow)
        return self._understudies(context) if plays else self._executions(context)

    def _signals(self, run: RunKey) -> list[tuple[bool, str]]:
        """What the code of an open run waits for: a replay tells."""
        execution = self._watch.make(_context(self.plane.head(run)))
        assert isinstance(execution, WorkflowExecution)
        try:
            for event in self.plane.history(run):
                execution.feed(event)
            return execution.mail.wanted
        finally:
            execution.close()


def _registry_of(app: ModuleType | Registry | Workflow[..., Any] | Step[..., Any]) -> Registry:
    if isinstance(app, Workflow | Step):
        return Registry().add(app)
    return app if isinstance(app, Registry) else collect(app)


def _context(head: RunHead) -> RunContext:
    return RunContext(head.namespace, head.run_id, head.incarnation, head.workflow, head.accepted_until)
