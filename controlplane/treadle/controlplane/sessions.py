"""WorkerService: sessions, beats, registration, and the unary calls of small workers. Carries; decides nothing.

A frame that comes up is turned into requests, each answered by the commit it was part of; what is ready to go down is sent
as one frame, and while a frame is being written the next one collects.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import grpc
import structlog

from treadle.controlplane.clock import monotonic_ms
from treadle.controlplane.declarations import CodesOf, declare_schedules, declared_schedules
from treadle.controlplane.downlinks import Downlink
from treadle.controlplane.duties.leases import LeaseChecker
from treadle.controlplane.engine import Engine
from treadle.controlplane.events.registration import check_triggers, set_triggers
from treadle.controlplane.frames import check_frame
from treadle.controlplane.lanes import Lanes
from treadle.controlplane.machine import Request
from treadle.controlplane.machine.indexes import attention_index, waiting_index
from treadle.controlplane.machine.requests import Registered, Reply
from treadle.controlplane.removals import warn_of_missing
from treadle.controlplane.replica import Session as WorkerSession
from treadle.controlplane.store.port import Beat
from treadle.protocol.errors import ConfigError, FieldInvalid, RequestError
from treadle.protocol.ids import SHARDS, RunKey, check_name
from treadle.protocol.topology import Queue
from treadle.v1.blob_service_pb2 import BlobStore
from treadle.v1.job_pb2 import JOB_KIND_STEP
from treadle.v1.state_pb2 import WorkerRecord
from treadle.v1.worker_service_pb2 import (
    LANE_SESSION,
    VERDICT_UNKNOWN,
    BeatRequest,
    BeatResponse,
    ClaimRequest,
    ClaimResponse,
    ClaimVerdict,
    CompleteRequest,
    CompleteResponse,
    FailRequest,
    FailResponse,
    RegisterRequest,
    RegisterResponse,
    SessionHello,
    SessionRequest,
    SessionResponse,
)
from treadle.v1.worker_service_pb2_grpc import WorkerServiceServicer

from .unary import UnaryWorkers

__all__ = ("WorkerService",)

_log = structlog.stdlib.get_logger(__name__)

_BEAT_MS = 1_000

Context = grpc.aio.ServicerContext[SessionRequest, SessionResponse]


class WorkerService(WorkerServiceServicer):
    """See the module.

    Args:
        engine, leases, lanes: Of this replica.
        amqp_url: What workers are told to connect to; "" means: use the session lane.
        max_payload_bytes, blobs: What workers are told.
    """

    def __init__(
        self,
        engine: Engine,
        leases: LeaseChecker,
        lanes: Lanes,
        *,
        amqp_url: str,
        max_payload_bytes: int,
        blobs: BlobStore | None = None,
    ) -> None:
        self._engine, self._leases, self._lanes = engine, leases, lanes
        self._amqp_url, self._max_payload, self._blobs = amqp_url, max_payload_bytes, blobs
        self._unary = UnaryWorkers(engine)
        self._closing: set[asyncio.Task[None]] = set()
        self._going_away = False
        self.codes_of: CodesOf | None = None

    # --- registration and beats --------------------------------------------------------------------------------------
    async def Register(self, request: RegisterRequest, context: object) -> RegisterResponse:
        namespace, pool = _names(request.namespace, request.pool)
        check_triggers(request)
        if not request.worker_id:
            raise FieldInvalid("worker_id: give a random id of the process", field="worker_id")
        engine = self._engine
        schedules = declared_schedules(request, pool)
        await engine.declare(namespace, pool)
        await engine.store.register(namespace, pool, request.workflows, request.steps, engine.clock.now())
        await set_triggers(engine, namespace, pool, request)
        if request.session_id:
            await engine.store.open_session(_record(request, engine.clock.now(), engine.replica_id))
        await declare_schedules(engine, namespace, request.workflows, schedules, self.codes_of)
        await self._wake_waiting(namespace, pool, request.workflows, request.steps)
        return RegisterResponse(
            beat_ms=_BEAT_MS,
            amqp_url=self._amqp_url,
            max_payload_bytes=self._max_payload,
            blobs=self._blobs,
            missing=await warn_of_missing(engine.store, namespace, pool, request),
        )

    async def _wake_waiting(self, namespace: str, pool: str, workflows: Sequence[str], steps: Sequence[str]) -> None:
        """What waits for one of these names is asked for again."""
        found: list[tuple[str, str]] = []
        for name in {*workflows, *steps}:
            entries = await self._engine.store.index(waiting_index(namespace, pool, name), range(SHARDS))
            for entry in entries:
                run_id, _, command_id = entry.member.partition("\x1f")
                found.append((run_id, command_id))
        for name in set(workflows):
            entries = await self._engine.store.index(attention_index(namespace, name), range(SHARDS))
            found.extend((entry.member, "") for entry in entries)
        asked = (self._engine.ask(RunKey(namespace, run_id), Registered(cid)) for run_id, cid in found)
        for result, (run_id, _) in zip(await asyncio.gather(*asked, return_exceptions=True), found, strict=True):
            if isinstance(result, Exception):  # its own timer brings it again; the worker is registered
                _log.warning("waiting_run_not_woken", namespace=namespace, run=run_id, error=str(result))

    async def Beat(self, request: BeatRequest, context: object) -> BeatResponse:
        beat = Beat(
            worker_id=request.worker_id,
            session_id=request.session_id,
            sent_ms=request.sent_ms,
            list_id=request.list_id,
            held=list(request.held) if request.list_given else None,
            loop_lag_ms=request.loop_lag_ms,
            steps_running=request.steps_running,
            runs_open=request.runs_open,
            draining=request.draining,
        )
        result = (await self._engine.store.beat([beat]))[0]
        return BeatResponse(want_list=result.want_list, ignored=result.ignored)

    # --- sessions ------------------------------------------------------------------------------------------------------
    async def Session(  # type: ignore[override]  # it writes to the context by itself; the stub knows generators only
        self, request_iterator: AsyncIterator[SessionRequest], context: Context
    ) -> None:
        frames = aiter(request_iterator)
        try:
            first = await anext(frames)
        except StopAsyncIteration:
            return
        hello = _hello(first)
        if not await self._engine.store.open_session(_session_record(hello, self._engine)):
            raise FieldInvalid("session: a later session of this worker is open", field="hello.sent_ms")
        link = Downlink(self._engine.downlinks, context.write)
        session = self._engine.replica.open_session(hello, link.ready)
        link.frames = session.frames
        _log.info("session_opened", worker=hello.worker_id, pool=hello.pool, session=hello.session_id)
        end = _End()
        reader = asyncio.create_task(self._read(session, first, frames, end))
        try:
            ends: list[asyncio.Future[Any]] = [reader, link.broken]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if link.broken.done():
                raise link.broken.result()
            await link.close(drain=True)
            reader.result()
        finally:
            reader.cancel()
            self._ended(session, end)
            await link.close(drain=False)

    async def _read(
        self, session: WorkerSession, first: SessionRequest, frames: AsyncIterator[SessionRequest], end: _End
    ) -> None:
        self._take(session, first, end)
        async for frame in frames:
            self._take(session, frame, end)

    def _take(self, session: WorkerSession, frame: SessionRequest, end: _End) -> None:
        engine = self._engine
        check_frame(frame, engine.settings.commit_limit)
        end.goodbye = end.goodbye or frame.goodbye
        requests = engine.replica.requests(session, frame, monotonic_ms())
        if frame.HasField("credits") and session.lane == LANE_SESSION:
            self._lanes.stated(session.namespace, session.pool)  # what waits comes before what is asked for now
        for run, request in requests:
            engine.committer.put(run, request, partial(self._reply, session, run, request))
        engine.committer.lift()
        for item in frame.claims:
            if item.garbage:
                verdict = ClaimVerdict(claim_id=item.claim_id, verdict=VERDICT_UNKNOWN)
                queue = Queue(session.namespace, session.pool, JOB_KIND_STEP)
                engine.keep_garbage(queue, item.garbage, partial(session.verdict, verdict))

    def _reply(self, session: WorkerSession, run: RunKey, request: Request, reply: Reply | Exception) -> None:
        if isinstance(reply, Exception):  # not answered: the worker asks again, of another replica
            _log.warning("request_not_answered", run=str(run), request=type(request).__name__, error=str(reply))
        else:
            self._engine.replica.answer(session, run, request, reply)

    def _ended(self, session: WorkerSession, end: _End) -> None:
        granted = self._engine.replica.close_session(session)
        if self._going_away:
            return  # the replica ends the session, not the worker (A10)
        task = asyncio.create_task(self._close(session, list(granted.values()), drained=end.goodbye))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close(self, session: WorkerSession, granted: list[tuple[RunKey, str]], *, drained: bool) -> None:
        """A session ended from the worker's side: unless it comes back within the grace, its holdings are checked."""
        engine = self._engine
        try:
            record = await engine.store.close_session(session.worker_id, session.session_id, drained=drained)
            if record is None:
                return  # it has another session already
            _log.info("session_closed", worker=session.worker_id, drained=drained, held=len(record.held))
            await asyncio.sleep((engine.settings.grace_ms + 5) / 1000)
            held = {(RunKey(h.namespace or record.namespace, h.run_id), h.command_id) for h in record.held}
            held.update(granted)
            if held:
                await self._leases.check(sorted(held), of=session.worker_id)
        except RequestError as error:
            _log.warning("session_end_not_handled", worker=session.worker_id, error=str(error))
        except Exception:
            _log.exception("session_end_failed", worker=session.worker_id)

    async def going_away(self) -> None:
        """The replica stops: sessions are told, and their ends are not taken for the workers'."""
        self._going_away = True
        self._engine.replica.refuse_jobs()
        for session in self._engine.replica.sessions.values():
            session.batch.goaway = True
        for task in list(self._closing):
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)

    # --- small workers -------------------------------------------------------------------------------------------------
    async def Claim(self, request: ClaimRequest, context: object) -> ClaimResponse:
        return await self._unary.claim(request)

    async def Complete(self, request: CompleteRequest, context: object) -> CompleteResponse:
        return CompleteResponse(answer=await self._unary.report(request.namespace, request.report))

    async def Fail(self, request: FailRequest, context: object) -> FailResponse:
        return FailResponse(answer=await self._unary.report(request.namespace, request.report))


