"""All open runs: GO, answers, news, parking, giving back (the run protocol).

Work is proportional to what came: runs that want to say something stand in `_ready`, those that only wait in `_idle`
(the longest first), due times in a heap.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count, islice

from treadle.protocol.errors import PayloadError
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.job_pb2 import Job
from treadle.v1.worker_service_pb2 import (
    ANSWER_LEASE_LOST,
    ANSWER_NEWS,
    ANSWER_OK,
    ANSWER_REWIND,
    ANSWER_SETTLED,
    ANSWER_UNKNOWN,
    Command,
    Grant,
    News,
    OwnerAnswer,
    OwnerRequest,
    RunGrant,
)

from ..loop.port import ExecutionFactory, Outcome, RunContext
from .ahead import foretold_of
from .attempts import Result
from .cache import Cache
from .feed import Feed
from .outbox import Outbox, Room
from .owner import Owner, Stand
from .port import Report
from .rights import Right
from .seals import MakeSeals
from .shared import Shared
from .slots import Slots

__all__ = ("Owners",)

_CAUTION_MS, _MISLED = 60_000, 1_000
"""A run whose code was told what was not so goes on by events alone for so long: a replay is dear, and what came between
(signals, as a rule) may come again. So many such runs are remembered."""
_MESSAGE_LIMIT = 200
"""Characters of a failure's message in a log line; the history has it whole."""


