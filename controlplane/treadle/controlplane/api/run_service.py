"""RunService: what clients do with runs. Checks the request, asks the engine or reads the store, shows the run."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Final, Protocol

from treadle.controlplane.api import checks
from treadle.controlplane.api.errors import Context
from treadle.controlplane.api.fleet import Fleet
from treadle.controlplane.api.fresh import Fresh
from treadle.controlplane.api.pages import page_size, read_token, write_token
from treadle.controlplane.api.records import ListFilter, Records
from treadle.controlplane.hints import HintHub
from treadle.controlplane.machine import requests
from treadle.controlplane.machine.requests import Reply, Request, RunReply
from treadle.controlplane.store.port import Store
from treadle.controlplane.telemetry import Metrics
from treadle.protocol.errors import NotFound, Refused, RequestError, RunClosed, RunIdConflict, Unavailable
from treadle.protocol.ids import RunKey
from treadle.v1 import run_service_pb2 as pb
from treadle.v1.run_service_pb2_grpc import RunServiceServicer
from treadle.v1.state_pb2 import RUN_STATE_CLOSED

__all__ = ("Engine", "RunService")

POLL_S: Final = 2.0
"""How long a waiting call trusts that no hint means no change."""
_WAIT_DEFAULT_MS: Final = 30_000
_WAIT_LARGEST_MS: Final = 60_000
_ANSWER_S: Final = 0.25  # kept back from the caller's deadline, so that the answer arrives inside it
_EVENTS_PAGE: Final = 200
_REPLACE_TRIES: Final = 5
_NAMESPACES: Final = 1_000


class Engine(Protocol):
    """What this service needs of the engine."""

    async def ask(self, run: RunKey, request: Request) -> Reply:
        """Load, decide, commit. Raises RequestError for refusals."""
        ...

    async def declare(self, namespace: str, pool: str) -> None:
        """Have the queues of a pool declared. Raises Unavailable."""
        ...


class RunService(RunServiceServicer):
    """See the module.

    Args:
        engine: Decides and commits.
        store: Read for views, lists and history.
        hub: Wakes calls that wait.
        max_payload_bytes: Largest input.
        outbox_max: From so many entries on, starts are refused.
        metrics: Counts starts.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        hub: HintHub,
        *,
        max_payload_bytes: int = 1 << 20,
        outbox_max: int = 100_000,
        metrics: Metrics | None = None,
    ) -> None:
        self._engine = engine
        self._hub = hub
        self._records = Records(store, Fleet(store))
        self._admission = _Admission(store, outbox_max)
        self._max_payload_bytes = max_payload_bytes
        self._metrics = metrics or Metrics()

    async def StartRun(self, request: pb.StartRunRequest, context: Context) -> pb.StartRunResponse:
        """See run_service.proto."""
        run = checks.run_of(request.namespace, request.run_id)
        start = requests.StartRun(
            workflow=checks.workflow_of(request.workflow),
            pool=checks.pool_of(request.pool),
            input=request.input,
            request_id=checks.request_id_of(request.request_id),
            policy=checks.policy_of(request),
            caller=request.trace,
        )
        checks.check_payload("input", request.input, self._max_payload_bytes)
        start.pool = await self._admission.pool_for(run.namespace, start.workflow, start.pool)
        await self._admission.check_outbox()
        with suppress(Unavailable):  # the broker is away: the outbox keeps the job, and the queue is declared later
            await self._engine.declare(run.namespace, start.pool)
        reply = await self._start(run, start)
        if reply.started:
            self._metrics.count("treadle.runs", namespace=run.namespace, outcome="started")
        return pb.StartRunResponse(run=await self._records.view(reply.head), started=reply.started)

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        """See run_service.proto."""
        head = await self._records.head(checks.run_of(request.namespace, request.run_id))
        return pb.GetRunResponse(run=await self._records.view(head))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        """See run_service.proto."""
        wanted = ListFilter(
            namespace=checks.namespace_of(request.namespace),
            workflow=checks.workflow_of(request.workflow) if request.workflow else "",
            statuses=tuple(checks.statuses_of(request.statuses)),
            since_ms=max(request.since_ms, 0),
            until_ms=max(request.until_ms, 0),
        )
        cursor = read_token(request.page_token, wanted)
        runs, more = await self._records.listing(wanted, cursor, page_size(request.page_size))
        return pb.ListRunsResponse(runs=runs, next_page_token=write_token(more, wanted) if more else "")

    async def WaitRun(self, request: pb.WaitRunRequest, context: Context) -> pb.WaitRunResponse:
        """See run_service.proto. A run that is replaced under its id meanwhile is answered as it stands."""
        run = checks.run_of(request.namespace, request.run_id)
        until = time.monotonic() + _wait_s(request.wait_ms, context)
        async with self._hub.subscribe(run, only_close=True) as woken:
            first = head = await self._records.head(run)
            while head.state != RUN_STATE_CLOSED and head.incarnation == first.incarnation:
                left = until - time.monotonic()
                if left <= 0 or self._hub.closed:
                    break
                await woken.wait(min(left, POLL_S))
                head = await self._records.head(run)
        return pb.WaitRunResponse(run=await self._records.view(head))

    async def CancelRun(self, request: pb.CancelRunRequest, context: Context) -> pb.CancelRunResponse:
        """See run_service.proto."""
        asked = requests.CancelRun(checks.request_id_of(request.request_id), checks.reason_of(request.reason))
        return pb.CancelRunResponse(run=await self._steer(request, asked))

    async def TerminateRun(self, request: pb.TerminateRunRequest, context: Context) -> pb.TerminateRunResponse:
        """See run_service.proto."""
        asked = requests.TerminateRun(checks.request_id_of(request.request_id), checks.reason_of(request.reason))
        return pb.TerminateRunResponse(run=await self._steer(request, asked))

    async def AcceptRun(self, request: pb.AcceptRunRequest, context: Context) -> pb.AcceptRunResponse:
        """See run_service.proto."""
        asked = requests.AcceptRun(checks.request_id_of(request.request_id), checks.reason_of(request.reason))
        return pb.AcceptRunResponse(run=await self._steer(request, asked))

    async def GetHistory(self, request: pb.GetHistoryRequest, context: Context) -> pb.GetHistoryResponse:
        """See run_service.proto."""
        run = checks.run_of(request.namespace, request.run_id)
        page = await self._records.page(run, request.after_position)
        size = min(request.page_size or _EVENTS_PAGE, _EVENTS_PAGE)
        return pb.GetHistoryResponse(events=page.events[:size], length=page.head.length)

    async def WatchRun(self, request: pb.WatchRunRequest, context: Context) -> AsyncIterator[pb.WatchRunResponse]:
        """See run_service.proto. The first answer comes at once, also when there is no event yet behind the position.

        An answer without events shows that the state of the run changed (a worker is missing, a slot is free).
        """
        run = checks.run_of(request.namespace, request.run_id)
        after = request.after_position
        shown: pb.Run | None = None
        async with self._hub.subscribe(run) as woken:
            while True:
                page = await self._records.page(run, after)
                if shown is not None and page.head.incarnation != shown.incarnation:
                    raise _replaced(run)
                after = page.events[-1].position if page.events else after
                caught_up = after >= page.head.length
                view = await self._records.view(page.head)
                if page.events or shown is None or _moved(view, shown):
                    yield pb.WatchRunResponse(events=page.events, run=view)
                    shown = view
                if caught_up and page.head.state == RUN_STATE_CLOSED:
                    return
                if self._hub.closed:
                    raise Unavailable("this replica stops", remedy=f"watch again from position {after}")
                if caught_up:
                    await woken.wait(POLL_S)

    async def _start(self, run: RunKey, start: requests.StartRun) -> RunReply:
        """Start; where the policy says so, first end the run that has the id (one commit ends, the next one starts)."""
        for _ in range(_REPLACE_TRIES):
            try:
                return await self._ask(run, start)
            except RunIdConflict as conflict:
                if conflict.reason != "RUN_OPEN":
                    raise
            ended = requests.TerminateRun(f"{start.request_id}/replaces", "replaced by a new start of the same id")
            with suppress(RunClosed):  # it closed by itself meanwhile: as good
                await self._ask(run, ended)
        raise Unavailable(
            f"run {run.run_id!r} was started again by others each time it was ended here",
            reason="VERSION_CONFLICT",
            remedy="try again, or give each start an id of its own",
        )

    async def _steer(
        self, request: pb.CancelRunRequest | pb.TerminateRunRequest | pb.AcceptRunRequest, asked: Request
    ) -> pb.Run:
        reply = await self._ask(checks.run_of(request.namespace, request.run_id), asked)
        return await self._records.view(reply.head)

    async def _ask(self, run: RunKey, asked: Request) -> RunReply:
        reply = await self._engine.ask(run, asked)
        if isinstance(reply, RequestError):
            raise reply
        if not isinstance(reply, RunReply):
            raise TypeError(f"{type(asked).__name__} was answered with {type(reply).__name__}, not RunReply")
        return reply


