"""Which events the code of a run was given: a wait in a row goes on behind them, and none is given to it twice.

The parts of a run that goes on as new are one row: each part takes along what those before it were given.
"""

from __future__ import annotations

from typing import Final

from treadle.v1.common_pb2 import EventPlace, EventRef, EventsGiven, NamedEvent
from treadle.v1.history_pb2 import RunStarted

__all__ = ("EventsHad", "Place")

_BEFORE_START_MS: Final = 100
"""Clocks of several stores, as a replica reads them, may be so far apart."""
_CARRIED_BYTES: Final = 64 * 1024
"""So much of what was given is taken along into the next part, of the names and values that were waited for last."""
_AROUND: Final = 4
_LAST: Final = 50
"""Ids of a place that are taken along: a slot remembers no more events than that."""

_Key = tuple[str, int]
"""Id, and when it was accepted: an id that is used again a day later is another event."""


class Place:
    """The events of one name with the same values that the code was given.

    Attributes:
        since_ms: From when on events count for a wait since the start of the run (ms since 1970).
        seq: Number of the last one in its slot.
        count: How many different ones there were.
    """

    def __init__(self, since_ms: int) -> None:
        self.since_ms = since_ms
        self.seq = 0
        self._given: dict[_Key, int] = {}

    @property
    def count(self) -> int:
        return len(self._given)

    def note(self, event: EventRef) -> None:
        """It was given before."""
        self._given.setdefault((event.event_id, event.time_ms), len(self._given))

    def take(self, event: NamedEvent, seq: int, begun: int) -> bool:
        """The slot has brought an event to a wait that began when there were `begun`; returns whether it is news to it."""
        self.seq = max(self.seq, seq)
        return self._given.setdefault((event.event_id, event.time_ms), len(self._given)) >= begun

    def carried(self, name: str, match: bytes) -> EventPlace:
        """Return what the next part must know."""
        last = [EventRef(event_id=event_id, time_ms=time_ms) for event_id, time_ms in [*self._given][-_LAST:]]
        return EventPlace(name=name, match=match, since_ms=self.since_ms, seq=self.seq, last=last)


class EventsHad:
    """Those of one execution."""

    def __init__(self) -> None:
        self._started_ms = 0
        self._first: EventRef | None = None
        self._places: dict[tuple[str, bytes], Place] = {}

    def started(self, event: RunStarted, time_ms: int) -> None:
        """The run, or a part of it, was started; the event that it was started by, if it was, it has had."""
        self._started_ms = time_ms - _BEFORE_START_MS
        if event.HasField("event"):
            self._first = event.event
        elif event.given.HasField("first"):
            self._first = event.given.first
        for known in event.given.places:
            place = self.place(known.name, known.match)
            place.since_ms, place.seq = known.since_ms, known.seq
            for one in known.last:
                place.note(one)

    def place(self, name: str, match: bytes) -> Place:
        """Return that of events of a name with these values."""
        place = self._places.pop((name, match), None)
        if place is None:
            place = Place(self._started_ms)
            if self._first is not None:
                place.note(self._first)
        self._places[name, match] = place  # what was asked for last stands last
        return place

    def carried(self) -> EventsGiven:
        """Return what the next part must know."""
        places: list[EventPlace] = []
        size = 0
        for (name, match), place in reversed(self._places.items()):
            places.append(place.carried(name, match))
            size += places[-1].ByteSize() + _AROUND
            if size > _CARRIED_BYTES:
                places.pop()
                break
        return EventsGiven(places=places[::-1], first=self._first)
