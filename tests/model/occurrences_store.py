"""What the record of a schedule decides, and what its letters do; see treadle.controlplane.machine.schedule_runs."""

from __future__ import annotations

from .occurrences_state import RULES, Letter, Open, Scene, State

__all__ = ("Store",)

LOST = "an occurrence is lost, and not listed"
EARLY = "a run is started before its time"
TWICE = "an occurrence is started twice"
OTHERS = "a run is stopped that is none of the schedule's"
_PUSHES = ("cancel", "terminate")


class Store:
    """The servers' side of one scene."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.on = {rule: rule not in scene.without for rule in RULES}

    # --- occurrences -------------------------------------------------------------------------------------------------
    def after(self, time: int) -> int:
        """The first occurrence behind a time; 0: there is none."""
        return time + 1 if time < self.scene.count else 0

    def advance(self, s: State, now: int) -> State:
        """Decide what has come due."""
        record, live = s.record, []
        if record.paused or record.deleted:
            return s
        at = record.next
        while at and at <= now:
            if now - at <= self.scene.window:
                live.append(at)
            elif self.on["missed"]:
                s = s.fate(at, "missed")
            at = self.after(at)
        if at == record.next:
            return s
        s = s.keep(next=at)
        for occurrence in live:
            if self.scene.policy in _PUSHES and occurrence != live[-1]:
                s = s.fate(occurrence, "skipped")
            else:
                s = self.offer(s, occurrence)
        return self.drain(s)

    def holder(self, s: State) -> Open | None:
        return next((one for one in s.record.open if not one.beside), None)

    def fate_of(self, s: State) -> str:
        policy, record = self.scene.policy, s.record
        held = self.holder(s) is not None
        if policy == "allow" or (not held and (record.paused or not record.queue)):
            return "started"
        if policy == "skip":
            return "skipped"
        asked = [one for one in record.queue if one > self.scene.count]
        waiting = len(asked) if policy in _PUSHES else len(record.queue)
        return "queued" if waiting < (1 if policy == "one" else 9) else "skipped"

    def offer(self, s: State, occurrence: int) -> State:
        fate = self.fate_of(s)
        if fate == "started":
            return self.start(s, occurrence)
        s = s.fate(occurrence, fate)
        if fate == "skipped":
            return s
        if self.scene.policy in _PUSHES:
            s = self._push_aside(s)
        return s.keep(queue=(*s.record.queue, occurrence))

    def _push_aside(self, s: State) -> State:
        for late in [one for one in s.record.queue if one <= self.scene.count]:
            s = s.fate(late, "skipped").keep(queue=tuple(one for one in s.record.queue if one != late))
        holder = self.holder(s)
        if holder is None or holder.stopping:
            return s
        open_ = tuple(one._replace(stopping=True) if one == holder else one for one in s.record.open)
        return s.keep(open=open_).post("stop", holder.occurrence)

    def start(self, s: State, occurrence: int) -> State:
        s = s.fate(occurrence, "started")
        s = s.keep(open=(*s.record.open, Open(occurrence, self.scene.policy == "allow")))
        if self.on["one.commit"]:
            return s.post("start", occurrence)
        return s._replace(held=(*s.held, ("start", occurrence, s.number)), number=s.number + 1)

    def drain(self, s: State) -> State:
        """Start what waited, as far as nothing holds it up."""
        record = s.record
        ready = [one for one in record.queue if one > self.scene.count or not record.paused]
        if self.holder(s) is not None or not ready or not self.on["drain"]:
            return s
        return self.start(s.keep(queue=tuple(one for one in record.queue if one != ready[0])), ready[0])

    def ended(self, s: State, occurrence: int, *, taken: bool = False) -> State:
        """A run has closed, or could not be started."""
        record = s.record
        if record.deleted:
            return s
        found = next((one for one in record.open if one.occurrence == occurrence), None)
        if found is None and not self.on["ended.open"]:
            found = self.holder(s)
        if found is None:
            return s
        if taken:
            s = s.fate(occurrence, "existed")
        return self.drain(s.keep(open=tuple(one for one in record.open if one != found)))

    # --- what people ask ---------------------------------------------------------------------------------------------
    def first(self, s: State) -> State:
        """Decide what is due before what is asked for."""
        return self.advance(s, s.clock) if self.on["advance.first"] else s

    def pause(self, s: State) -> State:
        return self.first(s).keep(paused=True, paused_at=s.clock, next=0)

    def resume(self, s: State) -> State:
        """What fell due meanwhile was left out."""
        s = s.keep(paused=False, next=self.after(s.clock))
        for at in range(s.record.paused_at + 1, s.clock + 1):
            if at <= self.scene.count:
                s = s.fate(at, "left out")
        return self.drain(s) if self.on["resume.drains"] else s

    def retime(self, s: State) -> State:
        """Somebody changes when it is due; what comes is what would have come anyway."""
        return self.first(s).keep(next=self.after(s.clock))

    def trigger(self, s: State) -> State | None:
        """None: it is refused, for a run is open."""
        s = self.first(s)
        if s.record.triggered:
            return s
        if self.fate_of(s) == "skipped":
            return None
        return self.offer(s.keep(triggered=True), self.scene.count + 1)

    def delete(self, s: State) -> State:
        """What was not started yet never is."""
        for at, fate in enumerate(s.fates):
            if fate in ("", "queued"):
                s = s.fate(at, "deleted")
        return s.keep(deleted=True, next=0, queue=(), open=(), paused=False)

    # --- letters -----------------------------------------------------------------------------------------------------
    def apply(self, s: State, letter: Letter) -> tuple[State, str] | None:
        """Return what a letter comes to, and the rule that is broken; None while it cannot be applied."""
        kind, occurrence, number = letter
        run = s.runs[occurrence]
        if kind == "closed":
            return self.ended(s, occurrence), ""
        if kind == "start":
            return self._start(s, occurrence, number)
        if run.status == "absent":
            return None if self.on["stop.waits"] else (s, "")
        if run.status == "other":
            return s, "" if self.on["stop.child"] else OTHERS
        if run.status not in ("open", "again"):
            return s, ""
        if self.scene.policy == "terminate":
            return s.run(occurrence, status="closed").post("closed", occurrence), ""
        return s.run(occurrence, status="asked"), ""

    def _start(self, s: State, occurrence: int, number: int) -> tuple[State, str]:
        run = s.runs[occurrence]
        if run.status == "absent":
            s = s.run(occurrence, status="open", letter=number)
            return s, EARLY if s.clock < occurrence <= self.scene.count else ""
        if run.status != "other" and not self.on["start.id"]:
            return s, TWICE
        if run.letter == number and self.on["start.once"]:
            return s, ""
        return (self.ended(s, occurrence, taken=True) if self.on["taken"] else s), ""
