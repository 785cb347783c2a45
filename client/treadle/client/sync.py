"""The blocking client: the asynchronous one on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from typing import Any, Generic, TypeVar, Unpack, overload

from treadle.client.aio import Client
from treadle.client.calls import OnConflict, P, Tags, WorkflowLike
from treadle.client.config import DEFAULT_TARGET, Tls
from treadle.client.event_calls import SyncEventCalls
from treadle.client.runs import RunHandle
from treadle.client.search import RunFilters
from treadle.client.sync_schedules import SyncSchedules
from treadle.client.views import RunCount, RunInfo, RunPage
from treadle.protocol.durations import Duration
from treadle.protocol.errors import ConfigError
from treadle.protocol.sealing import Codec
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.pool_service_pb2 import Check, Pool, Worker
from treadle.v1.run_service_pb2 import QuarantinedStep

__all__ = ("SyncClient", "SyncRunHandle")

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
R = TypeVar("R")
T = TypeVar("T")


class LoopThread:
    """An event loop in a daemon thread, started with the first call."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it there and return its result; Ctrl-C cancels it.

        Raises:
            ConfigError: The client is closed.
        """
        try:
            loop = self._started()
        except ConfigError:
            coroutine.close()
            raise
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, source: AsyncGenerator[T, None]) -> Iterator[T]:
        """Yield what it yields; it is closed when the caller leaves early."""
        try:
            while True:
                item = self.run(_next(source))
                if isinstance(item, _End):
                    return
                yield item
        finally:
            if not self._closed:
                self.run(source.aclose())

    def close(self) -> None:
        """Stop the loop and wait for the thread. Idempotent."""
        with self._lock:
            self._closed = True
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._closed:
                raise ConfigError("this client is closed: make a new one")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_serve, args=(self._loop,), name="treadle-client", daemon=True)
                self._thread.start()
            return self._loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        pending = asyncio.all_tasks(loop)
        for task in pending:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


class _End:
    """Stands for the end of an iteration, which must not cross threads as an exception."""


async def _next(source: AsyncGenerator[T, None]) -> T | _End:
    return await anext(source, _End())


class SyncRunHandle(Generic[R]):
    """One run; the blocking twin of RunHandle, method for method.

    Attributes:
        id: The run's id.
        existed: True when `start` found the run already there.
    """

    __slots__ = ("_handle", "_thread", "existed", "id")

    def __init__(self, thread: LoopThread, handle: RunHandle[R]) -> None:
        self._thread = thread
        self._handle = handle
        self.id = handle.id
        self.existed = handle.existed

    def __repr__(self) -> str:
        return f"SyncRunHandle({self.id!r})"

    def result(self, timeout: Duration | None = None) -> R:
        """See RunHandle.result."""
        return self._thread.run(self._handle.result(timeout))

    def wait(self, timeout: Duration | None = None) -> RunInfo:
        """See RunHandle.wait."""
        return self._thread.run(self._handle.wait(timeout))

    def get(self) -> RunInfo:
        """See RunHandle.get."""
        return self._thread.run(self._handle.get())

    def cancel(self, reason: str = "") -> RunInfo:
        """See RunHandle.cancel."""
        return self._thread.run(self._handle.cancel(reason))

    def terminate(self, reason: str = "") -> RunInfo:
        """See RunHandle.terminate."""
        return self._thread.run(self._handle.terminate(reason))

    def accept(self, reason: str = "") -> RunInfo:
        """See RunHandle.accept."""
        return self._thread.run(self._handle.accept(reason))

    def retry(
        self, *, from_step: str | None = None, input: Mapping[str, Any] | None = None, reason: str = ""
    ) -> RunInfo:
        """See RunHandle.retry."""
        return self._thread.run(self._handle.retry(from_step=from_step, input=input, reason=reason))

    def release(self, step: str = "", *, reason: str = "") -> tuple[str, ...]:
        """See RunHandle.release."""
        return self._thread.run(self._handle.release(step, reason=reason))

    def signal(self, name: str, value: Any = None, *, id: str | None = None) -> RunInfo:
        """See RunHandle.signal."""
        return self._thread.run(self._handle.signal(name, value, id=id))

    @overload
    def ask(
        self, name: str, value: Any = None, *, returns: type[T], id: str | None = None, timeout: Duration | None = None
    ) -> T: ...
    @overload
    def ask(self, name: str, value: Any = None, *, id: str | None = None, timeout: Duration | None = None) -> Any: ...
    def ask(
        self,
        name: str,
        value: Any = None,
        *,
        returns: Any = Any,
        id: str | None = None,
        timeout: Duration | None = None,
    ) -> Any:
        """See RunHandle.ask."""
        return self._thread.run(self._handle.ask(name, value, returns=returns, id=id, timeout=timeout))

    @overload
    def state(self, /) -> Any: ...
    @overload
    def state(self, type: type[T], /) -> T | None: ...
    def state(self, type: Any = Any, /) -> Any:
        """See RunHandle.state."""
        return self._thread.run(self._handle.state(type))

    def history(self, *, after: int = 0, incarnation: int = 0) -> Iterator[HistoryEvent]:
        """See RunHandle.history."""
        return self._thread.iterate(self._handle.history(after=after, incarnation=incarnation))

    def watch(
        self, *, after: int = 0, incarnation: int = 0, told: Callable[[RunInfo], None] | None = None
    ) -> Iterator[HistoryEvent]:
        """See RunHandle.watch. `told` is called on another thread."""
        return self._thread.iterate(self._handle.watch(after=after, incarnation=incarnation, told=told))


class SyncClient(SyncEventCalls):
    """Starts, watches and steers runs, blocking. Same names and arguments as Client; any thread may call it.

    with SyncClient("localhost:7430") as client:
        run = client.start(import_contacts, upload, id="upload-42")
        print(run.result(timeout="5m"))
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        namespace: str = "default",
        token: str | None = None,
        tls: Tls | None = None,
        insecure: bool = False,
        codec: Codec | None = None,
        blobs: str = "",
    ) -> None:
        self._client = Client(
            target, namespace=namespace, token=token, tls=tls, insecure=insecure, codec=codec, blobs=blobs
        )
        self._thread = LoopThread()
        self.target = target
        self.namespace = namespace

    def __enter__(self) -> SyncClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and end the thread. Idempotent."""
        try:
            self._thread.run(self._client.close())
        except ConfigError:  # closed before
            return
        self._thread.close()

    # With options, arguments are positional: a checker cannot tell keywords of the workflow from keywords of `start`.
    @overload
    def start(self, workflow: WorkflowLike[P, R], /, *args: P.args, **kwargs: P.kwargs) -> SyncRunHandle[R]: ...
    @overload
    def start(
        self,
        workflow: WorkflowLike[[], R],
        /,
        *,
        id: str | None = None,
        on_conflict: OnConflict = "reject",
        pool: str | None = None,
        timeout: Duration | None = None,
        tags: Tags | None = None,
    ) -> SyncRunHandle[R]: ...
    @overload
    def start(
        self,
        workflow: WorkflowLike[[A], R],
        a: A,
        /,
        *,
        id: str | None = None,
        on_conflict: OnConflict = "reject",
        pool: str | None = None,
        timeout: Duration | None = None,
        tags: Tags | None = None,
    ) -> SyncRunHandle[R]: ...
    @overload
    def start(
        self,
        workflow: WorkflowLike[[A, B], R],
        a: A,
        b: B,
        /,
        *,
        id: str | None = None,
        on_conflict: OnConflict = "reject",
        pool: str | None = None,
        timeout: Duration | None = None,
        tags: Tags | None = None,
    ) -> SyncRunHandle[R]: ...
    @overload
    def start(
        self,
        workflow: WorkflowLike[[A, B, C], R],
        a: A,
        b: B,
        c: C,
        /,
        *,
        id: str | None = None,
        on_conflict: OnConflict = "reject",
        pool: str | None = None,
        timeout: Duration | None = None,
        tags: Tags | None = None,
    ) -> SyncRunHandle[R]: ...
    @overload
    def start(
        self,
        workflow: WorkflowLike[[A, B, C, D], R],
        a: A,
        b: B,
        c: C,
        d: D,
        /,
        *,
        id: str | None = None,
        on_conflict: OnConflict = "reject",
        pool: str | None = None,
        timeout: Duration | None = None,
        tags: Tags | None = None,
    ) -> SyncRunHandle[R]: ...
    @overload
    def start(
        self,
        workflow: str,
        /,
        *args: Any,
        id: str | None = None,
        on_conflict: OnConflict = "reject",
        pool: str | None = None,
        timeout: Duration | None = None,
        tags: Tags | None = None,
        **kwargs: Any,
    ) -> SyncRunHandle[Any]: ...
    def start(
        self,
        workflow: Any,
        /,
        *args: Any,
        id: Any = None,
        on_conflict: Any = "reject",
        pool: Any = None,
        timeout: Any = None,
        tags: Any = None,
        **kwargs: Any,
    ) -> SyncRunHandle[Any]:
        """See Client.start."""
        starting = self._client.start(
            workflow, *args, id=id, on_conflict=on_conflict, pool=pool, timeout=timeout, tags=tags, **kwargs
        )
        handle: RunHandle[Any] = self._thread.run(starting)
        return SyncRunHandle(self._thread, handle)

    @overload
    def run(self, id: str) -> SyncRunHandle[Any]: ...
    @overload
    def run(self, id: str, workflow: WorkflowLike[..., R]) -> SyncRunHandle[R]: ...
    def run(self, id: str, workflow: WorkflowLike[..., Any] | None = None) -> SyncRunHandle[Any]:
        """See Client.run."""
        handle = self._client.run(id) if workflow is None else self._client.run(id, workflow)
        return SyncRunHandle(self._thread, handle)

    def list(self, *, limit: int | None = None, **filters: Unpack[RunFilters]) -> Iterator[RunInfo]:
        """See Client.list."""
        return self._thread.iterate(self._client.list(limit=limit, **filters))

    def list_page(self, *, size: int = 50, token: str = "", **filters: Unpack[RunFilters]) -> RunPage:
        """See Client.list_page."""
        return self._thread.run(self._client.list_page(size=size, token=token, **filters))

    def count(self, **filters: Unpack[RunFilters]) -> RunCount:
        """See Client.count."""
        return self._thread.run(self._client.count(**filters))

    def pools(self) -> tuple[Pool, ...]:
        """See Client.pools."""
        return self._thread.run(self._client.pools())

    def workers(self, pool: str | None = None) -> tuple[Worker, ...]:
        """See Client.workers."""
        return self._thread.run(self._client.workers(pool))

    @property
    def schedules(self) -> SyncSchedules:
        """See Client.schedules."""
        return SyncSchedules(self._thread, self._client.schedules)

    def quarantined(self) -> tuple[QuarantinedStep, ...]:
        """See Client.quarantined."""
        return self._thread.run(self._client.quarantined())

    def complete_step(self, token: str, value: Any = None, *, request_id: str | None = None) -> str:
        """See Client.complete_step."""
        return self._thread.run(self._client.complete_step(token, value, request_id=request_id))

    def fail_step(
        self, token: str, error: str | BaseException, *, final: bool = False, request_id: str | None = None
    ) -> str:
        """See Client.fail_step."""
        return self._thread.run(self._client.fail_step(token, error, final=final, request_id=request_id))

    def check_health(self) -> tuple[Check, ...]:
        """See Client.check_health."""
        return self._thread.run(self._client.check_health())
