"""What the row of a step becomes by each commit; see treadle.controlplane.machine.attempts, leases, deadlines, progress."""

from __future__ import annotations

from .limits_state import RULES, Attempt, Check, Scene, State

__all__ = ("AFTER", "Made", "Store")

AFTER = "code starts after its attempt was ended"
ENDED_TWICE = "an attempt is ended twice"
SECOND = "a second outcome is recorded"
BEHIND = "a try is given away behind the total timeout"
HEARD = "an attempt is ended as silent that was heard"
COUNTED = "a lost attempt uses up a try"

Made = tuple[State, str]
"""What a commit makes of the step, and the rule that is broken."""


class Store:
    """The servers' side of one scene."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.on = {rule: rule not in scene.without for rule in RULES}

    # --- dispatch ----------------------------------------------------------------------------------------------------
    def go(self, s: State) -> State:
        return s._replace(status="held", token=len(s.attempts), attempts=(*s.attempts, Attempt()), check=None)

    def over(self, s: State) -> State:
        return s._replace(status="over", token=-1, check=None)

    def claim(self, s: State) -> Made:
        if s.limit and self.on["limit.claim"]:
            return self.over(s), ""
        return self.go(s), BEHIND if s.limit else ""

    def dispatch(self, s: State) -> list[Made]:
        """To the broker, or to a credit at once."""
        queued = s._replace(status="queued", token=-1, check=None)
        if s.limit and self.on["limit.push"]:
            return [(self.over(s), "")]
        return [(queued, ""), (self.go(queued), BEHIND if s.limit else "")]

    # --- ends of an attempt ------------------------------------------------------------------------------------------
    def ended(self, s: State, place: int, how: str) -> Made:
        broken = ENDED_TWICE if s.attempts[place].recorded else ""
        return s.attempt(place, recorded=how), broken

    def failed(self, s: State, place: int) -> Made:
        s, broken = self.ended(s, place, "failed")
        if s.tried >= self.scene.tries or s.limit:
            return self.over(s), broken
        return s._replace(status="backoff", tried=s.tried + 1, token=-1, check=None), broken

    def lost(self, s: State, place: int, how: str = "lost") -> list[Made]:
        s, broken = self.ended(s, place, how)
        return [(after, broken or worse) for after, worse in self.dispatch(s)]

    def report(self, s: State, place: int, report: str) -> list[Made]:
        if s.status == "over":
            return [(s, "" if self.on["settled"] else SECOND)]
        if (s.status != "held" or s.token != place) and self.on["token"]:
            return [(s, "")]
        if report == "done":
            s, broken = self.ended(s, place, "done")
            return [(self.over(s), broken)]
        if report == "released":
            return self.lost(s, place, "released")
        return [self.failed(s, place)]

    # --- checks ------------------------------------------------------------------------------------------------------
    def checked(self, s: State, check: Check) -> list[Made]:
        """The holder's record was read; now the check commits."""
        s = s._replace(check=None)
        holder = s.holder
        if holder is None or ((s.token, holder.lease) != (check.token, check.lease) and self.on["same"]):
            return [(s, "")]
        place = s.token
        overdue = holder.overdue and (check.overdue or not self.on["read"])
        quiet = (holder.quiet or not self.on["fresh"]) and (check.quiet or not self.on["read"])
        ends = (overdue and self.on["overdue"]) or (s.overdue and self.on["limit.held"])
        silent = quiet and self.on["unheard"]
        if check.lost and (self.on["lost.first"] or not (ends or silent)):
            return self.lost(s, place)
        if not ends and not silent:
            return [(s, "")]
        after, broken = self.failed(s, place)
        counted = COUNTED if holder.died_early and not s.limit else ""
        return [(after, broken or counted or ("" if ends or holder.quiet else HEARD))]
