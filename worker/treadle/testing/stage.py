"""Where steps run: in this process, one after another; only virtual durations and real awaiting take time.

The end of each attempt is told through the functions that the worker's own executors use, so that what a step raises,
returns or may know means here what it means there.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import inspect
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from treadle.protocol.errors import ConfigError, PayloadError
from treadle.v1.common_pb2 import Payload
from treadle.worker.bodies import cut_off, failed, heartbeat_missed, run_async, run_sync, timed_out
from treadle.worker.core.port import Report
from treadle.worker.current import STEP_INFO, StepInfo
from treadle.worker.loop.asyncio_versions import swap_current_task
from treadle.worker.steps import Step

from .agenda import Agenda
from .doubles import Call, Double

__all__ = ("Attempt", "Stage")

_PATIENCE_S: Final = 30.0
"""How long real awaiting may take, in real time."""


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One attempt, as the worker's core wants it.

    Attributes:
        step: The step.
        payload: Its encoded arguments.
        info: What the step may know.
        may_start: Asked as the last thing before user code.
        ended: Told the end, once; None: `may_start` said no.
        timeout_ms: Longest duration; 0: no limit. Time passes only for doubles that take some.
        left_ms: What is left of the step's total timeout; 0: no limit.
        heartbeat_ms: Longest silence; 0: no limit. Doubles are silent.
        progress: What an attempt before this one said last of how far it was.
        said: Told what the code says of that; None: that it goes on.
        deferral: The token that finishes the step from outside; "" for a local step.
        local: A local step.
    """

    step: Step[..., Any]
    payload: Payload
    info: StepInfo
    may_start: Callable[[], bool]
    ended: Callable[[Report | None], None]
    timeout_ms: int = 0
    left_ms: int = 0
    heartbeat_ms: int = 0
    progress: Payload | None = None
    said: Callable[[bytes | None], None] = lambda data: None
    deferral: str = ""
    local: bool = False