class _End:
    """How a session ended: with a goodbye after a drain, or not."""

    goodbye = False


def _names(namespace: str, pool: str) -> tuple[str, str]:
    try:
        return check_name("namespace", namespace or "default"), check_name("pool", pool or "default")
    except ConfigError as error:
        raise FieldInvalid(str(error), field="pool") from error


def _hello(frame: SessionRequest) -> SessionHello:
    hello = frame.hello
    if not hello.worker_id or not hello.session_id:
        raise FieldInvalid("hello: the first frame of a session names worker_id and session_id", field="hello")
    hello.namespace, hello.pool = _names(hello.namespace, hello.pool)
    return hello


def _session_record(hello: SessionHello, engine: Engine) -> WorkerRecord:
    return WorkerRecord(
        worker_id=hello.worker_id,
        namespace=hello.namespace,
        pool=hello.pool,
        session_id=hello.session_id,
        session_sent_ms=hello.sent_ms,
        workflows=hello.workflows,
        steps=hello.steps,
        step_slots=hello.step_slots,
        run_slots=hello.run_slots,
        host=hello.host,
        replica_id=engine.replica_id,
        started_ms=engine.clock.now(),
    )


def _record(request: RegisterRequest, now_ms: int, replica_id: str) -> WorkerRecord:
    return WorkerRecord(
        worker_id=request.worker_id,
        namespace=request.namespace or "default",
        pool=request.pool or "default",
        session_id=request.session_id,
        session_sent_ms=request.sent_ms,
        workflows=request.workflows,
        steps=request.steps,
        step_slots=request.step_slots,
        run_slots=request.run_slots,
        host=request.host,
        replica_id=replica_id,
        started_ms=now_ms,
    )
