"""Which events the code of a run was given: a wait in a row goes on behind them, and none is given to it twice."""

from __future__ import annotations

from treadle.v1.history_pb2 import RunStarted

__all__ = ("EventsHad", "Place")

_BEFORE_START_MS = 100
"""Clocks of several stores, as a replica reads them, may be so far apart."""


class Place:
    """The events of one name with the same values that the code was given.

    Attributes:
        seq: Number of the last one in its slot.
        ids: Id -> how many were before it.
    """

    def __init__(self) -> None:
        self.seq = 0
        self.ids: dict[str, int] = {}

    def take(self, event_id: str, seq: int, begun: int) -> bool:
        """The slot has brought an event to a wait that began when `begun` had been given; returns whether it is news to it."""
        self.seq = max(self.seq, seq)
        return self.ids.setdefault(event_id, len(self.ids)) >= begun


class EventsHad:
    """Those of one execution.

    Attributes:
        started_ms: From when on events count for a wait since the start of the run (ms since 1970).
    """

    def __init__(self) -> None:
        self.started_ms = 0
        self._first = ""
        self._places: dict[tuple[str, bytes], Place] = {}

    def started(self, event: RunStarted, time_ms: int) -> None:
        """The run was started; the event that it was started by, if it was, it has had."""
        self.started_ms = time_ms - _BEFORE_START_MS
        self._first = event.event.event_id

    def place(self, name: str, match: bytes) -> Place:
        """Return that of events of a name with these values."""
        place = self._places.get((name, match))
        if place is None:
            place = self._places[name, match] = Place()
            if self._first:
                place.ids[self._first] = 0
        return place
