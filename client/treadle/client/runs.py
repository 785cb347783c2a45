"""A handle on one run: wait for its result, watch it, read its history, stop it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, overload
from uuid import uuid4

import grpc

from treadle.client.backoff import Backoff
from treadle.client.calls import retry_request
from treadle.client.config import CALL_TIMEOUT_S
from treadle.client.status import from_rpc_error
from treadle.client.values import LARGEST_BYTES
from treadle.client.views import RunInfo, run_info
from treadle.protocol.durations import Duration, to_ms
from treadle.protocol.errors import (
    NotFound,
    QuestionRefused,
    ResultTimeout,
    RunCancelled,
    RunTerminated,
    Unavailable,
)
from treadle.protocol.failures import run_error
from treadle.protocol.payloads import decode, encode
from treadle.protocol.signature import Signature
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.run_service_pb2 import (
    RUN_STATUS_CANCELLED,
    RUN_STATUS_COMPLETED,
    RUN_STATUS_TERMINATED,
    AcceptRunRequest,
    AskRunRequest,
    CancelRunRequest,
    GetHistoryRequest,
    GetRunRequest,
    GetStateRequest,
    ReleaseStepRequest,
    Run,
    SignalRunRequest,
    TerminateRunRequest,
    WatchRunRequest,
)

if TYPE_CHECKING:
    from treadle.client.aio import Client

__all__ = ("RunHandle",)

R = TypeVar("R")
T = TypeVar("T")

_SHORT_S: Final = 0.5
"""With a shorter timeout it is asked first how the run stands, so that a closed run is told however short it is."""

_PAGE: Final = 200
_POLL_S: Final = 30.0
"""How long one call waits for an answer; then it is asked again under the same id."""


class RunHandle(Generic[R]):
    """One run, as started by `Client.start` or named by `Client.run`. R is what its workflow returns.

    Attributes:
        id: The run's id.
        incarnation: Which start of that id is meant; 0: whichever is there.
        existed: True when `start` found the run already there (`on_conflict="use_existing"`).
    """

    __slots__ = ("_client", "_number", "_signature", "existed", "id", "incarnation")

    def __init__(
        self,
        client: Client,
        id: str,
        *,
        incarnation: int = 0,
        existed: bool = False,
        signature: Signature | None = None,
        number: int = 0,
    ) -> None:
        self._client = client
        self._number = number
        self._signature = signature
        self.id = id
        self.incarnation = incarnation
        self.existed = existed

    def __repr__(self) -> str:
        return f"RunHandle({self.id!r})"

    async def result(self, timeout: Duration | None = None) -> R:
        """Wait for the run to close and return what its workflow returned.

        Goes on through restarts of the control plane, until the timeout.

        Args:
            timeout: How long to wait at most, in seconds or as text ("5m"); None: as long as it takes.

        Raises:
            RunFailed: The workflow raised; `__cause__` is what it raised.
            RunCancelled: The run was cancelled.
            RunTerminated: A person ended it.
            ResultTimeout: The timeout is over; the run goes on.
            NotFound: There is no such run, or its id was started anew.
            PayloadError: The result does not fit the workflow's return type.
            PayloadUnreadable: It is encrypted with a key that is not here, or was tampered with.
            BlobMissing, BlobStoreUnavailable: It is large, and could not be fetched.
        """
        run = await self._closed(timeout)
        if run.status == RUN_STATUS_COMPLETED:
            if run.result.encoding:
                run.result.CopyFrom(await self._client.values.open(self.id, run.result))
            value: R = self._decode(run)
            return value
        because = f": {run.reason}" if run.reason else ""
        if run.status == RUN_STATUS_CANCELLED:
            raise RunCancelled(f"run {self.id} was cancelled{because}", run_id=self.id)
        if run.status == RUN_STATUS_TERMINATED:
            raise RunTerminated(f"run {self.id} was terminated{because}", run_id=self.id)
        raise run_error(self.id, self._client.values.open_failure(self.id, run.failure))

    async def wait(self, timeout: Duration | None = None) -> RunInfo:
        """Wait for the run to close and return how it stands then, whatever the outcome.

        Raises:
            ResultTimeout: The timeout is over; the run goes on.
            NotFound: There is no such run.
        """
        return self._client.values.read(await self._closed(timeout))

    async def get(self) -> RunInfo:
        """Return how the run stands.

        Raises:
            NotFound: There is no such run.
        """
        request = GetRunRequest(namespace=self._client.namespace, run_id=self.id)
        return self._client.values.read((await self._client.call(self._client.stub.GetRun, request)).run)

    async def cancel(self, reason: str = "") -> RunInfo:
        """Ask the run to stop: its code sees `asyncio.CancelledError` and may clean up.

        Raises:
            NotFound: There is no such run.
            RunClosed: It is closed already.
        """
        request = CancelRunRequest(**self._steering(reason))
        return self._client.values.read((await self._client.call(self._client.stub.CancelRun, request)).run)

    async def terminate(self, reason: str = "") -> RunInfo:
        """End the run without asking its code.

        Raises:
            NotFound: There is no such run.
            RunClosed: It is closed already.
        """
        request = TerminateRunRequest(**self._steering(reason))
        return self._client.values.read((await self._client.call(self._client.stub.TerminateRun, request)).run)

    async def accept(self, reason: str = "") -> RunInfo:
        """Let a run that needs attention go on with today's code.

        Raises:
            NotFound: There is no such run.
            RequestError: It does not need attention.
        """
        request = AcceptRunRequest(**self._steering(reason))
        return self._client.values.read((await self._client.call(self._client.stub.AcceptRun, request)).run)

    async def retry(
        self, *, from_step: str | None = None, input: Mapping[str, Any] | None = None, reason: str = ""
    ) -> RunInfo:
        """Let a run that has failed, was cancelled or terminated go on, with today's code and under the same id.

        What completed is kept; what failed, was cancelled or was open runs again. `result()` then waits for the new outcome.

        Args:
            from_step: Name of a step, or one call of it ("0/validate#1"): it and everything recorded behind it run again,
                whatever became of it. Completed runs can be continued in this way, too.
            input: Arguments by name: the run starts over with them, and nothing is kept.
            reason: Why; shown in the history.

        Raises:
            NotFound: There is no such run, or no such step in its history.
            WrongState: It may not go on so; `reason` says why: RUN_NOT_CLOSED, RUN_NOT_FAILED (give `from_step`), RUN_UNDONE
                (a saga undid what was done: give `from_step`).
            ConfigError: Both `from_step` and `input` are given.
        """
        request = retry_request(self._steering(reason), from_step, input)
        if request.HasField("input"):
            request.input.CopyFrom(await self._client.values.seal(self.id, request.input, "input"))
        info = self._client.values.read((await self._client.call(self._client.stub.RetryRun, request)).run)
        self._number = 0  # what the stream was told under it is the outcome of before
        if self.incarnation and input is not None:
            self.incarnation = info.incarnation
        return info

    async def release(self, step: str = "", *, reason: str = "") -> tuple[str, ...]:
        """Let quarantined steps go on: one that is named, or all of the run. Returns which calls.

        Raises:
            NotFound: There is no such run.
            RunClosed: It is closed.
            WrongState: No such step of it is quarantined.
        """
        request = ReleaseStepRequest(step=step, **self._steering(reason))
        return tuple((await self._client.call(self._client.stub.ReleaseStep, request)).command_ids)

    async def signal(self, name: str, value: Any = None, *, id: str | None = None) -> RunInfo:
        """Send a signal: the run's code receives it by name. When this returns, it is durable.

        Signals that one client sends to a run arrive in the order of the calls.

        Args:
            name: What the code receives it by.
            value: Any JSON-like value, dataclass or model.
            id: Sent again under the same id, it changes nothing; None: one is made.

        Raises:
            NotFound: There is no such run.
            RunClosed: It is closed already.
            PayloadError: The value cannot be encoded.
        """
        request = SignalRunRequest(**await self._letter(name, value, id, "signal"))
        async with self._client.in_order(self.id):
            return self._client.values.read((await self._client.call(self._client.stub.SignalRun, request)).run)

    @overload
    async def ask(
        self, name: str, value: Any = None, *, returns: type[T], id: str | None = None, timeout: Duration | None = None
    ) -> T: ...
    @overload
    async def ask(
        self, name: str, value: Any = None, *, id: str | None = None, timeout: Duration | None = None
    ) -> Any: ...
    async def ask(
        self,
        name: str,
        value: Any = None,
        *,
        returns: Any = Any,
        id: str | None = None,
        timeout: Duration | None = None,
    ) -> Any:
        """Ask the run's code a question and wait for its answer. All who ask under one id get the same one.

        Args:
            name: What the code receives it by.
            value: Any JSON-like value, dataclass or model.
            returns: What the answer is decoded as; default: plain JSON values.
            id: Of the question; None: one is made.
            timeout: How long to wait at most, in seconds or as text ("5m"); None: until the run answers or ends.

        Raises:
            NotFound: There is no such run.
            RunClosed: It is closed already, or was closed without an answer.
            QuestionRefused: The code refused to answer.
            ResultTimeout: The timeout is over; asking again under the same id waits for the same answer.
            PayloadError: The value cannot be encoded, or the answer does not fit `returns`.
        """
        request = AskRunRequest(**await self._letter(name, value, id, "question"))
        until = None if timeout is None else time.monotonic() + to_ms(timeout, name="timeout") / 1000
        while True:
            left = _POLL_S if until is None else min(_POLL_S, until - time.monotonic())
            if left <= 0:
                raise ResultTimeout(f"run {self.id} has not answered question {name!r} after {timeout}; it goes on")
            request.wait_ms = max(1, round(left * 1000))
            said = await self._client.call(self._client.stub.AskRun, request, timeout=left + CALL_TIMEOUT_S)
            if said.HasField("failure"):
                raise QuestionRefused(self._client.values.open_failure(self.id, said.failure).message)
            if said.answered:
                answer = await self._client.values.open(self.id, said.result)
                return decode(answer, returns, what=f"answer to question {name!r}")

    @overload
    async def state(self, /) -> Any: ...
    @overload
    async def state(self, type: type[T], /) -> T | None: ...
    async def state(self, type: Any = Any, /) -> Any:
        """Return what the run's code showed last with `publish_state`; None: nothing yet. No worker is needed.

        Raises:
            NotFound: There is no such run, or its id was started anew.
            PayloadError: It does not fit the type.
        """
        request = GetStateRequest(namespace=self._client.namespace, run_id=self.id)
        found = await self._client.call(self._client.stub.GetState, request)
        if self.incarnation and found.incarnation != self.incarnation:
            raise NotFound(f"run {self.id} was started anew; this start of it is gone")
        if not found.published:
            return None
        state = await self._client.values.open(self.id, found.state)
        return decode(state, type, what=f"state of run {self.id}")

    async def history(self, *, after: int = 0, incarnation: int = 0) -> AsyncGenerator[HistoryEvent, None]:
        """Yield the events that the history has now, in order, from behind position `after`.

        Args:
            after: Only events behind this position.
            incarnation: `RunInfo.incarnation` of the part or start that is meant; 0: the one that is there.

        Raises:
            NotFound: There is no such run, or its id was started anew.
            WrongState: The run has gone on as new meanwhile, and what is left of this history is gone (reason
                HISTORY_REPLACED).
        """
        position, part, reader = after, incarnation, self._client.values.reader(self.id)
        while True:
            request = GetHistoryRequest(
                namespace=self._client.namespace,
                run_id=self.id,
                after_position=position,
                page_size=_PAGE,
                incarnation=part,
            )
            page = await self._client.call(self._client.stub.GetHistory, request)
            if self.incarnation and page.first_incarnation != self.incarnation:
                raise NotFound(f"run {self.id} was started anew; this start of it is gone")
            part = page.incarnation
            for event in page.events:
                position = event.position
                yield event if reader is None else reader.read(event)
            if not page.events or position >= page.length:
                return

    async def watch(
        self, *, after: int = 0, incarnation: int = 0, told: Callable[[RunInfo], None] | None = None
    ) -> AsyncGenerator[HistoryEvent, None]:
        """Yield the events of the history, then each new one as it is recorded, until the run is closed.

        A run that continues as new begins again at position 1 with each part.

        Goes on where it was when the control plane was away. Close it (`aclosing`) when you leave early.

        Args:
            after: Only events behind this position.
            incarnation: `RunInfo.incarnation` of the part that the position is in; of another part all events are yielded. 0:
                the part that is there.
            told: Called with how the run stands when that changed without an event: a step said how far it is, say.

        Raises:
            NotFound: There is no such run.
        """
        position, part, backoff, reader = after, incarnation, Backoff(), self._client.values.reader(self.id)
        while True:
            call = self._client.stub.WatchRun(
                WatchRunRequest(
                    namespace=self._client.namespace, run_id=self.id, after_position=position, incarnation=part
                ),
                metadata=self._client.metadata,
                wait_for_ready=True,
            )
            try:
                async for page in call:
                    backoff.reset()
                    self._check_incarnation(page.run)
                    if page.run.incarnation != (part or page.run.incarnation):
                        position = 0
                    part = page.run.incarnation
                    for event in page.events:
                        if event.position > position:
                            position = event.position
                            yield event if reader is None else reader.read(event)
                    if told is not None:
                        told(self._client.values.read(page.run))
                    if position >= page.run.length and run_info(page.run).status.closed:
                        return
            except grpc.RpcError as error:
                reason = from_rpc_error(error, target=self._client.target)
                if not isinstance(reason, Unavailable):
                    raise reason from error
            finally:
                call.cancel()
            await backoff.wait()

    async def _closed(self, timeout: Duration | None) -> Run:
        client = self._client
        left = None if timeout is None else to_ms(timeout, name="timeout") / 1000
        if left is not None and left < _SHORT_S:
            began = time.monotonic()
            run = await self._now()
            if run is not None and run.closed_ms:
                return run
            left = max(left - (time.monotonic() - began), 0.0)
        found = await client.stream.end(self._number, self.id, self.incarnation, left)
        if found is None:
            raise ResultTimeout(f"run {self.id} has no outcome after {timeout}; it goes on")
        return found

    async def _now(self) -> Run | None:
        """The run as it stands; None: nobody answers quickly."""
        request = GetRunRequest(namespace=self._client.namespace, run_id=self.id)
        try:
            run = (await self._client.call(self._client.stub.GetRun, request, timeout=_SHORT_S)).run
        except Unavailable:
            return None
        self._check_incarnation(run)
        return run

    def _check_incarnation(self, run: Run) -> None:
        if self.incarnation and (run.first_incarnation or run.incarnation) != self.incarnation:
            raise NotFound(f"run {self.id} was started anew; this start of it is gone")

    def _steering(self, reason: str) -> dict[str, Any]:
        return {
            "namespace": self._client.namespace,
            "run_id": self.id,
            "request_id": str(uuid4()),
            "reason": reason,
        }

    async def _letter(self, name: str, value: Any, id: str | None, what: str) -> dict[str, Any]:
        what = f"{what} {name!r}"
        data = await self._client.values.seal(self.id, encode(value, what=what, limit=LARGEST_BYTES), what)
        return {
            "namespace": self._client.namespace,
            "run_id": self.id,
            "name": name,
            "signal_id": id or str(uuid4()),
            "data": data,
        }

    def _decode(self, run: Run) -> Any:
        if self._signature is not None:
            return self._signature.decode_result(run.result)
        return decode(run.result, Any, what=f"result of run {self.id}")
