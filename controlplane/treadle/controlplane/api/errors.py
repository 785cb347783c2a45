"""What stands before every service: guards that admit a call, and the mapping of what it raises to a google.rpc.Status.

Outermost of the interceptors, because guards refuse by raising. An error that nobody foresaw goes to the log with its
traceback under an id; the caller gets the id.
"""

from __future__ import annotations

import inspect
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final, Protocol

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, ResourceInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import aio

from treadle.client.status import DOMAIN, to_status
from treadle.controlplane.telemetry import Metrics
from treadle.protocol.errors import FieldInvalid, RequestError, TreadleError

__all__ = ("DeadlineGuard", "ErrorInterceptor", "Guard", "status_of_error")

_log = structlog.stdlib.get_logger(__name__)
_TEXT_LIMIT: Final = 1_500  # it travels up to three times in the trailing metadata, of which gRPC takes 8 KiB
_BACK_OFF: Final = {"OUTBOX_FULL": 5}  # reason -> seconds to wait, where the class alone does not say so

Context = aio.ServicerContext[Any, Any]
MessageCheck = Callable[[Any], None]


class Guard(Protocol):
    """Admits calls, or refuses them by raising a RequestError."""

    def admit(self, method: str, *, streaming: bool, context: Context) -> MessageCheck | None:
        """Look at a call before its first message; returns what looks at each message, or None.

        Args:
            method: Full name, "/treadle.v1.RunService/StartRun".
            streaming: Its requests or responses are a stream.
            context: Metadata, peer, time remaining.
        """
        ...


class DeadlineGuard:
    """Refuses unary calls of workers without a deadline: a worker that waits for ever for an answer is a dead slot."""

    def admit(self, method: str, *, streaming: bool, context: Context) -> MessageCheck | None:
        """See Guard."""
        if streaming or not method.startswith("/treadle.v1.WorkerService/"):
            return None
        remaining: float | None = context.time_remaining()
        if remaining is None:
            raise FieldInvalid(
                f"{method} came without a deadline",
                reason="DEADLINE_REQUIRED",
                remedy="give the call a timeout; 10 s is usual, and the wait plus some for a long poll",
            )
        return None


class ErrorInterceptor(aio.ServerInterceptor):
    """Runs the guards, then the handler, and turns what either raises into a status.

    Args:
        guards: In the order in which they are asked.
        metrics: Counts calls by method and code, and their durations.
    """

    def __init__(self, guards: Sequence[Guard] = (), metrics: Metrics | None = None) -> None:
        self._guards = tuple(guards)
        self._metrics = metrics or Metrics()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        codec = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(self._streamed(method, handler.stream_stream), **codec)
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(self._streamed(method, handler.unary_stream), **codec)
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(self._unary(method, handler.unary_unary), **codec)
        return handler  # no method of Treadle takes a stream and answers once

    def _unary(self, method: str, behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Context], Awaitable[Any]]:
        async def call(request: Message, context: Context) -> Any:
            began = time.monotonic()
            try:
                for check in self._admit(method, streaming=False, context=context):
                    check(request)
                answer = await behaviour(request, context)
            except aio.AbortError:
                raise
            except Exception as error:
                await self._refuse(method, request, context, error, began)
            self._count(method, "OK", began)
            return answer

        return call

    def _streamed(
        self, method: str, behaviour: Callable[[Any, Any], Any]
    ) -> Callable[[Any, Context], AsyncIterator[Any]]:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            began = time.monotonic()
            try:
                checks = self._admit(method, streaming=True, context=context)
                if isinstance(request, Message):
                    for check in checks:
                        check(request)
                elif checks:
                    request = _checked(request, checks)
                answers = behaviour(request, context)
                if inspect.isawaitable(answers):  # a handler that writes to the context itself
                    await answers
                else:
                    async with aclosing(answers):
                        async for answer in answers:
                            yield answer
            except aio.AbortError:
                raise
            except Exception as error:
                await self._refuse(method, request, context, error, began)
            self._count(method, "OK", began)

        return call

    def _admit(self, method: str, *, streaming: bool, context: Context) -> list[MessageCheck]:
        found = (guard.admit(method, streaming=streaming, context=context) for guard in self._guards)
        return [check for check in found if check is not None]

    async def _refuse(self, method: str, request: object, context: Context, error: Exception, began: float) -> None:
        status = status_of_error(error, request, method=method)
        code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
        self._count(method, code.name, began)
        details = (("grpc-status-details-bin", status.SerializeToString()),)
        await context.abort(code, status.message, details)

    def _count(self, method: str, code: str, began: float) -> None:
        self._metrics.observe("rpc.server.call.duration", time.monotonic() - began, method=method, code=code)


async def _checked(requests: AsyncIterator[Any], checks: Sequence[MessageCheck]) -> AsyncIterator[Any]:
    async for request in requests:
        for check in checks:
            check(request)
        yield request


def status_of_error(error: Exception, request: object = None, *, method: str = "") -> Status:
    """Return the status that a caller gets for `error`; one that is no TreadleError is logged under a random id.

    Args:
        error: What the handler raised.
        request: The request, to name what was not found.
        method: For the log.
    """
    status = to_status(error)
    if not isinstance(error, TreadleError):
        error_id = secrets.token_hex(4)
        _log.error("call_failed", method=method, error_id=error_id, exc_info=error)
        status.message = f"internal error in the control plane, error id {error_id}"
        info = ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"error_id": error_id})
        info.metadata["remedy"] = f"look for error_id {error_id} in the log of the control plane"
        del status.details[:]
        status.details.add().Pack(info)
    elif len(status.message) > _TEXT_LIMIT:
        status.message = status.message[: _TEXT_LIMIT - 1] + "…"
    if status.code == grpc.StatusCode.NOT_FOUND.value[0] and isinstance(error, RequestError):
        status.details.add().Pack(_resource(error, request))
    if isinstance(error, RequestError) and error.reason in _BACK_OFF:
        status.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=_BACK_OFF[error.reason])))
    return status


def _resource(error: RequestError, request: object) -> ResourceInfo:
    kind = error.reason.removesuffix("_NOT_FOUND").lower()
    field = "workflow" if kind == "workflow" else "run_id"
    return ResourceInfo(
        resource_type=kind,
        resource_name=str(getattr(request, field, "")),
        owner=str(getattr(request, "namespace", "")),
        description=str(error)[:_TEXT_LIMIT],
    )
