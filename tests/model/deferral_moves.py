"""All that may happen next to a step that may be finished from outside: the rules are those of `machine/deferral.py`."""

from __future__ import annotations

from .bfs import Problem, Step
from .deferral_state import RULES, Attempt, Call, S, Scene

__all__ = ("Moves", "problem")

_TWICE = "S1: a step has two outcomes"
_OTHER = "S2: a token settles another try, or another row"
_BEGINS = "S3: code begins after the outcome of its try was recorded"
_DENIED = "S4: a call that finished its try is told that it did not"
_BOTH = "S5: two calls are told that they finished one try"
_USELESS = "S7: who has the token of an open try is refused"
_FENCED = "S6: an attempt that was fenced changes the step"


def problem(scene: Scene) -> Problem[S]:
    """A step in one scene."""
    first = S(calls=tuple(Call(kind) for kind in scene.calls), may=tuple(sorted(scene.may.items())))
    return Problem(first, lambda s: Moves(scene, s).all(), _done, lambda s: True)


def _done(s: S) -> bool:
    return s.row == "-" and s.run == "A" and all(call.token is None or call.answer for call in s.calls)


class Moves:
    """What may happen next in one state."""

    def __init__(self, scene: Scene, s: S) -> None:
        self.scene, self.s = scene, s
        self.on = {rule: rule not in scene.without for rule in RULES}
        self.out: list[Step[S]] = []

    def all(self) -> list[Step[S]]:
        self.servers()
        for one in self.s.attempts:
            self.attempt(one)
        for index, call in enumerate(self.s.calls):
            self.caller(index, call)
        self.the_run()
        return self.out

    def go(self, label: str, after: S, fault: bool = False, broken: str = "") -> None:
        self.out.append(Step(label, after, fault, broken))

    def maybe(self, budget: str, label: str, after: S, broken: str = "") -> None:
        if self.s.left_of(budget):
            self.go(label, after.spend(budget), True, broken)

    # --- the control plane ---------------------------------------------------------------------------------------------
    def servers(self) -> None:
        s = self.s
        if s.row == "Q":
            began = Attempt(s.rows, s.made + 1, (s.rows, s.number))
            held = s.with_(row="H", holder=began.number, made=began.number, attempts=(*s.attempts, began))
            self.go(f"attempt {began.number} of try {s.number} gets GO", held)
        if s.row == "B":
            self.go(f"try {s.number} is due", s.with_(row="Q"))
        if s.row == "D" and self.on["timeout"]:
            self.go("nobody finished it in time", self.fail_try(s))
        if s.row == "H":
            # Only when any right that it may have is over (A4): it begins no more, but may have begun.
            begun = tuple(a for a in s.attempts if a.number != s.holder or a.state != "go")
            lost = s.with_(attempts=begun)
            if s.cancel:
                self.maybe("lost", f"attempt {s.holder} is lost, the step is cancelled", self.settle(lost))
            else:
                self.maybe("lost", f"attempt {s.holder} is lost, dispatched again", self.unhold(lost).with_(row="Q"))

    def unhold(self, s: S) -> S:
        keyed = s.keyed or self.on["keep"]
        return s.with_(holder=-1, keyed=keyed)

    def settle(self, s: S) -> S:
        """The step has its outcome."""
        return s.with_(row="-", holder=-1, keyed=False, cancel=False, ends=s.ends + 1)

    def fail_try(self, s: S) -> S:
        if s.cancel or s.number - self.before(s) >= self.scene.tries:
            return self.settle(s)
        return self.unhold(s).with_(row="B", number=s.number + 1)

    def before(self, s: S) -> int:
        """How many tries the rows before this one had."""
        return s.rows * self.scene.tries if self.on["before"] else 0

    # --- attempts ------------------------------------------------------------------------------------------------------
    def attempt(self, one: Attempt) -> None:
        s = self.s
        holds = s.row == "H" and s.holder == one.number and s.rows == one.row
        if one.state == "go":
            over = any(call.done and call.token == one.token for call in s.calls)
            self.go(
                f"attempt {one.number} begins its code", s.attempt(one, state="run"), broken=_BEGINS if over else ""
            )
            if not holds:
                self.go(f"the right of attempt {one.number} is over", s.attempt(one, state="over"))
        elif one.state == "run":
            if one.token not in s.tokens:
                self.go(f"attempt {one.number} hands its token out", s.with_(tokens=s.tokens | {one.token}))
            else:
                self.go(f"attempt {one.number} defers", s.attempt(one, state="said", says="deferred"))
            self.go(f"attempt {one.number} returns", s.attempt(one, state="said", says="completed"))
            self.maybe("failed", f"attempt {one.number} fails", s.attempt(one, state="said", says="failed"))
        elif one.state == "said":
            after, broken = self.report(one, holds)
            label = f"attempt {one.number} reports {one.says}"
            self.go(label, after.attempt(one, state="over"), broken=broken)
            self.maybe("again", f"{label}, and once more", after, broken)

    def report(self, one: Attempt, holds: bool) -> tuple[S, str]:
        s = self.s
        if not holds and (s.row != "H" or self.on["fence"]):
            return s, ""
        broken = "" if holds else _FENCED
        if one.says == "completed" or s.cancel:
            return self.settle(s), broken
        if one.says == "failed":
            return self.fail_try(s), broken
        return self.unhold(s).with_(row="D"), broken

    # --- who has a token -----------------------------------------------------------------------------------------------
    def caller(self, index: int, call: Call) -> None:
        s = self.s
        if call.token is None:
            for token in s.tokens:
                who = f"caller {index} takes the token of try {token[1]}"
                self.go(who, s.call(index, token=token), True)
            return
        if not call.answer:
            after, answer, broken = self.decide(index, call)
            if answer == "again":
                return
            if answer == "settled" and call.done:
                broken = broken or _DENIED
            open_still = s.row in "QHD" and call.token == (s.rows, s.number)
            if (
                answer == "settled"
                and open_still
                and not any(other.done and other.token == call.token for other in s.calls)
            ):
                broken = broken or _USELESS
            label = f"caller {index} calls: {answer}"
            self.go(label, after.call(index, answer=answer), broken=broken)
            self.maybe("again", f"{label}, the answer is lost", after, broken)
            self.maybe(
                "again", f"{label}, another copy is under way", after.call(index, answer=answer, late=True), broken
            )
        elif call.late:
            after, _, broken = self.decide(index, call)
            self.go(f"a late copy of caller {index}", after.call(index, late=False), True, broken)

    def decide(self, index: int, call: Call) -> tuple[S, str, str]:
        """A call, as a replica decides it: the state after it, the answer, and what it broke."""
        s = self.s
        assert call.token is not None
        row, number = call.token
        mark = dict(s.marks).get(number)
        if mark is not None and self.on["mark"]:
            if mark == index and (self.on["mark.first"] or s.row != "-"):
                return s, "ok", ""
            return s, "settled", ""
        if s.run != "A":
            return s, "settled", ""
        if s.row == "-":
            return (s, "settled", "") if self.on["row"] else (s.with_(ends=s.ends + 1), "ok", _TWICE)
        if number != s.number and (number < s.number and self.on["try"]):
            return s, "settled", ""
        mine = row == s.rows and (s.keyed or s.row == "H")
        if not mine and self.on["key"]:
            return s, "settled", ""
        unused = any(a.number == s.holder and a.state == "go" for a in s.attempts)
        if s.row == "H" and s.keyed and unused and self.on["wait"]:
            return s, "again", ""
        broken = _OTHER if call.token != (s.rows, s.number) else ""
        if any(other.done and other.token == call.token for other in s.calls):
            broken = _BOTH
        after = s.with_(marks=(*s.marks, (number, index))).call(index, done=True)
        return self.settle(after) if call.kind == "+" else self.fail_try(after), "ok", broken

    # --- the run -------------------------------------------------------------------------------------------------------
    def the_run(self) -> None:
        s = self.s
        if s.run == "A" and s.row in "QBD":
            self.maybe("cancel", "its run needs it no longer", self.settle(s))
        if s.run == "A" and s.row == "H" and not s.cancel:
            self.maybe("cancel", "its run needs it no longer; its holder is told", s.with_(cancel=True))
        if s.run == "A" and s.row != "-":
            gone = s.with_(run="X", row="-", holder=-1, keyed=False, cancel=False)
            self.maybe("retry", "its run is terminated, and swept", gone)
        if s.run == "X":
            rows = s.rows + 1
            number = 1 + (rows * self.scene.tries if self.on["before"] else 0)
            again = s.with_(run="A", row="Q", rows=rows, number=number, ends=0)
            self.go("its run goes on, and asks for it again", again)
