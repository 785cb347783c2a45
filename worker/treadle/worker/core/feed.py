"""One coroutine and its place in the history (R4).

Exactly the next position is fed, one event at a time; what comes out of order waits. The same path serves live news,
pages of history and the worker's own results. One own result may be fed ahead of its event: what the code asks for by it
counts only if that event stands next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from treadle.protocol.errors import PayloadError
from treadle.v1.history_pb2 import HistoryEvent, StepCompleted

from ..loop.port import Divergence, ExecutionFactory, RunContext
from .seals import RunSeals

__all__ = ("Feed",)


class Feed:
    """Feeds an execution.

    Attributes:
        fed: Position of the last event that was fed.
        ahead: What stands next if nothing else has come between: the code was fed it before it was read.
        length: Length of the history as far as it is known.
        revision: Revision of the event that was fed last; 0 before the first.
        beside: The store has another event at the position that was fed last: the coroutine is of no use.
        time_ms: Its time, by the clock of Redis.
        fed_at_ms: When it was fed, by the worker's clock.
        size: Bytes of all events that were fed: what the coroutine may have kept of them.
        seals: Opens sealed values; None: there are none.
        opening: The next event, whose values must be fetched first; the owner takes it from here once.
    """

    __slots__ = (
        "_answered",
        "_buffer",
        "_kept",
        "_make",
        "_unreadable",
        "_waits_for",
        "ahead",
        "beside",
        "context",
        "execution",
        "fed",
        "fed_at_ms",
        "length",
        "opening",
        "revision",
        "seals",
        "size",
        "time_ms",
    )

    def __init__(
        self, make: ExecutionFactory, context: RunContext, *, always_replay: bool, seals: RunSeals | None = None
    ) -> None:
        self.context = context
        self.execution = make(context)
        self.fed = self.length = 0
        self.ahead: HistoryEvent | None = None
        self.revision = self.size = 0
        self.beside = False
        self.time_ms = 0
        self.fed_at_ms = 0
        self._make = make
        self._answered = (0, 0)
        self._buffer: dict[int, HistoryEvent] = {}
        self._kept: list[HistoryEvent] | None = [] if always_replay else None
        self.seals = seals
        self.opening: HistoryEvent | None = None
        self._waits_for = 0  # position of an event whose values are being fetched
        self._unreadable: Divergence | None = None

    @property
    def waits_to_be_fed(self) -> bool:
        """Whether events are here that were not fed: the next one, or some behind a gap."""
        return bool(self._buffer)

    @property
    def replays(self) -> bool:
        """Whether every event makes a fresh coroutine (which asks for everything again)."""
        return self._kept is not None

    @property
    def caught_up(self) -> bool:
        """Whether every event that is known to exist was fed."""
        return self.fed >= self.length

    @property
    def divergence(self) -> Divergence | None:
        """Why nothing more may be fed: code and history disagree, or what is next cannot be read here."""
        return self._unreadable or self.execution.divergence

    @property
    def told(self) -> tuple[int, int]:
        """Highest position that was fed or answered, and the revision of the event there."""
        return self._answered if self._answered[0] > self.fed else (self.fed, self.revision)

    def resume(self) -> None:
        """It was cached and has an owner again: only what was fed is known (R6)."""
        self.length = self.fed
        self._answered = (0, 0)
        self._waits_for = 0
        self._buffer.clear()

    def learn(self, events: Iterable[HistoryEvent], length: int = 0) -> None:
        """Events came, in any order; known ones are skipped."""
        fed = self.fed
        for event in events:
            position = event.position
            if position > fed:
                self._buffer[position] = event
                if position > length:
                    length = position
            elif position == fed and event.revision != self.revision:
                self.beside = True
        if length > self.length:
            self.length = length

    def answered(self, position: int, revision: int) -> None:
        """The store said that the event at `position` exists."""
        if position > self._answered[0]:
            self._answered = (position, revision)
        self.length = max(self.length, position)

    def ends_here(self) -> None:
        """The store, asked after the last news, has nothing behind what was fed: what else was known is void."""
        self._buffer.clear()
        self.length = max(self.fed, self._answered[0])

    def run(self, now_ms: int) -> Iterator[HistoryEvent]:
        """Feed all that is next, and yield each event after it was fed. A divergence ends it."""
        buffer = self._buffer
        while buffer and (self.ahead is not None or self.divergence is None) and not self.beside:
            if self.seals is not None and not self._readable(self.seals):
                return
            event = buffer.pop(self.fed + 1, None)
            if event is None:
                return
            if self.ahead is not None:
                if not _same(event.step_completed, self.ahead.step_completed):
                    self.beside = True
                    return
                self.ahead = None
            elif self._kept is None:
                self.execution.feed(event)
            else:
                self._replay(event)
            self.fed = event.position
            self.revision = event.revision
            self.size += event.ByteSize()
            self.time_ms = event.time_ms
            self.fed_at_ms = now_ms
            yield event

    def _readable(self, seals: RunSeals) -> bool:
        """Whether what is next can be fed as far as its values go; else they are fetched, or never will be readable."""
        event = self._buffer.get(self.fed + 1)
        if event is None:
            return True
        if self._waits_for == event.position:
            return False
        try:
            if seals.open(event):
                return True
        except PayloadError as error:
            self._cannot_read(event, error)
            return False
        self._waits_for, self.opening = event.position, event
        return False

    def opened(self, event: HistoryEvent, error: PayloadError | None) -> None:
        """The values of an event were fetched, or never will be readable."""
        if event.position != self._waits_for:
            return
        self._waits_for = 0
        here = self._buffer.get(event.position)
        if here is None or here.revision != event.revision:
            return  # the store has another event there now
        if error is not None:
            self._cannot_read(event, error)
        else:
            self._buffer[event.position] = event

    def _cannot_read(self, event: HistoryEvent, error: PayloadError) -> None:
        kind = (event.WhichOneof("kind") or "").replace("_", " ")
        self._unreadable = Divergence(f"{kind} (event {event.position}) with a value that can be read", str(error))

    def about(self, now_ms: int) -> int:
        """Return the time of day, by the clock of Redis, as far as the event that was fed last tells it."""
        return self.time_ms + now_ms - self.fed_at_ms

    def go_ahead(self, completed: StepCompleted) -> None:
        """Feed what will stand at the next position, unless something else comes first."""
        self.ahead = HistoryEvent(position=self.fed + 1, step_completed=completed)
        self.execution.feed(self.ahead)

    def put_back(self, event: HistoryEvent) -> bool:
        """Give an event the result that was left out because it came from here. False: it did not."""
        if self.ahead is None or event.position != self.ahead.position:
            return False
        told, found = self.ahead.step_completed, event.step_completed
        if (told.command_id, told.attempt) != (found.command_id, found.attempt):
            return False
        found.result.CopyFrom(told.result)
        return True

    def _replay(self, event: HistoryEvent) -> None:
        assert self._kept is not None
        self._kept.append(event)
        self.execution.close()
        self.execution = self._make(self.context)
        for known in self._kept:
            if self.execution.divergence is not None:
                return
            self.execution.feed(known)


def _same(found: StepCompleted, told: StepCompleted) -> bool:
    """Whether the history has what the code was told (which attempt it was is not known before)."""
    return found.command_id == told.command_id and found.ended_ms == told.ended_ms and found.result == told.result
