"""What attempts of pool steps say while they run: the newest counts, and one message of each is under way at a time."""

from __future__ import annotations

from collections.abc import Iterator

from treadle.v1.common_pb2 import Payload
from treadle.v1.job_pb2 import Job
from treadle.v1.worker_service_pb2 import AttemptProgress, AttemptReport

from .outbox import Room

__all__ = ("Progress",)

_NUMBERS = 32
"""Bits for what one attempt says; above them stands the number of the attempt."""
_LOST_MS = 5_000
"""What was not answered for so long is followed by what is newer; it alone is no reason to leave a session."""


class Progress:
    """By token.

    Attributes:
        unsent: What is to be said, as soon as what was said before it is answered.
    """

    __slots__ = ("_flying", "_last", "_numbers", "unsent")

    def __init__(self) -> None:
        self.unsent: dict[bytes, AttemptProgress] = {}
        self._flying: dict[bytes, tuple[AttemptProgress, int]] = {}
        self._last: dict[bytes, AttemptProgress] = {}
        self._numbers: dict[bytes, int] = {}

    def say(self, token: bytes, job: Job, attempt: int, data: bytes | Payload | None) -> None:
        """An attempt says how far it is; None: only that it goes on."""
        waiting = self.unsent.get(token)
        if data is None and waiting is not None:
            return  # it says so too
        number = self._numbers.get(token, attempt << _NUMBERS) + 1
        self._numbers[token] = number
        told = AttemptProgress(
            run_id=job.run_id, incarnation=job.incarnation, command_id=job.command_id, token=token, number=number
        )
        if data is not None:
            told.value.CopyFrom(Payload(data=data) if isinstance(data, bytes) else data)
            self._last[token] = told
        self.unsent[token] = told

    def take(self, room: Room, now_ms: int) -> Iterator[AttemptProgress]:
        """Yield what is to be sent now, as far as there is room."""
        for token, told in tuple(self.unsent.items()):
            flying = self._flying.get(token)
            if flying is not None and now_ms - flying[1] < _LOST_MS:
                continue
            if not room.take(told.ByteSize()):
                return
            del self.unsent[token]
            self._flying[token] = (told, now_ms)
            yield told

    def answered(self, token: bytes) -> None:
        """What was under way has arrived, or is wanted no longer."""
        self._flying.pop(token, None)

    def again(self) -> None:
        """A session begins: what was not answered is sent again, unless something newer is to be said."""
        for token, (told, _) in self._flying.items():
            newer = self.unsent.setdefault(token, told)
            if newer is not told and told.HasField("value") and not newer.HasField("value"):
                newer.value.CopyFrom(told.value)
        self._flying.clear()

    def ended(self, token: bytes, report: AttemptReport) -> None:
        """The attempt is over: its report brings what it said last."""
        if token not in self._numbers:
            return
        del self._numbers[token]
        self.unsent.pop(token, None)
        self._flying.pop(token, None)
        last = self._last.pop(token, None)
        if last is not None and not report.HasField("result"):
            report.progress.CopyFrom(last.value)
            report.progress_number = last.number
