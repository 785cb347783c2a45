"""All that may happen next in a state of the model of events: clients, servers with letters, timers, runs and their ends.

What lies in an outbox may be delivered at any later time and in any order. A server that dies between applying a letter and
removing it, and two servers that deliver the same one, are the same: the letter comes again.
"""

from __future__ import annotations

from .bfs import Problem, Step
from .events_state import Letter, Router, Run, Scene, Slot, State, Wait, renamed
from .events_store import Store

__all__ = ("problem",)

GHOST = "a wait stays that nobody waits for"


def problem(scene: Scene) -> Problem[State]:
    """Events in one scene."""
    store = Store(scene)
    first = State(
        runs=tuple(Run() for _ in scene.runs),
        times=tuple(0 for _ in scene.events),
        routers=(Router(old=scene.old), Router(old=scene.old)),
        slots=(Slot(old=scene.old), Slot(old=scene.old)),
        faults=scene.faults,
        timeouts=scene.timeouts,
        vain=scene.vain,
        stops=scene.stops,
        news=scene.news,
    )
    return Problem(first, lambda s: Moves(store, s).all(), lambda s: _done(s) and not _ghosts(s), lambda s: True)


def _done(s: State) -> bool:
    """All that was sent is accepted, delivered, and given to whom it concerns."""
    ended = all(run.status in ("done", "refused", "closed") and run.row is None for run in s.runs)
    return ended and not s.letters and not s.begun and len(s.answered) == len(s.times)


def _ghosts(s: State) -> bool:
    return any(slot.waits for slot in s.slots)


