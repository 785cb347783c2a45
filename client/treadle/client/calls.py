"""What a start sends: how arguments, ids and policies go over the wire."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Awaitable, Mapping
from functools import lru_cache
from typing import Any, Final, Literal, ParamSpec, Protocol, TypeVar

from treadle.protocol.durations import Duration, positive_ms
from treadle.protocol.errors import ConfigError, FieldInvalid
from treadle.protocol.ids import check_run_id
from treadle.protocol.occurrence import Occurrence
from treadle.protocol.payloads import MAX_PAYLOAD_BYTES, encode
from treadle.protocol.signature import Signature
from treadle.protocol.tags import code_name, tags_of
from treadle.v1.common_pb2 import Payload, TraceContext
from treadle.v1.run_service_pb2 import (
    CONFLICT_POLICY_ALLOW_CLOSED,
    CONFLICT_POLICY_ALLOW_FAILED,
    CONFLICT_POLICY_REJECT,
    CONFLICT_POLICY_TERMINATE_EXISTING,
    CONFLICT_POLICY_USE_EXISTING,
    CONFLICT_POLICY_USE_OPEN,
    ConflictPolicy,
    RetryRunRequest,
    StartRunRequest,
)
from treadle.v1.schedule_pb2 import ScheduleSpec

__all__ = (
    "OnConflict",
    "Tags",
    "WorkflowLike",
    "caller_context",
    "new_run_id",
    "retry_request",
    "scheduled_call",
    "start_request",
)

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)

OnConflict = Literal["reject", "use_existing", "use_open", "allow_closed", "allow_failed", "terminate_existing"]
"""What a start does when the id is taken.

