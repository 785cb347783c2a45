"""All that may happen next to a run that is sent signals: the rules are those of `machine/signals.py` and `continuation.py`."""

from __future__ import annotations

from .bfs import Problem, Step
from .signals_state import QUESTION, RULES, Request, S, Scene

__all__ = ("Moves", "problem")

_TWICE = "S1: a signal is recorded twice"
_ORDER = "S2: signals of a sender are recorded in another order"
_LOST = "S3: an acknowledged signal is swallowed"
_REFUSED = "S4: a signal is refused although it was recorded"
_ANSWER = "S5: who asks is told of no answer, or of another one, although there was one"
_RESULT = "S6: the first handle is not told the result of its last part"


def problem(scene: Scene) -> Problem[S]:
    """Signals to a run, in one scene."""
    first = S(may=tuple(sorted(scene.may.items())))
    return Problem(first, lambda s: Moves(scene, s).all(), lambda s: _done(scene, s), lambda s: True)


def _done(scene: Scene, s: S) -> bool:
    asked = QUESTION not in s.ever or s.heard != -1
    return s.state == "X" and not s.left and bool(s.result) and asked and (s.refused or s.sent == len(scene.letters))


class Moves:
    """What may happen next in one state."""

    def __init__(self, scene: Scene, s: S) -> None:
        self.scene, self.s = scene, s
        self.on = {rule: rule not in scene.without for rule in RULES}
        self.out: list[Step[S]] = []

    def all(self) -> list[Step[S]]:
        s = self.s
        self.sender()
        for letter in s.late:
            after, _, broken = self.receive(letter)
            self.go(f"{letter} is applied late", after.with_(late=s.late - {letter}), True, broken)
        if s.state == "A":
            self.code()
        if s.said is not None:
            self.last_word(s.said)
        if s.state != "A" and s.left:
            gone = s.with_(left=False)
            if not self.on["sweep.notes"]:
                gone = gone.with_(notes=frozenset(), answer=-1)
            self.go("what the code left is swept", gone)
        elif s.state == "N":
            self.next_part()
        if s.state == "X":
            self.closed()
        self.asker()
        self.watcher()
        return self.out

    def go(self, label: str, after: S, fault: bool = False, broken: str = "") -> None:
        self.out.append(Step(label, after, fault, broken))

    def maybe(self, budget: str, label: str, after: S, broken: str = "") -> None:
        if self.s.left_of(budget):
            self.go(label, after.spend(budget), True, broken)

    # --- who sends ---------------------------------------------------------------------------------------------------
    def sender(self) -> None:
        s = self.s
        if s.refused or s.sent == len(self.scene.letters):
            return
        letter = self.scene.letters[s.sent]
        after, answer, broken = self.receive(letter)
        if answer == "again":
            return
        if answer == "closed" and letter in s.ever:
            broken = broken or _REFUSED
        answered = after.with_(sent=s.sent + 1) if answer == "ok" else after.with_(refused=True)
        self.go(f"{letter} is sent: {answer}", answered, broken=broken)
        if answer == "ok":
            self.maybe("again", f"{letter} is taken, its answer lost", after, broken)
            slow = answered.with_(late=s.late | {letter})
            self.maybe("again", f"{letter} is taken, another copy is under way", slow, broken)

    def receive(self, letter: int) -> tuple[S, str, str]:
        """A signal, as a replica decides it: the state after it, the answer, and what it broke."""
        s = self.s
        known = letter in s.notes and self.on["once"]
        if known and (s.state == "A" or self.on["known.first"]):
            return s, "ok", ""
        if s.state == "X":
            return s, "closed", ""
        if s.state == "N":
            if self.on["between"]:
                return s, "again", ""
            return s.with_(ever=(*s.ever, letter)), "ok", _LOST  # into a history that has ended
        broken = _TWICE if letter in s.ever else _ORDER if any(letter < other for other in s.ever) else ""
        after = s.with_(hist=(*s.hist, letter), ever=(*s.ever, letter), notes=s.notes | {letter})
        return after, "ok", broken

    # --- the code ----------------------------------------------------------------------------------------------------
    @property
    def wants(self) -> int:
        return self.scene.parts[self.s.part]

    def code(self) -> None:
        s = self.s
        if s.fed < len(s.hist):
            fed = s.with_(fed=s.fed + 1)
            if s.hist[s.fed] == QUESTION and s.fed < self.wants:
                fed = fed.with_(answer=s.part if s.answer < 0 else s.answer)
            self.go(f"the code is fed {s.hist[s.fed]}", fed)
        received = s.hist[: min(s.fed, self.wants)]
        if len(received) == self.wants and s.said is None:
            rest = s.hist[self.wants : s.fed]
            self.go("the code ends", s.with_(said=Request(s.part, s.fed, rest, s.hist[: s.fed])))
        quiet = s.refused or s.sent == len(self.scene.letters)
        if s.said is None and quiet and s.fed == len(s.hist) < self.wants:
            self.go("the code waits no longer", s.with_(said=Request(s.part, s.fed, (), s.hist)))
        closed = s.with_(state="X", outcome="terminated", said=None, left=self.scene.rows)
        self.maybe("terminate", "a client terminates the run", closed)

    def last_word(self, said: Request) -> None:
        """The code's end is committed, if it is still that of this part, and the code has seen everything."""
        s = self.s
        done = s.with_(said=None)
        if s.state != "A" or (said.part != s.part and self.on["fence"]):
            self.go("the last word comes too late", done)
            return
        if said.seen < len(s.hist) and self.on["seen"]:
            self.go("the last word is answered NEWS", done)
            return
        after, broken = self.ended(done, said)
        self.go("the last word is committed", after, broken=broken)
        self.maybe("again", "the last word is committed, another copy is under way", after.with_(said=said), broken)

    def ended(self, s: S, said: Request) -> tuple[S, str]:
        wants = self.scene.parts[said.part]
        received, unread = s.hist[:wants], s.hist[wants:]
        if s.part == len(self.scene.parts) - 1 or len(received) < wants:
            outcome = "failed" if self.scene.fails else f"done{s.part}"
            lost = unread != said.carried
        elif len(said.carried) > self.scene.room and self.on["room"]:
            outcome, lost = "failed", unread != said.carried
        else:
            carried = said.carried[: self.scene.room] if self.on["carried"] else ()
            going = s.with_(
                state="N", next=said._replace(carried=carried), left=self.scene.rows, got=(*s.got, *received)
            )
            return going, _LOST if carried != unread else ""
        closed = s.with_(state="X", outcome=outcome, unread=said.carried, left=self.scene.rows)
        return closed, _LOST if lost else ""

    def next_part(self) -> None:
        s = self.s
        assert s.next is not None
        known = s.notes if self.on["kept.ids"] else frozenset(s.next.known) & s.notes
        begins = s.with_(
            state="A",
            part=s.part + 1,
            hist=s.next.carried,
            fed=0,
            next=None,
            notes=known,
            answer=s.answer if self.on["kept.answers"] else -1,
        )
        self.go("the next part begins", begins)

    def closed(self) -> None:
        """What clients do with a run that has closed, once it is swept."""
        s = self.s
        if s.left:
            return
        if s.outcome in ("failed", "terminated"):
            on = s.with_(state="A", tries=s.tries + 1, outcome="", unread=(), fed=0, said=None, result="")
            if not self.on["retry.notes"]:
                on = on.with_(notes=frozenset(), answer=-1)
            self.maybe("retry", "a client lets the run go on", on)
        if s.sent == len(self.scene.letters) or s.refused:
            other = s.with_(outcome=f"another{s.start}", start=s.start + 1, part=0)
            self.maybe("reuse", "the id is used again, by a run that ends", other)

    # --- who waits ---------------------------------------------------------------------------------------------------
    def asker(self) -> None:
        s = self.s
        if QUESTION not in s.ever or s.heard != -1 or s.start:
            return
        answered = QUESTION in s.got or (QUESTION in s.hist[: self.wants] and s.hist.index(QUESTION) < s.fed)
        if s.answer >= 0:
            self.go("who asked reads the answer", s.with_(heard=s.answer))
        elif s.state == "X":
            broken = _ANSWER if answered else ""
            self.go("who asked is told that the run is closed", s.with_(heard=-2), broken=broken)

    def watcher(self) -> None:
        s = self.s
        if s.state != "X" or s.result:
            return
        mine = s.start == 0 and (s.part == 0 or self.on["first"])
        if mine or (s.start and not self.on["handle"]):
            self.go("the first handle is told", s.with_(result=s.outcome), broken=_RESULT if s.start else "")
        else:
            self.go("the first handle is told of another run", s.with_(result="-"), broken="" if s.start else _RESULT)
