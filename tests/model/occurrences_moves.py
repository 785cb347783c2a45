"""All that may happen next in a state of the model of schedules: time, servers, what people ask, letters, runs.

A server that is late, or away, is one that does nothing while the clock goes on. One that dies between applying a letter and
removing it, and two that deliver the same one, are the same: the letter comes again.
"""

from __future__ import annotations

from .bfs import Problem, Step
from .occurrences_state import Letter, Scene, Started, State
from .occurrences_store import LOST, Store

__all__ = ("problem",)

AT_ONCE = "two runs at once"
_OPEN = ("open", "asked")


def problem(scene: Scene) -> Problem[State]:
    """A schedule in one scene."""
    store = Store(scene)
    runs = [Started("other") if n in scene.taken else Started() for n in range(scene.count + 2)]
    first = State(
        runs=tuple(runs),
        fates=("none", *([""] * scene.count), "none"),
        faults=scene.faults,
        pauses=scene.pauses,
        changes=scene.changes,
        triggers=scene.triggers,
        deletes=scene.deletes,
        again=scene.again,
    )
    return Problem(first, lambda s: Moves(store, s).all(), lambda s: _done(scene, s), lambda s: True)


def _done(scene: Scene, s: State) -> bool:
    """Each occurrence has its fate, what was started is there, and nothing is under way."""
    record = s.record
    rests = record.deleted or not (record.next or record.queue or record.paused)
    if not rests or s.letters or s.held or "" in s.fates or s.clock <= scene.count:
        return False
    if any(fate == "started" and run.status == "absent" for fate, run in zip(s.fates, s.runs, strict=True)):
        return False
    going = sum(run.status in (*_OPEN, "again") for run in s.runs)
    return going <= 1 if scene.endless else not (going or record.open)


class Moves:
    """What may happen next in one state."""

    def __init__(self, store: Store, s: State) -> None:
        self.store, self.scene, self.s = store, store.scene, s
        self.out: list[Step[State]] = []

    def all(self) -> list[Step[State]]:
        s = self.s
        if s.clock <= self.scene.count + (self.scene.window < self.scene.count):
            self.go("a tick", s._replace(clock=s.clock + 1))
        self.decisions()
        self.people()
        for letter in s.letters:
            self.delivery(letter)
        for letter in s.held:
            rest = s._replace(held=tuple(one for one in s.held if one != letter))
            written = rest._replace(letters=tuple(sorted((*s.letters, letter))))
            self.go(f"the server writes the letter: {said(letter)}", written)
            self.hit("kill", f"the server is killed before it has written: {said(letter)}", rest)
        for n, run in enumerate(s.runs):
            self.run(n, run)
        return self.out

    def go(self, label: str, after: State, fault: bool = False, broken: str = "") -> None:
        if not self.store.on["revision"] and after.record != self.s.record:
            after = after._replace(before=self.s.record)
        self.out.append(Step(label, renamed(after), fault, broken or self.broken(after)))

    def hit(self, kind: str, label: str, after: State, broken: str = "") -> None:
        if self.s.faults and kind in self.scene.kinds:
            self.go("FAULT " + label, after._replace(faults=self.s.faults - 1), True, broken)

    def broken(self, s: State) -> str:
        record = s.record
        if not record.paused and not record.deleted:
            past = record.next or self.scene.count + 1
            if any(not fate for fate in s.fates[:past]):
                return LOST
        if self.scene.policy != "allow" and sum(run.status in _OPEN for run in s.runs) > 1:
            return AT_ONCE
        return ""

    # --- servers -----------------------------------------------------------------------------------------------------
    def decisions(self) -> None:
        s, store = self.s, self.store
        due = store.advance(s, s.clock)
        if due != s:
            self.go(f"a server decides at {s.clock} what is due", due)
        early = store.advance(s, s.clock + 1)
        if early != due and not store.on["not.before"]:
            self.hit("ahead", f"a server decides at {s.clock}, by its clock {s.clock + 1}, what is due", early)
        if s.before is not None:
            again = store.advance(s._replace(record=s.before), s.clock)
            if again.record != s.before:
                self.hit("both", f"another server has decided at {s.clock} what was due before", again)

    def people(self) -> None:
        s, store = self.s, self.store
        if s.record.deleted:
            return
        if s.record.paused:
            self.go("it is resumed", store.resume(s))
        elif s.pauses:
            self.go("it is paused", store.pause(s)._replace(pauses=s.pauses - 1), True)
        if s.changes and not s.record.paused:
            self.go("it is changed", store.retime(s)._replace(changes=s.changes - 1), True)
        triggered = store.trigger(s) if s.triggers else None
        if triggered is not None:
            triggered = triggered._replace(triggers=s.triggers - 1)
            self.go("it is triggered", triggered, True)
            if s.deletes:
                self.delete("it is triggered, and deleted in the same commit", triggered)
        if s.deletes:
            self.delete("it is deleted", store.first(s))

    def delete(self, label: str, s: State) -> None:
        """What else the commit did to it is `s`; a start among that comes first."""
        if s.letters != self.s.letters and self.store.on["delete.alone"]:
            self.go(label + ": refused, for it starts runs", s, True)
        else:
            gone = self.store.delete(s)._replace(letters=self.s.letters, deletes=s.deletes - 1)
            self.go(label, gone, True)

    def delivery(self, letter: Letter) -> None:
        label, rest = said(letter), self.s.took(letter)
        applied = self.store.apply(rest, letter)
        if applied is not None:
            after, broken = applied
            self.go(label, after, broken=broken)
            kept = self.store.on["outbox"]
            again = after._replace(letters=tuple(sorted((*after.letters, letter)))) if kept else after
            self.hit("kill", f"{label}; the server is killed before the letter has left the outbox", again, broken)
        if not self.store.on["outbox"]:
            self.hit("kill", f"the server is killed with the letter: {label}", rest)

    def run(self, n: int, run: Started) -> None:
        s = self.s
        ends = run.status in ("asked", "again") or (run.status == "open" and not self.scene.endless)
        if ends:
            self.go(f"run {n} closes", s.run(n, status="closed").post("closed", n))
        if run.status == "closed" and s.again:
            self.go(f"a person lets run {n} go on", s.run(n, status="again")._replace(again=s.again - 1), True)


def renamed(s: State) -> State:
    """Letters are only compared: number them by their order."""
    numbers = {number for _, _, number in (*s.letters, *s.held)} | {run.letter for run in s.runs}
    new = {old: place for place, old in enumerate(sorted(numbers | {-1}), -1)}
    return s._replace(
        letters=tuple(sorted((kind, occurrence, new[number]) for kind, occurrence, number in s.letters)),
        held=tuple((kind, occurrence, new[number]) for kind, occurrence, number in s.held),
        runs=tuple(run._replace(letter=new[run.letter]) for run in s.runs),
        number=len(new) - 1,
    )


def said(letter: Letter) -> str:
    """Say what a delivery of the letter is."""
    return {"start": "the start of run {}", "stop": "the stop of run {}", "closed": "the close of run {} is told"}[
        letter[0]
    ].format(letter[1])
