"""What a worker and its child processes say to each other: JSON frames over pipes. Values stay encoded; never pickle."""

from __future__ import annotations

from typing import Final

import msgspec

from treadle.v1.common_pb2 import Failure, Payload
from treadle.worker.core.port import Report
from treadle.worker.current import StepInfo

__all__ = ("HEADER_BYTES", "Cancel", "Ended", "Ready", "Run", "Said", "ToChild", "ToParent", "pack", "unpack")

HEADER_BYTES: Final = 4
"""Each frame begins with its length, big-endian."""


class Run(msgspec.Struct, tag="run", frozen=True):
    """Run one attempt. `payload`: a Payload in binary form; `info`: what the step may know, under the span of the worker;
    `limit`: of the result's bytes; `progress`: what an attempt before it said last, a Payload in binary form; `deferral`: the
    token that finishes the step from outside."""

    step: str
    payload: bytes
    info: StepInfo
    limit: int
    progress: bytes | None = None
    deferral: str = ""


class Cancel(msgspec.Struct, tag="cancel", frozen=True):
    """Cut off the attempt that runs."""

    reason: str


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The app is imported. `error` says why it could not be; "" if it was."""

    error: str = ""


class Said(msgspec.Struct, tag="said", frozen=True):
    """What the code of the attempt says how far it is: encoded; None: only that it goes on."""

    value: bytes | None = None


class Ended(msgspec.Struct, tag="ended", frozen=True):
    """How the attempt ended; protobuf messages in their binary form, None where there is none."""

    kind: str
    result: bytes | None = None
    failure: bytes | None = None
    retry_after_ms: int = 0
    duration_ms: int = 0
    deferred_ms: int = 0

    @classmethod
    def of(cls, report: Report) -> Ended:
        return cls(
            kind=report.kind,
            result=None if report.result is None else report.result.SerializeToString(),
            failure=None if report.failure is None else report.failure.SerializeToString(),
            retry_after_ms=report.retry_after_ms,
            duration_ms=report.duration_ms,
            deferred_ms=report.deferred_ms,
        )

    def report(self) -> Report:
        return Report(
            self.kind,  # type: ignore[arg-type]  # it was one of Report's
            result=None if self.result is None else Payload.FromString(self.result),
            failure=None if self.failure is None else Failure.FromString(self.failure),
            retry_after_ms=self.retry_after_ms,
            duration_ms=self.duration_ms,
            deferred_ms=self.deferred_ms,
        )


ToChild = Run | Cancel
ToParent = Ready | Said | Ended

_ENCODER: Final = msgspec.json.Encoder()


def pack(message: ToChild | ToParent) -> bytes:
    """Return the frame of a message, length included."""
    body = _ENCODER.encode(message)
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def unpack(body: bytes) -> ToChild | ToParent:
    """Return the message of a frame's body."""
    message: ToChild | ToParent = _DECODER.decode(body)
    return message


_DECODER: Final = msgspec.json.Decoder(Run | Cancel | Ready | Said | Ended)
