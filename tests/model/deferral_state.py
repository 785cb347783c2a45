"""What the model of deferred steps consists of: its rules, its scenes, its state.

One step, its attempts, and callers from outside that have a token. An attempt that has GO may begin its code as long as its
right lasts, even if it was fenced meanwhile; code that runs may hand its token out, then end with or without an outcome.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ("RULES", "Attempt", "Call", "S", "Scene", "Token")

RULES = {
    "row": "what has its outcome is not settled again",
    "try": "a token is for its try",
    "key": "a token is for its row: one that a continued run made is another",
    "keep": "what tokens are made with outlives the attempt that began it",
    "wait": "a later attempt that may be about to begin is waited for (A11)",
    "fence": "reports carry the token of the holder",
    "mark": "which call finished a try is kept",
    "mark.first": "a call that finished its try is told so, whatever became of the step",
    "before": "numbers of tries go on when the run does",
    "timeout": "a deferred try fails when nobody finishes it in time",
}

Token = tuple[int, int]
"""Which row made it, and for which try."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One configuration.

    Attributes:
        may: What may happen, so many times: `lost` (a holder is lost), `failed` (an attempt fails), `again` (a call or report
            is applied once more), `cancel` of the step by its run, `retry` (the run is terminated, and goes on).
        calls: What callers from outside want: "+" to complete, "-" to fail.
        tries: So many tries there are.
        without: Rules that are switched off.
    """

    may: dict[str, int] = field(default_factory=dict)
    calls: str = "+"
    tries: int = 2
    without: tuple[str, ...] = ()


class Attempt(NamedTuple):
    row: int
    number: int
    token: Token
    state: str = "go"  # go (has a right to begin) | run | said (its report is under way) | over
    says: str = ""  # completed | failed | deferred


class Call(NamedTuple):
    """One caller: who has which token. `answer`: "" none yet | ok | settled."""

    kind: str
    token: Token | None = None
    answer: str = ""
    done: bool = False  # it has finished the try
    late: bool = False  # a copy is under way


class S(NamedTuple):
    row: str = "Q"  # Q queued | H held | B backoff | D deferred | - none
    rows: int = 0  # which row: a run that goes on makes another
    number: int = 1  # of the try
    holder: int = -1  # number of the attempt
    keyed: bool = False  # an attempt before this one is over: what tokens are made with is kept
    cancel: bool = False
    made: int = 0  # so many attempts there were
    run: str = "A"
    ends: int = 0  # outcomes of this row
    tokens: frozenset[Token] = frozenset()  # handed out
    marks: tuple[tuple[int, int], ...] = ()  # try, caller
    attempts: tuple[Attempt, ...] = ()
    calls: tuple[Call, ...] = ()
    may: tuple[tuple[str, int], ...] = ()

    def with_(self, **change: Any) -> S:
        return self._replace(**change)

    def left_of(self, what: str) -> int:
        return dict(self.may).get(what, 0)

    def spend(self, what: str) -> S:
        return self._replace(may=tuple((k, n - 1) if k == what else (k, n) for k, n in self.may))

    def attempt(self, one: Attempt, **change: Any) -> S:
        kept = tuple(one._replace(**change) if a == one else a for a in self.attempts)
        return self._replace(attempts=tuple(a for a in kept if a.state != "over"))

    def call(self, index: int, **change: Any) -> S:
        calls = list(self.calls)
        calls[index] = calls[index]._replace(**change)
        return self._replace(calls=tuple(calls))
