"""`@step`: a unit of work that is recorded, retried, and never repeated once it is done."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Coroutine, Iterable
from contextvars import ContextVar
from typing import Any, Final, Generic, Literal, ParamSpec, Protocol, TypeVar, cast, get_args, overload

from treadle.protocol.durations import Duration, positive_ms, to_ms
from treadle.protocol.errors import ConfigError, StepError
from treadle.protocol.ids import check_name
from treadle.protocol.retry import DEFAULT_POLICY, Retry
from treadle.protocol.signature import Signature
from treadle.v1.common_pb2 import ON_CANCEL_ABANDON, ON_CANCEL_UNSPECIFIED, ON_CANCEL_WAIT, RetryPolicy
from treadle.v1.common_pb2 import OnCancel as WireOnCancel
from treadle.worker.current import current_execution
from treadle.worker.fan_out import map_over

__all__ = ("Executor", "OnCancel", "Step", "check_function_name", "place_of", "step")

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")

Executor = Literal["async", "thread", "process"]
"""Where the body of a step runs: on the worker's event loop, in a thread, or in a child process."""

OnCancel = Literal["try", "wait", "abandon"]
"""What happens to a step whose caller is cancelled: it is told and the caller goes on at once; or when it has ended; or it is
not told."""

_ON_CANCEL: Final[dict[str, WireOnCancel.ValueType]] = {
    "try": ON_CANCEL_UNSPECIFIED,
    "wait": ON_CANCEL_WAIT,
    "abandon": ON_CANCEL_ABANDON,
}

PLAIN_WORKFLOW: Final[ContextVar[bool]] = ContextVar("treadle_plain_workflow", default=False)
"""True while the body of a workflow runs that was called as a plain function: its sync steps are awaited there too."""

_LEAST_HEARTBEAT_MS: Final = 100
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,199}")


