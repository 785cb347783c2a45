"""What the model of schedules consists of: its rules, its scenes, its state.

An occurrence comes due with each tick of the clock. The schedule's record decides what becomes of it in one commit; runs are
started and stopped by letters, and tell by letters that they have closed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ("RULES", "Letter", "Open", "Record", "Scene", "Started", "State")

RULES = {
    "revision": "what was decided on a record that changed meanwhile is decided again",
    "one.commit": "an occurrence is noted in the commit that writes the letter of its start",
    "outbox": "a letter lies in the outbox of its writer until it was applied",
    "start.id": "the id of a run is made of its occurrence, or of the request that triggers it",
    "start.once": "a run knows the letter that started it, so that this one is not refused when it comes again",
    "taken": "a start that is refused, because its id is taken, is told to the schedule",
    "not.before": "the store refuses what is decided before its time",
    "advance.first": "what is due is decided before what anybody asks for",
    "missed": "what is too late to be started is listed",
    "ended.open": "the close of a run that is not noted as open frees nobody's place",
    "drain": "a run that closes lets the next one go on",
    "resume.drains": "a schedule that is resumed lets go on what was queued",
    "stop.waits": "a stop that comes before the start of its run comes again",
    "stop.child": "a stop ends the run of this schedule only",
    "delete.alone": "a schedule is not deleted by the commit in which it starts runs",
}


@dataclass(frozen=True, slots=True)
class Scene:
    """One configuration.

    Attributes:
        without: Rules that are switched off.
        faults: So many of `kinds` may happen. "kill" ends a server with a letter that it has or has not applied; "both": two
            servers do the same at once; "ahead": a server's clock is a tick ahead.
        policy: skip | one | all | cancel | terminate | allow.
        count: Occurrences; the first is due at 1.
        window: So many ticks late may one start.
        pauses, changes, triggers, deletes: So often somebody asks for it.
        again: So often a closed run is continued by a person.
        taken: Occurrences whose id somebody else's run has.
        endless: Runs end only when they are stopped.
    """

    without: tuple[str, ...] = ()
    faults: int = 0
    kinds: frozenset[str] = frozenset(("kill", "both", "ahead"))
    policy: str = "skip"
    count: int = 2
    window: int = 9
    pauses: int = 0
    changes: int = 0
    triggers: int = 0
    deletes: int = 0
    again: int = 0
    taken: tuple[int, ...] = ()
    endless: bool = False


Letter = tuple[str, int, int]
"""start | stop | closed, its occurrence, and the number of the letter."""


class Open(NamedTuple):
    """A run that was started and has not told of its end."""

    occurrence: int
    beside: bool = False
    stopping: bool = False


class Record(NamedTuple):
    """The schedule. `next` is 0 while nothing is to come."""

    next: int = 1
    paused: bool = False
    paused_at: int = 0
    deleted: bool = False
    queue: tuple[int, ...] = ()
    open: tuple[Open, ...] = ()
    triggered: bool = False


class Started(NamedTuple):
    """A run: absent | open | asked (to stop) | closed | again (continued by a person) | other (somebody else's); and by which
    letter it was started."""

    status: str = "absent"
    letter: int = -1


class State(NamedTuple):
    """The world.

    Attributes:
        runs, fates: By occurrence; what was triggered stands behind the last one. A fate is what was decided last.
        held: Letters that a server has noted, but not written yet ("one.commit" switched off).
        before: The record before its last change ("revision" switched off).
        number: Of the next letter.
    """

    runs: tuple[Started, ...]
    fates: tuple[str, ...]
    record: Record = Record()
    clock: int = 0
    letters: tuple[Letter, ...] = ()
    held: tuple[Letter, ...] = ()
    before: Record | None = None
    number: int = 0
    faults: int = 0
    pauses: int = 0
    changes: int = 0
    triggers: int = 0
    deletes: int = 0
    again: int = 0

    def keep(self, **change: Any) -> State:
        """Change the record."""
        return self._replace(record=self.record._replace(**change))

    def run(self, occurrence: int, **change: Any) -> State:
        runs = list(self.runs)
        runs[occurrence] = runs[occurrence]._replace(**change)
        return self._replace(runs=tuple(runs))

    def fate(self, occurrence: int, fate: str) -> State:
        return self._replace(fates=(*self.fates[:occurrence], fate, *self.fates[occurrence + 1 :]))

    def post(self, kind: str, occurrence: int) -> State:
        letter = (kind, occurrence, self.number)
        return self._replace(letters=tuple(sorted((*self.letters, letter))), number=self.number + 1)

    def took(self, letter: Letter) -> State:
        """The letter has left the outbox."""
        return self._replace(letters=tuple(one for one in self.letters if one != letter))
