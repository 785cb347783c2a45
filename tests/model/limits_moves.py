"""All that may happen next in a state of the model of limits: servers, time, workers and their code."""

from __future__ import annotations

from .bfs import Problem, Step
from .limits_state import Attempt, Check, Scene, State
from .limits_store import AFTER, Made, Store

__all__ = ("problem",)


def problem(scene: Scene) -> Problem[State]:
    """The limits of a step in one scene."""
    store = Store(scene)
    return Problem(State(faults=scene.faults), lambda s: Moves(store, s).all(), _done, lambda s: True)


def _done(s: State) -> bool:
    return s.status == "over" and all(a.code == "over" and not a.report and not a.late for a in s.attempts)


class Moves:
    """What may happen next in one state."""

    def __init__(self, store: Store, s: State) -> None:
        self.store, self.scene, self.s = store, store.scene, s
        self.out: list[Step[State]] = []

    def all(self) -> list[Step[State]]:
        self.servers()
        self.time()
        for place, attempt in enumerate(self.s.attempts):
            if attempt.late:
                label = f"a slow server applies an old report of attempt {place}: {attempt.late}"
                self.each(label, self.store.report(self.s.attempt(place, late=""), place, attempt.late))
            if attempt.alive:
                self.worker(place, attempt)
                self.reports(place, attempt)
        return self.out

    def go(self, label: str, after: State, fault: bool = False, broken: str = "") -> None:
        self.out.append(Step(label, canonical(after), fault, broken))

    def each(self, label: str, made: list[Made]) -> None:
        for after, broken in made:
            self.go(f"{label}: {after.status}", after, broken=broken)

    def hit(self, kind: str, label: str, after: State, broken: str = "") -> None:
        if self.s.faults and kind in self.scene.kinds:
            self.go("FAULT " + label, after._replace(faults=self.s.faults - 1), True, broken)

    # --- servers -----------------------------------------------------------------------------------------------------
    def servers(self) -> None:
        s, store = self.s, self.store
        if s.status == "queued":
            self.each("a worker claims the try", [store.claim(s)])
        if s.status == "backoff" and not s.limit:
            self.each("the backoff is over", store.dispatch(s))
        if s.status in ("queued", "backoff") and s.limit and store.on["limit.free"]:
            self.go("the timer finds the total timeout over", store.over(s))
        holder = s.holder
        if s.check is not None:
            self.each("the check commits", store.checked(s, s.check))
        elif holder is not None:
            denied = holder.alive and holder.code == "go" and not holder.right
            check = Check(s.token, holder.lease, denied or not holder.alive, holder.overdue, holder.quiet)
            what = "denies the token" if denied else "lives" if holder.alive else "is dead"
            self.go(f"a check reads: the holder of attempt {s.token} {what}", s._replace(check=check))

    # --- time --------------------------------------------------------------------------------------------------------
    def time(self) -> None:
        s, scene = self.s, self.scene
        if scene.total and not s.limit:
            self.go("the total timeout is over", s._replace(limit=True))
        for place, attempt in enumerate(s.attempts):
            if attempt.right and not attempt.recorded:
                self.passes(attempt.code != "go", f"the right of attempt {place} ends", s.attempt(place, right=False))
        holder, place = s.holder, s.token
        if holder is None:
            return
        if scene.timeout and not holder.timed:
            self.go(f"the timeout of attempt {place} is over", s.attempt(place, timed=True))
        waits = self.store.on["wait"]
        silent = holder.hung or not holder.alive or not waits
        if holder.right and waits:
            return
        if holder.timed and not holder.overdue:
            self.passes(silent, f"attempt {place} should have been reported", s.attempt(place, overdue=True))
        if scene.heartbeat and not holder.quiet:
            self.passes(silent, f"attempt {place} should have been heard", s.attempt(place, quiet=True))
        if s.limit and not s.overdue:
            self.passes(silent, "the end of all tries should have been reported", s._replace(overdue=True))

    def passes(self, free: bool, label: str, after: State) -> None:
        """So much time passes; a fault if somebody who lives should have acted before."""
        if free:
            self.go(label, after)
        else:
            self.hit("slow", label, after)

    # --- workers -----------------------------------------------------------------------------------------------------
    def worker(self, place: int, a: Attempt) -> None:
        s = self.s
        if a.code == "go":
            if a.right:
                broken = AFTER if a.recorded else ""
                self.go(f"the worker STARTS attempt {place}", s.attempt(place, code="runs"), broken=broken)
            else:
                self.go(
                    f"attempt {place} is not started, but released", s.attempt(place, code="over", report="released")
                )
            again = s.attempt(place, lease=a.lease + 1, right=True)
            if s.token == place and not a.recorded:
                self.hit("answer", f"GO of attempt {place} is lost, claimed again and answered again", again)
        if a.code == "runs":
            if not a.hung or a.recorded:
                for report in ("done", "failed"):
                    self.go(f"attempt {place} ends: {report}", s.attempt(place, code="over", report=report))
            if not a.hung:
                self.hit("hang", f"attempt {place} hangs, and its worker with it", s.attempt(place, hung=True))
                if a.timed or s.limit or self.scene.heartbeat:
                    self.go(f"the worker ends attempt {place}", s.attempt(place, code="over", report="failed"))
                if a.quiet:
                    self.heard(place)
        dead = s.attempt(place, alive=False, code="over", report="", died_early=not (a.timed or a.quiet))
        self.hit("kill", f"the worker of attempt {place} is killed", dead)

    def heard(self, place: int) -> None:
        """What was read of its silence before is not so any more."""
        s = self.s.attempt(place, quiet=False)
        if s.check is not None and s.check.token == place and self.store.on["fresh"]:
            s = s._replace(check=s.check._replace(quiet=False))
        self.go(f"attempt {place} is heard", s)

    def reports(self, place: int, a: Attempt) -> None:
        if not a.report:
            return
        rest = self.s.attempt(place, report="")
        self.each(f"attempt {place} is reported {a.report}", self.store.report(rest, place, a.report))
        for after, broken in self.store.report(self.s, place, a.report):
            self.hit("answer", f"attempt {place} is reported {a.report}, the answer is lost", after, broken)
        late = self.s.attempt(place, late=a.report)
        self.hit("late", f"the report of attempt {place} stays in a slow server, and is sent again", late)


def canonical(s: State) -> State:
    """Of an attempt that can do nothing more only its end counts."""
    attempts = tuple(
        Attempt(code="over", alive=False, right=False, recorded=a.recorded, late=a.late)
        if a.code == "over" and not a.report and place != s.token
        else a
        for place, a in enumerate(s.attempts)
    )
    return s._replace(attempts=attempts, overdue=s.overdue and s.status == "held")
