"""Messages as JSON values for `-o json`: ids whole, payloads decoded, times as ISO 8601."""

from __future__ import annotations

import base64
import json
from datetime import datetime
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from treadle.client.timeline import AttemptView, StepView, Timeline
from treadle.client.views import RunInfo, from_ms
from treadle.v1.common_pb2 import Failure, Payload

__all__ = ("dumps", "plain", "plain_failure", "plain_payload", "plain_run", "plain_timeline")

_FIXED64 = FieldDescriptor.TYPE_FIXED64


def plain(message: Message) -> dict[str, Any]:
    """Return the fields that are set, by name.

    Random 64-bit numbers become text, because JSON readers round them; times in ms stay numbers, as in the protocol.
    """
    return {field.name: _field(field, value) for field, value in message.ListFields()}


def _field(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, Message | bytes | str | int | float):
        return _value(field, value)
    if hasattr(value, "items"):
        return dict(value.items())
    return [_value(field, item) for item in value]


def _value(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, Payload):
        return plain_payload(value)
    if isinstance(value, Message):
        return plain(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if field.type == _FIXED64:
        return str(value)
    if field.enum_type is not None:
        number = field.enum_type.values_by_number.get(value)
        return number.name if number is not None else value
    return value


def plain_payload(payload: Payload) -> Any:
    """Return the value in the payload; what cannot be read here as its encoding and base64."""
    if payload.encoding in ("", "json"):
        try:
            return json.loads(payload.data or b"null")
        except ValueError:
            pass
    return {"encoding": payload.encoding, "base64": base64.b64encode(payload.data).decode()}


def plain_failure(failure: Failure | None) -> dict[str, Any] | None:
    """Return an error as JSON values; None stays None."""
    return None if failure is None else plain(failure)


def plain_run(run: RunInfo) -> dict[str, Any]:
    """Return how a run stands as JSON values."""
    return {
        "id": run.id,
        "namespace": run.namespace,
        "incarnation": str(run.incarnation),
        "part": run.part,
        "workflow": run.workflow,
        "version": run.version,
        "tags": dict(run.tags),
        "pool": run.pool,
        "status": run.status.value,
        "created_at": _iso(run.created_at),
        "closed_at": _iso(run.closed_at),
        "duration_s": run.duration.total_seconds() if run.duration is not None else None,
        "length": run.length,
        "reason": run.reason,
        "troubles": [trouble.value for trouble in run.troubles],
        "error_type": run.error_type,
        "retrying": run.retrying,
        "open_commands": run.open_commands,
        "cancel_requested": run.cancel_requested,
        "deadline": _iso(run.deadline),
        "timed_out": run.timed_out,
        "trace_id": run.trace_id,
        "result": plain_payload(run.result) if run.result is not None else None,
        "failure": plain_failure(run.failure),
        "progress": [
            {
                "command_id": said.command_id,
                "step": said.step,
                "value": plain_payload(said.payload),
                "at": _iso(said.at),
            }
            for said in run.progress
        ],
        "retries": run.retries,
    }


def plain_timeline(timeline: Timeline) -> list[dict[str, Any]]:
    """Return the steps of a run as JSON values."""
    return [_step(step) for step in timeline.steps.values()]


def _step(step: StepView) -> dict[str, Any]:
    return {
        "command_id": step.command_id,
        "name": step.name,
        "kind": step.kind,
        "pool": step.pool or None,
        "run_id": step.run_id or None,
        "state": step.state,
        "reason": step.reason,
        "started_at": _iso_ms(step.start_ms),
        "ended_at": _iso_ms(step.end_ms),
        "due_at": _iso_ms(step.due_ms),
        "duration_ms": step.duration_ms,
        "attempts": [_attempt(attempt) for attempt in step.attempts],
        "error": plain_failure(step.error),
    }


def _attempt(attempt: AttemptView) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "outcome": attempt.outcome,
        "started_at": _iso_ms(attempt.start_ms),
        "ended_at": _iso_ms(attempt.end_ms),
        "duration_ms": attempt.duration_ms,
        "worker": attempt.worker or None,
        "reason": attempt.reason,
        "alone": attempt.alone,
        "error": plain_failure(attempt.error),
    }


def _iso(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat(timespec="milliseconds")


def _iso_ms(ms: int | None) -> str | None:
    return None if ms is None else _iso(from_ms(ms))


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Return JSON text, not escaped beyond need."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
