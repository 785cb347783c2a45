"""What the model of the run protocol consists of: its rules, its scenes, its state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

__all__ = (
    "AGAIN",
    "KINDS",
    "RESULTS",
    "RULES",
    "Grant",
    "Request",
    "S",
    "Scene",
    "Worker",
    "add",
    "name",
    "rem",
    "renamed",
)

RULES = {
    "A2": "GO sets a lease",
    "A4.after": "no take-over of an owner not known dead before its right has ended",
    "A6.order": "a check commits only if token and lease set did not change since it read them",
    "R1": "reports carry the owner token",
    "R2.right": "a local step starts only with a valid right",
    "R2.commit": "a right comes from the answer of a commit, never from a beat",
    "R2.session": "the end of the session voids the right until the next answer",
    "R2.answered": "a local step starts only when everything before it was answered",
    "R3.watch": "what an open owner has not confirmed is sent again",
    "R3.wake": "what a parked run must hear is a dispatch",
    "R4.order": "exactly the next position is fed; a gap waits",
    "R4.own": "own results are fed at their position too (but for a guess: R10)",
    "R4.rewind": "an owner ahead of the store, or beside it, drops the coroutine",
    "R4.told": "reports name the highest position the owner was told, not only what it was fed",
    "R5.park": "park needs seen = length",
    "R5.close": "close needs seen = length",
    "R5.quiet": "after sending park the owner feeds nothing until answered (or R2.answered; one of the two is enough)",
    "R6": "a cached coroutine is used only with a GO",
    "R7": "recording a command or result again is OK and nothing",
    "R8": "a cancel is raised at its position",
    "R10.seen": "seen and told of a request are those before the guess",
    "R10.length": "a word ahead is taken only if seen = length before the request",
    "R10.once": "the result of a word ahead is recorded once",
    "R10.said": "commands that follow from a guess are said when it is confirmed",
    "R10.start": "local steps that follow from a guess start when it is confirmed",
    "R10.other": "another event at the place of the guess: the coroutine is dropped",
    "R10.own": "only the owner's own result confirms its guess",
    "R10.park": "a guess is no rest: the owner does not park on it",
    "R10.alone": "there is a guess only if the code waits for nothing else",
    "R10.release": "an owner whose guess was wrong gives the run back",
    "R10.stands": "what follows from a pool step's result counts only if that stands next",
    "watch": "a queued wake without a copy is dispatched again",
}
KINDS = frozenset(("kill", "cut", "session", "freeze", "answer", "late", "slow"))
RESULTS = {"l": ("l", "k"), "m": ("m",)}
"""Local steps, and what may come out of them: who runs `l` again may get another result."""
AGAIN = {"p": "P", "r": "R"}
"""Pool steps, and what comes out of another attempt."""

Hist = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """One configuration.

    Attributes:
        without: Rules that are switched off.
        faults: So many of `kinds` may happen; rollback and purge are asked for by name.
        dups: So many run jobs may be published twice.
        inputs: What may come from outside at any time: "x" is a cancel, "y" a signal that the code does not wait for.
        pool: Pool steps that are asked for at once; the local step l follows the first of "pq", and stands beside "q" alone.
        then: What follows l: "r" a pool step, "m" a local step.
        anybody: Run jobs are pushed to every worker, not only to the one that has the coroutine cached.
        ahead: The owner may feed its own result ahead of the event (R10).
        two: l may come out in two ways; with `own`, another attempt of a pool step in another one.
        own: The code asks for pool step p, then for r, and for nothing else; the owner may execute them itself, and send its
            report and what follows from it together.
    """

    without: tuple[str, ...] = ()
    faults: int = 1
    dups: int = 0
    kinds: frozenset[str] = KINDS
    inputs: str = ""
    pool: str = "pq"
    then: str = ""
    anybody: bool = False
    ahead: bool = False
    two: bool = False
    own: bool = False


class Grant(NamedTuple):
    """A GO on its way."""

    token: int
    hist: Hist
    cmds: int


class Request(NamedTuple):
    """What an owner asks; `told` and `mine` are what it was told of its commands and its last result."""

    who: int
    kind: str  # cmds | result | result+close | park | close | release; report+cmds | report+close: of a pool step
    token: int
    fed: Hist
    seen: int
    told: int
    mine: str
    asks: int
    result: str


class Worker(NamedTuple):
    proc: str = "up"
    inc: int = 0
    session: str = "up"  # up | half | down
    closed: bool = False
    broker: bool = True
    job: int = -1  # the delivery that is claimed
    claim: int = -1
    pushed: Grant | None = None  # for a credit
    go: Grant | None = None
    token: int = -1
    phase: str = ""  # run | local | wait (the result is recorded, not yet fed) | ahead (fed, not yet read) | gone
    fed: Hist = ()  # what the coroutine has seen, in that order, but for its guess
    told: int = 0  # so many of its commands are recorded, as it knows
    mine: str = ""  # its own result that is recorded, as it knows
    result: str = ""  # its own result that it has not read
    void: bool = False  # no valid right since the last answer: it ended, or the session did
    req: str = ""
    sent: int = 0  # what was fed when the request was made
    ans: str = ""
    cached: bool = False


class S(NamedTuple):
    status: str = "Q"  # Q queued | O open | P parked | C closed
    tok: int = -1
    owner: int = -1
    claim: int = -1
    check: str = ""
    last: tuple[int, str] | None = None  # what the last token did
    cmds: int = 0
    hist: Hist = ()
    seen: int = 0
    cache: int = -1  # the worker that announced a cached coroutine
    outbox: tuple[int, ...] = (0,)
    queue: tuple[int, ...] = ()
    unacked: tuple[tuple[int, int], ...] = ()  # dispatch, worker
    live: tuple[int, ...] = ()  # tokens whose right may still be valid
    slow: tuple[Request, ...] = ()
    W: tuple[Worker, ...] = (Worker(), Worker())
    nd: int = 1
    nt: int = 0
    nc: int = 0
    faults: int = 1
    dups: int = 0
    before: tuple[Any, ...] | None = None  # the store before its last commit

    def worker(self, w: int, **change: Any) -> S:
        workers = list(self.W)
        workers[w] = workers[w]._replace(**change)
        return self._replace(W=tuple(workers))

    def wid(self, w: int) -> int:
        return 10 * w + self.W[w].inc

    def drop(self, w: int) -> S:
        """Forget the coroutine and the token."""
        return self.worker(
            w, token=-1, phase="", fed=(), told=0, mine="", result="", void=False, req="", sent=0, ans="", cached=False
        )

    def requeue(self, w: int) -> S:
        queue = self.queue
        for dispatch, worker in self.unacked:
            if worker == w:
                queue = add(queue, dispatch)
        return self._replace(queue=queue, unacked=tuple(u for u in self.unacked if u[1] != w))

    def wake(self) -> S:
        return self._replace(
            status="Q", tok=-1, owner=-1, claim=-1, check="", outbox=add(self.outbox, self.nd), nd=self.nd + 1
        )


X = TypeVar("X", int, tuple[int, int])


def add(items: tuple[int, ...], item: int) -> tuple[int, ...]:
    return tuple(sorted((*items, item)))


def rem(items: tuple[X, ...], item: X) -> tuple[X, ...]:
    if item not in items:
        return items
    place = items.index(item)
    return items[:place] + items[place + 1 :]


def name(who: int) -> str:
    return "nobody" if who < 0 else "AB"[who // 10] + "'" * (who % 10)


def renamed(s: S) -> S:
    """Number tokens, dispatches and claims by their order: states that differ only in names are one."""
    tokens = {s.tok, s.last[0] if s.last else -1} | {r.token for r in s.slow}
    dispatches = {*s.outbox, *s.queue} | {d for d, _ in s.unacked}
    claims = {s.claim}
    for k in s.W:
        tokens.update((k.token, k.go.token if k.go else -1, k.pushed.token if k.pushed else -1))
        dispatches.add(k.job)
        claims.add(k.claim)
    t, d, c = (_order(names) for names in (tokens, dispatches, claims))
    usable = {s.tok} | {
        x for k in s.W for x in (k.token, k.go.token if k.go else -1, k.pushed.token if k.pushed else -1)
    }
    known = {k.token for k in s.W} | {r.token for r in s.slow}
    last = s.last if s.last and s.last[0] in known else None
    workers = tuple(
        k._replace(
            job=d[k.job],
            claim=c[k.claim],
            token=t[k.token],
            go=k.go and k.go._replace(token=t[k.go.token]),
            pushed=k.pushed and k.pushed._replace(token=t[k.pushed.token]),
        )
        for k in s.W
    )
    return s._replace(
        tok=t[s.tok],
        claim=c[s.claim],
        last=(t[last[0]], last[1]) if last else None,
        outbox=tuple(d[x] for x in s.outbox),
        queue=tuple(d[x] for x in s.queue),
        unacked=tuple((d[x], w) for x, w in s.unacked),
        live=tuple(t[x] for x in s.live if x in usable),
        slow=tuple(r._replace(token=t[r.token]) for r in s.slow),
        W=workers,
        seen=s.seen if s.status == "O" else 0,
        nd=len(d) - 1,
        nt=len(t) - 1,
        nc=len(c) - 1,
    )


def _order(names: set[int]) -> dict[int, int]:
    return {-1: -1} | {old: new for new, old in enumerate(sorted(names - {-1}))}
