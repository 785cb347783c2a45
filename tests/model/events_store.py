"""What records and runs do with a letter, each in one commit; see treadle.controlplane.machine.event_*."""

from __future__ import annotations

from .events_state import RULES, Letter, Scene, State, Wait

__all__ = ("Store",)

TWICE = "an event is given twice"
STARTED_TWICE = "an event starts a workflow twice"
BACK = "an event is given that the look-back does not contain"
SETTLED_TWICE = "a wait is settled twice"
BEHIND = "an event is recorded behind the end of a part"


class Store:
    """The servers' side of one scene. What comes of a letter is None while it cannot be applied."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.on = {rule: rule not in scene.without for rule in RULES}

    def accept(self, s: State, event: int) -> State:
        """A server that had found no record of the id commits."""
        if s.times[event] and self.on["accept.once"]:
            return s
        time = s.accepted + 1
        times = (*s.times[:event], s.times[event] or time, *s.times[event + 1 :])
        letters: list[Letter] = [("route", event)]
        if self.scene.starts:
            letters.append(("start", event, time))
        return s._replace(accepted=time, times=times).post(*letters)

    def apply(self, s: State, letter: Letter) -> tuple[State, str] | None:
        """Return what a letter comes to, and the rule that is broken."""
        kind = letter[0]
        if kind == "route":
            return self._route(s, letter[1], knows=True), ""
        if kind == "use":
            return self._use(s, letter[1], letter[2]), ""
        if kind == "event":
            return self._event(s, letter[1]), ""
        if kind == "begin":
            return self._begin(s, letter[1], len(s.slots[self._slot(letter[1])].log))
        if kind == "end":
            return self._end(s, letter[1]), ""
        if kind == "refuse":
            place = letter[1]
            refused: list[Letter] = [("refused", wait) for wait in s.slots[place].waits]
            return s.slot(place, refused=True, waits=(), telling=0).post(*refused), ""
        if kind == "start":
            return self._start(s, letter[1], letter[2])
        return self._effect(s, letter)

    def outdated(self, s: State, letter: Letter) -> tuple[State, str] | None:
        """Return what comes of it if it is decided on what was read before the last commit, and is committed all the same."""
        if letter[0] == "route" and not self.on["route.knows"]:
            return self._route(s, letter[1], knows=False), ""
        if letter[0] == "begin" and not self.on["begin.commit"]:
            seen = len(s.slots[self._slot(letter[1])].log) - 1
            return self._begin(s, letter[1], seen) if seen >= 0 else None
        return None

    def forgotten(self, s: State, letter: Letter) -> State | None:
        """Return what comes of it if the record that it is for is forgotten in the same commit."""
        if self.on["alone"]:
            return None
        if letter[0] in ("event", "begin"):
            place = self._slot(letter[1]) if letter[0] == "begin" else self.scene.events[letter[1]]
            return s.slot(place) if s.slots[place].old else None
        if letter[0] in ("route", "use"):
            place = letter[1] % 2
            return s.router(place) if s.routers[place].old else None
        return None

    # --- routers -----------------------------------------------------------------------------------------------------
    def _route(self, s: State, event: int, *, knows: bool) -> State:
        place = event % 2
        router = s.routers[place]
        s = s.router(place, log=(*router.log, event))
        return s.post(("event", event)) if router.keys and knows else s

    def _use(self, s: State, place: int, slot: int) -> State:
        full = place in self.scene.full
        if not full or not self.on["known.refused"]:
            s = s._replace(known=s.known | {place})
        if full:
            return s.router(place).post(("refuse", slot))
        router = s.routers[place]
        if router.keys:
            return s
        log: list[Letter] = [("event", event) for event in router.log] if self.on["use.log"] else []
        return s.router(place, keys=True).post(*log)

    # --- slots -------------------------------------------------------------------------------------------------------
    def _slot(self, wait: Wait) -> int:
        return self.scene.runs[wait.run]

    def _name(self, wait: Wait) -> tuple[int, ...]:
        return wait[: 4 if self.on["again"] else 3]

    def _has(self, waits: tuple[Wait, ...], wait: Wait) -> bool:
        return any(self._name(wait) == self._name(one) for one in waits)

    def _without(self, waits: tuple[Wait, ...], wait: Wait) -> tuple[Wait, ...]:
        return tuple(one for one in waits if self._name(one) != self._name(wait))

    def _event(self, s: State, event: int) -> State:
        place = self.scene.events[event]
        slot = s.slots[place]
        log = (*slot.log, event)
        if self.scene.pages:
            return s.slot(place, log=log, telling=slot.telling or (len(log) if slot.waits else 0))
        fits = [wait for wait in slot.waits if s.times[event] > wait.since]
        told: list[Letter] = [("match", wait, event, len(log)) for wait in fits]
        return s.slot(place, log=log, waits=tuple(w for w in slot.waits if w not in fits)).post(*told)

    def _begin(self, s: State, wait: Wait, seen: int) -> tuple[State, str] | None:
        place = self._slot(wait)
        slot = s.slots[place]
        if self._has(slot.ended, wait):
            kept = slot.ended if self.on["end.kept"] else self._without(slot.ended, wait)
            return s.slot(place, ended=kept), ""
        if self._has(slot.waits, wait):
            return s, ""
        if slot.refused:
            return s.post(("refused", wait)), ""
        for seq, event in enumerate(slot.log[:seen], 1):
            late = seq > wait.after or not self.on["after"]
            if self.on["begin.looks"] and late and s.times[event] > wait.since:
                return s.post(("match", wait, event, seq)), ""
        if slot.telling and self.on["telling"]:
            return None
        if not slot.asked and not self._are_known(s):
            s = s.post(*(("use", router, place) for router in ((0, 1) if self.on["use.all"] else (0,))))
        return s.slot(place, waits=tuple(sorted((*slot.waits, wait))), asked=True), ""

    def _are_known(self, s: State) -> bool:
        return len(s.known) == 2 or (bool(s.known) and not self.on["known.all"])

    def _end(self, s: State, wait: Wait) -> State:
        place = self._slot(wait)
        slot = s.slots[place]
        ended = slot.ended
        if self.on["end.kept"] or (self.on["end.early"] and not self._has(slot.waits, wait)):
            ended = (*ended, wait)
        return s.slot(place, waits=self._without(slot.waits, wait), ended=ended)

    def tell(self, s: State, place: int) -> State:
        """The slot's timer: one wait more is told, or nobody is left."""
        slot = s.slots[place]
        if not slot.waits:
            return s.slot(place, telling=0)
        wait, event = slot.waits[0], slot.log[slot.telling - 1]
        fits = s.times[event] > wait.since
        letter: Letter = ("match", wait, event, slot.telling) if fits else ("begin", wait)
        return s.slot(place, waits=slot.waits[1:], telling=slot.telling if slot.waits[1:] else 0).post(letter)

    # --- runs --------------------------------------------------------------------------------------------------------
    def _start(self, s: State, event: int, time: int) -> tuple[State, str]:
        first = s.times[event] == time
        if event in s.started and first and self.on["start.once"]:
            return s, ""
        started = tuple(sorted((*s.started, event)))
        return s._replace(started=started), STARTED_TWICE if event in s.started else ""

    def _effect(self, s: State, letter: Letter) -> tuple[State, str]:
        """An event, or a refusal, for a wait of a run."""
        wait: Wait = letter[1]
        run = s.runs[wait.run]
        if run.status in ("closed", "done", "refused") or (run.part != wait.part and self.on["effect.part"]):
            return s, ""
        if run.status == "over":
            return s, BEHIND if run.row and not self.on["effect.over"] else ""
        same = run.row is not None and self._name(run.row)[2:] == self._name(wait)[2:]
        if not same:
            return s, "" if self.on["effect.row"] else SETTLED_TWICE
        if letter[0] == "refused":
            return s.run(wait.run, status="refused", row=None), ""
        event, seq = letter[2], letter[3]
        s = s.run(wait.run, status="code", row=None, command=run.command + 1, seq=max(seq, run.seq))
        if event in run.had:
            return s, "" if self.on["had"] else TWICE
        broken = TWICE if event in run.given else "" if s.times[event] > run.since else BACK
        given = tuple(sorted({*run.given, event}))
        return s.run(wait.run, had=tuple(sorted((*run.had, event))), given=given), broken
