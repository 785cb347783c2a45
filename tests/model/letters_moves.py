"""All that may happen next to two runs and the letters between them."""

from __future__ import annotations

from typing import NamedTuple

from .bfs import Problem, Step
from .letters_runs import Runs, wanted
from .letters_state import Letter, Run, S, Scene

__all__ = ("Act", "Moves", "first", "problem")


class Act(NamedTuple):
    """What happens, so that it can be done to the real machine too."""

    what: str
    letter: Letter | None = None
    outcome: str = ""

    def __str__(self) -> str:
        return " ".join(str(part) for part in self if part)


def first(scene: Scene) -> S:
    """How a scene begins: P is there, and what has C's id."""
    other = Run(scene.c, 1 if scene.c != "-" else 0)
    return S(C=other, may=tuple(sorted(scene.may.items())))


def problem(scene: Scene) -> Problem[S]:
    """Two runs and their letters in one scene."""
    runs = Runs(scene)
    return Problem(
        first(scene),
        lambda s: [step for _, step in Moves(runs, s).all()],
        lambda s: _done(scene, s),
        lambda s: True,
    )


def _done(scene: Scene, s: S) -> bool:
    """P has ended and is swept, nobody has anything to tell, and no child is left that nobody wants."""
    left = s.C.state in "AN" and s.C.whose is not None and scene.policy != "leave"
    return s.P.state == "X" and s.P.row < 0 and not (s.out or s.told or s.C.left or left)


