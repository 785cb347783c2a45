"""The servers' side of the model: what a claim and a request of an owner do to the run, each in one commit."""

from __future__ import annotations

from typing import Any

from .state import AGAIN, RESULTS, RULES, Grant, Hist, Request, S, Scene, Worker, add, rem

__all__ = ("REPORTS", "SAW_ANOTHER", "Base")

REPORTS = ("report+cmds", "report+close")

SAW_ANOTHER = "S4: the coroutine saw another order than the history has"
_PAST = "S4: closed past an input it has not seen"
_NOT_ASKED = "S4: a command is recorded that the history does not ask for"
_TWICE = "S1: a result is recorded twice"


class Base:
    """What code asks for, and what the store does, in one scene."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.on = {rule: rule not in scene.without for rule in RULES}
        self.rollback = "rollback" in scene.kinds

    # --- the code of the workflow ----------------------------------------------------------------------------------
    def over(self, fed: Hist) -> bool:
        if self.scene.own:
            return "x" in fed or done("r", fed)
        return "x" in fed or ({*self.scene.pool, *self.scene.then} <= {*fed} and has("l", fed))

    def asks(self, fed: Hist) -> int:
        """How many batches of pool steps the code has asked for: those at the start, then r."""
        if self.scene.own:
            before = fed[: fed.index("x")] if "x" in fed else fed
            return 2 if done("p", before) else 1
        if self.scene.then != "r" or not has("l", fed):
            return 1
        before = fed[: min(fed.index(x) for x in RESULTS["l"] if x in fed)]
        return 1 if "x" in before else 2

    def local(self, fed: Hist) -> str:
        """Which local step the code waits for."""
        if self.scene.own:
            return ""
        first = self.scene.pool[:1] if self.scene.pool != "q" else ""
        if self.over(fed) or (first and first not in fed):
            return ""
        if not has("l", fed):
            return "l"
        return "m" if self.scene.then == "m" else ""

    def alone(self, fed: Hist) -> bool:
        """Whether it waits for nothing else."""
        return {*self.scene.pool} <= {*fed} or not self.on["R10.alone"]

    def pool_steps(self, cmds: int) -> str:
        """The pool steps that were asked for in so many batches."""
        return (self.scene.pool if cmds else "") + ("r" if cmds == 2 else "")

    def view(self, k: Worker) -> Hist:
        """What the coroutine has seen, its guess too."""
        return (*k.fed, k.result) if k.phase == "ahead" else k.fed

    # --- commits ---------------------------------------------------------------------------------------------------
    def append(self, s: S, event: str) -> S:
        """Who must know is told: by hints and the watch while open, by a dispatch while parked."""
        s = s._replace(hist=(*s.hist, event))
        return s.wake() if s.status == "P" and self.on["R3.wake"] else s

    def open(self, s: S, who: int, claim: int) -> S:
        return s._replace(
            status="O",
            tok=s.nt,
            nt=s.nt + 1,
            owner=who,
            claim=claim,
            check="",
            seen=0,
            cache=-1,
            live=add(s.live, s.nt),
        )

    def verdict(self, s: S, who: int, claim: int) -> tuple[S, str]:
        if s.status in "CP":
            return s, "STALE"
        if s.status == "Q":
            return self.open(s, who, claim), "GO"
        if (s.owner, s.claim) == (who, claim):
            return self._renewed(s, s.tok), "GO"
        return s, "HELD"

    def _renewed(self, s: S, token: int) -> S:
        return s._replace(check="" if self.on["A6.order"] else s.check, live=add(rem(s.live, token), token))

    def report(self, s: S, r: Request) -> tuple[S, str, str]:
        """Returns the next state, the answer, and the rule that is broken."""
        on = self.on
        reported = r.kind in REPORTS
        if reported and s.status != "C" and not done(r.result, s.hist):  # whoever owns the run by now
            s = self.append(s, r.result)
        if not (s.status == "O" and (s.tok == r.token or not on["R1"])):
            return s, "OK" if s.last == (r.token, r.kind) else "LOST", ""
        if r.kind == "release":  # whatever it was told: it gives back what it holds, and what it knows
            s = self.append(s, r.result) if r.result and not recorded(r.result, s.hist) else s
            return s.wake(), "OK", ""
        ahead = r.seen > len(s.hist) or r.fed != s.hist[: len(r.fed)] or r.told > s.cmds
        if on["R4.rewind"] and (ahead or (r.mine and r.mine not in s.hist and on["R4.told"])):
            return s, "REWIND", ""
        s = self._renewed(s, r.token)._replace(seen=max(r.seen, s.seen))
        if reported:
            return self._foretold(s, r)
        if r.kind == "cmds":
            return self._commands(s, r, "")
        if r.kind == "result":
            new = not recorded(r.result, s.hist)
            s = self.append(s, r.result) if new else s
            return self._commands(s, r, "" if new or on["R7"] else _TWICE)
        if r.kind == "result+close":
            return self._ahead(s, r)
        if r.seen < len(s.hist) and on["R5." + r.kind]:
            return s, "NEWS", ""
        if r.kind == "park":
            return self._ended(s, r)._replace(status="P", cache=r.who), "OK", ""
        return self._ended(s, r), "OK", "" if len(r.fed) == len(s.hist) else _PAST

    def _ended(self, s: S, r: Request) -> S:
        return s._replace(status="C", owner=-1, tok=-1, claim=-1, check="", last=(r.token, r.kind))

    def _commands(self, s: S, r: Request, broken: str) -> tuple[S, str, str]:
        if r.asks > max(1, s.cmds) and self.asks(s.hist) < r.asks:
            broken = broken or _NOT_ASKED
        return s._replace(cmds=max(s.cmds, r.asks) if r.asks else s.cmds), "OK", broken

    def _ahead(self, s: S, r: Request) -> tuple[S, str, str]:
        """R10: a result, and the end that follows from it if its event is the next that the code is to see."""
        known = recorded(r.result, s.hist)
        if known and self.on["R10.once"]:
            return s, "NEWS", ""
        next_one = r.seen == len(s.hist)
        s = self.append(s, r.result)
        if known:
            return s, "NEWS", _TWICE
        if not next_one and self.on["R10.length"]:
            return s, "NEWS", ""
        return self._ended(s, r), "OK", "" if (*r.fed, r.result) == s.hist else _PAST

    def _foretold(self, s: S, r: Request) -> tuple[S, str, str]:
        """R10: what follows from the result of a pool step that was reported before."""
        position = len(r.fed) + 1
        if s.hist[len(r.fed) : position] != (r.result,) and self.on["R10.stands"]:
            return s, "REWIND", ""
        s = s._replace(seen=max(position, s.seen))
        if r.kind == "report+cmds":
            return self._commands(s, r, "")
        if position < len(s.hist) and self.on["R10.length"]:
            return s, "NEWS", ""
        return self._ended(s, r), "OK", "" if (*r.fed, r.result) == s.hist else _PAST

    # --- states ----------------------------------------------------------------------------------------------------
    def stored(self, s: S) -> tuple[Any, ...]:
        return s.status, s.tok, s.owner, s.claim, s.last, s.cmds, s.hist, s.seen, s.cache, s.outbox

    def restored(self, s: S) -> S:
        assert s.before is not None
        status, tok, owner, claim, last, cmds, hist, seen, cache, outbox = s.before
        return s._replace(
            status=status, tok=tok, owner=owner, claim=claim, last=last, cmds=cmds, hist=hist, seen=seen, cache=cache,
            outbox=outbox, check="", before=None,
        )  # fmt: skip

    def grant(self, s: S) -> Grant:
        return Grant(s.tok, s.hist, s.cmds)


def done(step: str, fed: Hist) -> bool:
    """Whether a pool step has a result, of whichever attempt."""
    return step in fed or AGAIN.get(step, step) in fed


def has(step: str, fed: Hist) -> bool:
    return any(result in fed for result in RESULTS[step])


def recorded(result: str, hist: Hist) -> bool:
    """Whether the step that came out so has an outcome."""
    return any(result in results and any(x in hist for x in results) for results in RESULTS.values())