class Step(Generic[P, R]):
    """A step, as `@step` makes it. Calling it inside a workflow is a durable call; elsewhere it is the plain function.

    Attributes:
        name: What history and workers know it by.
        function: The plain function.
        signature: How it is called over the wire.
        pool: Pool whose workers run it; None: it runs where the workflow runs.
        retry: The policy.
        policy: The policy as a message.
        retry_message: The same; None when it is the default one.
        timeout_ms: Longest duration of an attempt in milliseconds; 0: no limit.
        heartbeat_ms: Longest silence of an attempt in milliseconds; 0: no limit.
        total_timeout_ms: Longest duration of all tries together; 0: no limit.
        queue_timeout_ms: How long a try may wait for a worker; 0: no limit.
        on_cancel: What happens to it when its caller is cancelled.
        limited: Whether one of these three is set.
        at_most_once: An attempt that may have started is never followed by another.
        executor: "async", "thread" or "process".
        is_async: The plain function is a coroutine function.
    """

    __name__: str
    __qualname__: str

    def __init__(
        self,
        function: Callable[P, Any],
        *,
        name: str | None = None,
        pool: str | None = None,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        heartbeat: Duration | None = None,
        total_timeout: Duration | None = None,
        queue_timeout: Duration | None = None,
        on_cancel: OnCancel = "try",
        executor: Executor | None = None,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.name = check_function_name("step", function, name)
        what = f"step {self.name}"
        self.is_async = inspect.iscoroutinefunction(function)
        self.executor: Executor = executor or ("async" if self.is_async else "thread")
        _check_executor(what, self.executor, self.is_async, function)
        self.pool = None if pool is None else check_name("pool", pool)
        self.retry = retry or Retry()
        self.policy: RetryPolicy = self.retry.to_message()
        self.retry_message = None if self.policy == DEFAULT_POLICY else self.policy
        self.at_most_once = self.retry.at_most_once
        self.timeout_ms = _limit(timeout, f"{what}: timeout")
        self.total_timeout_ms = _limit(total_timeout, f"{what}: total_timeout")
        self.queue_timeout_ms = _limit(queue_timeout, f"{what}: queue_timeout")
        if self.queue_timeout_ms and self.pool is None:
            raise ConfigError(
                f"{what}: queue_timeout is for steps with a pool; this one starts where its workflow runs"
            )
        if on_cancel not in _ON_CANCEL:
            raise ConfigError(f"{what}: on_cancel {on_cancel!r}: give 'try', 'wait' or 'abandon'")
        self.on_cancel = _ON_CANCEL[on_cancel]
        self.limited = bool(self.total_timeout_ms or self.queue_timeout_ms or self.on_cancel)
        self.heartbeat_ms = 0 if heartbeat is None else to_ms(heartbeat, name=f"{what}: heartbeat")
        if heartbeat is not None and self.heartbeat_ms < _LEAST_HEARTBEAT_MS:
            raise ConfigError(f"{what}: heartbeat {heartbeat!r}: give at least 0.1 s, or leave it out for no limit")
        self.signature = Signature(function, what=what)

    # Not Coroutine[Any, Any, R]: with Any in it, mypy makes Any of what `asyncio.gather` of several steps returns.
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[object, None, R]:
        """Call it: a durable call inside a workflow, to be awaited; elsewhere the plain function (a sync one returns its
        result at once, whatever the type says)."""
        execution = current_execution()
        if execution is not None:
            return execution.call_step(self, args, kwargs)
        if PLAIN_WORKFLOW.get():
            return self._call_plainly(args, kwargs)
        return cast("Coroutine[object, None, R]", self.function(*args, **kwargs))

    @overload
    async def map(
        self: Callable[[A], Coroutine[object, None, R]], items: Iterable[A], /, *, limit: int = 50
    ) -> list[R]: ...
    @overload
    async def map(
        self: Callable[[A], Coroutine[object, None, R]], items: Iterable[A], /, *, limit: int = 50, tolerate: float
    ) -> list[R | StepError]: ...
    async def map(self, items: Iterable[Any], /, *, limit: int = 50, tolerate: float = 0.0) -> list[Any]:
        """Call it once for each item, at most `limit` at a time. Inside a workflow each is a durable call.

        Args:
            items: What it is called with; a list, or anything that is finite.
            limit: How many calls are under way at most. Default 50.
            tolerate: The share of items that may fail, 0 to 1. Default 0: none.

        Returns:
            The results in the order of the items; of one that failed, where that is tolerated, its StepError.

        Raises:
            MapFailed: More failed than is tolerated; no further call was begun, and those under way were cancelled.
            ConfigError: `limit` or `tolerate` is out of range.
        """
        return await map_over(self, items, what=f"step {self.name}", limit=limit, tolerate=tolerate)

    async def _call_plainly(self, args: Any, kwargs: Any) -> R:
        token = PLAIN_WORKFLOW.set(False)
        try:
            result = self.function(*args, **kwargs)
            return cast("R", await result if self.is_async else result)
        finally:
            PLAIN_WORKFLOW.reset(token)

    def __repr__(self) -> str:
        return f"<step {self.name} at {place_of(self.function)}>"


class _StepDecorator(Protocol):
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Step[P, R]: ...


@overload
def step(function: Callable[P, Coroutine[Any, Any, R]], /) -> Step[P, R]: ...
@overload
def step(function: Callable[P, R], /) -> Step[P, R]: ...
@overload
def step(
    *,
    name: str | None = None,
    pool: str | None = None,
    retry: Retry | None = None,
    timeout: Duration | None = None,
    heartbeat: Duration | None = None,
    total_timeout: Duration | None = None,
    queue_timeout: Duration | None = None,
    on_cancel: OnCancel = "try",
    executor: Executor | None = None,
) -> _StepDecorator: ...
def step(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    pool: str | None = None,
    retry: Retry | None = None,
    timeout: Duration | None = None,
    heartbeat: Duration | None = None,
    total_timeout: Duration | None = None,
    queue_timeout: Duration | None = None,
    on_cancel: OnCancel = "try",
    executor: Executor | None = None,
) -> Any:
    """Make a function a step: `@step` or `@step(pool="csv", timeout="2m")`.

    Args:
        function: An async function, or a sync one (it runs in a thread). Arguments and result travel as JSON by type hints.
        name: What history and workers know it by. Default: the function's name.
        pool: Pool whose workers run it. Default: none, it runs in the worker that executes the workflow.
        retry: How often, and how patiently, it is retried. Default: `Retry()`, 5 tries.
        timeout: Longest duration of one attempt ("30s", seconds, timedelta). Default: no limit.
        heartbeat: An attempt that calls neither `progress` nor `heartbeat` for so long is ended with HeartbeatMissed, and
            retried by the policy. Default: no limit.
        total_timeout: Longest duration of all tries together, with the waits in between. Default: no limit.
        queue_timeout: How long a try may wait for a worker; then the step fails, without a further try. Default: no limit.
        on_cancel: When its caller is cancelled: "try" tells the step, and the caller goes on at once; "wait" tells it, and the
            caller goes on when it has ended; "abandon" does not tell it. Default: "try".
        executor: "async", "thread" or "process". Default: "async" for async functions, "thread" for sync ones.

    Raises:
        ConfigError: A name, hint or setting is wrong.
    """

    def decorate(target: Callable[..., Any]) -> Step[..., Any]:
        return Step(
            target,
            name=name,
            pool=pool,
            retry=retry,
            timeout=timeout,
            heartbeat=heartbeat,
            total_timeout=total_timeout,
            queue_timeout=queue_timeout,
            on_cancel=on_cancel,
            executor=executor,
        )

    return decorate if function is None else decorate(function)


def check_function_name(kind: str, function: Any, name: str | None) -> str:
    """Return the name of a step or workflow: `name`, or the function's own.

    Raises:
        ConfigError: It is not a function, or the name has other than letters, digits and `_ . : -`.
    """
    if not inspect.isfunction(function):
        raise ConfigError(f"@{kind}: {function!r} is not a function; decorate a `def` or `async def`")
    chosen = function.__name__ if name is None else name
    if not _NAME.fullmatch(chosen):
        raise ConfigError(
            f"invalid {kind} name {chosen!r} at {place_of(function)}: use 1 to 200 letters, digits and '_.:-'; give one "
            f"with @{kind}(name=...)"
        )
    return chosen


def place_of(function: Any) -> str:
    """Where a function is defined: "file:line"."""
    code = inspect.unwrap(function).__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


def _limit(duration: Duration | None, name: str) -> int:
    return 0 if duration is None else positive_ms(duration, name=name)


def _check_executor(what: str, executor: str, is_async: bool, function: Any) -> None:
    if executor not in get_args(Executor):
        raise ConfigError(f"{what}: executor {executor!r}: give 'async', 'thread' or 'process'")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise ConfigError(f"{what}: a generator cannot be a step; return a list")
    if executor == "async" and not is_async:
        raise ConfigError(f"{what}: executor='async' needs an `async def`; leave it out to run in a thread")
    if executor == "thread" and is_async:
        raise ConfigError(f"{what}: executor='thread' needs a plain `def`; leave it out to run on the event loop")
