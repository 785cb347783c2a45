"""What stands behind a lab: one control plane, the workers of its pools, and the clock that jumps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from random import Random
from types import ModuleType
from typing import Any, Final

from treadle.controlplane.events.registration import check_triggers
from treadle.controlplane.events.triggers import starts_of
from treadle.controlplane.machine import Request
from treadle.protocol.errors import ConfigError
from treadle.protocol.ids import RunKey
from treadle.protocol.tags import code_name
from treadle.v1.common_pb2 import NamedEvent
from treadle.v1.state_pb2 import RUN_STATE_CLOSED, RUN_STATE_NEEDS_ATTENTION, RegisteredTrigger, RunHead, StartByEvent
from treadle.v1.worker_service_pb2 import RegisterRequest
from treadle.worker.app import Registry, collect
from treadle.worker.loop.execution import WorkflowExecution, execution_factory
from treadle.worker.loop.port import Execution, RunContext
from treadle.worker.specs import specs_of
from treadle.worker.steps import Step
from treadle.worker.workflows import Workflow

from .agenda import Agenda
from .crew import Member, Watch
from .errors import NeedsAttention, Stuck
from .plane import Plane
from .replay_check import check_replay
from .stage import Stage
from .understudy import Understudies
from .waits import told_stuck

__all__ = ("App", "House")

App = ModuleType | Registry | Workflow[..., Any] | Step[..., Any]
"""What a lab is given."""

_PARK_MS: Final = 31_000
"""Before a longer jump idle runs are parked, when they would be: half a minute after they came to rest."""
_MAX_JUMPS: Final = 100_000
_MAX_TURNS: Final = 100_000


class House:
    """See the module.

    Args:
        start_ms: What time it is at first.
        seed: Where chance comes from.
        payload_limit: Bytes of the largest value.

    Attributes:
        agenda: The clock, and what is planned.
        plane: The control plane.
        stage: Where steps run.
        registry: Workflows and steps that are there.
        understudies: What plays in place of workflows.
    """

    def __init__(self, start_ms: int, seed: int, payload_limit: int) -> None:
        self.payload_limit = payload_limit
        self._rng = Random(seed)
        self.agenda = Agenda(start_ms)
        self.plane = Plane(lambda: self.agenda.now, self._rng)
        self.stage = Stage(self.agenda, payload_limit)
        self.registry = Registry()
        self.plane.starts, self.plane.code_of = self.starts, self.code_of
        self.understudies = Understudies(lambda error: self.stage.heard(error, is_double=True))
        self._executions = execution_factory(self.registry)
        self._watch = Watch(self._make)
        self._members: list[Member] = []
        self._employed: set[tuple[str, str]] = set()
        self._came: dict[str, int] = {}
        self._numbers = 0
        self._working = False
        self._closed = False

    @property
    def now(self) -> datetime:
        """The virtual time, in UTC."""
        return datetime.fromtimestamp(self.agenda.now / 1000, UTC)

    def new_id(self, what: str) -> str:
        """Return an id that is not used here."""
        self._numbers += 1
        return f"{what}-{self._numbers}"

    def _make(self, context: RunContext) -> Execution:
        plays = self.understudies.plays(context.workflow)
        return self.understudies(context) if plays else self._executions(context)

    def close(self) -> None:
        """Drop what is open. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            for member in self._members:
                member.leave()
        finally:
            self.stage.close()

    # --- the workers -------------------------------------------------------------------------------------------------
    def add(self, apps: Iterable[App]) -> None:
        """More is there.

        Raises:
            ConfigError: Two have the same name.
        """
        for app in apps:
            found = _registry_of(app)
            self.registry.add(*found.workflows.values(), *found.steps.values())

    def employ(self) -> None:
        """Each name has a worker of its pool.

        Raises:
            FieldInvalid: The condition of a trigger is none.
        """
        things: list[Workflow[..., Any] | Step[..., Any]] = [*self.registry.workflows.values()]
        things += [step for step in self.registry.steps.values() if step.pool]
        new = [thing for thing in things if (type(thing).__name__, _name_of(thing)) not in self._employed]
        codes = [thing.code for thing in new if isinstance(thing, Workflow)]
        check_triggers(RegisterRequest(specs=specs_of(self.registry, codes)))
        came = len(self._came)
        for code in codes:
            self._came.setdefault(code, came)
        for pool in dict.fromkeys(thing.pool for thing in new if thing.pool):
            mine = [thing for thing in new if thing.pool == pool]
            self._employed |= {(type(thing).__name__, _name_of(thing)) for thing in mine}
            member = Member(
                self.plane,
                self.stage,
                self.registry,
                self._watch,
                now=lambda: self.agenda.now,
                rng=self._rng,
                payload_limit=self.payload_limit,
                name=self.new_id("worker"),
                pool=pool,
                workflows=frozenset(thing.code for thing in mine if isinstance(thing, Workflow)),
                steps=frozenset(thing.name for thing in mine if isinstance(thing, Step)),
            )
            self._members.append(member)
            member.work()

    def restart(self, apps: Iterable[App]) -> None:
        """Drain all workers, and let others take over, with the code of `apps` in place of what has its names."""
        members, self._members = self._members, []
        self._employed.clear()
        for app in apps:
            found = _registry_of(app)
            self.registry.workflows |= found.workflows
            self.registry.steps |= found.steps
            for name in found.workflows:  # how its code before went on is no measure for the new one
                self._watch.forget(name)
        for member in members:
            member.leave()
        self.employ()
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
                if head.retried_at:
                    looked = looked[-1:]  # what its code asked for before counts only in part
                if looked and not self.understudies.plays(code_name(head.workflow, head.version)):
                    asked = self._watch.asked[run.run_id, head.incarnation]
                    check_replay(self._context(head), self._watch.make, history, asked, looked)

    # --- going on ----------------------------------------------------------------------------------------------------
    def request(self, run: RunKey, request: Request) -> None:
        """Have a request of a client committed, and let everybody go on as far as they can.

        Raises:
            RequestError: It was refused.
        """
        if self._closed:
            raise ConfigError("this lab is closed: make a new one")
        self.plane.ask(run, request)
        self._settle()

    def starts(self, event: NamedEvent) -> list[StartByEvent]:
        """Return what an event starts, of the workflows that are there."""
        triggers = [
            RegisteredTrigger(workflow=one.name, code=one.code, pool=one.pool, trigger=one.trigger)
            for one in self.registry.workflows.values()
            if one.trigger is not None and one.code == self.code_of(one.name)
        ]
        return starts_of(triggers, event, self.agenda.now)

    def code_of(self, workflow: str) -> str:
        """Return what the name of a workflow means: its version that came last, if it has any (see `Admission`)."""
        codes = [one.code for one in self.registry.workflows.values() if one.name == workflow and one.version]
        return max(codes, key=lambda code: (self._came.get(code, 0), code), default=workflow)

    def close_run(self, run: RunKey) -> None:
        """Let time pass until a run has closed. Raises as `drive`."""
        self.drive(run, lambda: self.plane.head(run).state == RUN_STATE_CLOSED)

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

    def advance_to(self, until_ms: int) -> None:
        """Let time pass until then, and happen what is due."""
        self._drive(lambda: False, until_ms)
        if until_ms > self.agenda.now:
            self._jump(until_ms)
            self._settle()

    def _drive(self, done: Callable[[], bool], until_ms: int | None) -> bool:
        """Go on until `done`, or nothing is left that is due until then; returns whether it was done."""
        for _ in range(_MAX_JUMPS):
            self._settle()
            if done():
                return True
            if self.stage.awaits:
                self._wait()
                continue
            coming = [ms for ms in (self.agenda.next_ms(), self.plane.next_ms()) if ms is not None]
            if not coming or (until_ms is not None and min(coming) > until_ms):
                return False
            self._jump(min(coming))
        raise Stuck(f"the time went on {_MAX_JUMPS:,} times, now to {self.now:%Y-%m-%d}, and there is no end to it")

    def _wait(self) -> None:
        self._working = True
        try:
            self.stage.wait()
        finally:
            self._working = False

    def _jump(self, when_ms: int) -> None:
        if when_ms - self.agenda.now > _PARK_MS and any(member.core.counts()[1] for member in self._members):
            self._move(self.agenda.now + _PARK_MS)
            self._settle()
        self._move(when_ms)

    def _move(self, when_ms: int) -> None:
        self.agenda.now = when_ms
        for member in self._members:
            member.tick()

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
        action = self.agenda.take_due()
        if action is not None:
            action()
        return action is not None

    def _speak(self) -> None:
        """Raise what a test must hear of."""
        broken, self.stage.broken = self.stage.broken, None
        if broken is not None:
            raise broken
        for run in list(self.plane.attention):
            del self.plane.attention[run]
            raise NeedsAttention(f"run {run.run_id} needs attention: {self.plane.head(run).attention}")

    def _context(self, head: RunHead) -> RunContext:
        return RunContext(
            namespace=head.namespace,
            run_id=head.run_id,
            incarnation=head.incarnation,
            workflow=code_name(head.workflow, head.version),
            accepted_until=head.accepted_until,
            retried_at=head.retried_at,
            passed_until=head.passed,
            marks=frozenset(head.marks),
            payload_limit=self.payload_limit,
        )

    def _signals(self, run: RunKey) -> list[tuple[bool, str]]:
        """What the code of an open run waits for: a replay tells."""
        execution = self._watch.make(self._context(self.plane.head(run)))
        assert isinstance(execution, WorkflowExecution)
        try:
            for event in self.plane.history(run):
                execution.feed(event)
            return execution.mail.wanted
        finally:
            execution.close()


def _registry_of(app: App) -> Registry:
    if isinstance(app, Workflow | Step):
        return Registry().add(app)
    return app if isinstance(app, Registry) else collect(app)


def _name_of(thing: Workflow[..., Any] | Step[..., Any]) -> str:
    return thing.code if isinstance(thing, Workflow) else thing.name
