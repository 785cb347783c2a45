"""All that may happen next in a state: faults, time, and what workers and their coroutines do.

A hint about an event in the history may reach the worker at any later time, in any order, or never: that is no fault, and
liveness does not count on it.
"""

from __future__ import annotations

from typing import Any

from .bfs import Problem, Step
from .state import AGAIN, RESULTS, Request, S, Scene, Worker, add, name, rem, renamed
from .store import REPORTS, SAW_ANOTHER, Base, done, has, recorded

__all__ = ("problem",)

_EARLY = "S4: a local step starts on a result that the history does not have there"
_AFTER = "S2: a local step starts after its recorded outcome"
_RESULTS = ("result", "result+close")


def problem(scene: Scene) -> Problem[S]:
    """The run protocol in one scene."""
    base = Base(scene)
    first = canonical(base, S(faults=scene.faults, dups=scene.dups))
    return Problem(first, lambda s: Moves(base, s).all(), lambda s: s.status == "C", _must_finish)


def _must_finish(s: S) -> bool:
    up = any((k.proc == "up" and k.session == "up" and k.broker) or (k.proc == "dead" and k.inc < 2) for k in s.W)
    return s.status != "C" and up


def canonical(base: Base, s: S) -> S:
    """States that differ only in what nobody will ever look at are one."""
    if base.rollback:
        return s
    workers = []
    for w, k in enumerate(s.W):
        if base.on["R6"] and k.token < 0:  # a cache that nobody will be offered is no more than a replay
            k = k._replace(cached=k.cached and s.cache == s.wid(w), fed=(), told=0)
        if k.token >= 0 and k.token not in s.live and base.on["R2.session"] and base.on["R2.commit"]:
            k = k._replace(void=True)
        workers.append(k)
    return renamed(s._replace(W=tuple(workers)))


