"""How runs are started, one call or many on a stream: the same checks, the same commits, the same answers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from treadle.controlplane.api import checks
from treadle.controlplane.api.admission import Admission
from treadle.controlplane.api.sweeps import when_swept
from treadle.controlplane.machine import requests
from treadle.controlplane.machine.policies import SWEEPING
from treadle.controlplane.machine.requests import Reply, Request, RunReply
from treadle.controlplane.telemetry import Metrics
from treadle.protocol.errors import RunClosed, RunIdConflict, Unavailable
from treadle.protocol.ids import RunKey, check_run_id
from treadle.protocol.tags import tags_of
from treadle.v1 import run_service_pb2 as pb

__all__ = ("Engine", "Starts", "in_the_way", "run_reply")

_REPLACE_TRIES: Final = 5


class Engine(Protocol):
    """What the services for clients need of the engine."""

    async def ask(self, run: RunKey, request: Request) -> Reply:
        """Load, decide, commit. Raises RequestError for refusals."""
        ...

    def submit(self, run: RunKey, request: Request, settle: Callable[[Reply | Exception], None]) -> None:
        """The same; `settle` gets the reply, or the error."""
        ...

    async def declare(self, namespace: str, pool: str) -> None:
        """Have the queues of a pool declared. Raises Unavailable."""
        ...


class Starts:
    """See the module.

    Args:
        engine: Decides and commits.
        admission: Which starts are taken.
        max_payload_bytes: Largest input.
        metrics: Counts starts.
    """

    def __init__(self, engine: Engine, admission: Admission, max_payload_bytes: int, metrics: Metrics) -> None:
        self._engine = engine
        self.admission = admission
        self._max_payload_bytes = max_payload_bytes
        self._metrics = metrics

    def checked(self, namespace: str, request: pb.StartRunRequest) -> tuple[RunKey, requests.StartRun]:
        """Return the run and what the machine is asked. Workflow and pool are left to admission.

        Raises:
            FieldInvalid: A field is not allowed.
            Refused: The input is too large.
        """
        run = RunKey(namespace, check_run_id(request.run_id))
        checks.check_payload("input", request.input, self._max_payload_bytes)
        start = requests.StartRun(
            workflow=request.workflow,
            pool=request.pool,
            input=request.input,
            request_id=checks.request_id_of(request.request_id),
            policy=checks.policy_of(request),
            caller=checks.caller_of(request.trace),
            timeout_ms=checks.timeout_of(request.timeout_ms),
            tags=tags_of(request.tags) if request.tags else (),
        )
        return run, start

    async def one(self, request: pb.StartRunRequest) -> RunReply:
        """Start one run.

        Raises:
            RequestError: It was refused.
        """
        run, start = self.checked(checks.namespace_of(request.namespace), request)
        start.workflow, start.pool = await self.admission.target_of(run.namespace, start.workflow, start.pool)
        with suppress(Unavailable):  # the broker is away: the outbox keeps the job, and the queue is declared later
            await self._engine.declare(run.namespace, start.pool)
        reply = await self.replacing(run, start)
        self.count(run, reply)
        return reply

    def submit(self, run: RunKey, start: requests.StartRun, settle: Callable[[Reply | Exception], None]) -> None:
        """Start one run in a batch with others. Some answers ask for `replacing`, see `in_the_way`."""
        self._engine.submit(run, start, settle)

    async def replacing(self, run: RunKey, start: requests.StartRun) -> RunReply:
        """Start; where the policy says so, first end the run that has the id, and let its children and waits know.

        Raises:
            RequestError: It was refused.
        """
        for _ in range(_REPLACE_TRIES):
            try:
                return run_reply(start, await when_swept(lambda: self._engine.ask(run, start)))
            except RunIdConflict as conflict:
                if not in_the_way(conflict):
                    raise
            ended = requests.TerminateRun(f"{start.request_id}/replaces", "replaced by a new start of the same id")
            with suppress(RunClosed):  # it closed by itself meanwhile: as good
                run_reply(ended, await self._engine.ask(run, ended))
        raise Unavailable(
            f"run {run.run_id!r} was started again by others each time it was ended here",
            reason="VERSION_CONFLICT",
            remedy="try again, or give each start an id of its own",
        )

    def count(self, run: RunKey, reply: RunReply) -> None:
        """Count a start that was answered."""
        if reply.started:
            self._metrics.count("treadle.runs", namespace=run.namespace, outcome="started")


def in_the_way(reply: Reply | Exception) -> bool:
    """Whether a start was refused only because the run that has the id must end, or be cleared away, first."""
    return isinstance(reply, RunIdConflict | Unavailable) and reply.reason in ("RUN_OPEN", SWEEPING)


def run_reply(asked: Request, reply: Reply | Exception) -> RunReply:
    """Return the reply if it is one about a run; raise it if it is an error."""
    if isinstance(reply, Exception):
        raise reply
    if not isinstance(reply, RunReply):
        raise TypeError(f"{type(asked).__name__} was answered with {type(reply).__name__}, not RunReply")
    return reply
