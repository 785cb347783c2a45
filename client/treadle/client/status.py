"""Errors on the wire: TreadleError <-> google.rpc.Status, by one table for both directions.

The control plane turns what it raises into a status (`to_status`); clients and workers turn what
gRPC raises back into the same error (`from_rpc_error`). Each status carries an ErrorInfo (domain
"treadle") with its reason and, in its metadata, the remedy and the field. A wrong field also stands
in a BadRequest; RetryInfo says when trying again may help.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from treadle.protocol.errors import (
    ConfigError,
    FieldInvalid,
    LeaseLost,
    NotFound,
    PayloadError,
    Refused,
    RequestError,
    RunClosed,
    RunIdConflict,
    StepSettled,
    TreadleError,
    Unavailable,
    WrongState,
)

__all__ = ("DOMAIN", "from_rpc_error", "from_status", "no_answer", "to_status")

DOMAIN: Final = "treadle"
"""`domain` of every ErrorInfo that Treadle makes."""

RETRY_AFTER_S: Final = 1
"""What RetryInfo advises, in seconds."""

_DETAILS = "grpc-status-details-bin"

_BROKEN: Final = ("Internal error from Core", "Received RST_STREAM")
"""gRPC's own words for a call whose connection broke while something was being written; no server of ours says them."""

# Errors without a reason of their own: class -> (code, reason).
_PLAIN: Final[dict[type[TreadleError], tuple[str, str]]] = {
    PayloadError: ("RESOURCE_EXHAUSTED", "PAYLOAD_TOO_LARGE"),
    ConfigError: ("INVALID_ARGUMENT", "CONFIG_INVALID"),
}
_PLAIN_BY_REASON: Final = {reason: kind for kind, (_, reason) in _PLAIN.items()}

# Reasons whose code differs from the one of their class.
_CODE_OF_REASON: Final = {
    "POOL_NOT_ALLOWED": "PERMISSION_DENIED",
    "ROLE_NOT_ALLOWED": "PERMISSION_DENIED",
    "NAMESPACE_NOT_ALLOWED": "PERMISSION_DENIED",
    "TOKEN_INVALID": "UNAUTHENTICATED",
    "SCHEDULE_BUSY": "FAILED_PRECONDITION",
    "SCHEDULE_DECLARED": "FAILED_PRECONDITION",
    "STEP_TOKEN_INVALID": "PERMISSION_DENIED",
}

# A status that names no reason of ours (a proxy's, or gRPC's own) is read by its code.
_BY_CODE: Final[dict[str, type[RequestError]]] = {
    "INVALID_ARGUMENT": FieldInvalid,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": RunIdConflict,
    "RESOURCE_EXHAUSTED": Refused,
    "PERMISSION_DENIED": Refused,
    "UNAUTHENTICATED": Refused,
    "UNAVAILABLE": Unavailable,
    "CANCELLED": Unavailable,  # by the server, which goes away; a cancel of ours never comes as a status
    "DEADLINE_EXCEEDED": Unavailable,
}
# These codes stand for more than one situation: only the reason tells.
_BY_REASON: Final[dict[str, type[RequestError]]] = {
    "RUN_CLOSED": RunClosed,
    "STEP_SETTLED": StepSettled,
    "RUN_NOT_CLOSED": WrongState,
    "RUN_NOT_FAILED": WrongState,
    "RUN_UNDONE": WrongState,
    "RUN_CHANGED": WrongState,
    "HISTORY_REPLACED": WrongState,
    "NOT_QUARANTINED": WrongState,
    "LEASE_LOST": LeaseLost,
    "SCHEDULE_BUSY": Refused,
    "SCHEDULE_DECLARED": Refused,
}


def to_status(error: BaseException) -> Status:
    """Return the status that stands for `error`.

    Anything that is no TreadleError becomes INTERNAL without its text: that is for the log, not the caller.
    """
    details: list[ErrorInfo | BadRequest | RetryInfo] = []
    if isinstance(error, RequestError):
        reason, remedy = error.reason, error.remedy
        code = _CODE_OF_REASON.get(reason, error.code)
    elif isinstance(error, TreadleError):
        code, reason = next(
            (entry for kind, entry in _PLAIN.items() if isinstance(error, kind)), ("UNKNOWN", "UNKNOWN")
        )
        remedy = ""
    else:
        code, reason, remedy = "INTERNAL", "INTERNAL", "look into the log of the control plane"
    text = str(error) if isinstance(error, TreadleError) else "internal error in the control plane"
    metadata = {"remedy": remedy} if remedy else {}
    if isinstance(error, FieldInvalid) and error.field:
        metadata["field"] = error.field
        violation = BadRequest.FieldViolation(field=error.field, description=text)
        details.append(BadRequest(field_violations=[violation]))
    if code == "UNAVAILABLE" or reason == Refused.reason:
        details.append(RetryInfo(retry_delay=Duration(seconds=RETRY_AFTER_S)))
    details.insert(0, ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata))
    status = Status(code=code_pb2.Code.Value(code), message=text)
    for detail in details:
        status.details.add().Pack(detail)
    return status


def from_status(status: Status) -> TreadleError:
    """Return the error that `status` stands for; the reverse of `to_status`."""
    code = code_pb2.Code.Name(status.code) if status.code in code_pb2.Code.values() else "UNKNOWN"
    info = ErrorInfo()
    for detail in status.details:
        if detail.Is(ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
            break
    return _make(code, status.message, info)


def from_rpc_error(error: grpc.RpcError, *, target: str = "") -> TreadleError:
    """Return the TreadleError that a failed call stands for. Raise it `from error`.

    Args:
        error: What a stub raised, sync or aio.
        target: Address of the control plane, named when nobody answers there.
    """
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return RequestError(f"call failed: {error}", reason="UNKNOWN")
    for key, value in _metadata(error):
        if key == _DETAILS and isinstance(value, bytes):
            return from_status(Status.FromString(value))
    code, text = error.code().name, error.details() or ""
    at = f" at {target}" if target else ""
    if code == "UNAVAILABLE" or (code == "INTERNAL" and text.startswith(_BROKEN)):
        why = text.rpartition(": ")[2].rstrip("]")  # gRPC puts the addresses that it tried before the cause
        return Unavailable(
            f"no control plane answers{at}: {why}",
            remedy="start `treadle dev` or `treadle server`, or give the right address (TREADLE_SERVER)",
        )
    if code == "DEADLINE_EXCEEDED":
        return no_answer(target)
    return _make(code, text or code, ErrorInfo())


def no_answer(target: str) -> Unavailable:
    """Return the error for a call that was not answered before its deadline."""
    at = f" at {target}" if target else ""
    return Unavailable(
        f"no answer in time from the control plane{at}",
        reason="DEADLINE_EXCEEDED",
        remedy="it may be busy or cut off; try again, and see `treadle doctor`",
    )


def _metadata(error: grpc.Call | grpc.aio.AioRpcError) -> Iterable[tuple[str, str | bytes]]:
    return [(key, value) for key, value in error.trailing_metadata() or ()]


def _make(code: str, text: str, info: ErrorInfo) -> TreadleError:
    if plain := _PLAIN_BY_REASON.get(info.reason):
        return plain(text)
    reason, remedy = info.reason or code, info.metadata.get("remedy", "")
    kind = _BY_REASON.get(info.reason) or _BY_CODE.get(code, RequestError)
    if kind is FieldInvalid:
        return FieldInvalid(text, field=info.metadata.get("field", ""), reason=reason, remedy=remedy)
    return kind(text, reason=reason, remedy=remedy)