class Stage:
    """See the module.

    Args:
        agenda: The clock.
        limit: Bytes of the largest result.

    Attributes:
        doubles: By name of the step.
        calls: Every attempt that began.
        broken: What a test must hear of at once: a failed assertion of a double, a Ctrl-C.
    """

    def __init__(self, agenda: Agenda, limit: int) -> None:
        self._agenda, self._limit = agenda, limit
        self.doubles: dict[str, Double] = {}
        self.calls: list[Call] = []
        self.broken: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: dict[asyncio.Task[None], Attempt] = {}
        self._running: dict[object, _Running] = {}

    # --- starting and cutting off ------------------------------------------------------------------------------------
    def start(self, key: object, attempt: Attempt) -> None:
        """Start an attempt; `key` names it for `cancel`."""
        info = attempt.info
        try:
            args, kwargs = attempt.step.signature.decode_call(attempt.payload)
        except PayloadError as error:
            attempt.ended(failed(error, info, 0) if attempt.may_start() else None)
            return
        if not attempt.may_start():
            attempt.ended(None)
            return
        self.calls.append(
            Call(
                step=attempt.step.name,
                args=args,
                kwargs=kwargs,
                attempt=info.attempt,
                at=datetime.fromtimestamp(self._agenda.now / 1000, UTC),
                run_id=info.run_id,
                command_id=info.command_id,
                idempotency_key=info.idempotency_key,
            )
        )
        running = self._running[key] = _Running(attempt, lambda: self._running.pop(key, None))
        double = self.doubles.get(attempt.step.name)
        if double is None:
            self._perform(running, attempt.step.function, is_double=False)
        else:
            self._play(running, double)

    def _play(self, running: _Running, double: Double) -> None:
        attempt, took = running.attempt, double.takes_ms
        late = _limit(attempt)
        if late is not None and (took is None or took > late.duration_ms):
            self._agenda.plan(self._agenda.now + late.duration_ms, lambda: running.end(late))
        elif took:
            self._agenda.plan(self._agenda.now + took, lambda: None if running.over else self._act(running, double))
        elif took is not None:
            self._act(running, double)

    def _act(self, running: _Running, double: Double) -> None:
        try:
            function = double.outcome()
        except ConfigError as error:
            self._break(error)
            running.end(failed(error, running.attempt.info, 0))
        else:
            self._perform(running, function, is_double=True)

    def _perform(self, running: _Running, function: Callable[..., Any], *, is_double: bool) -> None:
        """Run a body to its end, or to where it first awaits something real."""
        attempt = running.attempt
        step: Step[..., Any] = copy.copy(attempt.step)
        context = contextvars.copy_context()
        context.run(STEP_INFO.set, attempt.info)
        if inspect.iscoroutinefunction(function):
            step.function = self._watched_async(function, is_double)
            arguments = step.signature.decode_call(attempt.payload)  # its own: it may change them
            self._spawn(running, run_async(step, arguments, attempt.info, self._limit), context)
        else:
            step.function = self._watched(function, is_double)
            with _loop_aside():
                report = context.run(run_sync, step, attempt.payload, attempt.info, self._limit)
            running.end(report)

    def cancel(self, key: object, reason: str) -> None:
        """Tell an attempt to end."""
        running = self._running.get(key)
        if running is None or running.attempt.info.cancel_reason:
            return
        running.attempt.info.cancel_reason = reason
        if running.task is not None:
            running.task.cancel(reason)
            self._breathe(running.task)
        else:  # it only takes time
            running.end(cut_off(reason, 0))

    # --- what a test must hear of ------------------------------------------------------------------------------------
    def _watched(self, function: Callable[..., Any], is_double: bool) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except BaseException as error:
                self.heard(error, is_double=is_double)
                raise

        return call

    def _watched_async(self, function: Callable[..., Any], is_double: bool) -> Callable[..., Any]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return await function(*args, **kwargs)
            except BaseException as error:
                self.heard(error, is_double=is_double)
                raise

        return call

    def heard(self, error: BaseException, *, is_double: bool) -> None:
        """User code raised. An assertion in a step is a failure as any other; in a double it is the test that speaks."""
        ours = isinstance(error, Exception | asyncio.CancelledError | SystemExit | GeneratorExit)
        if not ours or (is_double and isinstance(error, AssertionError)):
            self._break(error)

    def _break(self, error: BaseException) -> None:
        self.broken = self.broken or error

    # --- real awaiting -----------------------------------------------------------------------------------------------
    def _spawn(self, running: _Running, body: Coroutine[Any, Any, Report], context: contextvars.Context) -> None:
        loop = self._loop = self._loop or asyncio.new_event_loop()

        async def main() -> None:
            running.end(await body)

        task = running.task = loop.create_task(main(), name=running.attempt.step.name, context=context)
        self._tasks[task] = running.attempt
        self._breathe(task)

    def _breathe(self, task: asyncio.Task[None]) -> None:
        """Let a task begin, or hear that it is cancelled, at once."""
        loop = self._loop
        if loop is None or loop.is_running():
            return  # a step does this itself: the loop comes to it
        loop.call_soon(loop.stop)
        with _loop_aside():
            loop.run_forever()
        if task.done() and task in self._tasks:
            self._ended(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        task.result()

    @property
    def awaits(self) -> bool:
        """Whether a step awaits something real."""
        return bool(self._tasks)

    def wait(self) -> None:
        """Wait until one of these steps has ended.

        Raises:
            ConfigError: None has for half a minute.
        """
        assert self._loop is not None
        with _loop_aside():
            done, _ = self._loop.run_until_complete(
                asyncio.wait(self._tasks, timeout=_PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
            )
        if not done:
            names = ", ".join(sorted({attempt.step.name for attempt in self._tasks.values()}))
            raise ConfigError(f"steps await something real for {_PATIENCE_S:g} s: {names}; replace them in the lab")
        for task in done:
            self._ended(task)

    def close(self) -> None:
        """Cut off what still runs."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        try:
            with _loop_aside():
                self._end(loop)
        finally:
            self._tasks.clear()
            loop.close()

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        for task, attempt in self._tasks.items():
            if not attempt.info.cancel_reason:
                task.cancel("drain")
        if self._tasks:
            loop.run_until_complete(asyncio.wait(self._tasks, timeout=_PATIENCE_S))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())


@contextmanager
def _loop_aside() -> Iterator[None]:
    """Put the loop of an `async def` test aside, while steps run as they do in a worker: on their own loop, or on none."""
    outer = asyncio._get_running_loop()
    if outer is None:
        yield
        return
    task = swap_current_task(outer, None) if swap_current_task is not None else None
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(outer)
        if swap_current_task is not None and task is not None:
            swap_current_task(outer, task)


def _limit(attempt: Attempt) -> Report | None:
    """How an attempt ends that takes too long, and after how long (its duration); None: there is no limit."""
    name = attempt.step.name
    ends = []
    if attempt.timeout_ms:
        ends.append(timed_out(name, attempt.timeout_ms))
    if attempt.left_ms:
        ends.append(timed_out(name, attempt.left_ms, total_ms=attempt.step.total_timeout_ms))
    if attempt.heartbeat_ms:
        ends.append(heartbeat_missed(name, attempt.heartbeat_ms, attempt.heartbeat_ms))
    return min(ends, key=lambda end: end.duration_ms, default=None)


class _Running:
    """An attempt that began; its end is told once. Live, and Saying, for its code.

    Attributes:
        last: What its code, or an attempt before it, said last of how far it is.
        deferral, deferred_ms: See Saying.
    """

    def __init__(self, attempt: Attempt, forget: Callable[[], object]) -> None:
        self.attempt = attempt
        self.task: asyncio.Task[None] | None = None
        self.over = False
        self.last = attempt.progress
        self.deferral = attempt.deferral
        self.deferred_ms: int | None = None
        self._forget = forget
        attempt.info.live = self

    def end(self, report: Report) -> None:
        if not self.over:
            self.over = True
            self.attempt.info.live = None
            self._forget()
            if self.attempt.local:
                report.progress = self.last
            self.attempt.ended(report)

    def saying(self) -> _Running:
        return self

    def say(self, data: bytes) -> None:
        self.last = Payload(data=data)
        self._tell(data)

    def beat(self) -> None:
        self._tell(None)

    def _tell(self, data: bytes | None) -> None:
        """Tell the worker's core; code in another thread leaves it to the loop that waits for it."""
        if self.over:
            return
        if self.task is not None and asyncio._get_running_loop() is not self.task.get_loop():
            self.task.get_loop().call_soon_threadsafe(self.attempt.said, data)
        else:
            self.attempt.said(data)
