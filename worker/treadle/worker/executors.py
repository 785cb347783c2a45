"""Running the code of steps: async ones as tasks on the loop, sync ones in threads, what may die in child processes.

Whatever it does, each call has exactly one end, told on the event loop: a report, or that it was not started. The last
thing before the first line of user code is the question whether it may start (A4).
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog

from treadle.protocol.eager import start_now
from treadle.protocol.errors import ConfigError, PayloadError, TreadleError
from treadle.protocol.payloads import MAX_PAYLOAD_BYTES
from treadle.v1.common_pb2 import ON_CANCEL_ABANDON, ON_CANCEL_WAIT, Payload
from treadle.worker.attempt_call import Call
from treadle.worker.bodies import (
    Arguments,
    crashed,
    cut_off,
    failed,
    heartbeat_missed,
    outcome_of,
    run_async,
    run_sync,
    timed_out,
)
from treadle.worker.child_wire import Run, Said
from treadle.worker.children import Child, ChildDied, Children
from treadle.worker.core.port import Report
from treadle.worker.current import STEP_INFO, StepInfo
from treadle.worker.pulse import Pulse
from treadle.worker.spans import Spans
from treadle.worker.step_values import StepValues
from treadle.worker.threads import Job, StepThread, Threads

__all__ = ("CUT_OFF_S", "Call", "Executors", "Running")

CUT_OFF_S: Final = 2.0
"""How long user code that was told to end may take for it."""

_LOCK: Final = threading.Lock()
"""A step may say something for the first time in two threads at once."""

_log = structlog.stdlib.get_logger(__name__)


class Running:
    """A call under way. `cancel` cuts it off; it ends through `ended` all the same."""

    __slots__ = (
        "_began",
        "_killer",
        "_last_try",
        "_missed",
        "_pulse",
        "_timers",
        "call",
        "child",
        "done",
        "loop",
        "overdue",
        "started",
        "task",
        "thread",
    )

    def __init__(self, call: Call, loop: asyncio.AbstractEventLoop) -> None:
        self.call = call
        self.loop = loop
        self.started = False
        self.done = False
        self.task: asyncio.Task[None] | None = None
        self.child: Child | None = None
        self.thread: tuple[Threads, StepThread] | None = None
        self.overdue = False
        self._began = 0.0
        self._last_try = False
        self._timers: list[asyncio.TimerHandle] | None = None
        self._killer: asyncio.Task[None] | None = None
        self._missed = False
        self._pulse: Pulse | None = None
        call.info.live = self

    def start(self) -> bool:
        """The last check before user code."""
        if self.done or self.call.info.cancel_reason or not self.call.may_start():
            self.end(None)
            return False
        self.started = True
        self._began = self.loop.time()
        limit_ms = self.call.timeout_ms
        if self.call.left_ms and not 0 < limit_ms <= self.call.left_ms:
            limit_ms, self._last_try = self.call.left_ms, True
        if limit_ms:
            self._later(limit_ms / 1000, self._time_out)
        if self.call.heartbeat_ms:
            self.saying().watch()
        return True

    def saying(self) -> Pulse:
        """What its code says how far it is to; made when it is first wanted. May be called from any thread."""
        if self._pulse is None:
            with _LOCK:
                if self._pulse is None:
                    call = self.call
                    self._pulse = Pulse(
                        self.loop, call.heartbeat_ms, call.attempt, call.progress, self._said, self._miss
                    )
        return self._pulse

    def _said(self, data: bytes | None) -> None:
        if self.call.said is not None:
            self.call.said(self.call, data)

    def heard(self, said: Said) -> None:
        """Its child process passes on what its code says."""
        if self.done:
            return
        if said.value is None:
            self.saying().beat()
        else:
            self.saying().say(said.value)

    def _miss(self) -> None:
        """Its code was silent for too long."""
        self._missed = True
        self._time_out()

    def _later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do something unless the call has ended by then."""
        if self._timers is None:
            self._timers = []
        self._timers.append(self.loop.call_later(delay_s, action))

    def cancel(self, reason: str) -> None:
        """Tell the code to end. Before its start it will not start; a thread can only be asked (`step_info()`)."""
        if self.done or self.overdue or self.call.info.cancel_reason:
            return
        if reason == "run closed" and self.call.step.on_cancel == ON_CANCEL_ABANDON:
            return
        self.call.info.cancel_reason = reason
        if not self.started:
            return
        self._cut(reason)
        if not self._may_take_its_time():
            self._later(CUT_OFF_S, self._give_up)

    def _may_take_its_time(self) -> bool:
        """Whether it ends by itself, at its timeout at the latest: a thread, or what its caller waits for."""
        call = self.call
        if call.info.cancel_reason == "drain" or self.child is not None:
            return False
        awaited = call.step.on_cancel == ON_CANCEL_WAIT and call.info.cancel_reason == "cancelled"
        return self.thread is not None or awaited

    def end(self, report: Report | None) -> None:
        """Tell the end, unless it was told already."""
        if self.done:
            return
        self.done = True
        self.call.info.live = None
        if self._pulse is not None:
            self._pulse.close()
            if report is not None and self.call.local:
                report.progress = self._pulse.last
        if self._timers is not None:
            for timer in self._timers:
                timer.cancel()
        self.call.ended(report)

    def _time_out(self) -> None:
        if self.done:
            return
        if self.call.info.cancel_reason:
            if self._may_take_its_time():
                self._give_up()
            return
        self.overdue = True
        if self.thread is not None:
            self._give_up()
            return
        self._cut(self._overrun())
        self._later(CUT_OFF_S, self._give_up)

    def _overrun(self) -> str:
        return "heartbeat missed" if self._missed else "timed out"

    def _cut(self, reason: str) -> None:
        if self.child is not None:
            self._killer = self.loop.create_task(self._cut_child(self.child, reason))
        elif self.task is not None:
            self.task.cancel(reason)

    async def _cut_child(self, child: Child, reason: str) -> None:
        await child.cancel(reason)
        await asyncio.sleep(CUT_OFF_S)
        if self.child is child:
            child.kill()

    def _took_ms(self) -> int:
        return round((self.loop.time() - self._began) * 1000)

    def _give_up(self) -> None:
        """It does not end: its end is told without it."""
        if self.done:
            return
        call = self.call
        where = "thread" if self.thread is not None else "process" if self.child is not None else "task"
        _log.warning(
            "step_abandoned",
            step=call.step.name,
            run=call.info.run_id,
            attempt=call.info.attempt,
            reason=self._overrun() if self.overdue else call.info.cancel_reason,
            executor=where,
            remedy="it may run on: look at step_info().cancel_reason in it, or give it executor='process'",
        )
        if self.thread is not None:
            call.info.cancel_reason = call.info.cancel_reason or self._overrun()
            self.thread[0].abandon(self.thread[1])
        self.end(self.verdict(None))

    def verdict(self, report: Report | None) -> Report:
        """What is reported when the code ended with `report`, or did not end."""
        if self._missed:
            return heartbeat_missed(self.call.step.name, self.call.heartbeat_ms, self._took_ms())
        if self.overdue:
            step = self.call.step
            if self._last_try:
                return timed_out(step.name, self.call.left_ms, total_ms=step.total_timeout_ms)
            return timed_out(step.name, self.call.timeout_ms)
        if report is None:
            return cut_off(self.call.info.cancel_reason, self._took_ms())
        return report


