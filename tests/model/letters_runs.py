"""The servers' side of the model of letters: what each of them does to the run that it is for, in one commit.

The rules are those of `machine/children.py`, `runs.stop`, `redrive.start_child_again` and `failures.start_hook`.
"""

from __future__ import annotations

from typing import NamedTuple

from .letters_state import RULES, Call, Letter, Run, S, Scene

__all__ = ("Applied", "Runs", "wanted")

_TWICE = "S1: a start is acted on twice"
_HEARD = "S2: P hears of its child twice"
_OTHER = "S3: P is told of what another call asked for"
_FALSE = "S4: P is told that the id is taken, although its child was started"
_STRANGER = "S5: a stop hits a run that is no child"
_WANTED = "S6: a stop of an earlier call hits a child that is wanted"
_HOOKS = "S7: a failure has two hooks"
_INPUT = "S8: P is given what its child made of another input"


class Applied(NamedTuple):
    """What a letter did. `answer`: ok | again (nothing was changed, it comes again) | taken (its writer is to be told)."""

    after: S
    answer: str = "ok"
    broken: str = ""


def wanted(s: S) -> bool:
    """Whether P waits for the run that has C's id, as its child."""
    p, whose = s.P, s.C.whose
    return p.state == "A" and p.row >= 0 and not p.row_cancel and whose == (p.inc, p.row)


class Runs:
    """What the store does, in one scene."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.on = {rule: rule not in scene.without for rule in RULES}

    def apply(self, s: S, letter: Letter) -> Applied:
        """Deliver a letter to the run that it is for."""
        if letter.kind == "start":
            return self._start_again(s, letter) if letter.call[1] else self._start(s, letter)
        if letter.kind == "stop":
            return self._stop(s, letter)
        if letter.kind == "closed":
            return self.hear(s, letter.call, letter.outcome, letter.by, letter.input)
        return self._hook(s, letter)

    # --- the child ---------------------------------------------------------------------------------------------------
    def _start(self, s: S, letter: Letter) -> Applied:
        c = s.C
        if letter in c.ids and self.on["start.once"]:
            return Applied(s)
        if c.state in "-T":
            return self._begin(s, letter)
        if not self.on["start.once"] and c.whose == letter.call:
            return self._begin(s, letter)
        if not self.on["start.reject"]:
            return Applied(s)
        return Applied(s, "taken" if self.on["start.told"] else "ok")

    def _begin(self, s: S, letter: Letter) -> Applied:
        c = s.C
        kept = c.ids if c.state not in "-T" and self.on["reuse.ids"] else ()
        given = letter.call[1] if self.scene.over else 0
        fresh = Run("A", c.inc + 1, ids=(letter, *kept), whose=letter.call, lives=c.lives, input=given)
        return self._acted(s._replace(C=fresh), s, letter)

    def _acted(self, after: S, s: S, letter: Letter) -> Applied:
        return Applied(after._replace(acted=s.acted | {letter}), broken=_TWICE if letter in s.acted else "")

    def _start_again(self, s: S, letter: Letter) -> Applied:
        """A later call asks for a child that an earlier one had asked for."""
        c = s.C
        if c.state in "-T" or c.whose is None or c.whose[0] != letter.call[0]:
            return self._start(s, letter)
        if c.whose[1] >= letter.call[1] and (self.on["again.once"] or c.state != "X"):
            return Applied(s)
        if c.state != "X" and c.cancel and self.on["again.cancelled"]:
            return Applied(s, "again")
        if c.state != "X" and self.scene.over and self.on["again.over"]:
            return Applied(s, "again")
        if c.state == "X" and c.left:
            return Applied(s, "again")
        if c.state == "X" and (c.outcome == "done" or self.scene.over):
            return self._begin(s, letter)
        after = s.c(whose=letter.call, ids=(*c.ids, letter) if self.on["again.ids"] else c.ids)
        return self._acted(self.go_on(after) if c.state == "X" else after, s, letter)

    def go_on(self, s: S) -> S:
        """C is continued."""
        return s.c(state="A", retries=s.C.retries + 1, outcome="", cancel=False, by=None, left=False)

    def _stop(self, s: S, letter: Letter) -> Applied:
        c, call = s.C, letter.call
        if c.state == "-":
            return Applied(s, "again" if self.on["stop.before"] else "ok")
        if c.state == "T":
            known = not self.on["stop.tombstone"] or c.whose == call
            return Applied(s, "ok" if known else "again")
        earlier = c.whose is not None and c.whose[0] == call[0] and c.whose[1] < call[1]
        if earlier and self.on["stop.newer"]:
            return Applied(s, "again")
        if c.state == "X" or (c.whose != call and self.on["stop.child"]):
            return Applied(s)
        if letter in c.ids:
            return Applied(s)
        if c.state == "N":
            return Applied(s, "again")
        broken = _STRANGER if c.whose is None else _WANTED if c.whose != call and wanted(s) else ""
        after = s.c(ids=(*c.ids, letter))
        if self.scene.policy == "terminate" and not letter.number:
            return Applied(self.close(after, "terminated"), broken=broken)
        if not c.cancel:
            after = after.c(cancel=True, by=call)
        return Applied(after, broken=broken)

    def close(self, s: S, outcome: str) -> S:
        """C closes; its parent is told."""
        c = s.C
        after = s.c(state="X", outcome=outcome, left=self.scene.leaves, lives=c.lives + 1)
        if c.whose is None:
            return after
        by = c.by if outcome == "cancelled" else None
        return after.post(Letter("closed", c.whose, c.lives, outcome, by, c.input))

    # --- the parent --------------------------------------------------------------------------------------------------
    def hear(self, s: S, call: Call, outcome: str, by: Call | None = None, given: int = 0) -> Applied:
        """P is told how its child ended, or that it was not started."""
        p, named = s.P, self.on["closed.call"]
        if p.state != "A" or (p.inc != call[0] and named):
            return Applied(s)
        if p.row < 0:
            return Applied(s) if self.on["closed.row"] else Applied(s, broken=_HEARD)
        if p.row != call[1] and named:
            return Applied(s)
        broken = ""
        if (p.inc, p.row) != call:
            broken = _OTHER
        elif outcome == "taken" and Letter("start", call) in s.acted:
            broken = _FALSE
        elif by is not None and by != call and not p.row_cancel:
            broken = _WANTED
        elif outcome == "done" and self.scene.over and given != call[1]:
            broken = _INPUT
        return Applied(s.p(row=-1, row_cancel=False, heard=outcome), broken=broken)

    def _hook(self, s: S, letter: Letter) -> Applied:
        if letter not in s.acted:
            return Applied(s._replace(acted=s.acted | {letter}))
        return Applied(s, broken="" if self.on["hook.id"] else _HOOKS)