class Moves:
    """What may happen next in one state."""

    def __init__(self, runs: Runs, s: S) -> None:
        self.runs, self.on, self.scene, self.s = runs, runs.on, runs.scene, s
        self.out: list[tuple[Act, Step[S]]] = []

    def all(self) -> list[tuple[Act, Step[S]]]:
        if self.s.P.state == "A":
            self.parent()
        self.parent_over()
        if self.s.C.state == "A":
            self.child()
        self.child_over()
        for letter in self.s.out:
            if letter not in self.s.told:
                self.deliver(letter)
        for letter in self.s.told:
            self.tell(letter)
        for letter in self.s.late:
            self.deliver_late(letter)
        return self.out

    def go(self, act: Act, after: S, *, fault: bool = False, broken: str = "") -> None:
        posted = after.out - self.s.out
        self.out.append((act, Step(str(act), after, fault, broken)))
        if posted and not self.on["commit"] and self.s.left_of("kill"):
            lost = after._replace(out=after.out - posted).spend("kill")
            self.out.append((act, Step(f"{act}; killed before it posts its letter", lost, True, broken)))

    def maybe(self, budget: str, act: Act, after: S) -> None:
        """Something that may happen a few times; nobody can count on it."""
        if self.s.left_of(budget):
            self.go(act, after.spend(budget), fault=True)

    # --- P -----------------------------------------------------------------------------------------------------------
    def parent(self) -> None:
        s, p = self.s, self.s.P
        mine = self.scene.explicit or p.inc == 0
        if mine and not p.asked and p.heard != "done":
            asks = s.p(row=p.retries, row_cancel=False, asked=True, heard="").post(Letter("start", s.call))
            self.go(Act("P asks for its child"), asks)
        elif p.row < 0 or not self.scene.waits:
            self.parent_ends()
        if p.row >= 0 and not p.row_cancel:
            stop = Letter("stop", (p.inc, p.row), 1)
            self.maybe("p.cancel", Act("P's code cancels its child"), s.p(row_cancel=True).post(stop))
        ended = s.p(state="X", outcome="terminated")
        self.maybe("p.terminate", Act("a client terminates P"), ended)
        if p.asked:
            self.maybe("p.continue", Act("P ends, to go on as new"), s.p(state="N"))

    def parent_ends(self) -> None:
        s, p = self.s, self.s.P
        well = p.heard in ("done", "") and self.scene.waits
        if well or not self.scene.waits:
            self.go(Act("P returns"), s.p(state="X", outcome="done"))
        if not well:
            hook = Letter("hook", s.call)
            self.go(Act("P fails"), s.p(state="X", outcome="failed").post(hook))

    def parent_over(self) -> None:
        s, p = self.s, self.s.P
        if p.state == "A":
            return
        if p.row >= 0:
            swept = s.p(row=-1, row_cancel=False)
            if self.scene.policy != "leave" and self.on["sweep"]:
                swept = swept.post(Letter("stop", (p.inc, p.row)))
            self.go(Act("P is swept"), swept)
        if p.state == "N":
            if p.row < 0 or not self.on["continue.sweep"]:
                self.go(Act("P goes on as new"), s._replace(P=Run("A", p.inc + 1)))
            return
        if p.row < 0 or not self.on["sweep.reuse"]:
            self.maybe("p.reuse", Act("a client starts P's id anew"), s._replace(P=Run("A", p.inc + 1)))
        if p.outcome != "done" and (p.row < 0 or not self.on["sweep.redrive"]):
            on = p._replace(state="A", outcome="", retries=p.retries + 1, asked=p.heard == "done", row=-1)
            self.maybe("p.redrive", Act("a client lets P go on"), s._replace(P=on))

    # --- C -----------------------------------------------------------------------------------------------------------
    def child(self) -> None:
        s, c = self.s, self.s.C
        counted = c.whose is None or c.mine or wanted(s)
        for outcome in ("done", "failed"):
            self.go(Act("C ends", outcome=outcome), self.runs.close(s, outcome), fault=not counted)
        if c.cancel:
            self.go(Act("C ends", outcome="cancelled"), self.runs.close(s, "cancelled"))
        self.maybe("c.terminate", Act("a client terminates C"), self.runs.close(s, "terminated"))
        self.maybe("c.continue", Act("C ends, to go on as new"), s.c(state="N"))

    def child_over(self) -> None:
        s, c = self.s, self.s.C
        if c.state == "N":
            kept = c if self.on["continue.child"] else c._replace(whose=None, ids=())
            kept = kept if self.on["continue.cancel"] else kept._replace(cancel=False, by=None)
            next_part = kept._replace(state="A", inc=c.inc + 1, retries=0)
            self.go(Act("C goes on as new"), s._replace(C=next_part))
        elif c.state in "-T":
            self.maybe("c.reuse", Act("a client starts C's id"), s._replace(C=Run("A", c.inc + 1, lives=c.lives)))
        elif c.state == "X" and c.left:
            self.go(Act("C is swept"), s.c(left=False))
        elif c.state == "X":
            ids = c.ids if self.on["reuse.ids"] else ()
            other = Run("A", c.inc + 1, ids=ids, lives=c.lives)
            self.maybe("c.reuse", Act("a client starts C's id anew"), s._replace(C=other))
            if c.outcome != "done":
                self.maybe("c.redrive", Act("a client lets C go on"), self.runs.go_on(s).c(mine=True))

    # --- letters -----------------------------------------------------------------------------------------------------
    def deliver(self, letter: Letter) -> None:
        after, answer, broken = self.runs.apply(self.s, letter)
        act = Act("deliver", letter)
        gone = after._replace(out=after.out - {letter})
        if answer == "ok":
            self.go(act, gone, broken=broken)
            if self.s.left_of("again") and letter not in self.s.late:
                twice = gone._replace(late=gone.late | {letter}).spend("again")
                self.go(Act("deliver, and once more", letter), twice, fault=True, broken=broken)
        elif answer == "taken":
            kept = after if self.on["start.stays"] else gone
            self.go(act, kept._replace(told=after.told | {letter}), broken=broken)
        elif not self.on["applied"]:
            self.go(act, gone, broken=broken)

    def deliver_late(self, letter: Letter) -> None:
        after, answer, broken = self.runs.apply(self.s, letter)
        after = after._replace(late=after.late - {letter})
        if answer == "taken":
            after = after._replace(told=after.told | {letter})
        self.go(Act("deliver late", letter), after, fault=True, broken=broken)

    def tell(self, letter: Letter) -> None:
        """P is told that its child's id is taken; then the start leaves the outbox."""
        s = self.s
        heard = self.runs.hear(s._replace(told=s.told - {letter}), letter.call, "taken")
        gone = heard.after._replace(out=heard.after.out - {letter})
        self.go(Act("tell of the refusal", letter), gone, broken=heard.broken)
        self.maybe("told", Act("killed before it tells of the refusal", letter), s._replace(told=s.told - {letter}))
