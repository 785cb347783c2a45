"""The workers of a lab: the real protocol core and the real durable loop, one worker a pool, over a session without a wire."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Final

from treadle.controlplane.replica import Session
from treadle.protocol.deferral import make_token
from treadle.v1.worker_service_pb2 import (
    LANE_SESSION,
    Command,
    SessionHello,
    SessionRequest,
    SessionResponse,
)
from treadle.worker.app import Registry
from treadle.worker.core.core import WorkerCore
from treadle.worker.core.port import (
    Action,
    CancelAttempt,
    CancelLocal,
    CoreSettings,
    Report,
    StartAttempt,
    StartLocal,
)
from treadle.worker.current import LazyInfo
from treadle.worker.loop.port import Execution, ExecutionFactory, LocalCall, RunContext, Turn
from treadle.worker.specs import handlers_of, specs_of

from .plane import NEVER_MS, Plane
from .stage import Attempt, Stage

__all__ = ("NAMESPACE", "Asked", "Member", "Watch", "asked_in")

NAMESPACE: Final = "default"
_SLOTS: Final = 1_000

Asked = tuple[str, str, int]
"""Something that code asked for: what kind it is, its command id, the digest of its input."""


def asked_in(turn: Turn) -> list[Asked]:
    """Return what a turn asks for, but for cancels: whether these are needed depends on what came meanwhile."""
    asked = [_of_command(command) for command in turn.commands if not command.HasField("cancel")]
    return asked + [_of_call(call) for call in turn.local_calls]


def _of_command(command: Command) -> Asked:
    return command.WhichOneof("kind") or "", command.command_id, command.digest


def _of_call(call: LocalCall) -> Asked:
    return f"local try {call.try_number}", call.command_id, call.digest


class Watch:
    """Makes executions by `make`, and notes for each run what its code asked for, and how far it was fed then."""

    def __init__(self, make: ExecutionFactory) -> None:
        self.make = make
        self.asked: dict[tuple[str, int], dict[Asked, int]] = {}
        self.looked: dict[tuple[str, int], dict[int, None]] = {}
        self._runs: dict[str, set[tuple[str, int]]] = {}

    def forget(self, workflow: str) -> None:
        """Its code is another one from now on."""
        for key in self._runs.pop(workflow, ()):
            del self.asked[key], self.looked[key]

    def __call__(self, context: RunContext) -> Execution:
        key = context.run_id, context.incarnation
        self._runs.setdefault(context.workflow, set()).add(key)
        asked, looked = self.asked.setdefault(key, {}), self.looked.setdefault(key, {})
        return _Watched(self.make(context), asked, looked)


class _Watched:
    """An execution whose turns are noted; all else is passed on."""

    __slots__ = ("_asked", "_inner", "_looked")

    def __init__(self, inner: Execution, asked: dict[Asked, int], looked: dict[int, None]) -> None:
        self._inner, self._asked, self._looked = inner, asked, looked

    def take(self) -> Turn:
        turn = self._inner.take()
        fed = self._inner.fed
        self._looked[fed] = None
        for one in asked_in(turn):
            self._asked.setdefault(one, fed)
        return turn

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class Member:
    """One worker. Rights, leases and answers that stay away play no part here: nothing of it is ever late.

    Args:
        plane: Its control plane.
        stage: Where its steps run.
        registry: Where its steps are found; it grows.
        executions: Makes coroutines.
        now: The time in milliseconds.
        rng: Where its ids come from.
        payload_limit: Bytes of the largest value of workflow code.
        name: Of the worker; a number is enough.
        pool: Whom it works for.
        workflows, steps: What it has.
    """

    def __init__(
        self,
        plane: Plane,
        stage: Stage,
        registry: Registry,
        executions: ExecutionFactory,
        *,
        now: Callable[[], int],
        rng: Random,
        payload_limit: int,
        name: str,
        pool: str,
        workflows: frozenset[str],
        steps: frozenset[str],
    ) -> None:
        self._plane, self._stage, self._steps, self._now = plane, stage, registry.steps, now
        settings = CoreSettings(
            worker_id=name,
            namespace=NAMESPACE,
            pool=pool,
            lane=LANE_SESSION,
            workflows=workflows,
            steps=steps,
            step_slots=_SLOTS,
            run_slots=_SLOTS,
            wake_slots=_SLOTS,
            cache_runs=_SLOTS,
            right_ms=NEVER_MS,
            unanswered_ms=NEVER_MS,
            give_back_session_ms=NEVER_MS,
            payload_limit=payload_limit,
        )
        self.core = WorkerCore(settings, executions, lambda: rng.getrandbits(64) or 1)
        hello = SessionHello(
            worker_id=name,
            session_id=f"{name}-session",
            sent_ms=now(),
            namespace=NAMESPACE,
            pool=pool,
            lane=LANE_SESSION,
            workflows=sorted(workflows),
            steps=sorted(steps),
            on_failure=handlers_of(specs_of(registry, sorted(workflows))),
        )
        self._session: Session = plane.open_session(hello)
        self.core.session_opened(hello.session_id, now())

    def work(self) -> bool:
        """Do what is to be done now; whether there was anything."""
        worked = False
        while self._turn():
            worked = True
        return worked

    def _turn(self) -> bool:
        worked = False
        for frame in self._session.frames():
            # Encoded and decoded, as on the wire: neither side sees what the other one does with its messages.
            self.core.receive(SessionResponse.FromString(frame.SerializeToString()), self._now())
            worked = True
        for action in self.core.actions():
            self._act(action)
            worked = True
        sent = self.core.frame(self._now())
        if sent is not None:
            self._plane.take(self._session, SessionRequest.FromString(sent.SerializeToString()))
            worked = True
        return worked

    def tick(self) -> None:
        """Time has passed."""
        self.core.tick(self._now())

    def leave(self) -> None:
        """End as a worker does that is told to: give back what is open, drop all coroutines."""
        self.core.drain(self._now())
        self.core.drain_over(self._now())
        self.work()
        self._plane.close_session(self._session)

    # --- what the core wants done ------------------------------------------------------------------------------------
    def _act(self, action: Action) -> None:
        if isinstance(action, StartLocal):
            self._start_local(action)
        elif isinstance(action, StartAttempt):
            self._start(action)
        elif isinstance(action, CancelLocal):
            self._stage.cancel((action.owner_token, action.command_id), action.reason)
        elif isinstance(action, CancelAttempt):
            self._stage.cancel(action.token, action.reason)

    def _start(self, action: StartAttempt) -> None:
        attempt, core = action.attempt, self.core
        job, token = attempt.job, attempt.token
        info = LazyInfo(
            job.run_id,
            job.incarnation,
            job.name,
            attempt.number,
            job.namespace,
            job.command_id,
            job.try_number,
            attempt.traceparent,
        )

        def ended(report: Report | None) -> None:
            core.attempt_ended(token, report or Report("released"), self._now())

        self._stage.start(
            token,
            Attempt(
                step=self._steps[job.name],
                payload=job.input,
                info=info,
                may_start=lambda: core.may_start(token, self._now()),
                ended=ended,
                timeout_ms=job.timeout_ms,
                left_ms=attempt.left_ms,
                heartbeat_ms=job.heartbeat_ms,
                progress=attempt.progress,
                said=lambda data: core.progressed(token, attempt.number, data),
                deferral=make_token(
                    attempt.deferral_key,
                    namespace=job.namespace,
                    run_id=job.run_id,
                    incarnation=job.incarnation,
                    command_id=job.command_id,
                    try_number=job.try_number,
                ),
            ),
        )

    def _start_local(self, action: StartLocal) -> None:
        asked, token, core = action.call, action.owner_token, self.core
        command_id = asked.command_id
        info = LazyInfo(
            action.run_id,
            action.incarnation,
            asked.name,
            action.attempt,
            NAMESPACE,
            command_id,
            asked.try_number,
            None,
        )

        def ended(report: Report | None) -> None:
            if report is None:
                core.local_refused(token, command_id, self._now())
            else:
                core.local_ended(token, command_id, report, self._now())

        self._stage.start(
            (token, command_id),
            Attempt(
                step=asked.step,
                payload=asked.input,
                info=info,
                may_start=lambda: core.may_start_local(token, command_id, self._now()),
                ended=ended,
                timeout_ms=asked.timeout_ms,
                left_ms=action.left_ms,
                heartbeat_ms=asked.step.heartbeat_ms,
                progress=asked.progress,
                local=True,
            ),
        )
