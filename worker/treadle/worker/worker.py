"""A worker process: the core, and around it the session, the beats, the consumers and the executors.

One pump: whatever comes in is told to the core at once; then what the core wants done is done: after each frame that comes
down, and once in a turn of the event loop for all else. What it wants said goes into the next frame, which is on its way
before timers are looked at.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import secrets
import socket
from collections.abc import Callable
from typing import Any, Final

import structlog

from treadle.client.config import is_loopback
from treadle.client.vault import Vault, codec_of, vault_of
from treadle.protocol.errors import ConfigError
from treadle.v1.worker_service_pb2 import (
    LANE_AMQP,
    LANE_SESSION,
    Lane,
    RegisterRequest,
    RegisterResponse,
    SessionRequest,
    SessionResponse,
)
from treadle.worker.app import Registry
from treadle.worker.attempts import Attempts
from treadle.worker.beats import BeatChannel, BeatThread, GrpcBeats
from treadle.worker.clock import monotonic_ms
from treadle.worker.config import WorkerConfig
from treadle.worker.connection import Connection, Line, register
from treadle.worker.core.core import WorkerCore
from treadle.worker.core.port import (
    Ack,
    CancelAttempt,
    CancelLocal,
    Consume,
    CoreSettings,
    Drained,
    GiveBack,
    Note,
    OpenEvent,
    ReopenSession,
    SealItem,
    StartAttempt,
    StartLocal,
)
from treadle.worker.executors import CUT_OFF_S, Executors
from treadle.worker.intake import Intake, broker_address
from treadle.worker.loop.execution import execution_factory
from treadle.worker.loop_watch import LoopWatch
from treadle.worker.seals import Carrier, EventSeals
from treadle.worker.session import Endpoint, GrpcEndpoint
from treadle.worker.specs import specs_of
from treadle.worker.step_values import StepValues
from treadle.worker.steps import Step

__all__ = ("Worker", "served")

AFTER_GRACE_S: Final = CUT_OFF_S + 3.0
"""What is cut off when the grace ends has so long to be reported; then the worker ends all the same."""

STILL_DUE_MS: Final = 20

_KEPT: Final = 5
"""So many times as many coroutines of parked runs as there are run slots are kept, and woken without one."""

_log = structlog.stdlib.get_logger(__name__)


def served(registry: Registry, pool: str) -> tuple[list[str], list[str]]:
    """Return the names of the workflows and steps that a worker of this pool takes.

    Raises:
        ConfigError: There are none; names the pools that the app has.
    """
    workflows = sorted(name for name, workflow in registry.workflows.items() if workflow.pool == pool)
    steps = sorted(name for name, step in registry.steps.items() if step.pool == pool)
    if not workflows and not steps:
        pools = {workflow.pool for workflow in registry.workflows.values()}
        pools |= {step.pool for step in registry.steps.values() if step.pool is not None}
        raise ConfigError(
            f"pool {pool!r}: the app has neither workflows nor steps of it; it has some of "
            f"{', '.join(sorted(pools)) or 'no pool at all'}"
        )
    return workflows, steps


def _in_processes(registry: Registry, pools: tuple[str | None, ...]) -> list[Step[..., Any]]:
    """Return the steps of these pools (None: local ones) that are executed in processes of their own."""
    return [step for step in registry.steps.values() if step.pool in pools and step.executor == "process"]


class Worker:
    """One worker of one pool. `run` it once.

    Args:
        config: The settings.
        registry: The app.
        endpoint: The control plane; gRPC by default.
        beats: How beats go out; gRPC by default.
    """

    def __init__(
        self,
        config: WorkerConfig,
        registry: Registry,
        *,
        endpoint: Endpoint | None = None,
        beats: BeatChannel | None = None,
    ) -> None:
        self.config = config
        self.worker_id = secrets.token_hex(8)
        self._registry = registry
        self._endpoint = endpoint or GrpcEndpoint(config)
        self._beat_channel = beats or GrpcBeats(tls=config.credentials(), token=config.token)
        workflows, steps = served(registry, config.pool)
        self._slots = config.step_slots(processes=bool(_in_processes(registry, (config.pool, None))))
        self._request = RegisterRequest(
            namespace=config.namespace,
            worker_id=self.worker_id,
            pool=config.pool,
            workflows=workflows,
            steps=steps,
            host=f"{socket.gethostname()}:{os.getpid()}",
            step_slots=self._slots,
            run_slots=config.run_slots,
            specs=specs_of(registry, workflows),
        )
        self._executors = Executors(
            config.app, self._slots, child_arguments=("--log-level", config.log_level, "--service", config.pool)
        )
        self._codec = codec_of(keys_file=config.keys_file, codec=config.codec)
        self._base = contextvars.copy_context()
        self._pumping = False
        self._composed = False
        self._draining = False
        self._tick: asyncio.TimerHandle | None = None
        self._tick_at: int | None = None
        self._ticked_at: int | None = None
        self._loop: asyncio.AbstractEventLoop
        self._over: asyncio.Future[int]
        self._core: WorkerCore
        self._vault: Vault
        self._carrier: Carrier
        self._attempts: Attempts
        self._connection: Connection
        self._beats: BeatThread
        self._intake: Intake | None = None

    async def run(self) -> int:
        """Work until drained. Returns the exit code: 0 drained, 1 the drain left something unreported.

        Raises:
            RequestError: The server refused the worker.
        """
        self._loop = asyncio.get_running_loop()
        self._over = self._loop.create_future()
        registering = asyncio.create_task(register(self._endpoint, self.config.addresses, self._request))
        first: list[asyncio.Future[Any]] = [registering, self._over]
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not registering.done():  # told to end before there was a server
            registering.cancel()
            return self._over.result()
        self._compose(registering.result())
        watch = LoopWatch(self._registry)
        watch.on_stuck = self._intake.hang_up if self._intake is not None else None
        self._beats = BeatThread(self.worker_id, self._core, self._beat_channel, watch)
        watch.start()
        self._beats.start(self._beats_ended)
        tasks = [asyncio.create_task(self._connection.run()), asyncio.create_task(self._prewarm())]
        tasks[0].add_done_callback(self._connection_ended)
        try:
            self._changed()
            return await self._over
        finally:
            watch.stop()
            await self._close(tasks)

    def drain(self) -> None:
        """Take nothing new, finish what runs within the grace, give back the rest, end. Again: skip the grace.

        Call it on the event loop.
        """
        if not self._composed:
            self._end(0)
        elif not self._draining:
            self._draining = True
            self._beats.draining = True
            _log.info("draining", grace_s=self.config.grace_ms / 1000)
            self._core.drain(monotonic_ms())
            self._loop.call_later(self.config.grace_ms / 1000, self._drain_over)
            self._changed()
        else:
            self._drain_over()

    # --- composition -----------------------------------------------------------------------------------------------
    def _compose(self, response: RegisterResponse) -> None:
        config = self.config
        url = "" if config.lane == "session" else config.amqp_url or response.amqp_url
        if config.lane == "amqp" and not url:
            raise ConfigError("lane 'amqp': neither TREADLE_AMQP_URL nor the server names a broker")
        lane = LANE_AMQP if url else LANE_SESSION
        vault = self._vault = vault_of(
            config.namespace,
            codec=self._codec,
            blobs=config.blobs,
            told=response.blobs,
            max_payload_bytes=response.max_payload_bytes,
            near=is_loopback(config.addresses[0]),
        )
        self._executors.max_payload_bytes = vault.limit
        self._executors.values = None if vault.plain else StepValues(vault)
        self._core = WorkerCore(
            self._settings(lane, vault),
            execution_factory(self._registry),
            lambda: secrets.randbits(64),
            None if vault.plain else lambda run: EventSeals(vault, run),
        )
        self._carrier = Carrier(self._core, self._changed)
        self._attempts = Attempts(
            self._core,
            self._registry,
            self._executors,
            self._changed,
            namespace=config.namespace,
            pool=config.pool,
            worker_id=self.worker_id,
            broker=broker_address(url) if url else None,
        )
        if url:
            self._intake = Intake(
                url,
                self._core,
                self._changed,
                namespace=config.namespace,
                pool=config.pool,
                slots=self._slots,
                short=lambda: self._attempts.short,
            )
        self._connection = Connection(
            self._endpoint,
            self._request,
            lane,
            config.addresses,
            frame=self._frame,
            opened=self._opened,
            received=self._received,
            ended=self._ended,
        )
        self._composed = True
        for missing in response.missing:
            _log.warning(
                "names_missing",
                name=missing.name,
                kind="step" if missing.step else "workflow",
                open_runs=f"at least {missing.runs}" if missing.at_least else missing.runs,
                other_workers=missing.workers,
                remedy="keep it in the app, or workers that have it, until these runs have ended",
            )
        _log.info(
            "worker_started",
            pool=config.pool,
            worker_id=self.worker_id,
            lane="amqp" if url else "session",
            broker=self._intake.address if self._intake else "",
            workflows=list(self._request.workflows),
            steps=list(self._request.steps),
            slots=self._slots,
        )

    def _settings(self, lane: Lane.ValueType, vault: Vault) -> CoreSettings:
        config = self.config
        return CoreSettings(
            worker_id=self.worker_id,
            namespace=config.namespace,
            pool=config.pool,
            lane=lane,
            workflows=frozenset(self._request.workflows),
            steps=frozenset(self._request.steps),
            step_slots=self._slots,
            run_slots=config.run_slots,
            step_credits=config.lane != "amqp",
            wake_slots=_KEPT * config.run_slots,
            cache_runs=_KEPT * config.run_slots,
            always_replay=config.always_replay,
            run_timeouts={flow.name: flow.timeout_ms for flow in self._registry.workflows.values() if flow.timeout_ms},
            payload_limit=vault.limit,
            private=vault.codec is not None,
        )

    async def _prewarm(self) -> None:
        """A step of this pool that wants a process finds one that has imported the app."""
        wanted = _in_processes(self._registry, (self.config.pool,))
        if wanted:
            try:
                await self._executors.prewarm()
            except Exception as error:  # the attempt that needs one will say so again, and fail
                _log.error("child_process_failed", error=str(error), steps=[step.name for step in wanted])

    async def _close(self, tasks: list[asyncio.Task[None]]) -> None:
        if self._tick is not None:
            self._tick.cancel()
        self._beats.session_ended()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._beats.stop)
        if self._intake is not None:
            await self._intake.close()
        await self._executors.close()
        await self._carrier.close()
        self._vault.close()

    # --- what comes in ---------------------------------------------------------------------------------------------
    def _opened(self, line: Line) -> None:
        self._core.session_opened(line.id, monotonic_ms())
        self._beats.session_opened(line.id, line.address)
        self._changed()

    def _received(self, response: SessionResponse) -> None:
        self._core.receive(response, monotonic_ms())
        self._act()
        self._connection.wake()  # what answers goes out before anything else is looked at
        self._changed()

    def _ended(self) -> None:
        self._beats.session_ended()
        self._core.session_ended(monotonic_ms())
        self._changed()

    def _frame(self) -> SessionRequest | None:
        frame = self._core.frame(monotonic_ms())
        if frame is not None:
            self._changed()
            if self._core.may_go_ahead:
                self._loop.call_soon(self._go_ahead, context=self._base)  # the sender writes the frame first
        return frame

    def _go_ahead(self) -> None:
        try:
            self._core.go_ahead()
        except Exception as error:
            self._fail(error)

    def _beats_ended(self, error: BaseException) -> None:
        """On the beat thread: it ended by an error."""
        self._loop.call_soon_threadsafe(self._fail, error)

    def _connection_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    # --- the pump --------------------------------------------------------------------------------------------------
    def _changed(self) -> None:
        """The core was told something: look, once in this turn of the loop, at what it wants."""
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump, context=self._base)

    def _pump(self) -> None:
        self._pumping = False
        try:
            self._act()
            self._connection.wake()
            self._schedule()
        except Exception as error:
            self._fail(error)

    def _act(self) -> None:
        while actions := self._core.actions():
            for action in actions:
                self._HANDLERS[type(action)](self, action)

    def _schedule(self) -> None:
        due = self._core.next_due()
        if self._tick is not None:
            if due is None or (self._tick_at is not None and self._tick_at <= due):
                return  # it looks again when it comes; dues move with each frame, timers need not
            self._tick.cancel()
        self._tick_at, self._tick = due, None
        if due is not None:
            # What is still due after its tick waits for something else, such as a write that is under way.
            least = STILL_DUE_MS if due == self._ticked_at else 1
            delay = max(least, due - monotonic_ms()) / 1000
            self._tick = self._loop.call_later(delay, self._ticked, context=self._base)

    def _ticked(self) -> None:
        self._tick, self._ticked_at = None, self._tick_at
        try:
            self._core.tick(monotonic_ms())
            if self._intake is not None:
                self._intake.look()
        except Exception as error:
            self._fail(error)
        self._changed()

    def _consume(self, action: Consume) -> None:
        if self._intake is not None:
            self._intake.consume(action.kind, action.on)

    def _ack(self, action: Ack) -> None:
        if self._intake is not None:
            self._intake.ack(action.tag)

    def _give_back(self, action: GiveBack) -> None:
        if self._intake is not None:
            self._intake.give_back(action.tag)

    def _start(self, action: StartAttempt) -> None:
        self._attempts.start(action)

    def _start_local(self, action: StartLocal) -> None:
        self._attempts.start_local(action)

    def _cancel(self, action: CancelAttempt) -> None:
        self._attempts.cancel(action.token, action.reason)

    def _cancel_local(self, action: CancelLocal) -> None:
        self._attempts.cancel_local(action.owner_token, action.command_id, action.reason)

    def _open_event(self, action: OpenEvent) -> None:
        self._carrier.open(action)

    def _seal_item(self, action: SealItem) -> None:
        self._carrier.seal(action)

    def _reopen(self, action: ReopenSession) -> None:
        self._connection.reopen(action.reason)

    def _note(self, action: Note) -> None:
        fields = {"what" if key == "event" else key: value for key, value in action.fields}
        getattr(_log, action.level)(action.event, **fields)

    def _drained(self, action: Drained) -> None:
        _log.info("drained")
        task = self._loop.create_task(self._connection.leave())
        task.add_done_callback(lambda _: self._end(0))

    _HANDLERS: Final[dict[type, Callable[..., None]]] = {
        Ack: _ack,
        GiveBack: _give_back,
        Consume: _consume,
        StartAttempt: _start,
        StartLocal: _start_local,
        CancelAttempt: _cancel,
        CancelLocal: _cancel_local,
        OpenEvent: _open_event,
        SealItem: _seal_item,
        ReopenSession: _reopen,
        Drained: _drained,
        Note: _note,
    }

    # --- the end ---------------------------------------------------------------------------------------------------
    def _drain_over(self) -> None:
        if self._over.done():
            return
        self._core.drain_over(monotonic_ms())
        self._loop.call_later(AFTER_GRACE_S, self._give_up)
        self._changed()

    def _give_up(self) -> None:
        if not self._over.done():
            steps, runs = self._core.counts()
            _log.warning("drain_incomplete", steps=steps, runs=runs, remedy="the server gives them to others")
            self._end(1)

    def _end(self, code: int) -> None:
        if not self._over.done():
            self._over.set_result(code)

    def _fail(self, error: BaseException) -> None:
        """Something that must not happen: end the process, so that others take over what it holds."""
        if not self._over.done():
            self._over.set_exception(error)
