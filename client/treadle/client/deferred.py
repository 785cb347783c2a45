"""Finishing steps from outside, by the token that a step made with `defer`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import uuid4

from treadle.client.values import LARGEST_BYTES
from treadle.protocol.deferral import read_token
from treadle.protocol.errors import Unavailable
from treadle.protocol.failures import failure_of
from treadle.protocol.payloads import encode
from treadle.v1.common_pb2 import Failure
from treadle.v1.step_service_pb2 import CompleteStepRequest, FailStepRequest

if TYPE_CHECKING:
    from treadle.client.aio import Client

__all__ = ("complete", "fail")

T = TypeVar("T")

_PATIENCE_S: Final = 8.0
"""A step that is just being started again after a loss can be finished 5 s later."""
_AGAIN_S: Final = 0.5


async def complete(client: Client, token: str, value: Any, request_id: str | None) -> str:
    """See Client.complete_step."""
    result = encode(value, what="result of the step", limit=LARGEST_BYTES)
    request = CompleteStepRequest(
        namespace=client.namespace,
        request_id=request_id or uuid4().hex,
        token=token,
        result=await client.values.seal_result(read_token(token), result),
    )
    return (await _patiently(lambda: client.call(client.step_stub.CompleteStep, request))).run_id


async def fail(client: Client, token: str, error: str | BaseException, *, final: bool, request_id: str | None) -> str:
    """See Client.fail_step."""
    raised = Failure(type="StepError", message=error) if isinstance(error, str) else failure_of(error)
    failure = client.values.seal_error(read_token(token), raised)
    failure.final = failure.final or final
    request = FailStepRequest(
        namespace=client.namespace,
        request_id=request_id or uuid4().hex,
        token=token,
        failure=failure,
    )
    return (await _patiently(lambda: client.call(client.step_stub.FailStep, request))).run_id


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return await call()
        except Unavailable as error:
            if error.reason != "STEP_STARTING" or time.monotonic() >= until:
                raise
        await asyncio.sleep(_AGAIN_S)