class Moves:
    """What may happen next in one state."""

    def __init__(self, store: Store, s: State) -> None:
        self.store, self.scene, self.s = store, store.scene, s
        self.out: list[Step[State]] = []

    def all(self) -> list[Step[State]]:
        self.clients()
        for letter in dict.fromkeys(self.s.letters):
            self.delivery(letter)
        for place, slot in enumerate(self.s.slots):
            if slot.telling:
                self.go(f"the timer of slot {place} tells on", self.store.tell(self.s, place))
        for n, run in enumerate(self.s.runs):
            self.code(n, run)
            self.ends(n, run)
        return self.out

    def go(self, label: str, after: State, fault: bool = False, broken: str = "") -> None:
        after = renamed(after)
        if not broken and _done(after) and _ghosts(after):
            broken = GHOST
        self.out.append(Step(label, after, fault, broken))

    def hit(self, kind: str, label: str, after: State, broken: str = "") -> None:
        if self.s.faults and kind in self.scene.kinds:
            self.go("FAULT " + label, after._replace(faults=self.s.faults - 1), True, broken)

    def clients(self) -> None:
        s = self.s
        for event, time in enumerate(s.times):
            if event in s.answered:
                continue
            if event not in s.begun:
                label = f"event {event} is sent; a server finds {'its record' if time else 'no record of it'}"
                if time:
                    self.go(label + " and says so", s._replace(answered=s.answered | {event}))
                else:
                    self.go(label, s._replace(begun=tuple(sorted((*s.begun, event)))))
            elif s.begun.count(event) == 1 and not time:
                again = s._replace(begun=tuple(sorted((*s.begun, event))))
                self.hit("both", f"event {event} is sent again; another server finds no record of it either", again)
        for event in dict.fromkeys(s.begun):
            place = s.begun.index(event)
            rest = s._replace(begun=s.begun[:place] + s.begun[place + 1 :])
            after = self.store.accept(rest, event)
            told = after._replace(answered=s.answered | {event})
            self.go(f"the server commits event {event}, and says so", told)
            self.hit("answer", f"the server commits event {event}; the answer is lost", after)
            self.hit("kill", f"the server is killed before it has committed event {event}", rest)

    def delivery(self, letter: Letter) -> None:
        label, rest = said(letter), self.s.took(letter)
        applied = self.store.apply(rest, letter)
        if applied is not None:
            after, broken = applied
            self.go(label, after, broken=broken)
            again = after if not self.store.on["outbox"] else after.post(letter)
            self.hit("kill", f"{label}; the server is killed before the letter has left the outbox", again, broken)
        if not self.store.on["outbox"]:
            self.hit("kill", f"the server is killed with the letter: {label}", rest)
        outdated = self.store.outdated(rest, letter)
        if outdated is not None:
            self.go(f"{label}, decided on what was read before", outdated[0], broken=outdated[1])
        forgotten = self.store.forgotten(rest, letter)
        if forgotten is not None:
            self.go(f"{label}, and the record is forgotten in the same commit", forgotten)

    # --- runs --------------------------------------------------------------------------------------------------------
    def wanted(self, n: int, run: Run) -> bool:
        """Whether the look-back contains an event, or may yet, that the code was not given."""
        s, slot = self.s, self.scene.runs[n]
        mine = [event for event, place in enumerate(self.scene.events) if place == slot]
        return any((s.times[e] == 0 or s.times[e] > run.since) and e not in run.had for e in mine)

    def code(self, n: int, run: Run) -> None:
        s = self.s
        if run.status == "new":
            self.go(f"run {n} starts", s.run(n, status="code", since=s.accepted))
        elif run.status == "code" and not self.wanted(n, run):
            self.go(f"run {n} has had all, and ends", s.run(n, status="done"))
            if s.vain:
                self.wait(s._replace(vain=s.vain - 1), n, run)
        elif run.status == "code":
            self.wait(s, n, run)
        elif run.status == "waits" and run.row:
            after = s.run(n, status="code", row=None, command=run.command + 1).post(("end", run.row))
            if not self.wanted(n, run):
                self.go(f"the wait of run {n} times out", after)
            elif s.timeouts:
                self.go(f"the wait of run {n} times out", after._replace(timeouts=s.timeouts - 1), True)

    def wait(self, s: State, n: int, run: Run) -> None:
        wait = Wait(n, run.part, run.command, run.position + 1, run.since, run.seq)
        after = s.run(n, status="waits", row=wait, position=wait.position)
        self.go(f"run {n} waits", after.post(("begin", wait)))

    def ends(self, n: int, run: Run) -> None:
        s = self.s
        if run.status in ("code", "waits"):
            if s.stops:
                self.go(f"run {n} is terminated", s.run(n, status="closed")._replace(stops=s.stops - 1), True)
            if s.news:
                self.go(f"run {n} ends, to continue as new", s.run(n, status="over")._replace(news=s.news - 1), True)
        elif run.status in ("closed", "over") and run.row:
            self.go(f"the row that run {n} left is swept", s.run(n, row=None).post(("end", run.row)))
        elif run.status == "over":
            fresh = s.run(n, status="code", part=run.part + 1, command=0, position=0)
            if self.scene.now:
                fresh = fresh.run(n, since=s.accepted)
            if not self.store.on["carried"]:
                fresh = fresh.run(n, had=(), seq=0)
            self.go(f"run {n} goes on as new", fresh)
        elif run.status == "closed":
            self.go(f"a person lets run {n} go on", s.run(n, status="code"))


def said(letter: Letter) -> str:
    """Say what a delivery of the letter is."""
    kind = letter[0]
    if kind == "route":
        return f"event {letter[1]} is routed"
    if kind == "use":
        return f"router {letter[1]} is told of the keys by slot {letter[2]}"
    if kind == "event":
        return f"event {letter[1]} comes to its slot"
    if kind == "refuse":
        return f"slot {letter[1]} is told that nobody can wait there"
    if kind == "start":
        return f"the start of a run by event {letter[1]}, accepted at {letter[2]}, is applied"
    wait: Wait = letter[1]
    name = f"wait {wait.command} (asked {wait.position}) of run {wait.run}, part {wait.part}"
    if kind == "match":
        return f"event {letter[2]} comes to {name}"
    return f"{name}: {kind}"
