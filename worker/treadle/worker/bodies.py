"""Running the body of a step and saying how it ended: the same on the loop, in a thread and in a child process."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import structlog

from treadle.protocol.durations import in_words, to_ms
from treadle.protocol.errors import ConfigError, Deferred, RetryAfter
from treadle.protocol.failures import failure_of
from treadle.v1.common_pb2 import (
    FAILURE_KIND_CRASHED,
    FAILURE_KIND_HEARTBEAT_MISSED,
    FAILURE_KIND_STEP_TIMED_OUT,
    FAILURE_KIND_TIMED_OUT,
    Failure,
    Payload,
)
from treadle.worker.core.port import Report
from treadle.worker.current import StepInfo
from treadle.worker.steps import Step

__all__ = ("crashed", "cut_off", "failed", "heartbeat_missed", "outcome_of", "run_async", "run_sync", "timed_out")

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

_log = structlog.stdlib.get_logger(__name__)


def run_sync(step: Step[..., Any], payload: Payload, info: StepInfo, limit: int) -> Report:
    """Decode the input, run a plain function, encode its result. Never raises."""
    began = time.perf_counter()
    try:
        args, kwargs = step.signature.decode_call(payload)
        began = time.perf_counter()
        value = step.function(*args, **kwargs)
        took = _since(began)
        return Report("completed", result=step.signature.encode_result(value, limit=limit), duration_ms=took)
    except BaseException as error:  # sys.exit() in a step fails the step, not the worker
        return failed(error, info, _since(began))


async def run_async(step: Step[..., Any], arguments: Arguments, info: StepInfo, limit: int) -> Report:
    """Run a coroutine function with decoded arguments, encode its result. Never raises, also when it is cancelled."""
    began = time.perf_counter()
    try:
        value = await step.function(*arguments[0], **arguments[1])
        took = round((time.perf_counter() - began) * 1000)
        return Report("completed", step.signature.encode_result(value, limit=limit), None, 0, took)
    except BaseException as error:  # a SystemExit that leaves a task would end the worker's loop
        return failed(error, info, _since(began))


def failed(error: BaseException, info: StepInfo, duration_ms: int) -> Report:
    """How an attempt ended that raised."""
    if isinstance(error, Deferred):
        saying = info.saying()
        if saying is not None and saying.deferred_ms is not None:
            return Report("deferred", duration_ms=duration_ms, deferred_ms=saying.deferred_ms)
        error = ConfigError(
            "the step raised Deferred without a token: call defer() first, and hand its token to somebody"
        )
    if info.cancel_reason:
        return cut_off(info.cancel_reason, duration_ms)
    retry_after_ms = 0
    if isinstance(error, RetryAfter):
        try:
            retry_after_ms = to_ms(error.delay, name="RetryAfter")
        except (ConfigError, TypeError, ValueError) as wrong:
            _log.warning("retry_after_ignored", delay=repr(error.delay), error=str(wrong), remedy="the policy decides")
    if isinstance(error, asyncio.CancelledError) and not error.args:
        error = asyncio.CancelledError("the step raised CancelledError although nobody had cancelled it")
    return Report("failed", failure=failure_of(error), retry_after_ms=retry_after_ms, duration_ms=duration_ms)


def cut_off(reason: str, duration_ms: int) -> Report:
    """How an attempt ended that was told to: a drain gives it back, all else is a cancellation."""
    if reason == "drain":
        return Report("released", reason=reason, duration_ms=duration_ms)
    return Report("cancelled", reason=reason, duration_ms=duration_ms)


def timed_out(step: str, timeout_ms: int, *, total_ms: int = 0) -> Report:
    """How an attempt ended that ran past its timeout; `total_ms`: past that of all tries, of which `timeout_ms` was left."""
    if total_ms:
        failure = Failure(
            kind=FAILURE_KIND_STEP_TIMED_OUT,
            type="StepTimedOut",
            message=f"step {step} with all its tries ran longer than its total timeout of {in_words(total_ms)}",
        )
        return Report("failed", failure=failure, duration_ms=timeout_ms)
    failure = Failure(
        kind=FAILURE_KIND_TIMED_OUT,
        type="TimeoutError",
        message=f"the attempt of step {step} ran longer than its timeout of {timeout_ms / 1000:g} s",
    )
    return Report("failed", failure=failure, duration_ms=timeout_ms)


def heartbeat_missed(step: str, heartbeat_ms: int, duration_ms: int) -> Report:
    """How an attempt ended that said nothing for longer than its heartbeat."""
    failure = Failure(
        kind=FAILURE_KIND_HEARTBEAT_MISSED,
        type="HeartbeatMissed",
        message=f"the attempt of step {step} said nothing for longer than its heartbeat of {heartbeat_ms / 1000:g} s: "
        "call progress() or heartbeat() in its loop",
    )
    return Report("failed", failure=failure, duration_ms=duration_ms)


def crashed(step: str, how: str, duration_ms: int) -> Report:
    """How an attempt ended whose child process died. `how`: "was killed by SIGSEGV", "exited with status 3"."""
    failure = Failure(
        kind=FAILURE_KIND_CRASHED,
        type="Crashed",
        message=f"the child process that ran step {step} {how}",
    )
    return Report("failed", failure=failure, duration_ms=duration_ms)


def outcome_of(report: Report) -> tuple[str, str]:
    """The outcome in the words of spans, and the class of the error or ""."""
    if report.kind == "completed":
        return "success", ""
    if report.failure is None:
        return report.kind, ""
    if report.failure.kind in (FAILURE_KIND_TIMED_OUT, FAILURE_KIND_STEP_TIMED_OUT, FAILURE_KIND_HEARTBEAT_MISSED):
        return "timeout", report.failure.type
    return "failure", report.failure.type


def _since(began: float) -> int:
    return round((time.perf_counter() - began) * 1000)
