"""Checks of requests, before anything is asked of the engine. Each refusal names the field, the value and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from treadle.protocol.errors import ConfigError, FieldInvalid, Refused
from treadle.protocol.ids import RunKey, check_name, check_run_id
from treadle.v1.common_pb2 import Payload, TraceContext
from treadle.v1.run_service_pb2 import (
    CONFLICT_POLICY_REJECT,
    CONFLICT_POLICY_UNSPECIFIED,
    ConflictPolicy,
    RunStatus,
    RunTrouble,
    StartRunRequest,
)

__all__ = (
    "namespace_of",
    "pool_of",
    "policy_of",
    "request_id_of",
    "run_of",
    "statuses_of",
    "timeout_of",
    "troubles_of",
    "workflow_of",
)

_POLICIES: Final = frozenset(ConflictPolicy.values())
_WORD_LIMIT: Final = 200
_TEXT_LIMIT: Final = 1_000
_TIMEOUT_LIMIT_MS: Final = 10**14
_TRACEPARENT_LIMIT: Final = 128
_TRACESTATE_LIMIT: Final = 512


def namespace_of(namespace: str) -> str:
    """Return the namespace; "" is "default"."""
    return _name("namespace", namespace or "default")


def pool_of(pool: str) -> str:
    """Return the name of a pool; "" stays ""."""
    return _name("pool", pool) if pool else ""


def run_of(namespace: str, run_id: str) -> RunKey:
    """Return the run that a request names."""
    return RunKey(namespace_of(namespace), check_run_id(run_id))


def request_id_of(request_id: str) -> str:
    """Return the id of a mutating call."""
    if not request_id or len(request_id) > _WORD_LIMIT:
        raise FieldInvalid(
            f"request_id {request_id[:40]!r}: give 1 to {_WORD_LIMIT} characters",
            field="request_id",
            remedy="draw a random id for the call, and give the same when it is sent again",
        )
    return request_id


def signal_id_of(signal_id: str) -> str:
    """Return the id of a signal or question."""
    if not signal_id or len(signal_id) > _WORD_LIMIT or not signal_id.isprintable():
        raise FieldInvalid(
            f"signal_id {signal_id[:40]!r}: give 1 to {_WORD_LIMIT} printable characters",
            field="signal_id",
            remedy="draw a random id for the signal, and give the same when it is sent again",
        )
    return signal_id


def signal_name_of(name: str) -> str:
    """Return the name of a signal or question."""
    if not name or len(name) > _WORD_LIMIT or not name.isprintable():
        raise FieldInvalid(f"name {name[:40]!r}: give 1 to {_WORD_LIMIT} printable characters", field="name")
    return name


def reason_of(reason: str) -> str:
    """Return the reason that a person gave; it goes into the history."""
    if len(reason) > _TEXT_LIMIT:
        raise FieldInvalid(f"reason has {len(reason)} characters: give {_TEXT_LIMIT} at most", field="reason")
    return reason


def workflow_of(workflow: str) -> str:
    """Return the name of a workflow."""
    if not workflow or len(workflow) > _WORD_LIMIT or not workflow.isprintable():
        raise FieldInvalid(
            f"workflow {workflow[:40]!r}: give 1 to {_WORD_LIMIT} printable characters", field="workflow"
        )
    return workflow


def step_of(step: str) -> str:
    """Return the name of a step, or of one call of it."""
    if not step or len(step) > _TEXT_LIMIT or not step.isprintable():
        raise FieldInvalid(f"step {step[:40]!r}: give 1 to {_TEXT_LIMIT} printable characters", field="step")
    return step


def policy_of(request: StartRunRequest) -> ConflictPolicy.ValueType:
    """Return what to do when the id is taken; unset is REJECT."""
    policy = request.conflict_policy
    if policy not in _POLICIES:
        raise FieldInvalid(f"conflict_policy {policy}: unknown to this server", field="conflict_policy")
    return CONFLICT_POLICY_REJECT if policy == CONFLICT_POLICY_UNSPECIFIED else policy


def timeout_of(timeout_ms: int) -> int:
    """Return the timeout of a run in milliseconds; 0 is none."""
    if not 0 <= timeout_ms < _TIMEOUT_LIMIT_MS:
        raise FieldInvalid(
            f"timeout_ms {timeout_ms}: give a duration between 0 (none) and 3,000 years", field="timeout_ms"
        )
    return timeout_ms


def statuses_of(statuses: Iterable[RunStatus.ValueType]) -> list[RunStatus.ValueType]:
    """Return the statuses of a filter without doubles; none given means all."""
    known = [status for status in RunStatus.values() if status]
    wanted = set(statuses)
    for status in wanted:
        if status not in known:
            raise FieldInvalid(f"statuses: {status} is unknown to this server", field="statuses")
    return sorted(wanted) or known


def troubles_of(troubles: Iterable[RunTrouble.ValueType]) -> list[RunTrouble.ValueType]:
    """Return the troubles of a filter without doubles."""
    wanted = set(troubles)
    for trouble in wanted:
        if not trouble or trouble not in RunTrouble.values():
            raise FieldInvalid(f"troubles: {trouble} is unknown to this server", field="troubles")
    return sorted(wanted)


def caller_of(trace: TraceContext) -> TraceContext:
    """Return the caller's trace context for the history. What is too long for W3C is left out: no start fails of it."""
    if trace.ByteSize() <= _TRACEPARENT_LIMIT:
        return trace
    return TraceContext(
        traceparent=trace.traceparent if len(trace.traceparent) <= _TRACEPARENT_LIMIT else "",
        tracestate=trace.tracestate if len(trace.tracestate) <= _TRACESTATE_LIMIT else "",
    )


def check_payload(name: str, payload: Payload, limit: int) -> None:
    """Refuse a payload of over `limit` bytes."""
    size = payload.ByteSize()
    if size > limit:
        raise Refused(
            f"{name} has {size:,} bytes, the limit is {limit:,}",
            reason="PAYLOAD_TOO_LARGE",
            remedy="store the data elsewhere and pass its address, or raise TREADLE_MAX_PAYLOAD_BYTES on the server",
        )


def _name(kind: str, name: str) -> str:
    try:
        return check_name(kind, name)
    except ConfigError as error:
        raise FieldInvalid(str(error), field=kind) from error
