"""What the model of events consists of: its rules, its scenes, its state.

An event is accepted by the record of its id, handed to a router of its name, from there to the slot of its values, and from
there to the runs that wait. Each arrow is a letter. A run's code asks for all events of its slot that its look-back contains.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ("RULES", "Letter", "Router", "Run", "Scene", "Slot", "State", "Wait", "renamed")

RULES = {
    "accept.once": "an id is accepted by a commit that finds no record of it, whatever was read before",
    "outbox": "a letter lies in the outbox of its writer until it was applied",
    "start.once": "the id of a run that an event starts is made of the event",
    "route.knows": "the commit that routes an event knows which keys are in use",
    "use.log": "keys that come into use are given the events that came before",
    "use.all": "all routers of a name are told of the keys",
    "known.all": "keys count as known once all routers were told",
    "known.refused": "keys that a router refused are not known",
    "begin.looks": "a wait that begins looks into the log first",
    "begin.commit": "the look and the wait's place among those that stay are one commit",
    "telling": "while waits are told page by page none begins",
    "after": "a wait goes on behind the last event that the run was given (saves replays)",
    "had": "the code knows which events it was given",
    "carried": "the next part of a run knows what the parts before it were given",
    "effect.row": "an event ends a wait that is open, else nothing",
    "effect.part": "an event for an earlier part of the run ends no wait",
    "effect.over": "nothing is recorded in a part that has ended",
    "again": "a wait that is asked for again, by a run that was continued, is another one",
    "end.early": "an end that comes before its beginning is remembered",
    "end.kept": "it is remembered although the beginning came: that may come again",
    "alone": "a record is forgotten by a commit that does nothing else",
}


@dataclass(frozen=True, slots=True)
class Scene:
    """One configuration.

    Attributes:
        without: Rules that are switched off.
        faults: So many of `kinds` may happen. "kill" ends a server with a letter that it has or has not applied; "answer"
            loses what a client was to hear; "both": two servers do the same at once.
        events: The slot of each event; the router of event n is n modulo 2.
        runs: The slot that each run waits in; they start at any time.
        starts: Each event starts a run, too.
        timeouts: So many waits end without an event.
        vain: So often a run waits although it was given all there is, until the timeout.
        stops: So often a run is terminated, and continued by a person.
        news: So often a run continues as new, with its wait still open.
        now: Each part wants only events that come after its own start; otherwise those since the start of the run.
        pages: Waits are told one by one.
        full: Routers without room for another set of keys.
        old: Slots and routers stand there, empty, about to be forgotten.
    """

    without: tuple[str, ...] = ()
    faults: int = 0
    kinds: frozenset[str] = frozenset(("kill", "answer", "both"))
    events: tuple[int, ...] = (0, 0)
    runs: tuple[int, ...] = (0,)
    starts: bool = False
    timeouts: int = 0
    vain: int = 0
    stops: int = 0
    news: int = 0
    now: bool = False
    pages: bool = False
    full: tuple[int, ...] = ()
    old: bool = False


Letter = tuple[Any, ...]
"""Its kind, then what it says: route e · event e · begin wait · end wait · match wait e seq · refused wait · use router slot ·
refuse slot · start e time."""


class Wait(NamedTuple):
    """A wait, as slots know it."""

    run: int
    part: int
    command: int
    position: int
    since: int
    after: int


class Run(NamedTuple):
    """A run: its head, the row of its wait, and what its code knows.

    Attributes:
        status: new | code (about to ask) | waits | over (about to go on as new) | closed | done | refused.
        command: Which call of the code it is.
        position: How often it was asked for, calls of all parts together.
        had: Events that the code was given, as it knows; `seq` is the highest number among them.
        given: Those that it was given.
    """

    status: str = "new"
    part: int = 0
    since: int = 0
    command: int = 0
    position: int = 0
    row: Wait | None = None
    had: tuple[int, ...] = ()
    given: tuple[int, ...] = ()
    seq: int = 0


class Router(NamedTuple):
    keys: bool = False
    log: tuple[int, ...] = ()
    old: bool = False


class Slot(NamedTuple):
    """Where runs wait for events of the same values; `telling` is the place in the log of the event that is being told."""

    log: tuple[int, ...] = ()
    waits: tuple[Wait, ...] = ()
    telling: int = 0
    asked: bool = False
    refused: bool = False
    ended: tuple[Wait, ...] = ()
    old: bool = False


class State(NamedTuple):
    """The world: `times` is when each event was accepted, `begun` those that a server is about to accept, `known` the routers
    that a replica has seen told of the keys."""

    runs: tuple[Run, ...]
    times: tuple[int, ...]
    routers: tuple[Router, ...] = (Router(), Router())
    slots: tuple[Slot, ...] = (Slot(), Slot())
    letters: tuple[Letter, ...] = ()
    answered: frozenset[int] = frozenset()
    begun: tuple[int, ...] = ()
    accepted: int = 0
    known: frozenset[int] = frozenset()
    started: tuple[int, ...] = ()
    faults: int = 0
    timeouts: int = 0
    vain: int = 0
    stops: int = 0
    news: int = 0

    def run(self, place: int, **change: Any) -> State:
        runs = list(self.runs)
        runs[place] = runs[place]._replace(**change)
        return self._replace(runs=tuple(runs))

    def slot(self, place: int, **change: Any) -> State:
        slots = list(self.slots)
        slots[place] = slots[place]._replace(old=False, **change)
        return self._replace(slots=tuple(slots))

    def router(self, place: int, **change: Any) -> State:
        routers = list(self.routers)
        routers[place] = routers[place]._replace(old=False, **change)
        return self._replace(routers=tuple(routers))

    def post(self, *letters: Letter) -> State:
        return self._replace(letters=tuple(sorted((*self.letters, *letters))))

    def took(self, letter: Letter) -> State:
        """The letter has left the outbox."""
        place = self.letters.index(letter)
        return self._replace(letters=self.letters[:place] + self.letters[place + 1 :])


def renamed(state: State) -> State:
    """Calls and positions are only compared: number them by their order, so that states that differ in names only are one.

    Those of two parts of a run may be the same by chance, so that they keep theirs where there may be several parts.
    """
    first = all(run.position < 2 for run in state.runs)
    if first or state.news or any(run.part or run.status == "over" for run in state.runs):
        return state
    waits = [*_of_letters(state.letters)]
    for slot in state.slots:
        waits += [*slot.waits, *slot.ended]
    calls = [sorted({run.command} | {w.command for w in waits if w.run == n}) for n, run in enumerate(state.runs)]
    places = [sorted({run.position} | {w.position for w in waits if w.run == n}) for n, run in enumerate(state.runs)]

    def new(wait: Wait) -> Wait:
        command, position = calls[wait.run].index(wait.command), places[wait.run].index(wait.position)
        return wait._replace(command=command, position=position)

    runs = tuple(
        run._replace(
            command=calls[n].index(run.command),
            position=places[n].index(run.position),
            row=run.row and new(run.row),
        )
        for n, run in enumerate(state.runs)
    )
    coming = {letter[1][:3] for letter in state.letters if letter[0] == "begin"}
    slots = tuple(
        slot._replace(
            waits=tuple(new(wait) for wait in slot.waits),
            ended=tuple(sorted(new(wait) for wait in slot.ended if wait[:3] in coming)),
        )
        for slot in state.slots
    )
    letters = tuple(
        sorted(tuple(new(part) if isinstance(part, Wait) else part for part in letter) for letter in state.letters)
    )
    return state._replace(runs=runs, slots=slots, letters=letters)


def _of_letters(letters: Iterable[Letter]) -> Iterable[Wait]:
    return (part for letter in letters for part in letter if isinstance(part, Wait))