class Moves:
    """What may happen next in one state."""

    def __init__(self, base: Base, s: S) -> None:
        self.base, self.on, self.scene, self.s = base, base.on, base.scene, s
        self.out: list[Step[S]] = []

    def all(self) -> list[Step[S]]:
        s = self.s
        if s.status == "C" or (self.base.rollback and (s.nt > 5 or s.nd > 6 or s.nc > 6)):
            return self.out
        self.broker()
        self.outside()
        self.time()
        for w, k in enumerate(s.W):
            if k.proc == "dead":
                if k.inc < 2:
                    fresh = s.worker(w, proc="up", inc=k.inc + 1, session="up", closed=False, broker=True)
                    self.go(f"{'AB'[w]} is started again", fresh)
                continue
            self.worker_faults(w, k)
            self.credit(w, k)
            if k.proc == "frozen":
                self.frozen(w, k)
                continue
            self.connections(w, k)
            self.claims(w, k)
            if k.token >= 0 or (k.cached and not self.on["R6"]):
                self.feeding(w, k)
                self.local_steps(w, k)
            if k.token >= 0:
                self.requests(w, k)
        return self.out

    def go(self, label: str, after: S, fault: bool = False, broken: str = "") -> None:
        if self.base.rollback:
            if self.base.stored(after) != self.base.stored(self.s) and "Redis" not in label:
                after = after._replace(before=self.base.stored(self.s))
            if not broken.startswith("S4"):
                broken = ""  # W3
        self.out.append(Step(label, canonical(self.base, after), fault, broken))

    def hit(self, kind: str, label: str, after: S, broken: str = "") -> None:
        if self.s.faults and kind in self.scene.kinds:
            self.go("FAULT " + label, after._replace(faults=self.s.faults - 1), True, broken)

    # --- broker, inputs, Redis ---------------------------------------------------------------------------------------
    def broker(self) -> None:
        s = self.s
        for d in s.outbox:
            published = s._replace(outbox=rem(s.outbox, d), queue=add(s.queue, d))
            self.go(f"run job {d} is published and confirmed", published)
            if s.dups:
                twice = published._replace(queue=add(published.queue, d), dups=s.dups - 1)
                self.go(f"run job {d} is published twice", twice, True)
        for d in set(s.queue):
            self.hit("purge", f"the broker loses run job {d}", s._replace(queue=rem(s.queue, d)))
        if self.on["watch"] and s.status == "Q" and not (s.outbox or s.queue or s.unacked):
            self.go("the watch finds no copy of a queued wake: dispatched again", s.wake())

    def outside(self) -> None:
        s = self.s
        for event in self.base.pool_steps(s.cmds):
            if not done(event, s.hist):
                self.go(f"a replica commits the result of {event}", self.base.append(s, event))
                if self.scene.own and self.scene.two:
                    label = f"a replica commits the result of another attempt of {event}"
                    self.go(label, self.base.append(s, AGAIN[event]), True)
        for event in self.scene.inputs:
            if event not in s.hist:
                self.go(f"a replica commits the input {event}", self.base.append(s, event), True)
        if s.before is not None:
            self.hit("rollback", "Redis comes back without its last commit", self.base.restored(s))

    # --- time, take-over, sending again ------------------------------------------------------------------------------
    def time(self) -> None:
        s = self.s
        for t in s.live:
            after = s._replace(live=rem(s.live, t))
            grants = [(k.go, k.pushed) for k in s.W if k.proc == "up" and k.session == "up"]
            if any(g is not None and g.token == t for pair in grants for g in pair):
                self.hit("slow", f"4 s pass before the GO with token {t} is read", after)
            else:
                self.go(f"4 s have passed since the last answered request with token {t} was sent", after)
        if s.status == "O":
            self.lease()
        for r in dict.fromkeys(s.slow):
            slow = tuple(x for x in s.slow if x is not r)
            after, answer, broken = self.base.report(s._replace(slow=slow), r)
            label = f"a slow replica applies an old {r.kind} of {name(r.who)}: {answer}, nobody reads it"
            self.go(label, after, broken=broken)

    def lease(self) -> None:
        s = self.s
        k, who = s.W[s.owner // 10], name(s.owner)
        here = s.wid(s.owner // 10) == s.owner and k.proc != "dead"
        late = s.tok not in s.live or not self.on["A4.after"]
        quiet = not here or k.proc == "frozen" or k.session != "up"
        if s.check:
            self.go(f"the check commits: owner {who} lost, run dispatched again", s.wake())
        elif self.on["A2"]:
            if not here or k.closed:
                self.go(f"a check reads: session of {who} ended", s._replace(check="closed"))
            if quiet and late:
                self.go(f"lease due; a check reads: {who} silent for 5 s", s._replace(check="silent"))
            if not quiet and late:
                label = f"beats of {who} are late; a check reads: silent for 5 s"
                self.hit("slow", label, s._replace(check="silent"))
            if not quiet and s.tok not in s.live and k.token != s.tok:
                self.go(f"lease due; a check reads: {who} no longer lists the token", s._replace(check="unlisted"))

    # --- workers -----------------------------------------------------------------------------------------------------
    def request(self, w: int, k: Worker) -> Request:
        fed = k.fed[: k.sent]
        if k.req in REPORTS:
            result = k.result or k.fed[k.sent]  # it may have been read since
            asks = self.base.asks((*fed, result))
            return Request(self.s.wid(w), k.req, k.token, fed, len(fed), k.told, k.mine, asks, result)
        guessed = k.phase == "ahead" and not self.on["R10.seen"]
        view = self.base.view(k) if not self.on["R10.said"] else fed
        asks = self.base.asks(view) if k.req == "cmds" or not self.on["R10.said"] else 0
        result = k.result if k.req in (*_RESULTS, "release") else ""
        return Request(self.s.wid(w), k.req, k.token, fed, len(fed) + guessed, k.told, k.mine, asks, result)

    def worker_faults(self, w: int, k: Worker) -> None:
        s, who = self.s, name(self.s.wid(w))
        if not s.faults:
            return
        gone = self._gone(k)
        asked = self.request(w, k) if k.req and not k.ans and k.session == "up" and not s.slow else None
        worlds = [(s, "")]
        if asked is not None:
            worlds.append((s._replace(slow=(asked,)), ", its request still under way"))
        for n, how in worlds:
            dead = n.requeue(w).drop(w).worker(w, proc="dead", job=-1, claim=-1, go=None, pushed=None)
            self.hit("kill", f"{who} is killed{how}", dead)
            if k.session == "up":
                ends = f"the session of {who} ends"
                self.hit("session", f"{ends}, both sides see it{how}", n.worker(w, closed=True, **gone))
                self.hit("session", f"{ends}, only {who} sees it{how}", n.worker(w, **gone))
                self.hit("session", f"{ends}, only the servers see it{how}", n.worker(w, session="half", closed=True))
        if k.broker:
            self.hit("cut", f"the broker connection of {who} is cut", s.requeue(w).worker(w, broker=False))
        if k.proc == "up":
            self.hit("freeze", f"{who} freezes", s.worker(w, proc="frozen"))
        if asked is not None:
            label = f"{k.req} of {who} stays in a slow replica, {who} sends it again"
            self.hit("late", label, s._replace(slow=(asked,)))

    def _gone(self, k: Worker) -> dict[str, Any]:
        void = self.on["R2.session"] and k.token >= 0
        return {"session": "down", "go": None, "pushed": None, "ans": "", "void": void}

    def credit(self, w: int, k: Worker) -> None:
        """The replica may be serving a session that the worker has already left; never one that it saw end."""
        s, me = self.s, self.s.wid(w)
        if s.status != "Q" or k.closed or k.session == "half" or k.pushed:
            return
        if not (self.scene.anybody or (s.cache == me and k.cached)):
            return
        for d in s.outbox:
            n = self.base.open(s, me, s.nc)._replace(nc=s.nc + 1, outbox=rem(s.outbox, d))
            label = f"the credit of {name(me)} is answered in the commit of run job {d}: GO with token {n.tok}"
            self.go(label, n.worker(w, pushed=self.base.grant(n) if k.session == "up" else None))

    def frozen(self, w: int, k: Worker) -> None:
        s, who = self.s, name(self.s.wid(w))
        if k.broker:
            self.go(f"the broker misses heartbeats of {who} and requeues", s.requeue(w).worker(w, broker=False))
        self.go(f"{who} thaws", s.worker(w, proc="up"), True)

    def connections(self, w: int, k: Worker) -> None:
        s, who = self.s, name(self.s.wid(w))
        if k.session == "half":
            self.go(f"{who} notices that its session ended", s.worker(w, **self._gone(k)))
        if k.session == "down":
            label = f"{who} resumes its session with another replica"
            self.go(label, s.worker(w, session="up", closed=False), True)
            if k.job >= 0:
                label = f"{who} could not ask for long: gives its delivery back"
                self.go(label, s.requeue(w).worker(w, job=-1, claim=-1))
        if not k.broker:
            self.go(f"{who} connects to the broker again", s.worker(w, broker=True), True)
        elif k.job < 0 and k.session != "down":
            for d in set(s.queue):
                n = s._replace(queue=rem(s.queue, d), unacked=tuple(sorted((*s.unacked, (d, w)))), nc=s.nc + 1)
                self.go(f"run job {d} is delivered to {who}, which claims it", n.worker(w, job=d, claim=s.nc))

    def claims(self, w: int, k: Worker) -> None:
        """They go on beside an open coroutine: it may have been fenced without knowing."""
        s, me, who = self.s, self.s.wid(w), name(self.s.wid(w))
        if k.pushed:
            token, fed, told = k.pushed
            n = s.drop(w).worker(w, pushed=None, token=token, phase="run", fed=fed, told=told)
            self.go(f"{who} reads GO with token {token} for its credit, replays {''.join(fed) or '-'}", n)
            self.hit("answer", f"the pushed GO is lost on its way to {who}", s.worker(w, pushed=None))
        acked = s._replace(unacked=rem(s.unacked, (k.job, w)))
        if k.go and k.session != "down":
            token, fed, told = k.go
            if (k.cached and k.fed == fed[: len(k.fed)]) or not k.cached or self.on["R4.rewind"]:
                n = acked.drop(w).worker(w, job=-1, claim=-1, go=None, token=token, phase="run", fed=fed, told=told)
                self.go(f"{who} reads GO with token {token}, acks, replays {''.join(fed) or '-'}", n)
            else:
                self.go(f"{who} uses its cache", s, broken=SAW_ANOTHER)
            self.hit("answer", f"the answer GO to {who} is lost", s.worker(w, go=None))
        elif k.job >= 0 and k.session == "up" and not k.go:
            n, verdict = self.base.verdict(s, me, k.claim)
            if verdict == "GO":
                label = f"the claim of {who} is committed: GO with token {n.tok}"
                self.go(label, n.worker(w, go=self.base.grant(n)))
            else:
                label = f"the claim of {who} is answered {verdict}; {who} acks"
                self.go(label, acked.worker(w, job=-1, claim=-1))

    # --- the coroutine -----------------------------------------------------------------------------------------------
    def saw(self, fed: tuple[str, ...]) -> str:
        return "" if fed == self.s.hist[: len(fed)] else SAW_ANOTHER

    def feeding(self, w: int, k: Worker) -> None:
        s, who = self.s, name(self.s.wid(w))
        if (k.req != "park" or not self.on["R5.quiet"]) and k.session != "down" and k.phase != "gone":
            # The watch sends it until it is confirmed.
            again = self.on["R3.watch"] and s.status == "O" and s.tok == k.token and k.session == "up"
            for position in range(len(k.fed) + 1, len(s.hist) + 1):
                event = s.hist[position - 1]
                if (position > len(k.fed) + 1 and self.on["R4.order"]) or event in k.fed:
                    continue
                if k.phase == "ahead":
                    self.meet(w, k, event, again)
                    continue
                fed = (*k.fed, event)
                change = self.settled(k) if recorded(event, (k.result,)) else {}
                if k.token >= 0 and has_result(event):
                    change["phase"] = "run"
                self.go(f"{who} feeds {event}", s.worker(w, **{**change, "fed": fed}), not again, self.saw(fed))
        if not self.on["R8"] and "x" in s.hist and "x" not in k.fed:
            fed = (*k.fed, "x")
            self.go(f"{who} raises the cancel at once", s.worker(w, fed=fed), broken=self.saw(fed))

    def settled(self, k: Worker) -> dict[str, Any]:
        """The outcome of the own step was read: the request that brings it needs no answer."""
        change: dict[str, Any] = {"result": ""}
        return change | {"req": "", "sent": 0, "ans": ""} if k.req in _RESULTS else change

    def meet(self, w: int, k: Worker, event: str, again: bool) -> None:
        """R10: what stands where the guess was fed."""
        s, who = self.s, name(self.s.wid(w))
        same_step = recorded(event, (k.result,))
        if event == k.result or (same_step and not self.on["R10.own"]):
            fed = (*k.fed, k.result)
            change = self.settled(k) | {"fed": fed, "phase": "run"}
            self.go(f"{who} reads {event}: its guess is confirmed", s.worker(w, **change), not again, self.saw(fed))
        elif self.on["R10.other"]:
            label = f"{who} reads {event} where it had guessed {k.result}: drops the coroutine"
            self.go(label, s.worker(w, phase="gone"), not again)
        else:
            self.go(f"{who} feeds {event} after its guess", s, broken=self.saw((*k.fed, k.result, event)))

    def local_steps(self, w: int, k: Worker) -> None:
        s, on, who = self.s, self.on, name(self.s.wid(w))
        if not on["R2.commit"] and k.token >= 0 and not k.void and k.session == "up" and k.token not in s.live:
            label = f"a beat of {who} is echoed: all its rights are valid for 4 s more"
            self.go(label, s._replace(live=add(s.live, k.token)))
        guess = k.phase == "ahead" and not on["R10.start"]
        step = self.wanted(k)
        if not step or not (self.right(k) or not on["R2.right"]):
            return
        free = not k.req or (not on["R2.answered"] and (k.req != "park" or not on["R5.quiet"]))
        answered = k.told >= self.base.asks(k.fed) or k.token < 0 or not on["R2.answered"]
        if (free and answered) or guess:
            half = k.session == "half"
            broken = _AFTER if has(step, s.hist) and not half else ""
            if guess:
                broken = _EARLY if self.saw(self.base.view(k)) else ""
            self.go(
                f"{who} STARTS local step {step}" + (" (W2)" if half else ""), s.worker(w, phase="local"), broken=broken
            )

    def right(self, k: Worker) -> bool:
        return (k.token in self.s.live and not k.void) or k.token < 0

    def wanted(self, k: Worker) -> str:
        """Which local step could begin, as far as the code is concerned."""
        guess = k.phase == "ahead" and not self.on["R10.start"]
        if k.phase != "run" and k.token >= 0 and not guess:
            return ""
        step = self.base.local(self.base.view(k) if guess else k.fed)
        return "" if step == "m" and "m" in k.fed else step

    # --- requests ----------------------------------------------------------------------------------------------------
    def requests(self, w: int, k: Worker) -> None:
        s, who = self.s, name(self.s.wid(w))
        if not k.req:
            self.ask(w, k)
        elif not k.ans and k.session == "up":
            after, answer, broken = self.base.report(s, self.request(w, k))
            self.hit("answer", f"{k.req} of {who} is committed: {answer}, the answer is lost", after, broken)
            after = after.worker(w, ans=answer)
            if k.req == "park":  # the answer takes its time
                self.go(f"park of {who} is committed: {answer}", after, broken=broken)
            else:
                label = f"{k.req} of {who} is committed; {who} reads {answer}"
                after, saw = self.read(after, w)
                self.go(label, after, broken=broken or saw)
        elif k.ans and k.session != "down":
            after, saw = self.read(s, w)
            self.go(f"{who} reads {k.ans} for its park", after, broken=saw)

    def ask(self, w: int, k: Worker) -> None:
        s, who, sent = self.s, name(self.s.wid(w)), len(k.fed)

        def send(kind: str, label: str, **change: Any) -> None:
            self.go(label, s.worker(w, req=kind, sent=sent, **change))

        step, base = self.wanted(k) if k.phase == "run" else "", self.base
        over, told = base.over(base.view(k)), k.told >= base.asks(k.fed)
        if k.phase == "gone":
            if self.on["R10.release"]:
                send("release", f"{who} gives the run back")
            return
        if k.phase == "local":
            self.returns(w, k)
        if self.scene.own and k.phase == "run" and told:
            self.executes(w, k)
        unsaid = k.phase == "ahead" and not k.mine  # the guess stands, its result is to be said
        if unsaid:
            send("result", f"{who} sends its result")
            if over:
                send("result+close", f"{who} sends its result, and that the run ends")
        elif (
            not told
            or k.token != s.tok
            or s.seen < sent
            or (step and not self.right(k))
            or k.phase in ("wait", "ahead")
        ):
            send("cmds", f"{who} sends commands (has seen {sent})")
        if k.phase in ("run", "wait") and over:
            send("close", f"{who} asks to close the run")
        rests = k.phase == "run" or (k.phase == "ahead" and not self.on["R10.park"])
        if rests and told and not over and not step:
            send("park", f"{who} asks to park (has seen {sent})")

    def executes(self, w: int, k: Worker) -> None:
        """The owner's own worker has executed the one pool step that its code waits for: report, and what follows from it."""
        s, who, waits = self.s, name(self.s.wid(w)), [e for e in self.base.pool_steps(k.told) if not done(e, k.fed)]
        if len(waits) != 1 or "x" in k.fed:
            return
        ahead = s.worker(w, phase="ahead", result=waits[0], mine="", sent=len(k.fed))
        over = self.base.over((*k.fed, waits[0]))
        kind = "report+close" if over else "report+cmds"
        self.go(f"{who} has executed {waits[0]}, its code goes on by it: sends {kind}", ahead.worker(w, req=kind))

    def returns(self, w: int, k: Worker) -> None:
        """A local step ends: its result is said, or first fed ahead."""
        s, who = self.s, name(self.s.wid(w))
        step = "m" if has("l", k.fed) else "l"
        for result in RESULTS[step] if self.scene.two else step:
            label = f"local step {step} of {who} returns {result}"
            self.go(
                f"{label}; its checkpoint is sent", s.worker(w, req="result", sent=len(k.fed), result=result, mine="")
            )
            told = k.told >= self.base.asks(k.fed)
            if self.scene.ahead and told and "x" not in k.fed and self.base.alone(k.fed):
                self.go(f"{label}, which is fed ahead", s.worker(w, phase="ahead", result=result, mine=""))

    def read(self, s: S, w: int) -> tuple[S, str]:
        """Worker w reads the answer to its request."""
        k = s.W[w]
        n = s.worker(w, req="", sent=0, ans="", void=False)
        last = ("close", "release", "result+close", "report+close")
        if k.ans in ("LOST", "REWIND") or (k.ans == "OK" and k.req in last):
            return s.drop(w), ""
        if k.phase == "gone":
            return n.worker(w, result=""), ""
        if k.req in REPORTS:
            guess = k.result or k.fed[k.sent]
            told = max(self.base.asks((*k.fed[: k.sent], guess)), k.told)
            return n.worker(w, told=told, mine=k.result), ""
        if k.phase == "ahead" and k.req in _RESULTS:
            return n.worker(w, mine=k.result), ""  # its event is read with the answer, or later
        if k.ans == "NEWS":
            return n, ""
        if k.req == "cmds":
            return n.worker(w, told=max(self.base.asks(k.fed[: k.sent]), k.told)), ""
        if k.req == "park":
            return n.worker(w, token=-1, phase="", told=0, mine="", result="", cached=True), ""
        fed = (*k.fed, k.result)
        if fed == s.hist[: len(fed)]:
            return n.worker(w, fed=fed, phase="run", result=""), ""
        if self.on["R4.own"]:
            return n.worker(w, phase="wait", mine=k.result), ""
        return n, "" if self.base.rollback else SAW_ANOTHER


def has_result(event: str) -> bool:
    return any(event in results for results in RESULTS.values())
