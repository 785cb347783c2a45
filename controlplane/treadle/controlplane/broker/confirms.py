"""What was published on a channel and has no confirm yet. Pure; one object per channel."""

from __future__ import annotations

from collections import deque
from itertools import takewhile

from treadle.v1.job_pb2 import Job

__all__ = ("Outgoing", "Unconfirmed")


class Outgoing:
    """A job on its way: its encoded body until it is confirmed, when it was written, whether it was returned."""

    __slots__ = ("at", "body", "job", "name", "returned", "written")

    def __init__(self, job: Job, name: str, body: bytes) -> None:
        self.job = job
        self.name = name
        """Of its queue."""
        self.body = body
        self.at = 0.0
        self.written = False
        self.returned = False


class Unconfirmed:
    """The sequence numbers of a channel count what is published on it, from 1; confirms name them.

    So a message's number is its place in line: one number (of the first in line) is kept, none per message.
    """

    __slots__ = ("_first", "_line", "bytes", "count")

    def __init__(self) -> None:
        self._first = 1
        self._line: deque[Outgoing | None] = deque()
        self.count = 0
        self.bytes = 0

    def append(self, outgoing: Outgoing) -> None:
        """The next message was published."""
        self._line.append(outgoing)
        self.count += 1
        self.bytes += len(outgoing.body)

    def settle(self, number: int, multiple: bool) -> list[Outgoing]:
        """Remove what a confirm is about, and return it, oldest first. What is not there (any more) is no error."""
        line = self._line
        place = number - self._first
        if multiple and number == 0:  # everything, says AMQP
            place = len(line) - 1
        if not 0 <= place < len(line):
            return []
        if multiple or place == 0:
            settled = [found for _ in range(place + 1) if (found := line.popleft()) is not None]
            self._first += place + 1
        else:
            found = line[place]
            line[place] = None
            settled = [found] if found is not None else []
        while line and line[0] is None:
            line.popleft()
            self._first += 1
        for outgoing in settled:
            self.bytes -= len(outgoing.body)
        self.count -= len(settled)
        return settled

    def forget_before(self, time: float) -> list[Outgoing]:
        """Remove what was written before `time`, and return it."""
        late = len(tuple(takewhile(lambda outgoing: outgoing is None or outgoing.at < time, self._line)))
        return self.settle(self._first + late - 1, True) if late else []

    def take_all(self) -> list[Outgoing]:
        """Remove and return everything."""
        return self.settle(0, True)