class Executors:
    """Starts calls.

    Args:
        app: What child processes import.
        slots: Pool steps at the same time; also how many threads these and local steps get each.
        child_arguments: Further arguments of child processes.

    Attributes:
        max_payload_bytes: Largest encoded result; the server says how much it takes.
        values: Opens arguments and seals results; None: they are sent as they are.
    """

    def __init__(self, app: str, slots: int, *, child_arguments: tuple[str, ...] = ()) -> None:
        self.max_payload_bytes = MAX_PAYLOAD_BYTES
        self.values: StepValues | None = None
        self.spans = Spans()
        self.children = Children(app, child_arguments)
        self._pool_threads = Threads(slots, "step")
        self._local_threads = Threads(slots, "local-step")
        self._local_processes = asyncio.Semaphore(slots)
        self._tasks: set[asyncio.Task[None]] = set()
        self._context = contextvars.copy_context()

    def start(self, call: Call) -> Running:
        """Start a call; returns at once, or when async code first suspends. Must be called on the event loop."""
        loop = asyncio.get_running_loop()
        running = Running(call, loop)
        if call.alone or call.step.executor == "process":
            self._spawn(running, self._in_process(running))
        elif call.step.executor == "async":
            self._spawn(running, self._on_loop(running))
        else:
            threads = self._local_threads if call.local else self._pool_threads
            threads.enter(lambda thread: self._in_thread(running, threads, thread))
        return running

    async def prewarm(self) -> None:
        """Have a child process ready before the first attempt needs one."""
        child = await self.children.take(alone=True)
        await self.children.give_back(child)

    async def close(self) -> None:
        """End threads and child processes; what still runs is cut off."""
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=CUT_OFF_S)
        self._pool_threads.close()
        self._local_threads.close()
        await self.children.close()

    def _spawn(self, running: Running, body: Coroutine[Any, Any, None]) -> None:
        # A context of its own: what a step sets must not be seen by the next one.
        task = start_now(body, name=running.call.step.name, context=self._context.copy())
        running.task = task
        if task.done():
            self._done(task, running)
        else:
            self._tasks.add(task)
            task.add_done_callback(lambda done: self._done(done, running))

    def _done(self, task: asyncio.Task[None], running: Running) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            running.end(running.verdict(None) if running.started else None)
        elif (error := task.exception()) is not None:
            _log.error("step_executor_failed", step=running.call.step.name, exc_info=error)
            running.end(failed(error, running.call.info, 0))

    # --- on the event loop -----------------------------------------------------------------------------------------
    async def _on_loop(self, running: Running) -> None:
        STEP_INFO.set(running.call.info)
        if self.spans.enabled:
            with self.spans.process(running.call.facts) as outcome:
                report = await self._attempt(running)
                outcome.name, outcome.error_type = ("released", "") if report is None else outcome_of(report)
        else:
            report = await self._attempt(running)
        if report is not None:
            running.end(report)

    async def _attempt(self, running: Running) -> Report | None:
        """Run it; None: it was not started."""
        call = running.call
        if self.values is not None:
            return await self._attempt_sealed(running, self.values)
        arguments: Arguments | None = None
        wrong: PayloadError | None = None
        try:
            arguments = call.step.signature.decode_call(call.payload)
        except PayloadError as error:
            wrong = error
        if not running.start():
            return None
        if arguments is None:
            assert wrong is not None
            return running.verdict(failed(wrong, call.info, 0))
        return running.verdict(await run_async(call.step, arguments, call.info, self.max_payload_bytes))

    async def _attempt_sealed(self, running: Running, values: StepValues) -> Report | None:
        """The same where values are sealed: fetching them and storing the result are part of the attempt."""
        call = running.call
        if not running.start():
            return None
        try:
            arguments = call.step.signature.decode_call(await values.opened(call.payload, call.info, local=call.local))
        except (TreadleError, asyncio.CancelledError) as error:
            return running.verdict(failed(error, call.info, 0))  # a key that others lack must not hide why
        report = await run_async(call.step, arguments, call.info, self.max_payload_bytes)
        return running.verdict(await values.sealed(report, call.info))

    # --- in a thread -----------------------------------------------------------------------------------------------
    def _in_thread(self, running: Running, threads: Threads, thread: StepThread) -> Job | None:
        running.thread = (threads, thread)
        context = self._context.copy()
        limit = self.max_payload_bytes
        if not running.start():
            return None

        def job() -> None:
            report = context.run(self._body, running.call, limit)
            try:
                running.loop.call_soon_threadsafe(self._left, running, report)
            except RuntimeError:  # the loop is closed: the worker has ended without it
                _log.info("step_outlived_worker", step=running.call.step.name, run=running.call.info.run_id)

        return job

    def _body(self, call: Call, limit: int) -> Report:
        STEP_INFO.set(call.info)
        with self.spans.process(call.facts) as outcome:
            if self.values is None:
                report = run_sync(call.step, call.payload, call.info, limit)
            else:
                report = self._sealed_body(call, limit, self.values)
            outcome.name, outcome.error_type = outcome_of(report)
        return report

    def _sealed_body(self, call: Call, limit: int, values: StepValues) -> Report:
        try:
            payload = values.open(call.payload, call.info, local=call.local)
        except TreadleError as error:
            return failed(error, call.info, 0)
        return values.seal(run_sync(call.step, payload, call.info, limit), call.info)

    def _left(self, running: Running, report: Report) -> None:
        assert running.thread is not None
        threads, thread = running.thread
        threads.leave(thread)
        running.end(running.verdict(report))

    # --- in a child process ----------------------------------------------------------------------------------------
    async def _in_process(self, running: Running) -> None:
        call = running.call
        if not call.local:
            await self._with_child(running)
            return
        async with self._local_processes:
            await self._with_child(running)

    async def _with_child(self, running: Running) -> None:
        call = running.call
        try:
            child = await self.children.take(alone=call.alone)
        except (ConfigError, ChildDied, OSError) as error:
            if running.start():
                running.end(failed(RuntimeError(f"step {call.step.name}: no child process: {error}"), call.info, 0))
            return
        fit = False
        try:
            STEP_INFO.set(call.info)
            with self.spans.process(call.facts) as outcome:
                if not running.start():
                    fit = True  # it is kept: the next attempt need not wait for the import again
                    outcome.name = "released"
                    return
                running.child = child
                report = running.verdict(await self._ask(child, running))
                outcome.name, outcome.error_type = outcome_of(report)
                fit = not (call.alone or running.overdue or call.info.cancel_reason)
            running.end(report)
        finally:
            running.child = None
            await self.children.give_back(child, fit=fit)

    def _info_for_child(self, info: StepInfo) -> StepInfo:
        """What the step may know, under the span of this process."""
        return StepInfo(
            run_id=info.run_id,
            step=info.step,
            attempt=info.attempt,
            idempotency_key=info.idempotency_key,
            cancel_reason=info.cancel_reason,
            namespace=info.namespace,
            command_id=info.command_id,
            try_number=info.try_number,
            traceparent=self.spans.traceparent(info.traceparent),
        )

    async def _ask(self, child: Child, running: Running) -> Report:
        call = running.call
        if self.values is None:
            return await self._ask_for(child, running, call.payload)
        try:
            payload = await self.values.opened(call.payload, call.info, local=call.local)
        except (TreadleError, asyncio.CancelledError) as error:
            return failed(error, call.info, 0)
        return await self.values.sealed(await self._ask_for(child, running, payload), call.info)

    async def _ask_for(self, child: Child, running: Running, payload: Payload) -> Report:
        call = running.call
        began = time.perf_counter()
        saying = running.saying()
        run = Run(
            step=call.step.name,
            payload=payload.SerializeToString(),
            info=self._info_for_child(call.info),
            limit=self.max_payload_bytes,
            progress=None if saying.last is None else saying.last.SerializeToString(),
            deferral=saying.deferral,
        )
        try:
            return (await child.run(run, running.heard)).report()
        except ChildDied as death:
            took = round((time.perf_counter() - began) * 1000)
            if call.info.cancel_reason:
                return cut_off(call.info.cancel_reason, took)
            _log.error("child_crashed", how=str(death), step=call.step.name, run=call.info.run_id)
            return crashed(call.step.name, str(death), took)
