"""What the model of a step's limits consists of: its rules, its scenes, its state.

An attempt may be ended by its outcome, by the worker's own timers, and by the control plane, which does not wait for ever for
a worker to say so. Jobs always have a copy; sessions and brokers are the business of the attempt protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ("RULES", "Attempt", "Check", "Scene", "State")

RULES = {
    "token": "a report is taken from the holder only",
    "settled": "a step that has its outcome takes no report",
    "wait": "nobody but the holder ends an attempt before its right to start is over for sure",
    "same": "a check decides only if token and lease set are those that it read",
    "read": "so long ago means: by when the holder's record was read, not when the check commits",
    "fresh": "whether a holder was heard is looked at in the commit that ends its attempt",
    "lost.first": "a check that finds the holder lost comes first",
    "overdue": "an attempt whose worker does not report its timeout is ended without it",
    "unheard": "an attempt whose worker does not report its silence is ended without it",
    "limit.held": "a total timeout ends an attempt whose worker does not report it",
    "limit.free": "a total timeout ends a step that nobody holds",
    "limit.claim": "a claim that comes behind the total timeout is refused",
    "limit.push": "nor is a credit given a try that is dispatched behind it",
}


@dataclass(frozen=True, slots=True)
class Scene:
    """One configuration.

    Attributes:
        without: Rules that are switched off.
        faults: So many of `kinds` may happen. "kill" ends a worker; "hang" lets code run on whose worker says nothing; "slow"
            lets time pass before a worker does what it should; "answer" loses an answer, so that it asks again; "late" leaves
            a copy of a report in a slow server.
        tries: So many at most.
        timeout, heartbeat, total: The limits that the step has: of an attempt, of its silence, of all tries together.
    """

    without: tuple[str, ...] = ()
    faults: int = 1
    kinds: frozenset[str] = frozenset(("kill", "hang", "slow", "answer", "late"))
    tries: int = 2
    timeout: bool = False
    heartbeat: bool = False
    total: bool = False


class Attempt(NamedTuple):
    """One holder of a try.

    Attributes:
        code: go (GO is on its way) | runs | over.
        right: Its right to start is valid.
        timed, overdue: Its timeout has passed; and so long ago that its worker should have said so.
        quiet: It was not heard for so long that its worker should have said so.
        died_early: Its process died before the timeout, and before it was silent for long.
        report: What its worker says, until it is answered; `late` is a copy in a slow server.
        recorded: How it ended: failed | lost | released | done.
    """

    code: str = "go"
    alive: bool = True
    hung: bool = False
    right: bool = True
    lease: int = 0
    timed: bool = False
    overdue: bool = False
    quiet: bool = False
    died_early: bool = False
    report: str = ""
    late: str = ""
    recorded: str = ""


class Check(NamedTuple):
    """What a look at the holder's record found, and of which holder."""

    token: int
    lease: int
    lost: bool
    overdue: bool
    quiet: bool


class State(NamedTuple):
    """The step: `status` is queued | held | backoff | over; `token` the holder's place among the attempts."""

    status: str = "queued"
    tried: int = 1
    token: int = -1
    attempts: tuple[Attempt, ...] = ()
    check: Check | None = None
    limit: bool = False
    overdue: bool = False
    faults: int = 0

    def attempt(self, place: int, **change: Any) -> State:
        attempts = list(self.attempts)
        attempts[place] = attempts[place]._replace(**change)
        return self._replace(attempts=tuple(attempts))

    @property
    def holder(self) -> Attempt | None:
        return self.attempts[self.token] if self.status == "held" else None
