"""`@workflow`: an async function that runs durably, made of steps."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import datetime
from typing import Any, Generic, ParamSpec, Protocol, TypeAlias, TypeVar, overload

from treadle.protocol.durations import Duration, positive_ms
from treadle.protocol.errors import ConfigError, FieldInvalid, RunError
from treadle.protocol.ids import check_name
from treadle.protocol.schedules import Overlap
from treadle.protocol.signature import Signature
from treadle.protocol.tags import check_version, code_name
from treadle.v1.common_pb2 import ON_PARENT_CLOSE_CANCEL
from treadle.worker.current import current_execution
from treadle.worker.event_types import trigger_of
from treadle.worker.fan_out import map_over
from treadle.worker.hooks import hook_of
from treadle.worker.schedules import Timing, declared
from treadle.worker.steps import PLAIN_WORKFLOW, Step, check_function_name, place_of

__all__ = ("Workflow", "workflow")

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")

Hook: TypeAlias = "Workflow[..., Any] | Step[..., Any]"


class Workflow(Generic[P, R]):
    """A workflow, as `@workflow` makes it. Start it with a client; called, it runs as the plain coroutine, for tests.

    Attributes:
        name: What clients, history and workers know it by.
        function: The plain coroutine function.
        signature: How it is called over the wire.
        pool: Pool whose workers execute its code.
        timeout_ms: Longest duration of a run in milliseconds; 0: no limit.
        schedule: When it is started by itself, as it goes over the wire; None: never.
        on_failure: What is run when a run of it has failed.
        version: Which version of the workflow it is; "" for none.
        code: What workers announce it by: its name, with the version if it has one ("billing@2").
        trigger: Events that start it; None: none do.
    """

    __name__: str
    __qualname__: str

    def __init__(
        self,
        function: Callable[P, Coroutine[Any, Any, R]],
        *,
        name: str | None = None,
        pool: str = "default",
        timeout: Duration | None = None,
        timing: Timing | None = None,
        on_failure: Hook | None = None,
        version: str | None = None,
        on: str | Iterable[str] | None = None,
        when: str | None = None,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.name = check_function_name("workflow", function, name)
        if not inspect.iscoroutinefunction(function):
            raise ConfigError(f"workflow {self.name} at {place_of(function)}: write it as `async def`")
        self.pool = check_name("pool", pool)
        self.timeout_ms = 0 if timeout is None else positive_ms(timeout, name=f"workflow {self.name}: timeout")
        self.version = "" if version is None else _version(f"workflow {self.name}", version)
        self.code = code_name(self.name, self.version)
        self.signature = Signature(function, what=f"workflow {self.name}")
        where = f"workflow {self.name} at {place_of(function)}"
        self.schedule = declared(where, self.signature, timing or Timing())
        self.on_failure = None if on_failure is None else hook_of(self, on_failure)
        if self.schedule is not None:
            self.schedule.timeout_ms = self.timeout_ms
        self.trigger = trigger_of(where, function, on, when)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Inside a workflow: run it as a child, with a history of its own, and return what it returns.

        Elsewhere it runs here and now as a plain coroutine; its steps are plain functions then, and nothing is recorded.

        Raises:
            RunFailed: The child raised; `__cause__` is what it raised.
            RunTimedOut: It took longer than its timeout.
            RunCancelled: Somebody cancelled the child.
            RunTerminated: A person ended it.
        """
        execution = current_execution()
        if execution is not None:
            _, future = execution.start_child(self, args, kwargs, id=None, on_parent_close=ON_PARENT_CLOSE_CANCEL)
            result: R = await future
            return result
        token = PLAIN_WORKFLOW.set(True)
        try:
            return await self.function(*args, **kwargs)
        finally:
            PLAIN_WORKFLOW.reset(token)

    @overload
    async def map(
        self: Callable[[A], Coroutine[Any, Any, R]], items: Iterable[A], /, *, limit: int = 50
    ) -> list[R]: ...
    @overload
    async def map(
        self: Callable[[A], Coroutine[Any, Any, R]], items: Iterable[A], /, *, limit: int = 50, tolerate: float
    ) -> list[R | RunError]: ...
    async def map(self, items: Iterable[Any], /, *, limit: int = 50, tolerate: float = 0.0) -> list[Any]:
        """Call it once for each item, at most `limit` at a time. Inside a workflow each is a child run.

        Args:
            items: What it is called with; a list, or anything that is finite.
            limit: How many are under way at most. Default 50.
            tolerate: The share of items that may fail, 0 to 1. Default 0: none.

        Returns:
            The results in the order of the items; of one that failed, where that is tolerated, its RunError.

        Raises:
            MapFailed: More failed than is tolerated; no further child was begun, and those under way were asked to stop.
            ConfigError: `limit` or `tolerate` is out of range.
        """
        return await map_over(self, items, what=f"workflow {self.name}", limit=limit, tolerate=tolerate)

    def __repr__(self) -> str:
        return f"<workflow {self.name} at {place_of(self.function)}>"


