"""A small deterministic asyncio event loop: it runs only what it is fed.

Nothing here waits. The owner of the loop enters it, puts something into it (a result, a fired timer) and runs it until
nothing is ready. Callbacks run first in, first out; a timer runs only when its owner says that it fired; the time is what
the owner says it is. Tasks and futures hash by their number of creation, because `asyncio.wait`, `as_completed` and
`TaskGroup` keep them in sets, which are otherwise ordered by address.

What asyncio itself does is part of what is recorded. Where its versions differ, they are made alike: see
`asyncio_order`, `asyncio_timeout` and `asyncio_versions`.

It nests: the worker's own loop (asyncio or uvloop) is running on the same thread, and is put aside while this one runs.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import math
import sys
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from types import AsyncGeneratorType
from typing import Any, Final, NoReturn, Protocol, TypeVarTuple, Unpack

from treadle.protocol.errors import NotDeterministic
from treadle.worker.loop import asyncio_order, asyncio_timeout, asyncio_versions, guard
from treadle.worker.loop.asyncio_versions import swap_current_task
from treadle.worker.loop.future import DurableFuture, DurableTask
from treadle.worker.loop.refusals import REFUSED

__all__ = ("DurableLoop", "TimerCall", "Timers")

_Ts = TypeVarTuple("_Ts")

_MAX_CALLBACKS: Final = 500_000
"""Callbacks in one turn after which the code counts as a busy loop that never waits."""

_RUNNING, _FINISHING, _CLOSING, _OUTSIDE = range(4)

asyncio_order.install()
asyncio_timeout.install()
asyncio_versions.install()

_log = logging.getLogger("treadle.worker.workflow")


class Timers(Protocol):
    """Who makes timers durable."""

    def start_timer(self, call: TimerCall, delay_ms: int, path: str, name: str) -> None:
        """The code called `call_later`, or something that does."""
        ...

    def cancel_timer(self, call: TimerCall) -> None:
        """The code cancelled a timer that `start_timer` was told of."""
        ...


class TimerCall(asyncio.TimerHandle):
    """What `call_later` returns. `ask` is for the owner of the timers; None for one that needs no timer."""

    __slots__ = ("ask",)

    ask: Any


class DurableLoop(asyncio.AbstractEventLoop):
    """The loop of one run. Use `enter`, then feed and `run_until_idle`, then `leave`, always in this order.

    Attributes:
        owner: The execution that it belongs to.
        failing: The command by whose failure the code goes on in this turn; "": by something else.
        finishing: The main task has ended; what is asked for now is not recorded.
        closing: The coroutines are being dropped; whatever they ask for raises GeneratorExit.
    """

    def __init__(self, owner: Timers) -> None:
        self.owner = owner
        self.root: DurableTask | None = None
        self.failing = ""
        self._now = 0.0
        self._ready: deque[asyncio.Handle] = deque()
        self._state = _OUTSIDE
        self._numbers = 0
        self._orphans = 0
        self._tasks: list[DurableTask] = []
        self._tasks_limit = 64
        self._generators: list[AsyncGeneratorType[Any, Any]] = []
        self._generators_limit = 64
        self._saved: tuple[Any, Any, Any, bool] = (None, None, None, False)

    # entering and leaving

    def enter(self, *, closing: bool = False) -> None:
        """Become the running loop of this thread."""
        outer = events._get_running_loop()
        task = None
        if outer is not None and swap_current_task is not None:
            task = swap_current_task(outer, None)
        collects = gc.isenabled()
        if collects:
            gc.disable()  # so that no __del__ runs at a moment that another replay does not have
        self._saved = (outer, task, sys.get_asyncgen_hooks(), collects)
        sys.set_asyncgen_hooks(self._generator_started, self._generator_dropped)
        events._set_running_loop(self)
        self._state = _CLOSING if closing else _FINISHING if self.finished else _RUNNING
        guard.turn_begins()

    def leave(self) -> None:
        """Give the thread back to the loop that was running before."""
        guard.turn_ends()
        self._state = _OUTSIDE
        outer, task, hooks, collects = self._saved
        events._set_running_loop(outer)
        if outer is not None and task is not None and swap_current_task is not None:
            swap_current_task(outer, task)
        sys.set_asyncgen_hooks(*hooks)
        if collects:
            gc.enable()
        if len(self._tasks) > self._tasks_limit:
            self._tasks = [task for task in self._tasks if not task.done()]
            self._tasks_limit = 64 + 2 * len(self._tasks)
        if len(self._generators) > self._generators_limit:
            self._generators = [g for g in self._generators if g.ag_frame is not None]
            self._generators_limit = 64 + 2 * len(self._generators)

    finished = False
    """The main task has ended."""

    @property
    def finishing(self) -> bool:
        return self._state == _FINISHING

    @property
    def closing(self) -> bool:
        return self._state == _CLOSING

    def run_until_idle(self) -> bool:
        """Run callbacks until none is ready; False when there was no end to them."""
        ready = self._ready
        left = _MAX_CALLBACKS
        while ready:
            handle = ready.popleft()
            if handle._cancelled:
                continue
            if not left:
                ready.clear()
                return False
            left -= 1
            try:
                handle._context.run(handle._callback, *handle._args)  # type: ignore[attr-defined]
            except Exception as error:
                self.call_exception_handler({"message": f"error in callback {handle!r}", "exception": error})
            except BaseException:  # SystemExit or KeyboardInterrupt of a task, which keeps it as its outcome
                continue
        return True

    def fire(self, call: TimerCall) -> None:
        """A timer fired: its callback is ready."""
        if not call.cancelled():
            self._ready.append(call)

    def finish(self) -> None:
        """The main task has ended: cancel the others and close async generators, both in order of creation."""
        self.finished = True
        self._state = _FINISHING
        for task in list(self._tasks):
            if not task.done():
                task.cancel()
        self.run_until_idle()
        for generator in self._generators:
            if generator.ag_frame is not None and not generator.ag_running:
                self.create_task(_close_quietly(generator))
        self.run_until_idle()

    def drop(self) -> None:
        """Drop all coroutines. Their `finally` blocks run, but whatever they ask for raises GeneratorExit."""
        if self._state != _OUTSIDE:
            return
        self.finished = True
        alive = [task for task in reversed(self._tasks) if not task.done()]
        if not alive:
            return
        self.enter(closing=True)
        try:
            for task in alive:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    _close_coroutine(task.get_coro())
            self._ready.clear()
            self._generators.clear()
            self._tasks.clear()
        finally:
            self.leave()

    def forget(self) -> None:
        """Nothing will be fed any more: let go of what refers back to this loop, so that no collector is needed."""
        self.root = None
        self._ready.clear()
        self._tasks.clear()
        self._generators.clear()
        del self.owner

    # what asyncio asks for

    def time(self) -> float:
        """The time of the last fed event, in seconds since 1970. Never goes backwards."""
        return self._now

    def advance(self, now_ms: int) -> None:
        """It is now `now_ms`, milliseconds since 1970; earlier than before changes nothing."""
        now = now_ms / 1000
        if now > self._now:
            self._now = now

    def next_number(self) -> int:
        """The next number of creation."""
        self._numbers += 1
        return self._numbers

    def current_path(self) -> str:
        """Path of the task that runs; callbacks outside any task count as the root's."""
        task = asyncio.current_task(self)
        return task.path if isinstance(task, DurableTask) else "0"

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._state != _OUTSIDE

    def is_closed(self) -> bool:
        return False

    def call_soon(
        self,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        if self._state == _OUTSIDE:
            _outside("call_soon")
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self._call_in(delay, self._now + delay, callback, args, context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self._call_in(when - self._now, when, callback, args, context)

    def _call_in(
        self,
        delay: float,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context | None,
    ) -> TimerCall:
        if self._state == _OUTSIDE:
            _outside("call_later")
        if self._state == _CLOSING:
            raise GeneratorExit
        call = TimerCall(when, callback, args, self, context)
        call.ask = None
        if delay <= 0:
            self._ready.append(call)
            return call
        if not delay < 10**11:
            raise ValueError(f"delay {delay!r}: give less than 3,000 years")
        # Times are floats with a grain of 0.3 us, so that exact delays come out a hair too long; never too short.
        delay_ms = max(1, math.ceil(round(delay * 1000, 2)))
        is_sleep = getattr(callback, "__name__", "") == "_set_result_unless_cancelled"
        self.owner.start_timer(call, delay_ms, self.current_path(), "sleep" if is_sleep else "timer")
        return call

    def _timer_handle_cancelled(self, handle: TimerCall) -> None:
        if handle.ask is not None and self._state != _OUTSIDE:
            self.owner.cancel_timer(handle)

    def create_future(self) -> DurableFuture:
        if self._state == _CLOSING:
            raise GeneratorExit
        return DurableFuture(self)

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
        **_options: Any,  # eager_start, from 3.14 on: the order of tasks must not depend on it
    ) -> DurableTask:
        if self._state in (_CLOSING, _OUTSIDE):
            coro.close()
            if self._state == _CLOSING:
                raise GeneratorExit
            _outside("create_task")
        parent = asyncio.current_task(self) or self.root
        if isinstance(parent, DurableTask):
            parent.children += 1
            path = f"{parent.path}.{parent.children}"
        else:
            path = "0"
        task = DurableTask(coro, loop=self, number=self.next_number(), path=path, name=name, context=context)
        self._tasks.append(task)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """As asyncio: what nobody else hears of is logged. (Finalizers come here; so it must not ask for anything.)"""
        error = context.get("exception")
        if not self.finished and not isinstance(error, GeneratorExit):
            _log.error("workflow: %s", context.get("message"), exc_info=error)

    def get_exception_handler(self) -> None:
        return None

    def get_task_factory(self) -> None:
        return None

    async def shutdown_asyncgens(self) -> None:
        """Done by `finish`."""

    # async generators

    def _generator_started(self, generator: Any) -> None:
        self._generators.append(generator)  # kept, so that the garbage collector never decides when it is closed

    def _generator_dropped(self, generator: Any) -> None:
        """Only when the whole loop is dropped: none of its code may run then."""


def _outside(what: str) -> NoReturn:
    raise NotDeterministic(
        f"loop.{what}() while the workflow is not running: __del__, other threads and signal handlers must not touch its "
        "loop; do such work in a @step"
    )


async def _close_quietly(generator: Any) -> None:
    try:
        await generator.aclose()
    except Exception as error:
        _log.error("workflow: error while closing %r", generator, exc_info=error)


def _close_coroutine(coroutine: Any) -> None:
    for _ in range(100):  # a coroutine may go on after GeneratorExit, but not for ever
        try:
            coroutine.close()
        except RuntimeError as error:
            if "ignored GeneratorExit" not in str(error):
                return
        except BaseException:  # its finally blocks raised; nobody is there to hear it
            return
        else:
            return


def _refuse(name: str, instead: str) -> Callable[..., NoReturn]:
    def refused(self: DurableLoop, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise NotDeterministic(f"loop.{name}() inside a workflow: {instead}")

    refused.__name__ = name
    return refused


for _name, _instead in REFUSED.items():
    setattr(DurableLoop, _name, _refuse(_name, _instead))
