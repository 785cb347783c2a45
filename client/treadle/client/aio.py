"""The asynchronous client."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, Unpack, overload
from weakref import WeakValueDictionary

import grpc

from treadle.client import deferred
from treadle.client.calls import OnConflict, P, Tags, WorkflowLike, start_request
from treadle.client.config import CALL_TIMEOUT_S, DEFAULT_TARGET, Tls, auth_metadata, is_loopback, open_channel
from treadle.client.event_calls import EventCalls, EventLink
from treadle.client.runs import RunHandle
from treadle.client.schedules import Schedules
from treadle.client.search import RunFilters, filter_fields, page_of
from treadle.client.status import from_rpc_error
from treadle.client.stream import RunStream
from treadle.client.values import LARGEST_BYTES, Values
from treadle.client.vault import codec_of
from treadle.client.views import RunCount, RunInfo, RunPage, run_count
from treadle.protocol.durations import Duration
from treadle.protocol.errors import ConfigError
from treadle.protocol.ids import check_name
from treadle.protocol.sealing import Codec
from treadle.v1.blob_service_pb2 import GetBlobStoreRequest, GetBlobStoreResponse
from treadle.v1.blob_service_pb2_grpc import BlobServiceStub
from treadle.v1.pool_service_pb2 import (
    Check,
    CheckHealthRequest,
    ListPoolsRequest,
    ListWorkersRequest,
    Pool,
    Worker,
)
from treadle.v1.pool_service_pb2_grpc import PoolServiceStub
from treadle.v1.run_service_pb2 import (
    CountRunsRequest,
    ListQuarantinedStepsRequest,
    QuarantinedStep,
)
from treadle.v1.run_service_pb2_grpc import RunServiceStub
from treadle.v1.schedule_service_pb2_grpc import ScheduleServiceStub
from treadle.v1.step_service_pb2_grpc import StepServiceStub

if TYPE_CHECKING:
    from treadle.v1.blob_service_pb2_grpc import BlobServiceAsyncStub
    from treadle.v1.pool_service_pb2_grpc import PoolServiceAsyncStub
    from treadle.v1.run_service_pb2_grpc import RunServiceAsyncStub
    from treadle.v1.schedule_service_pb2_grpc import ScheduleServiceAsyncStub
    from treadle.v1.step_service_pb2_grpc import StepServiceAsyncStub

__all__ = ("Client",)

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
R = TypeVar("R")
Request = TypeVar("Request")
Response = TypeVar("Response")

_PAGE = 200


class Client(EventCalls):
    """Starts, watches and steers runs.

        async with Client("localhost:7430") as client:
            run = await client.start(import_contacts, upload, id="upload-42")
            print(await run.result(timeout="5m"))

    Args:
        target: "host:port" of the control plane.
        namespace: Tenant or environment; nothing crosses it.
        token: Sent as `authorization: Bearer …` with each call.
        tls: How to encrypt; None: plaintext, which is only allowed to this machine.
        insecure: True: plaintext to other machines too.
        codec: Encrypts every value; see docs/payloads.md. None: nothing is encrypted.
        blobs: Where large values are kept (file:///folder, s3://bucket/prefix); "": where the control plane says.

    Raises:
        ConfigError: The namespace is not a name, or plaintext to another machine was not asked for.
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
        self.target = target
        self.namespace = check_name("namespace", namespace)
        self.metadata = auth_metadata(token)
        self._tls = tls
        self._insecure = insecure
        self._closed = False
        self._link: _Link | None = None
        self.values = Values(
            self.namespace, codec=codec, blobs=blobs, ask=self._where_blobs_are, near=is_loopback(target)
        )
        self._order: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @classmethod
    def from_env(cls) -> Client:
        """Return a client as TREADLE_SERVER, TREADLE_NAMESPACE, TREADLE_TOKEN, TREADLE_KEYS_FILE, TREADLE_CODEC and
        TREADLE_BLOBS say."""
        return cls(
            os.environ.get("TREADLE_SERVER") or DEFAULT_TARGET,
            namespace=os.environ.get("TREADLE_NAMESPACE") or "default",
            token=os.environ.get("TREADLE_TOKEN"),
            codec=codec_of(keys_file=os.environ.get("TREADLE_KEYS_FILE"), codec=os.environ.get("TREADLE_CODEC", "")),
            blobs=os.environ.get("TREADLE_BLOBS", ""),
        )

    async def __aenter__(self) -> Client:
        self._open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; what is under way is cancelled. Idempotent."""
        self._closed = True
        self.values.close()
        if self._link is not None:
            link, self._link = self._link, None
            await link.events.sender.close()
            await link.stream.close()
            await link.channel.close()

    # With options, arguments are positional: a checker cannot tell keywords of the workflow from keywords of `start`.
    @overload
    async def start(self, workflow: WorkflowLike[P, R], /, *args: P.args, **kwargs: P.kwargs) -> RunHandle[R]: ...
    @overload
    async def start(
        self,
        workflow: WorkflowLike[[], R],
        /,
        *,
        id: str | None = None,
        on_conflict: OnConflict = "reject",
        pool: str | None = None,
        timeout: Duration | None = None,
        tags: Tags | None = None,
    ) -> RunHandle[R]: ...
    @overload
    async def start(
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
    ) -> RunHandle[R]: ...
    @overload
    async def start(
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
    ) -> RunHandle[R]: ...
    @overload
    async def start(
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
    ) -> RunHandle[R]: ...
    @overload
    async def start(
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
    ) -> RunHandle[R]: ...
    @overload
    async def start(
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
    ) -> RunHandle[Any]: ...
    async def start(
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
    ) -> RunHandle[Any]:
        """Start a run. When this returns, the run is durable: it goes on whatever dies.

        Args:
            workflow: The function made by `@workflow`, which also says the version if it has one; or its name ("billing", or
                "billing@2" for a version), with arguments as keywords or as one mapping.
            args: Arguments of the workflow.
            id: Name of the run, unique in the namespace; None: one is made.
            on_conflict: What to do when the id is taken: see OnConflict.
            pool: Pool whose workers execute the workflow; None: the function's own, or where the name is registered.
            timeout: Longest duration of the run ("1h", seconds, timedelta), counted from now; None: what the workflow says.
            tags: What the run is found by: at most 20, keys of up to 64 and values of up to 200 characters.
            kwargs: Arguments of the workflow. (One that has the name of an option is passed by position.)

        Raises:
            RunIdConflict: The id is taken.
            ConfigError: The timeout is not a duration above 0.
            NotFound: No worker ever registered a workflow of this name, and no pool is given.
            TypeError: Arguments are missing, too many or unknown.
            PayloadError: An argument does not fit its type.
            PayloadTooLarge: The arguments together have more bytes than are allowed (64 MiB with a blob store).
            BlobStoreUnavailable: They are large, and could not be stored.
            Refused: A limit of the control plane is reached, or the token does not allow it.
            Unavailable: The control plane does not answer.
        """
        number, run_id, answer = await self.values.start(
            self.stream,
            lambda: start_request(
                workflow,
                args,
                kwargs,
                id=id,
                on_conflict=on_conflict,
                pool=pool,
                timeout=timeout,
                tags=tags,
                limit=LARGEST_BYTES,
            ),
        )
        return RunHandle(
            self,
            run_id,
            incarnation=answer.incarnation,
            existed=answer.existed,
            signature=None if isinstance(workflow, str) else workflow.signature,
            number=number,
        )

    @overload
    def run(self, id: str) -> RunHandle[Any]: ...
    @overload
    def run(self, id: str, workflow: WorkflowLike[..., R]) -> RunHandle[R]: ...
    def run(self, id: str, workflow: WorkflowLike[..., Any] | None = None) -> RunHandle[Any]:
        """Return a handle on a run that exists; nothing is asked yet. With `workflow`, its result is typed."""
        return RunHandle(self, id, signature=workflow.signature if workflow is not None else None)

    async def list(self, *, limit: int | None = None, **filters: Unpack[RunFilters]) -> AsyncGenerator[RunInfo, None]:
        """Yield runs, newest first, page by page.

        Args:
            limit: At most this many; None: all.
            filters: `workflow`, `status`, `since`, `until`, `tags`, `error`, `trouble`: see RunFilters.

        Raises:
            FieldInvalid: A filter is not allowed.
        """
        fields, token, left = filter_fields(filters), "", limit
        while left is None or left > 0:
            page = await page_of(self, fields, _PAGE if left is None else min(left, _PAGE), token)
            for run in page.runs:
                yield run
            token = page.next_token
            if left is not None:
                left -= len(page.runs)
            if not token:
                return

    async def list_page(self, *, size: int = 50, token: str = "", **filters: Unpack[RunFilters]) -> RunPage:
        """Return one page of runs, newest first; pass `next_token` as `token` for the next one.

        A page may be short although others follow, if few of many runs fit the filters.

        Raises:
            FieldInvalid: A filter is not allowed, or the token is not of this list.
        """
        return await page_of(self, filter_fields(filters), size, token)

    async def count(self, **filters: Unpack[RunFilters]) -> RunCount:
        """Return how many runs there are, with the filters of `list`.

        Raises:
            FieldInvalid: A filter is not allowed.
        """
        request = CountRunsRequest(namespace=self.namespace, **filter_fields(filters))
        return run_count(await self.call(self.stub.CountRuns, request))

    async def pools(self) -> tuple[Pool, ...]:
        """Return the pools of the namespace, by name, with their demand and slots."""
        found: list[Pool] = []
        token = ""
        while True:
            request = ListPoolsRequest(namespace=self.namespace, page_size=_PAGE, page_token=token)
            page = await self.call(self.pool_stub.ListPools, request)
            found += page.pools
            if not (token := page.next_page_token):
                return tuple(found)

    async def workers(self, pool: str | None = None) -> tuple[Worker, ...]:
        """Return the worker processes of the namespace, or of one pool."""
        found: list[Worker] = []
        token = ""
        while True:
            request = ListWorkersRequest(namespace=self.namespace, pool=pool or "", page_size=_PAGE, page_token=token)
            page = await self.call(self.pool_stub.ListWorkers, request)
            found += page.workers
            if not (token := page.next_page_token):
                return tuple(found)

    async def quarantined(self) -> tuple[QuarantinedStep, ...]:
        """Return the steps of the namespace that killed too many workers, those that wait longest first."""
        found: list[QuarantinedStep] = []
        token = ""
        while True:
            request = ListQuarantinedStepsRequest(namespace=self.namespace, page_size=_PAGE, page_token=token)
            page = await self.call(self.stub.ListQuarantinedSteps, request)
            found += page.steps
            if not (token := page.next_page_token):
                return tuple(found)

    async def check_health(self) -> tuple[Check, ...]:
        """Return what the control plane finds about itself, Redis and RabbitMQ."""
        answer = await self.call(self.pool_stub.CheckHealth, CheckHealthRequest())
        return tuple(answer.checks)

    async def complete_step(self, token: str, value: Any = None, *, request_id: str | None = None) -> str:
        """Finish a step that was deferred: it returns `value` to its workflow. Once: the first outcome stands.

        Args:
            token: What the step made with `defer`.
            value: Any JSON-like value, dataclass or model that fits the step's return type.
            request_id: The same call again under the same id changes nothing; None: one is made.

        Returns:
            The id of the run.

        Raises:
            StepSettled: It has its outcome, or the try that made the token is over.
            Refused: The token is forged, or of another namespace; or this client may not finish steps.
            FieldInvalid: It is no token.
            NotFound: The run is gone.
            PayloadError: The value cannot be encoded.
            Unavailable: The control plane does not answer.
        """
        return await deferred.complete(self, token, value, request_id)

    async def fail_step(
        self, token: str, error: str | BaseException, *, final: bool = False, request_id: str | None = None
    ) -> str:
        """Let a step that was deferred fail: as if it had raised `error`, so it is retried as its policy says.

        Args:
            token: What the step made with `defer`.
            error: Why: a text, or an error, of which class name and message are kept.
            final: True: no retry can help. An error of class `Fatal` says so itself.
            request_id: The same call again under the same id changes nothing; None: one is made.

        Returns:
            The id of the run.

        Raises:
            StepSettled, Refused, FieldInvalid, NotFound, Unavailable: As `complete_step`.
        """
        return await deferred.fail(self, token, error, final=final, request_id=request_id)

    @property
    def step_stub(self) -> StepServiceAsyncStub:
        """StepService on this client's channel."""
        return self._open().steps

    @property
    def schedules(self) -> Schedules:
        """The schedules of the namespace."""
        return Schedules(self)

    @property
    def schedule_stub(self) -> ScheduleServiceAsyncStub:
        """ScheduleService on this client's channel."""
        return self._open().schedules

    @property
    def stub(self) -> RunServiceAsyncStub:
        """RunService on this client's channel."""
        return self._open().runs

    @property
    def pool_stub(self) -> PoolServiceAsyncStub:
        """PoolService on this client's channel."""
        return self._open().pools

    @property
    def event_link(self) -> EventLink:
        """EventService on this client's channel, and what goes there together."""
        return self._open().events

    @property
    def stream(self) -> RunStream:
        """The stream over which runs are started and their ends are told."""
        return self._open().stream

    def in_order(self, run_id: str) -> asyncio.Lock:
        """Return what lets one signal at a time go to a run, first come, first served."""
        lock = self._order.get(run_id)
        if lock is None:
            lock = self._order[run_id] = asyncio.Lock()
        return lock

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        timeout: float = CALL_TIMEOUT_S,
        wait_for_ready: bool = False,
    ) -> Response:
        """Make one call with this client's token and a deadline (seconds).

        Raises:
            TreadleError: What the control plane answered, or why it could not be asked.
        """
        try:
            return await method(request, timeout=timeout, metadata=self.metadata, wait_for_ready=wait_for_ready)
        except grpc.RpcError as error:
            raise from_rpc_error(error, target=self.target) from error

    async def _where_blobs_are(self) -> GetBlobStoreResponse:
        return await self.call(self._open().blobs.GetBlobStore, GetBlobStoreRequest(namespace=self.namespace))

    def _open(self) -> _Link:
        if self._closed:
            raise ConfigError("this client is closed: make a new one")
        if self._link is None:
            channel = open_channel(self.target, tls=self._tls, insecure=self._insecure)
            runs = RunServiceStub(channel)
            stream = RunStream(runs, target=self.target, namespace=self.namespace, metadata=self.metadata)
            steps, schedules = StepServiceStub(channel), ScheduleServiceStub(channel)
            blobs = BlobServiceStub(channel)
            pools, events = PoolServiceStub(channel), EventLink(self, channel)
            self._link = _Link(channel, runs, pools, steps, schedules, blobs, stream, events)
        return self._link


class _Link(NamedTuple):
    channel: grpc.aio.Channel
    runs: RunServiceAsyncStub
    pools: PoolServiceAsyncStub
    steps: StepServiceAsyncStub
    schedules: ScheduleServiceAsyncStub
    blobs: BlobServiceAsyncStub
    stream: RunStream
    events: EventLink
