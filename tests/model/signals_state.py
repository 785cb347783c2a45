"""What the model of signals consists of: its rules, its scenes, its state.

One run that goes on as new, and may go on after it failed; a sender whose signals and a question go to it, with every request
repeated until it is answered; and who waits for the result of the first handle. The code is a function of what it was fed: a
part receives so many letters, then ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ("QUESTION", "RULES", "S", "Request", "Scene")

RULES = {
    "once": "a signal is known by its id",
    "known.first": "a signal that is known is acknowledged, whatever became of the run",
    "seen": "a run ends only when its code has seen everything (R5)",
    "fence": "the last word of a part counts once",
    "between": "between two parts a run takes nothing",
    "carried": "the next part begins with what was not received, in order",
    "room": "a run whose unread signals have no room fails, and names them",
    "kept.ids": "ids of signals stay known in all later parts, not only in the next one",
    "kept.answers": "answers stay there in the next part",
    "sweep.notes": "a sweep leaves ids and answers alone",
    "retry.notes": "a run that goes on still knows ids and answers",
    "first": "the result of the first handle is that of the last part",
    "handle": "a handle waits for its own start of the id",
}

QUESTION = 9
"""The letter with this number is a question."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One configuration.

    Attributes:
        parts: So many letters each part receives before it ends; all but the last go on as new.
        letters: What the sender sends, one after the other.
        may: What may happen, so many times: `again` (a request is applied once more, late), `terminate`, `retry`, `reuse`.
        fails: The last part fails.
        room: So many unread letters fit into a next part.
        rows: A part that ends leaves something to be swept.
        without: Rules that are switched off.
    """

    parts: tuple[int, ...] = (1, 1)
    letters: tuple[int, ...] = (1, 2)
    may: dict[str, int] = field(default_factory=dict)
    fails: bool = False
    room: int = 9
    rows: bool = False
    without: tuple[str, ...] = ()


class Request(NamedTuple):
    """The last word of the code of a part, on its way."""

    part: int
    seen: int
    carried: tuple[int, ...]
    known: tuple[int, ...]


class S(NamedTuple):
    state: str = "A"  # A active | N goes on as new | X closed
    start: int = 0  # which start of the id
    part: int = 0
    tries: int = 0  # how often it went on after it had closed
    hist: tuple[int, ...] = ()  # letters of this part
    fed: int = 0  # so many of them the code has seen
    said: Request | None = None  # on its way
    next: Request | None = None  # committed: how the next part begins
    left: bool = False  # something is to be swept
    outcome: str = ""
    unread: tuple[int, ...] = ()  # named by the outcome
    notes: frozenset[int] = frozenset()  # ids that are known
    answer: int = -1  # in which part the question was answered
    got: tuple[int, ...] = ()  # received in parts that are over
    ever: tuple[int, ...] = ()  # what was recorded
    sent: int = 0  # so many letters are answered for
    refused: bool = False  # the sender was told that the run is closed, and stops
    late: frozenset[int] = frozenset()  # letters under way once more
    heard: int = -1  # the answer that the asker read; -2: there is none
    result: str = ""  # what the first handle was told
    may: tuple[tuple[str, int], ...] = ()

    def with_(self, **change: Any) -> S:
        return self._replace(**change)

    def left_of(self, what: str) -> int:
        return dict(self.may).get(what, 0)

    def spend(self, what: str) -> S:
        return self._replace(may=tuple((k, n - 1) if k == what else (k, n) for k, n in self.may))
