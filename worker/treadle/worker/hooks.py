"""`@workflow(on_failure=…)`: what handles the failure of a run.

The hook is a run of its own, started in the commit that records the failure. A step as a hook gets a workflow around it, so
that it is retried and shown as any step is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

from treadle.protocol.errors import ConfigError, PayloadError, PayloadUnreadable
from treadle.protocol.payloads import decode
from treadle.v1.common_pb2 import Failure, Payload
from treadle.v1.history_pb2 import RunStarted
from treadle.v1.worker_service_pb2 import FailureHook

if TYPE_CHECKING:
    from treadle.worker.loop.port import RunContext
    from treadle.worker.steps import Step
    from treadle.worker.workflows import Workflow

__all__ = ("FailedRun", "RaisedError", "handed_over", "hook_message", "hook_of")

_INPUT_BYTES = 512 << 10


@dataclass(frozen=True)
class RaisedError:
    """What a run raised.

    Attributes:
        type: Class name of the exception.
        message: Its message.
        traceback: Formatted traceback, or "".
        cause: What it was raised from; None: nothing.
    """

    type: str
    message: str = ""
    traceback: str = ""
    cause: RaisedError | None = None


@dataclass(frozen=True)
class FailedRun:
    """A run that has failed, as its hook gets it.

    Attributes:
        id: The run's id.
        workflow: Name of its workflow.
        error: What it raised.
        input: Its arguments by name, as plain JSON values. Empty if they are larger than 512 KiB, or cannot be read.
        input_omitted: It is empty for that reason.
    """

    id: str
    workflow: str
    error: RaisedError
    input: dict[str, Any] = field(default_factory=dict)
    input_omitted: bool = False


def hook_of(workflow: Workflow[..., Any], hook: Workflow[..., Any] | Step[..., Any]) -> Workflow[..., Any]:
    """Return the workflow that handles the failures of another one.

    Raises:
        ConfigError: It is neither a workflow nor a step, or is called with something else than one FailedRun.
    """
    from treadle.worker.steps import Step
    from treadle.worker.workflows import Workflow

    what = f"workflow {workflow.name}: on_failure"
    if not isinstance(hook, Workflow | Step):
        raise ConfigError(f"{what}={hook!r}: give a @workflow or a @step")
    parameters = list(signature(hook.function).parameters.values())
    needed = [p for p in parameters if p.default is Parameter.empty]
    if not parameters or len(needed) > 1 or parameters[0].kind is Parameter.KEYWORD_ONLY:
        raise ConfigError(f"{what}={hook.name}: it is called with one argument: `def {hook.name}(failed: FailedRun)`")
    if isinstance(hook, Workflow):
        return hook
    handler = hook

    async def on_failure(failed: FailedRun) -> None:
        await handler(failed)

    version = workflow.version or None  # versions of one name have hooks of their own
    return Workflow(on_failure, name=f"{workflow.name}.on_failure", pool=workflow.pool, version=version)


def hook_message(hook: Workflow[..., Any], context: RunContext, payload: Payload, failure: Failure) -> FailureHook:
    """Return what the outcome of a run says of its hook."""
    failed = FailedRun(context.run_id, context.workflow, _error_of(failure), *_arguments(payload))
    return FailureHook(workflow=hook.code, pool=hook.pool, input=_called_with(hook, failed))


def handed_over(workflow: Workflow[..., Any], event: RunStarted) -> Payload:
    """Return the arguments of a hook that the control plane started: it knows the failure, and does not read values.

    Raises:
        PayloadUnreadable: The arguments of the run that failed are sealed, and cannot be opened here.
    """
    info, given = event.failed_run, event.input
    failed = FailedRun(
        info.run_id, info.workflow, _error_of(info.failure), *_arguments(given, omitted=info.input_omitted)
    )
    return _called_with(workflow, failed)


def _called_with(hook: Workflow[..., Any], failed: FailedRun) -> Payload:
    try:
        return hook.signature.encode_call((failed,), {})
    except PayloadError:  # too large: what is left of it is small
        small = RaisedError(failed.error.type, failed.error.message)
        return hook.signature.encode_call((FailedRun(failed.id, failed.workflow, small, input_omitted=True),), {})


def _arguments(payload: Payload, *, omitted: bool = False) -> tuple[dict[str, Any], bool]:
    """The arguments of a run by name, and whether they were left out."""
    if omitted or len(payload.data) > _INPUT_BYTES:
        return {}, True
    if not payload.data and not payload.encoding:
        return {}, False
    try:
        return decode(payload, dict[str, Any], what="input"), False
    except PayloadUnreadable:
        raise
    except PayloadError:
        return {}, True


def _error_of(failure: Failure) -> RaisedError:
    cause = _error_of(failure.cause) if failure.HasField("cause") else None
    return RaisedError(failure.type, failure.message, failure.traceback, cause)
