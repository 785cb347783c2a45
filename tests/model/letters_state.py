"""What the model of letters consists of: its rules, its scenes, its state.

Two runs: P starts C, whose id others may use too. What one tells the other lies in the outbox of its writer, is delivered at
least once, in any order, and may come once more long after it was applied.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ("RULES", "Call", "Letter", "Run", "S", "Scene")

RULES = {
    "commit": "a letter is written in the commit that decides it",
    "applied": "a letter leaves the outbox only when it was applied",
    "start.once": "a start is known by its id",
    "start.reject": "a child never takes the place of a run that has its id",
    "start.told": "whose child's id is taken is told",
    "start.stays": "a refused start stays in the outbox until its writer was told",
    "closed.row": "an outcome finds its row, or nothing",
    "closed.call": "an outcome names the incarnation and the continuation of the parent that asked",
    "stop.child": "a stop is for the child of its call only",
    "stop.before": "a stop that comes before its start comes again",
    "stop.tombstone": "what is left of another run is no answer to a stop",
    "stop.newer": "a stop of a later call than the child knows comes again",
    "sweep": "rows that a close leaves behind are swept, and their children told",
    "sweep.reuse": "an id is used again only when its last run is swept",
    "sweep.redrive": "a run goes on only when it is swept",
    "reuse.ids": "ids of requests outlive the run whose id is used again",
    "again.once": "a child notes by which continuation of its parent it was asked for last",
    "again.ids": "a child that is taken over by a later call notes the id of that request",
    "again.over": "a child that is open is not taken over by a call with another input",
    "again.cancelled": "a child that is being cancelled is not taken over by a later call",
    "continue.child": "a child that goes on as new keeps its parent and the ids of its requests",
    "continue.cancel": "a cancel that comes when the code has ended to go on as new is given to the next part",
    "continue.sweep": "a run goes on as new only when its children were told",
    "hook.id": "the id of a failure hook is derived from the run, its start and its continuation",
}

Call = tuple[int, int]
"""Which call of P: its incarnation, and how often it had been continued."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One configuration.

    Attributes:
        may: What may happen, so many times: "p." and "c." say to whom. `redrive`, `reuse` of the id by a client, `terminate`,
            `continue`, `cancel` (P's code cancels its child), `again` (a letter comes once more after it was applied),
            `told` (who was to tell of a refusal is killed), `kill` (who was to post a letter, without the rule).
        without: Rules that are switched off.
        policy: What becomes of C when P closes: cancel, terminate, leave.
        waits: P's code waits for its child; else it may end at any time.
        c: What has C's id at first: "-" nothing, "T" the tombstone of a run, "A" a run of somebody else.
        explicit: C's id was given by P's code, so a later incarnation of P means it too.
        leaves: C leaves something to be swept when it closes.
        over: Each continuation of P gives its child another input.
    """

    may: dict[str, int] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    policy: str = "cancel"
    waits: bool = True
    c: str = "-"
    explicit: bool = False
    leaves: bool = False
    over: bool = False


class Letter(NamedTuple):
    """It is its own id: nobody writes the same one twice."""

    kind: str  # start | stop | closed | hook
    call: Call
    number: int = 0  # of stops of a call; of closed: which life of C
    outcome: str = ""  # of closed
    by: Call | None = None  # of closed, cancelled: which call stopped it; None: a client
    input: int = 0  # of closed: what C was given

    def __str__(self) -> str:
        return f"{self.kind}({self.call[0]}.{self.call[1]}{' ' + self.outcome if self.outcome else ''})"


class Run(NamedTuple):
    state: str = "-"  # - none | T tombstone | A active | N goes on as new | X closed
    inc: int = 0
    retries: int = 0
    outcome: str = ""  # done | failed | cancelled | terminated
    ids: tuple[Letter, ...] = ()  # of requests that were applied
    # C
    whose: Call | None = None
    cancel: bool = False
    by: Call | None = None
    left: bool = False  # something is to be swept
    lives: int = 0  # how often it closed
    mine: bool = False  # a client let it go on
    input: int = 0
    # P
    row: int = -1  # by which continuation the child was asked for; -1: no row
    row_cancel: bool = False
    asked: bool = False
    heard: str = ""


class S(NamedTuple):
    P: Run = Run("A")
    C: Run = Run()
    out: frozenset[Letter] = frozenset()
    late: frozenset[Letter] = frozenset()  # applied, and under way once more
    told: frozenset[Letter] = frozenset()  # starts whose refusal is on its way to P
    acted: frozenset[Letter] = frozenset()  # starts that had their effect
    may: tuple[tuple[str, int], ...] = ()

    def p(self, **change: Any) -> S:
        return self._replace(P=self.P._replace(**change))

    def c(self, **change: Any) -> S:
        return self._replace(C=self.C._replace(**change))

    def post(self, *letters: Letter) -> S:
        return self._replace(out=self.out | {*letters})

    def left_of(self, what: str) -> int:
        return dict(self.may).get(what, 0)

    def spend(self, what: str) -> S:
        return self._replace(may=tuple((k, n - 1) if k == what else (k, n) for k, n in self.may))

    @property
    def call(self) -> Call:
        """The call that P makes now."""
        return self.P.inc, self.P.retries
