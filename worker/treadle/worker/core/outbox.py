"""Requests without an answer, in the order they were made: sent once per session, kept until answered (A5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

__all__ = ("MAX_BYTES", "MAX_ENTRIES", "Outbox", "Room")

MAX_ENTRIES = 200
MAX_BYTES = 1 << 20
"""A batch holds at most so many entries and bytes, or one entry."""


class Sized(Protocol):
    def ByteSize(self) -> int: ...


K = TypeVar("K")
M = TypeVar("M", bound=Sized)


class Room:
    """What is left in a batch."""

    __slots__ = ("bytes", "entries")

    def __init__(self) -> None:
        self.entries = MAX_ENTRIES
        self.bytes = MAX_BYTES

    def fit(self, messages: Sequence[Sized]) -> int:
        """Take room for these messages, in order; returns for how many there was room."""
        if self.entries == MAX_ENTRIES and len(messages) == 1:
            self.entries -= 1
            self.bytes -= messages[0].ByteSize()
            return 1
        for count, message in enumerate(messages):
            if not self.take(message.ByteSize()):
                return count
        return len(messages)

    def take(self, size: int) -> bool:
        """Take room for one entry of `size` bytes; the first entry always has room."""
        if self.entries < MAX_ENTRIES and (self.entries == 0 or size > self.bytes):
            return False
        self.entries -= 1
        self.bytes -= size
        return True


class Outbox(Generic[K, M]):
    """Unanswered requests by key."""

    __slots__ = ("_sent", "_unsent")

    def __init__(self) -> None:
        self._unsent: dict[K, M] = {}
        self._sent: dict[K, tuple[M, int]] = {}

    def __len__(self) -> int:
        return len(self._unsent) + len(self._sent)

    @property
    def waiting(self) -> bool:
        """Whether something is to be sent."""
        return bool(self._unsent)

    def put(self, key: K, message: M) -> None:
        self._unsent[key] = message

    def drop(self, key: K) -> None:
        """Forget a request: it was answered, or given up."""
        if self._sent.pop(key, None) is None:
            self._unsent.pop(key, None)

    def again(self) -> None:
        """A session begins: everything is to be sent again, in the old order."""
        unsent = {key: message for key, (message, _) in self._sent.items()}
        unsent.update(self._unsent)
        self._unsent, self._sent = unsent, {}

    def take(self, room: Room, now_ms: int) -> Iterator[M]:
        """Yield what is to be sent now, as far as there is room, and count it as sent.

        The size is taken before the consumer of this iterator stamps the message; a stamp is a few bytes.
        """
        taken = []
        for key, message in self._unsent.items():
            if not room.take(message.ByteSize()):
                break
            taken.append(key)
        for key in taken:
            message = self._unsent.pop(key)
            self._sent[key] = (message, now_ms)
            yield message

    def oldest_ms(self) -> int | None:
        """When the oldest unanswered request of this session was sent."""
        for _, sent_ms in self._sent.values():
            return sent_ms
        return None