"reject": raise RunIdConflict, also if the run that has it is closed. "use_existing": answer with that run, open or closed.
"use_open": answer with it if it is open, start anew if it is closed. "allow_closed": start anew if it is closed, raise if it
is open. "allow_failed": start anew if it is closed and did not complete, else raise. "terminate_existing": end it, then
start anew.
"""

Tags = Mapping[str, str | int]
"""What a run is found by; numbers become text."""

_POLICIES: Final[dict[str, ConflictPolicy.ValueType]] = {
    "reject": CONFLICT_POLICY_REJECT,
    "use_existing": CONFLICT_POLICY_USE_EXISTING,
    "use_open": CONFLICT_POLICY_USE_OPEN,
    "allow_failed": CONFLICT_POLICY_ALLOW_FAILED,
    "terminate_existing": CONFLICT_POLICY_TERMINATE_EXISTING,
    "allow_closed": CONFLICT_POLICY_ALLOW_CLOSED,
}
_CROCKFORD: Final = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS: Final = tuple(high + low for high in _CROCKFORD for low in _CROCKFORD)


class WorkflowLike(Protocol[P, R_co]):
    """What `@workflow` makes of a function, as far as a client needs it."""

    @property
    def name(self) -> str:
        """Name under which workers register it."""
        ...

    @property
    def pool(self) -> str:
        """Pool whose workers execute it."""
        ...

    @property
    def signature(self) -> Signature:
        """Its parameters and result."""
        ...

    @property
    def timeout_ms(self) -> int:
        """Longest duration of a run in milliseconds; 0: no limit."""
        ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R_co]:
        """Call the function itself."""
        ...


def new_run_id(workflow: str) -> str:
    """Return a fresh id that sorts by time: "<workflow>-<48 bits of time, 50 random bits, in base 32>"."""
    return _run_id(workflow, os.urandom(7))


def _run_id(workflow: str, chance: bytes) -> str:
    number = (int(time.time() * 1000) << 50) | (int.from_bytes(chance, "big") >> 6)
    pairs = [_PAIRS[number >> shift & 1023] for shift in range(90, -1, -10)]
    return f"{_stem(workflow)}-{''.join(pairs)}"


@lru_cache(maxsize=256)
def _stem(workflow: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "-", workflow)[:120]


def start_request(
    workflow: WorkflowLike[..., Any] | str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    id: str | None,
    on_conflict: str,
    pool: str | None,
    timeout: Duration | None = None,
    tags: Tags | None = None,
    limit: int = MAX_PAYLOAD_BYTES,
) -> StartRunRequest:
    """Return the request that starts a run, in the namespace of the frame that carries it.

    Raises:
        ConfigError: `workflow` is neither a workflow nor a name, arguments of a start by name have no names, or the timeout is
            no duration above 0.
        FieldInvalid: `id`, `on_conflict` or a tag is not allowed.
        TypeError: Arguments are missing, too many or unknown.
        PayloadError: An argument does not fit its type (it is named).
        PayloadTooLarge: They have more than `limit` bytes together.
    """
    if on_conflict not in _POLICIES:
        raise FieldInvalid(f"on_conflict {on_conflict!r}: use one of {', '.join(_POLICIES)}", field="conflict_policy")
    timeout_ms = 0 if timeout is None else positive_ms(timeout, name="start: timeout")
    if isinstance(workflow, str):
        name, code, home, payload = workflow, workflow, "", _by_name(workflow, args, kwargs, limit)
    else:
        name, home, payload = _name_of(workflow), workflow.pool, _by_function(workflow, args, kwargs, limit)
        timeout_ms = timeout_ms or workflow.timeout_ms
        code = code_name(name, getattr(workflow, "version", ""))
    chance = os.urandom(23)
    return StartRunRequest(
        run_id=_run_id(name, chance[:7]) if id is None else check_run_id(id),
        request_id=chance[7:].hex(),
        workflow=code,
        pool=pool or home,
        input=payload,
        conflict_policy=_POLICIES[on_conflict],
        trace=caller_context(),
        timeout_ms=timeout_ms,
        tags=tags_of(tags) if tags else (),
    )


def scheduled_call(workflow: WorkflowLike[..., Any] | str, args: tuple[Any, ...]) -> tuple[ScheduleSpec, Payload]:
    """Return what a schedule starts, without its timing, and the arguments; pool and timeout as far as they are known.

    An `Occurrence` is not among the arguments: each run is given its own.

    Raises:
        ConfigError, TypeError, PayloadError: See `start_request`.
    """
    if isinstance(workflow, str):
        return ScheduleSpec(workflow=workflow), _by_name(workflow, args, {}, MAX_PAYLOAD_BYTES) if args else Payload()
    name, signature = _name_of(workflow), workflow.signature
    names = signature.taking(Occurrence)
    payload = signature.encode_some(args, {}, given=names)
    signature.decode_call(payload, dict.fromkeys(names))
    return ScheduleSpec(workflow=name, pool=workflow.pool, timeout_ms=workflow.timeout_ms), payload


def retry_request(steering: dict[str, Any], from_step: str | None, input: Mapping[str, Any] | None) -> RetryRunRequest:
    """Return the request that lets a closed run go on.

    Raises:
        ConfigError: Both a step and an input are given.
        PayloadError: The input cannot be encoded.
    """
    if from_step is not None and input is not None:
        raise ConfigError("retry(from_step=, input=): give one of them; with another input nothing is kept")
    request = RetryRunRequest(from_step=from_step or "", **steering)
    if input is not None:
        request.input.CopyFrom(encode(dict(input), what="input", limit=1 << 30))
    return request


def caller_context() -> TraceContext | None:
    """The caller's span, where one is open: the run's trace links to it. Without OpenTelemetry loaded there is none."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or not trace.get_current_span().get_span_context().is_valid:
        return None
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return TraceContext(traceparent=carrier.get("traceparent", ""), tracestate=carrier.get("tracestate", ""))


def _name_of(workflow: Any) -> str:
    if isinstance(getattr(workflow, "signature", None), Signature):
        return str(workflow.name)
    raise ConfigError(f"{workflow!r} is no workflow: decorate it with @workflow, or give the name of one")


def _by_function(
    workflow: WorkflowLike[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], limit: int
) -> Payload:
    payload = workflow.signature.encode_call(args, kwargs, limit=limit)
    workflow.signature.decode_call(payload)  # what no worker could read is refused here, where the mistake was made
    return payload


def _by_name(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], limit: int) -> Payload:
    named: dict[str, Any] = {}
    if args:
        if len(args) > 1 or not isinstance(args[0], Mapping):
            raise ConfigError(
                f"workflow {name!r} is started by name, so its arguments need names: pass keywords, or one mapping "
                "from parameter to value; or start it by function"
            )
        named.update(args[0])
    named.update(kwargs)
    return encode(named, what=f"workflow {name}", limit=limit, fields=True)
