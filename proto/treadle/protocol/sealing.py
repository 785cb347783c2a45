"""Sealed values: what a codec is, which place a value is sealed for, and how errors are sealed.

A codec is used by clients and workers only, on encoded values, after every digest was taken: replay and matching see the
same bytes with a codec and without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import quote, unquote

from google.protobuf.message import DecodeError, Message

from treadle.protocol.errors import PayloadUnreadable
from treadle.protocol.ids import SCHEDULES
from treadle.v1.common_pb2 import Failure, Payload

__all__ = (
    "BLOB",
    "FROM_RUN",
    "FROM_STEP",
    "SEALED_MESSAGE",
    "TO_RUN",
    "TO_STEP",
    "UNREAD",
    "Codec",
    "Place",
    "Values",
    "open_failure",
    "place_of",
    "place_of_schedule",
    "seal_failure",
    "values_of",
)

BLOB: Final = "blob"
"""Encoding of a payload whose bytes are in a blob store."""

TO_RUN: Final = "to-run"
FROM_RUN: Final = "from-run"
TO_STEP: Final = "to-step"
FROM_STEP: Final = "from-step"

SEALED_MESSAGE: Final = "(encrypted)"
"""Message of a failure as the control plane sees it."""

UNREAD: Final = frozenset(
    ("step_scheduled", "attempt_failed", "child_scheduled", "state_published", "signal_answered"),
)
"""Events whose values the code of their run does not look at."""

_SAID_BY_RUN: Final = frozenset(("run_completed", "run_failed", "run_cancelled", "state_published", "signal_answered"))
_FAILURE: Final = "failure"
_VERSION: Final = "v1"


class Place(NamedTuple):
    """What a value is sealed for; in another place it is not accepted.

    Attributes:
        namespace, run_id: The run it goes to or comes from.
        direction: "to-run" (input, signals, questions), "from-run" (result, state, answers), "to-step" or "from-step".
        command_id: Of the step; "" otherwise.
    """

    namespace: str
    run_id: str
    direction: str
    command_id: str = ""

    def text(self) -> str:
        """Return it as text, without ambiguity: what a codec authenticates beside the value."""
        return "|".join((_VERSION, *(quote(part, safe="/#~") for part in self)))

    @classmethod
    def read(cls, text: str) -> Place | None:
        """Return the place that `text` names; None: it is of no version that is known here."""
        version, *parts = text.split("|")
        if version != _VERSION or len(parts) != 4:
            return None
        return cls(*(unquote(part) for part in parts))


def place_of(kind: str, message: Any, namespace: str, run_id: str, children: Mapping[str, str]) -> Place:
    """Return what the values of an event of a history were sealed for.

    Args:
        kind, message: The event.
        namespace, run_id: The run whose history it is of.
        children: Command id -> run id of the children that the history has named before.
    """
    if kind == "step_scheduled":
        return Place(namespace, run_id, TO_STEP, message.command_id)
    if kind.startswith(("step_", "attempt_")):
        return Place(namespace, run_id, FROM_STEP, message.command_id)
    if kind == "run_started" and message.retry_of:  # whoever retried it gave it another input
        return Place(namespace, run_id, TO_RUN)
    if kind == "run_started" and message.HasField("occurrence"):  # sealed once, for all runs of the schedule
        return place_of_schedule(namespace, message.occurrence.schedule_id)
    if kind == "run_started" and message.HasField("failed_run"):  # as it was sent to the run that failed
        failed = message.failed_run
        if failed.schedule_id:
            return place_of_schedule(namespace, failed.schedule_id)
        return Place(namespace, failed.run_id, TO_RUN)
    if kind == "child_scheduled":
        return Place(namespace, message.run_id, TO_RUN)
    if kind.startswith("child_"):
        return Place(namespace, children.get(message.command_id, ""), FROM_RUN)
    return Place(namespace, run_id, FROM_RUN if kind in _SAID_BY_RUN else TO_RUN)


def place_of_schedule(namespace: str, schedule_id: str) -> Place:
    """Return what the arguments of a schedule are sealed for: any of its runs."""
    return Place(namespace, f"{SCHEDULES}{schedule_id}", TO_RUN)


class Codec(Protocol):
    """Changes payloads on their way out of, and into, a process that holds user code. Encryption is the usual one.

    It is called on event loops and in threads, so it must neither block nor keep state between calls.

    Attributes:
        errors: True: messages and tracebacks of errors are sealed, too.
    """

    @property
    def errors(self) -> bool: ...

    def encode(self, payload: Payload, place: Place) -> Payload:
        """Return what is sent instead. `encoding` must not be empty; it and `metadata` say how to get back."""
        ...

    def decode(self, payload: Payload, place: Place) -> Payload:
        """Return the payload as it was before `encode`.

        Raises:
            PayloadUnreadable: The key is missing, or it was tampered with, or it was sealed for another place.
        """
        ...


def seal_failure(failure: Failure, codec: Codec, place: Place) -> Failure:
    """Return the error with its message, traceback and cause sealed; kind and type stay, because retries look at them."""
    inner = Failure(message=failure.message, traceback=failure.traceback)
    if failure.HasField("cause"):
        inner.cause.CopyFrom(failure.cause)
    sealed = codec.encode(Payload(data=inner.SerializeToString(), encoding=_FAILURE), place)
    return Failure(
        kind=failure.kind,
        type=failure.type,
        message=SEALED_MESSAGE,
        final=failure.final,
        bases=failure.bases,
        attempts=failure.attempts,
        sealed=sealed,
    )


def open_failure(failure: Failure, codec: Codec | None, place: Place) -> Failure:
    """Return the error as it was before `seal_failure`; one that was not sealed is returned as it is.

    Raises:
        PayloadUnreadable: As for `Codec.decode`; or there is no codec.
    """
    if not failure.HasField("sealed"):
        return failure
    if codec is None:
        raise PayloadUnreadable(
            f"an error is sealed with {failure.sealed.encoding!r}: configure the codec that made it"
        )
    payload = codec.decode(failure.sealed, place)
    if payload.encoding != _FAILURE:
        raise PayloadUnreadable("what is sealed in an error is none")
    opened = Failure()
    opened.CopyFrom(failure)
    opened.ClearField("sealed")
    try:
        inner = Failure.FromString(payload.data)
    except DecodeError as error:
        raise PayloadUnreadable("what is sealed in an error is damaged") from error
    opened.message, opened.traceback = inner.message, inner.traceback
    if inner.HasField("cause"):
        opened.cause.CopyFrom(inner.cause)
    return opened


class Values(NamedTuple):
    """Names of the fields of a message that hold values, and errors."""

    payloads: tuple[str, ...]
    failures: tuple[str, ...]


def values_of(message: Message) -> Values:
    """Return which fields of a message of this kind hold user values."""
    known = _VALUES.get(message.DESCRIPTOR.full_name)
    if known is None:
        known = _VALUES[message.DESCRIPTOR.full_name] = _found_in(message)
    return known


_FOR_ALL: Final = ("treadle.v1.SendEvent", "treadle.v1.EventSent")
"""Events are facts for everybody in a namespace: the control plane compares what they say, and any run may get them."""

_VALUES: Final[dict[str, Values]] = {name: Values((), ()) for name in _FOR_ALL}


def _found_in(message: Message) -> Values:
    named: dict[str, list[str]] = {"treadle.v1.Payload": [], "treadle.v1.Failure": []}
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None and not field.is_repeated:
            named.get(field.message_type.full_name, []).append(field.name)
    return Values(tuple(named["treadle.v1.Payload"]), tuple(named["treadle.v1.Failure"]))
