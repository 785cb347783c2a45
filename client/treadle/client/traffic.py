"""What a client has under way on its stream of runs: starts without an answer, and ends that somebody waits for.

Pure: it says what to send, takes what came, and knows what must be sent again when the stream broke. Whoever waits is a
ticket of the caller's own kind; nothing here knows what that is.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from google.rpc.code_pb2 import UNAVAILABLE
from google.rpc.status_pb2 import Status

from treadle.v1.run_service_pb2 import (
    Run,
    RunEnd,
    StartAnswer,
    StartItem,
    StartRunRequest,
    StreamRunsRequest,
    StreamRunsResponse,
)

__all__ = ("FRAME_BYTES", "FRAME_STARTS", "Outcome", "Traffic")

T = TypeVar("T")

Outcome = StartAnswer | RunEnd
"""What a ticket gets: the answer to a start, or the end of a run; either may carry a status instead."""

FRAME_STARTS: Final = 200
FRAME_BYTES: Final = 256 << 10
"""A frame carries at most so many starts, and about so many bytes, or one start."""

_FRAME_WATCHES: Final = 1_000
_STARTS: Final = 5_000
_START_BYTES: Final = 16 << 20
_KEPT: Final = 10_000
_KEPT_BYTES: Final = 16 << 20
_TRIES: Final = 5


@dataclass(slots=True)
class _Start(Generic[T]):
    item: StartItem
    size: int
    until: float
    ticket: T
    tries: int = 0


@dataclass(slots=True)
class _Watch(Generic[T]):
    run_id: str
    incarnation: int
    tickets: list[T] = field(default_factory=list)


class Traffic(Generic[T]):
    """See the module.

    Args:
        namespace: Of all runs.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._last_number = 0
        self._starts: dict[int, _Start[T]] = {}
        self._start_bytes = 0
        self._watches: dict[int, _Watch[T]] = {}
        self._promised: set[int] = set()
        self._kept: dict[int, Run] = {}
        self._kept_bytes = 0
        self._new_starts: deque[int] = deque()
        self._new_watches: deque[int] = deque()
        self._unwatch: list[int] = []
        self._later: list[int] = []

    @property
    def room(self) -> int:
        """How many further starts may be made; 0: so many, or so many bytes, have no answer yet."""
        return max(_STARTS - len(self._starts), 0) if self._start_bytes < _START_BYTES else 0

    @property
    def pending(self) -> bool:
        """Whether `frame` has something to send."""
        return bool(self._new_starts or self._new_watches or self._unwatch)

    @property
    def next_due(self) -> float | None:
        """When the oldest start is overdue; None when there is none."""
        return next((start.until for start in self._starts.values()), None)

    # --- what callers want ---------------------------------------------------------------------------------------------
    def start(self, request: StartRunRequest, ticket: T, until: float) -> int:
        """Have a run started; returns the number of the start. Starts must come in the order of `until`."""
        self._last_number = number = self._last_number + 1
        start = _Start(StartItem(number=number, request=request, watch=True), request.ByteSize(), until, ticket)
        self._starts[number] = start
        self._start_bytes += start.size
        self._new_starts.append(number)
        return number

    def end(self, number: int, run_id: str, incarnation: int, ticket: T) -> Run | int:
        """Return the run if its end is known here already; else the number under which the ticket will get it.

        Args:
            number: Of the start of the run; 0: it was not started here.
            run_id: The run.
            incarnation: Which start of that id; 0: whichever is there.
            ticket: Who waits.
        """
        kept = self._kept.pop(number, None)
        if kept is not None:
            self._kept_bytes -= kept.ByteSize()
            return kept
        if not number:
            self._last_number = number = self._last_number + 1
        watch = self._watches.get(number)
        if watch is None:
            watch = self._watches[number] = _Watch(run_id, incarnation)
            if number not in self._promised:
                self._new_watches.append(number)
        watch.tickets.append(ticket)
        return number

    def leave(self, number: int, ticket: T) -> None:
        """Forget a ticket that waits no longer. A start that was sent may have its effect all the same."""
        start = self._starts.get(number)
        if start is not None and start.ticket is ticket:
            self._settle(number)
            return
        watch = self._watches.get(number)
        if watch is not None and ticket in watch.tickets:
            watch.tickets.remove(ticket)
            if not watch.tickets:
                del self._watches[number]
                if number not in self._promised:
                    self._unwatch.append(number)

    # --- what goes up --------------------------------------------------------------------------------------------------
    def frame(self) -> StreamRunsRequest | None:
        """Take what is to be sent next; None: nothing."""
        if not self.pending:
            return None
        frame = StreamRunsRequest(namespace=self._namespace, unwatch=self._unwatch)
        self._unwatch = []
        size = 0
        while self._new_starts and len(frame.starts) < FRAME_STARTS:
            start = self._starts.get(self._new_starts[0])
            if start is not None:
                if size and size + start.size > FRAME_BYTES:
                    break
                size += start.size
                frame.starts.append(start.item)
            self._new_starts.popleft()
        while self._new_watches and len(frame.watches) < _FRAME_WATCHES:
            number = self._new_watches.popleft()
            watch = self._watches.get(number)
            if watch is not None:
                frame.watches.add(number=number, run_id=watch.run_id, incarnation=watch.incarnation)
        return frame

    # --- what came -----------------------------------------------------------------------------------------------------
    def take(self, frame: StreamRunsResponse) -> list[tuple[T, Outcome]]:
        """Take a frame; returns who gets what. A start that is refused because something is away for the moment waits for
        `again`, but not for ever."""
        found: list[tuple[T, Outcome]] = []
        for answer in frame.starts:
            start = self._starts.get(answer.number)
            if start is None:
                continue  # nobody waits for it any more
            if answer.status and self._put_off(answer, start):
                continue
            self._settle(answer.number)
            if answer.watched:
                self._promised.add(answer.number)
            found.append((start.ticket, answer))
        for end in frame.ends:
            self._promised.discard(end.number)
            watch = self._watches.pop(end.number, None)
            if watch is not None:
                found += [(ticket, end) for ticket in watch.tickets]
            elif not end.status:
                self._keep(end)
        return found

    def again(self) -> None:
        """Send the starts again that were put off."""
        self._new_starts.extend(self._later)
        self._later.clear()

    @property
    def put_off(self) -> bool:
        """Whether starts wait for `again`."""
        return bool(self._later)

    def broken(self, *, met: bool) -> list[T]:
        """The stream is gone: everything unanswered is to be sent again, on the next one.

        Args:
            met: False: no server has ever answered. A start that has found nobody five times is given up then.

        Returns:
            Tickets of starts that are given up.
        """
        self._promised.clear()
        self._unwatch.clear()
        self._later.clear()
        gone = []
        for number, start in list(self._starts.items()):
            start.tries += 1
            if not met and start.tries >= _TRIES:
                gone.append(start.ticket)
                self._settle(number)
        self._new_starts = deque(self._starts)
        self._new_watches = deque(self._watches)
        return gone

    def overdue(self, now: float) -> list[T]:
        """Give up the starts whose time is over; returns their tickets."""
        gone = []
        while (due := self.next_due) is not None and due <= now:
            number = next(iter(self._starts))
            gone.append(self._starts[number].ticket)
            self._settle(number)
        return gone

    def give_up(self) -> list[T]:
        """Forget everything; returns all tickets."""
        gone = [start.ticket for start in self._starts.values()]
        gone += [ticket for watch in self._watches.values() for ticket in watch.tickets]
        self._starts.clear()
        self._start_bytes = 0
        self._watches.clear()
        self.broken(met=True)
        return gone

    # -------------------------------------------------------------------------------------------------------------------
    def _settle(self, number: int) -> None:
        self._start_bytes -= self._starts.pop(number).size

    def _put_off(self, answer: StartAnswer, start: _Start[T]) -> bool:
        if Status.FromString(answer.status).code != UNAVAILABLE or start.tries >= _TRIES - 1:
            return False
        start.tries += 1
        self._later.append(answer.number)
        return True

    def _keep(self, end: RunEnd) -> None:
        """Nobody asks for this end yet. It is kept for a while, in bounds; after that it is asked for again."""
        run = Run()
        run.CopyFrom(end.run)  # the message would keep its whole frame
        self._kept[end.number] = run
        self._kept_bytes += run.ByteSize()
        while len(self._kept) > _KEPT or self._kept_bytes > _KEPT_BYTES:
            oldest = next(iter(self._kept))
            self._kept_bytes -= self._kept.pop(oldest).ByteSize()