class _Admission:
    """Which starts are taken: of known workflows, while the outbox is not full."""

    def __init__(self, store: Store, outbox_max: int) -> None:
        self._store = store
        self._outbox_max = outbox_max
        self._outbox = Fresh(store.outbox_size)
        self._registry: dict[str, Fresh[Mapping[str, str]]] = {}
        self._pools: set[tuple[str, str]] = set()

    async def pool_for(self, namespace: str, workflow: str, pool: str) -> str:
        """Return the pool that executes the workflow: the one given, or where it was registered last."""
        if pool:
            await self._note_pool(namespace, pool)
            return pool
        asked_at = time.monotonic()
        known = self._registry.get(namespace)
        if known is None:
            if len(self._registry) >= _NAMESPACES:
                self._registry.clear()  # names come from callers, and there is no end of them
            known = self._registry[namespace] = Fresh(partial(self._store.registry, namespace))
        registry = await known.get()
        if workflow not in registry:
            registry = await known.get(since=asked_at)  # it may have been registered a moment ago
        if workflow not in registry:
            raise NotFound(
                f"nobody ever registered {workflow!r} in namespace {namespace!r}: "
                "start a worker that has it, or give pool=",
                reason="WORKFLOW_NOT_FOUND",
                remedy="start a worker that has the workflow, or give the pool that will have it",
            )
        return registry[workflow]

    async def check_outbox(self) -> None:
        """Refuse while too much waits for the broker."""
        size = await self._outbox.get()
        if size >= self._outbox_max:
            raise Refused(
                f"{size:,} jobs wait for the broker, the limit is {self._outbox_max:,}",
                reason="OUTBOX_FULL",
                remedy="see whether RabbitMQ is up and not blocked (`treadle doctor`), then try again",
            )

    async def _note_pool(self, namespace: str, pool: str) -> None:
        """Make a pool known that is only started into, so that it is listed and its queues are watched."""
        if (namespace, pool) not in self._pools:
            await self._store.register(namespace, pool, (), ())
            self._pools.add((namespace, pool))


def _wait_s(wait_ms: int, context: Context) -> float:
    wait_s = min(wait_ms if wait_ms > 0 else _WAIT_DEFAULT_MS, _WAIT_LARGEST_MS) / 1000
    remaining: float | None = context.time_remaining()
    return wait_s if remaining is None else min(wait_s, remaining - _ANSWER_S)


def _moved(now: pb.Run, before: pb.Run) -> bool:
    return (now.state, now.reason, now.status) != (before.state, before.reason, before.status)


def _replaced(run: RunKey) -> RunClosed:
    return RunClosed(
        f"run {run.run_id!r} was ended and started again under the same id while it was watched",
        reason="RUN_REPLACED",
        remedy="watch again from position 0",
    )