class Owners:
    """Owners by token.

    Args:
        slots: Of open runs.
        wakes: Beside them, of runs that were parked and are woken with their coroutine: it is in memory as it is, so
            it needs no slot that is promised to another run.
        seals: Makes what opens and seals the values of a run; None: nothing is sealed.
    """

    __slots__ = (
        "_by_run",
        "_by_token",
        "_cache",
        "_heap",
        "_idle",
        "_idle_woken",
        "_make",
        "_misled",
        "_order",
        "_parking",
        "_pressed_until",
        "_ready",
        "_seals",
        "_shared",
        "foretold",
        "open",
        "requests",
        "results",
        "slots",
        "wakes",
    )

    def __init__(
        self,
        shared: Shared,
        make: ExecutionFactory,
        slots: Slots,
        wakes: Slots,
        cache: Cache,
        seals: MakeSeals | None = None,
    ) -> None:
        self._shared = shared
        self._make = make
        self._seals = seals
        self._cache = cache
        self._by_token: dict[bytes, Owner] = {}
        self._by_run: dict[str, Owner] = {}
        self._ready: dict[bytes, Owner] = {}
        self._idle: dict[bytes, Owner] = {}
        self._idle_woken: dict[bytes, Owner] = {}
        self._parking: set[bytes] = set()
        self._heap: list[tuple[int, int, Owner]] = []
        self._order = count()
        self._pressed_until = 0
        self.open = 0  # those that hold a slot
        self.slots, self.wakes = slots, wakes
        self.requests: Outbox[bytes, OwnerRequest] = Outbox()
        self.foretold: list[Owner] = []
        self.results: list[tuple[Owner, Result]] = []
        self._misled: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._by_token)

    def __contains__(self, token: bytes) -> bool:
        return token in self._by_token

    @property
    def has_idle(self) -> bool:
        """Whether a run could be parked to make room."""
        return bool(self._idle)

    def slots_for(self, job: Job) -> Slots:
        """Return where a granted run finds its place."""
        return self.wakes if self.wakes.free and self._cache.has(job.run_id, job.incarnation) else self.slots

    # --- GO --------------------------------------------------------------------------------------------------------
    def fence(self, run_id: str, now_ms: int) -> None:
        """Another GO for the run was read: an owner of it that is still here is outdated."""
        prior = self._by_run.get(run_id)
        if prior is not None:
            self._forget(prior, "lease lost", now_ms)

    def granted(self, grant: Grant, job: Job, right: Right, slots: Slots, now_ms: int) -> None:
        """A GO that has one of these slots: open the run. A right that is over is renewed before any local step starts."""
        owner = self._add(grant, job, right)
        owner.slots = slots
        self.open += 1
        run = grant.run
        feed = self._cache.take(job.run_id, job.incarnation, run)
        if feed is None:
            feed = self._fresh(job, run)
        elif run.HasField("before"):
            feed.execution.passed(run.before.until, run.before.marks)
        owner.execute(feed)
        feed.learn(run.events, run.length)
        missing = run.events[0].position > feed.fed + 1 if run.events else not (run.from_start or feed.fed)
        if missing:
            owner.empty = True  # the cache that this page was meant for is gone: ask for the beginning at once
        self._touch(owner, now_ms)

    def refuse(self, grant: Grant, job: Job, reason: str, now_ms: int) -> None:
        """A GO that is not wanted, or has no slot: it is listed and released."""
        owner = self._add(grant, job, Right(0, 0))
        owner.release = reason
        self._shared.note("debug", "run_released", run=job.run_id, reason=reason)
        self._touch(owner, now_ms)

    def _add(self, grant: Grant, job: Job, right: Right) -> Owner:
        owner = Owner(self._shared, grant.token, job, right, alone=grant.alone)
        self._by_token[grant.token] = owner
        self._by_run[job.run_id] = owner
        self._shared.held.add(grant.token, job)
        return owner

    def _fresh(self, job: Job, run: RunGrant) -> Feed:
        context = RunContext(
            namespace=job.namespace,
            run_id=job.run_id,
            incarnation=job.incarnation,
            workflow=job.name,
            accepted_until=run.accepted_until,
            retried_at=run.retried_at,
            passed_until=run.before.until,
            marks=frozenset(run.before.marks),
            payload_limit=self._shared.settings.payload_limit,
            private=self._shared.settings.private,
        )
        seals = self._seals(context) if self._seals is not None else None
        return Feed(self._make, context, always_replay=self._shared.settings.always_replay, seals=seals)

    # --- what comes down -------------------------------------------------------------------------------------------
    def news(self, news: News, now_ms: int) -> None:
        owner = self._by_token.get(news.token)
        if owner is None or owner.feed is None:
            return
        owner.feed.learn(news.events, news.length)
        self._touch(owner, now_ms)

    def answered(self, answer: OwnerAnswer, now_ms: int) -> None:
        owner = self._by_token.get(answer.token)
        if owner is None:
            return
        if answer.answer in (ANSWER_LEASE_LOST, ANSWER_SETTLED, ANSWER_UNKNOWN):
            self._forget(owner, "lease lost", now_ms)
            return
        if owner.flying is None or owner.flying.seq != answer.seq:
            return  # an answer to something sent again, read twice
        if answer.answer == ANSWER_REWIND:
            self.requests.drop(owner.token)
            if owner.refused():
                self._rewind(owner, now_ms)
            else:  # a release: nothing is left that could be given back
                self._forget(owner, "rewind", now_ms)
        elif answer.answer == ANSWER_NEWS:
            self.requests.drop(owner.token)
            self._parking.discard(owner.token)
            owner.has_news(answer)
            self._touch(owner, now_ms)
        elif answer.answer == ANSWER_OK:
            self.requests.drop(owner.token)
            if owner.word:
                self._close(owner, now_ms)
            else:
                owner.accepted(answer)
                self._touch(owner, now_ms)

    def _rewind(self, owner: Owner, now_ms: int) -> None:
        """The owner is ahead of the store, or beside it: the next owner replays."""
        self._shared.note("warning", "run_rewound", run=owner.job.run_id)
        self._misled.pop(owner.job.run_id, None)
        self._misled[owner.job.run_id] = now_ms + _CAUTION_MS
        if len(self._misled) > _MISLED:
            del self._misled[next(iter(self._misled))]
        owner.drop_code("rewind", "rewind")
        self._free_slot(owner, now_ms)
        self._touch(owner, now_ms)

    def _close(self, owner: Owner, now_ms: int) -> None:
        """The last word was taken. A parked coroutine is kept if that was announced."""
        request = owner.flying
        assert request is not None
        if owner.word == "park" and request.park.cached and owner.feed is not None and not owner.feed.beside:
            self._cache.put(owner.feed)
            owner.feed = None
        elif owner.word == "diverged":
            said = request.diverged
            self._note_end("error", "run_diverged", owner, expected=said.expected, found=said.found)
        elif owner.word == "outcome" and request.HasField("fail"):
            failure = request.fail.failure
            self._note_end("info", "run_failed", owner, type=failure.type, message=failure.message[:_MESSAGE_LIMIT])
        self._forget(owner, "closed", now_ms)

    def _note_end(self, level: str, event: str, owner: Owner, **fields: object) -> None:
        self._shared.note(level, event, run=owner.job.run_id, workflow=owner.job.name, **fields)

    def _forget(self, owner: Owner, reason: str, now_ms: int) -> None:
        owner.drop_code(reason, "")
        token = owner.token
        self._by_token.pop(token, None)
        if self._by_run.get(owner.job.run_id) is owner:
            del self._by_run[owner.job.run_id]
        self._ready.pop(token, None)
        self._not_idle(token)
        self._parking.discard(token)
        self.requests.drop(token)
        self._shared.held.remove(token)
        self._free_slot(owner, now_ms)

    def _free_slot(self, owner: Owner, now_ms: int) -> None:
        if owner.slots is not None:
            self.open -= 1
            owner.slots.give(now_ms)
            owner.slots = None

    # --- user code -------------------------------------------------------------------------------------------------
    def may_start_local(self, token: bytes, command_id: str, now_ms: int) -> bool:
        owner = self._by_token.get(token)
        return owner is not None and owner.may_start_local(command_id, now_ms)

    def attempt_ended(self, result: Result) -> None:
        """A pool step was executed here, and returned: its run may be here, too."""
        owner = self._by_run.get(result.report.run_id)
        if owner is not None:
            self.results.append((owner, result))

    def foresee(self, alone: Callable[[str], bool], now_ms: int) -> None:
        """Let code run on by results that are about to be reported: what follows from them goes along.

        Args:
            alone: Whether no other report of a run is on its way: its event would come first.
        """
        results, self.results = self.results, []
        for owner, result in results:
            run_id = owner.job.run_id
            if alone(run_id) and not self._misled.get(run_id, 0) > now_ms and owner.foresee(result, now_ms):
                self._touch(owner, now_ms)

    def report_refused(self, job: Job, now_ms: int) -> None:
        """A report brought no event: code that went on by it must hear of that."""
        owner = self._by_run.get(job.run_id)
        told = foretold_of(owner.feed) if owner is not None and owner.feed is not None else None
        if owner is not None and told is not None and told.command_id == job.command_id:
            owner.empty = True
            self._touch(owner, now_ms)

    def local_refused(self, token: bytes, command_id: str, now_ms: int) -> None:
        owner = self._by_token.get(token)
        if owner is not None:
            owner.locals.refused(command_id)
            self._touch(owner, now_ms)

    def local_ended(self, token: bytes, command_id: str, report: Report, now_ms: int) -> None:
        owner = self._by_token.get(token)
        if owner is None:
            return
        said = owner.local_ended(command_id, report)
        if said and not self._shared.draining and not owner.release:
            if owner.flying is None:  # nothing else about it has changed
                self._ready[token] = owner
        else:
            self._touch(owner, now_ms)

    # --- sealed values ---------------------------------------------------------------------------------------------
    def event_opened(self, token: bytes, event: HistoryEvent, error: PayloadError | None, now_ms: int) -> None:
        owner = self._by_token.get(token)
        if owner is not None and owner.feed is not None:
            owner.feed.opened(event, error)
            self._touch(owner, now_ms)

    def item_sealed(self, token: bytes, number: int, item: Command | Outcome, now_ms: int) -> None:
        owner = self._by_token.get(token)
        if owner is not None and owner.outgoing is not None:
            owner.outgoing.sealed(number, item)
            self._touch(owner, now_ms)

    # --- what goes up ----------------------------------------------------------------------------------------------
    def frame(self, room: Room, now_ms: int) -> list[OwnerRequest]:
        for token, owner in tuple(islice(self._ready.items(), room.entries)):
            del self._ready[token]
            self.requests.put(token, owner.build(now_ms))
            if owner.foretold is not None:
                self.foretold.append(owner)
        return list(self.requests.take(room, now_ms))

    def go_ahead(self) -> None:
        """Let code run on by results that are on their way up, while nothing else is to be done."""
        while self.foretold:
            self.foretold.pop().go_ahead()

    def _touch(self, owner: Owner, now_ms: int) -> None:
        """Something about this run changed: let its code run on, and see where it stands now."""
        owner.advance(now_ms)
        if owner.feed is not None and owner.feed.beside and owner.flying is None:
            self._rewind(owner, now_ms)
            return
        token = owner.token
        if owner.park and owner.flying is None and not owner.rests:
            owner.park = False
            self._parking.discard(token)
        stand = owner.stands()
        if stand is Stand.READY:
            self._ready[token] = owner
        elif self._ready:
            self._ready.pop(token, None)
        if stand is not Stand.IDLE or self._shared.draining:
            self._not_idle(token)
        elif token not in self._idle and token not in self._idle_woken:
            owner.idle_since = now_ms
            (self._idle_woken if owner.slots is self.wakes else self._idle)[token] = owner
            if self._waits_long(owner, now_ms):
                self._park(owner)
        if owner.flying is None:
            self._schedule(owner)

    def _not_idle(self, token: bytes) -> None:
        if self._idle:
            self._idle.pop(token, None)
        if self._idle_woken:
            self._idle_woken.pop(token, None)

    def _schedule(self, owner: Owner) -> None:
        due = owner.due_ms()
        if due is not None and (owner.scheduled_ms is None or due < owner.scheduled_ms):
            owner.scheduled_ms = due
            heappush(self._heap, (due, next(self._order), owner))

    # --- parking (R9) ----------------------------------------------------------------------------------------------
    def session_opened(self, now_ms: int) -> None:
        """Every open run says where it is, so that the new replica knows it and missing news come."""
        self.requests.again()
        for owner in self._by_token.values():
            if owner.flying is None:
                owner.empty = True
                self._not_idle(owner.token)
                self._ready[owner.token] = owner
        self._pressed_until = now_ms

    def run_job_waits(self, now_ms: int) -> None:
        """A run job of the pool waits somewhere; it is said again with every answer as long as it is true."""
        self._pressed_until = now_ms + 2 * self._shared.settings.credit_every_ms

    def relieve(self, run_waits: int, now_ms: int) -> None:
        """No run slot is free and run jobs wait: park the longest idle runs, one for each, at once."""
        if self.slots.free:
            return
        wanted = run_waits or int(now_ms < self._pressed_until)
        while len(self._parking) < wanted and self._idle:
            self._park(next(iter(self._idle.values())))

    def _park(self, owner: Owner) -> None:
        self._not_idle(owner.token)
        owner.park = True
        if owner.slots is self.slots:
            self._parking.add(owner.token)
        self._ready[owner.token] = owner

    def _waits_long(self, owner: Owner, now_ms: int) -> bool:
        """Whether it waits only for timers that are far away, by the time of the event that was fed last."""
        feed = owner.feed
        assert feed is not None
        waits = feed.execution.waits()
        if waits.pool_steps or waits.local_steps or not waits.timers or waits.earliest_timer_ms is None:
            return False
        return waits.earliest_timer_ms - feed.about(now_ms) >= self._shared.settings.park_timers_ms

    def _next_to_park(self, run_waits: int, now_ms: int) -> tuple[int, Owner] | None:
        """Which rests for longest, and when it is parked."""
        settings = self._shared.settings
        pressed = run_waits or now_ms < self._pressed_until
        first = [owner for idle in (self._idle, self._idle_woken) for owner in islice(idle.values(), 1)]
        if not first:
            return None
        owner = min(first, key=lambda owner: owner.idle_since)
        return owner.idle_since + (settings.park_pressed_ms if pressed else settings.park_ms), owner

    # --- time and life ---------------------------------------------------------------------------------------------
    def tick(self, run_waits: int, now_ms: int) -> None:
        while self._heap and self._heap[0][0] <= now_ms:
            owner = heappop(self._heap)[2]
            owner.scheduled_ms = None
            if self._by_token.get(owner.token) is owner:
                owner.wake(now_ms)
                self._touch(owner, now_ms)
        while (due := self._next_to_park(run_waits, now_ms)) is not None and due[0] <= now_ms:
            self._park(due[1])

    def next_due(self, run_waits: int, now_ms: int) -> int | None:
        parks = self._next_to_park(run_waits, now_ms)
        due = parks[0] if parks is not None else None
        if self._heap and (due is None or self._heap[0][0] < due):
            return self._heap[0][0]
        return due

    def drain(self, now_ms: int) -> None:
        """Park what rests; give the rest back as soon as its running local steps have ended."""
        self._cache.clear()
        for owner in tuple(self._by_token.values()):
            self._touch(owner, now_ms)

    def drain_over(self, now_ms: int) -> None:
        for owner in tuple(self._by_token.values()):
            owner.locals.drain_over()
            owner.release = owner.release or "drain"
            self._touch(owner, now_ms)
