"""The lab: runs workflows in this process, in virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Literal, ParamSpec, TypeVar, overload

from treadle.controlplane.machine.event_requests import AcceptEvent
from treadle.controlplane.machine.event_routers import record_of as record_of_event
from treadle.controlplane.machine.requests import SettleStep, StartRun
from treadle.controlplane.machine.schedule_requests import DeclareSchedule
from treadle.controlplane.machine.schedules import record_of
from treadle.protocol.deferral import read_token
from treadle.protocol.durations import Duration, to_ms
from treadle.protocol.errors import ConfigError
from treadle.protocol.events import check_event
from treadle.protocol.failures import failure_of
from treadle.protocol.ids import RunKey, check_run_id
from treadle.protocol.payloads import MAX_PAYLOAD_BYTES, encode
from treadle.protocol.tags import code_name
from treadle.v1.common_pb2 import Failure, NamedEvent, Payload, TraceContext
from treadle.v1.run_service_pb2 import CONFLICT_POLICY_REJECT
from treadle.v1.schedule_pb2 import ScheduleSpec
from treadle.worker.loop import guard
from treadle.worker.steps import Step
from treadle.worker.workflows import Workflow

from .crew import NAMESPACE
from .discover import add_reachable
from .doubles import NOT_GIVEN, Call, make_double
from .house import App, House
from .run import Run

__all__ = ("Lab",)

P = ParamSpec("P")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
R = TypeVar("R")

START: Final = datetime(2030, 1, 1, tzinfo=UTC)


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
        max_payload_bytes: Largest encoded value. Default: 1 MiB; with a blob store, production takes 64 MiB.

    Raises:
        ConfigError: Two workflows or steps have the same name, or `start` has no time zone.
    """

    def __init__(
        self,
        *apps: App,
        start: datetime = START,
        seed: int = 0,
        check_replay: bool = True,
        max_payload_bytes: int = MAX_PAYLOAD_BYTES,
    ) -> None:
        if start.tzinfo is None:
            raise ConfigError(f"Lab(start={start!r}): give it a time zone, as in datetime(2030, 1, 1, tzinfo=UTC)")
        guard.install()  # the refusals of production: no files, sockets and threads in workflow code
        self._house = House(round(start.timestamp() * 1000), seed, max_payload_bytes)
        self._runs: dict[str, Run[Any]] = {}
        self._check_replay = check_replay
        self._house.add(apps)

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
        self._house.close()

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
        payload = workflow.signature.encode_call(args, kwargs, limit=self._house.payload_limit)
        add_reachable(self._house.registry, workflow)
        key = RunKey(NAMESPACE, self._house.new_id(workflow.name) if id is None else check_run_id(id))
        self._house.employ()
        request = StartRun(
            workflow=workflow.code,
            pool=workflow.pool,
            input=payload,
            request_id=self._house.new_id("start"),
            policy=CONFLICT_POLICY_REJECT,
            caller=TraceContext(),
            sampled=False,
            timeout_ms=workflow.timeout_ms,
        )
        self._house.request(key, request)
        run = self.find(key.run_id)
        assert run is not None
        return run

    def send(self, name: str, data: Any = None, *, id: str | None = None) -> int:
        """Send an event: it starts the workflows that say so and that the lab was given, and runs that wait for it go on.

        Args:
            name, data, id: As for `Client.send`.

        Returns:
            How many workflows say so. Sent again under the same id within 24 h, it starts none of them again.

        Raises:
            FieldInvalid, PayloadError: The name, id or data is not allowed.
        """
        self._house.employ()
        event_id = self._house.new_id("event") if id is None else id
        event = NamedEvent(event_id=event_id, name=name, data=encode(data, what=f"event {name!r}"))
        check_event(event)
        record = RunKey(NAMESPACE, record_of_event(event.event_id))
        starts = self._house.starts(event)
        self._house.request(record, AcceptEvent(event, starts))
        return len(starts)

    def schedule(self, workflow: Workflow[..., Any]) -> None:
        """Let the schedule that a workflow declares (`cron=`, `every=`) start runs as time passes; `runs` lists them.

        Raises:
            ConfigError: It declares none.
        """
        if workflow.schedule is None:
            raise ConfigError(f"schedule({workflow.name}): it declares none; give @workflow cron= or every=")
        add_reachable(self._house.registry, workflow)
        self._house.employ()
        spec = ScheduleSpec()
        spec.CopyFrom(workflow.schedule)
        spec.workflow, spec.pool = workflow.name, workflow.pool
        self._house.request(record_of(NAMESPACE, workflow.name), DeclareSchedule(spec))

    def find(self, id: str) -> Run[Any] | None:
        """Return a run by its id; None: there is no such run."""
        key = RunKey(NAMESPACE, id)
        if key not in self._house.plane.runs:
            return None
        if id not in self._runs:
            head = self._house.plane.head(key)
            workflow = self._house.registry.workflows[code_name(head.workflow, head.version)]
            self._runs[id] = Run(self, self._house, key, workflow.signature)
        return self._runs[id]

    @property
    def runs(self) -> list[Run[Any]]:
        """All runs, children included, in the order in which they began."""
        return [run for key in self._house.plane.runs if (run := self.find(key.run_id)) is not None]

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
            self._house.stage.doubles[what.name] = double
        else:
            self._house.registry.add(what)
            self._house.understudies.add(what, double)

    def calls(self, step: Step[..., Any] | None = None) -> list[Call]:
        """Return every attempt that began, in order; with `step`, those of this step."""
        return [call for call in self._house.stage.calls if step is None or call.step == step.name]

    # --- steps that are finished from outside -------------------------------------------------------------------------
    def complete_step(self, token: str, value: Any = None, *, request_id: str | None = None) -> None:
        """Finish a step that was deferred, as `Client.complete_step` does.

        Raises:
            StepSettled: It has its outcome, or the try that made the token is over.
            FieldInvalid: It is no token.
            PayloadError: The value cannot be encoded.
        """
        self._finish(token, request_id, encode(value, what="result of the step", limit=self._house.payload_limit), None)

    def fail_step(
        self, token: str, error: str | BaseException, *, final: bool = False, request_id: str | None = None
    ) -> None:
        """Let a step that was deferred fail, as `Client.fail_step` does.

        Raises:
            StepSettled: It has its outcome, or the try that made the token is over.
            FieldInvalid: It is no token.
        """
        failure = Failure(type="StepError", message=error) if isinstance(error, str) else failure_of(error)
        failure.final = failure.final or final
        self._finish(token, request_id, None, failure)

    def _finish(self, token: str, request_id: str | None, result: Payload | None, failure: Failure | None) -> None:
        read = read_token(token)
        asked = SettleStep(read, request_id or self._house.new_id("finish"), result, failure)
        self._house.request(RunKey(NAMESPACE, read.run_id), asked)

    # --- time --------------------------------------------------------------------------------------------------------
    @property
    def now(self) -> datetime:
        """The virtual time, in UTC."""
        return self._house.now

    def advance(self, duration: Duration) -> None:
        """Let time pass, and happen what is due until then.

        Args:
            duration: How long, in seconds or as text ("2d").
        """
        self._house.advance_to(self._house.agenda.now + to_ms(duration, name="advance"))

    def advance_to(self, when: datetime) -> None:
        """Let time pass until then; a time that is over changes nothing."""
        self._house.advance_to(round(when.timestamp() * 1000))

    def later(self, delay: Duration, call: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Plan a call: `lab.later("2d", run.signal, "approve", approval)`. What it raises is raised to the test.

        Args:
            delay: How long after now, in virtual time.
            call: Any function.
            args, kwargs: Its arguments.
        """
        self._house.agenda.plan(self._house.agenda.now + to_ms(delay, name="delay"), lambda: call(*args, **kwargs))

    def at(self, when: datetime, call: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Plan a call for a point in time."""
        if when.tzinfo is None:
            raise ConfigError(f"at({when!r}): give it a time zone")
        self._house.agenda.plan(round(when.timestamp() * 1000), lambda: call(*args, **kwargs))

    def restart(self, *apps: App) -> None:
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
        self._house.restart(apps)

    # --- checking ----------------------------------------------------------------------------------------------------
    def check_replay(self) -> None:
        """Replay every run up to places where its code was asked what it wants, and compare.

        Raises:
            NotDeterministic: The code does otherwise in a replay.
        """
        self._house.check_replay()