def _version(what: str, version: Any) -> str:
    if not isinstance(version, str):
        raise ConfigError(f'{what}: version {version!r}: give text, as in version="2"')
    try:
        return check_version(version)
    except FieldInvalid as error:
        raise ConfigError(f"{what}: {error}") from None


class _WorkflowDecorator(Protocol):
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...


@overload
def workflow(function: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...
@overload
def workflow(
    *,
    name: str | None = None,
    pool: str = "default",
    timeout: Duration | None = None,
    cron: str | None = None,
    tz: str | None = None,
    every: Duration | None = None,
    overlap: Overlap | None = None,
    catch_up: Duration | None = None,
    jitter: Duration | None = None,
    start: datetime | None = None,
    until: datetime | None = None,
    tags: Mapping[str, str | int] | None = None,
    on_failure: Hook | None = None,
    version: str | None = None,
    on: str | Iterable[str] | None = None,
    when: str | None = None,
) -> _WorkflowDecorator: ...
def workflow(
    function: Callable[..., Coroutine[Any, Any, Any]] | None = None,
    /,
    *,
    name: str | None = None,
    pool: str = "default",
    timeout: Duration | None = None,
    cron: str | None = None,
    tz: str | None = None,
    every: Duration | None = None,
    overlap: Overlap | None = None,
    catch_up: Duration | None = None,
    jitter: Duration | None = None,
    start: datetime | None = None,
    until: datetime | None = None,
    tags: Mapping[str, str | int] | None = None,
    on_failure: Hook | None = None,
    version: str | None = None,
    on: str | Iterable[str] | None = None,
    when: str | None = None,
) -> Any:
    """Make an async function a workflow: `@workflow` or `@workflow(name="import", pool="flows")`.

    Args:
        function: An `async def`. It may await steps, `asyncio.sleep`, `gather`, `TaskGroup`, `timeout` and the like; what
            touches the world belongs into steps.
        name: What clients know it by. Default: the function's name.
        pool: Pool whose workers execute its code. Default: "default".
        timeout: Longest duration of a run ("1h", seconds, timedelta), counted from its start; then its code gets
            CancelledError, and a minute to clean up. Who starts it may say another one. Default: no limit.
        cron: When it is started by itself: five fields (minute, hour, day of month, month, day of week), or @daily and the
            like. Such a run gets no arguments, but an `Occurrence` where a parameter is annotated so.
        tz: IANA name of the zone in which `cron` is read. Default: UTC.
        every: Instead of `cron`: an interval, a second at least; its multiples since 1970 UTC.
        overlap: What happens while a run of the schedule is still open: "skip" (default), "queue-one", "queue-all",
            "cancel", "terminate" or "allow".
        catch_up: What could not be started in so long, because no server was there, is missed. Default: "1m".
        jitter: Each run starts up to so much later, always before the next occurrence, to spread load. Default: none.
        start, until: The first and the last time at which it may be due, both included; with a zone. Default: none.
        tags: Of the runs that are started so. Default: none.
        on_failure: A step or workflow that is called once with a FailedRun after a run of it has failed. Default: none.
        version: Pins runs to it: a run that starts with this version goes only to workers that have it, until it ends. An
            app may have several versions of one name. Default: none; runs go to any worker that has the name.
        on: Events that start it, by name: one, or several; "contacts.*" means all whose names begin so. Its first parameter
            gets the event's data; all of the event if its type is `Event[…]`.
        when: Condition on them in CEL: `event.data.rows > 100`; there is `event` with id, name, time and data. What cannot be
            said of an event (a field is missing) is not true.

    Raises:
        ConfigError: A name, a hint or the timing is wrong, or it is not an `async def`.
    """
    timing = Timing(
        cron=cron,
        tz=tz,
        every=every,
        overlap=overlap,
        catch_up=catch_up,
        jitter=jitter,
        start=start,
        until=until,
        tags=tags,
    )

    def decorate(target: Callable[..., Coroutine[Any, Any, Any]]) -> Workflow[..., Any]:
        return Workflow(
            target,
            name=name,
            pool=pool,
            timeout=timeout,
            timing=timing,
            on_failure=on_failure,
            version=version,
            on=on,
            when=when,
        )

    return decorate if function is None else decorate(function)
