"""Group commit: requests to many runs become one load and one commit.

While a batch is in flight the next one collects, so a batch of one is taken at once when idle and batches grow under load;
there is no window. A second batch takes off beside the first only when enough has collected: half-empty batches cost as
much as full ones. A commit that met another replica's is decided again; a store that is away is waited for, as long as
somebody waits for the reply.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Sequence

import structlog

from treadle.controlplane.ahead import Ahead
from treadle.controlplane.backlog import Backlog
from treadle.controlplane.batches import Item
from treadle.controlplane.clock import StoreClock, monotonic_ms
from treadle.controlplane.machine import Decision, Env, Request, decide
from treadle.controlplane.machine.decide import want
from treadle.controlplane.machine.requests import Asked, Claimed, Reply, Reported
from treadle.controlplane.replica import Replica
from treadle.controlplane.store.cache import HotRuns
from treadle.controlplane.store.port import Change, Committed, Loaded, Outcome, Store
from treadle.protocol.eager import start_now
from treadle.protocol.errors import Refused, RequestError, Unavailable
from treadle.protocol.ids import RunKey
from treadle.v1.worker_service_pb2 import (
    ANSWER_UNKNOWN,
    VERDICT_UNKNOWN,
    ClaimVerdict,
    OwnerAnswer,
    ReportAnswer,
)

__all__ = ("Committer",)

_log = structlog.stdlib.get_logger(__name__)

_TAKES_OFF_AT = (1, 24)
"""How many runs must be ready for a batch to take off, by how many are in flight; with as many as it has, none does."""
_PATIENCE_MS = 10_000
_EARLY_S = 0.002


class Committer:
    """See the module.

    Args:
        store: Where runs are.
        replica: Decides with its credits, and is told what was done.
        clock: The store's clock.
        done: Called with all that a batch did, after the replies were given.

    Attributes:
        runs: The runs, through the replica's cache.
        ahead: Decisions that are made already.
    """

    def __init__(
        self,
        store: Store,
        replica: Replica,
        clock: StoreClock,
        done: Callable[[Sequence[tuple[RunKey, Decision]]], None],
    ) -> None:
        self._store, self._replica, self._clock, self._done = store, replica, clock, done
        self.runs = HotRuns(store)
        self.ahead = Ahead(replica)
        self._backlog = Backlog()
        self._base = contextvars.copy_context()
        self._flights: set[asyncio.Task[None]] = set()
        self._flying = 0
        self._lifts = False  # at the next turn of the loop
        self._works: asyncio.Future[None] | None = None
        self.commits = 0
        self.conflicts = 0

    def submit(self, run: RunKey, request: Request, settle: Callable[[Reply | Exception], None]) -> None:
        """Queue a request; `settle` gets the machine's reply once it is committed, or the error.

        It is called exactly once: with a RequestError when the machine refused it, with Unavailable when the store stayed
        away, and before the effects of the commit (news, grants) are sent.
        """
        self.put(run, request, settle)
        if self._backlog:
            self._lift_soon()

    def put(self, run: RunKey, request: Request, settle: Callable[[Reply | Exception], None]) -> None:
        """As `submit`, by who calls `lift` when all that belongs together was put."""
        self._backlog.put(run, Item(request, settle, monotonic_ms()))

    async def run(self) -> None:
        """Work for ever."""
        self._works = asyncio.get_running_loop().create_future()
        try:
            self.lift()
            await self._works
        finally:
            self._works = None
            for flight in self._flights:
                flight.cancel()
            await asyncio.gather(*self._flights, return_exceptions=True)

    def lift(self) -> None:
        """Let batches take off now instead of in the next turn of the loop: all that belongs together was submitted."""
        self._lifts = False
        try:
            while (
                self._works is not None
                and self._flying < len(_TAKES_OFF_AT)
                and len(self._backlog) >= _TAKES_OFF_AT[self._flying]
            ):
                self._take_off()
        except Exception as error:  # of the committer itself: whoever waits would wait for ever
            if self._works is None or self._works.done():
                raise
            self._works.set_exception(error)

    def _take_off(self) -> None:
        batch = self._backlog.take()
        self._flying += 1
        flight = start_now(self._fly(batch), name="commit", context=self._base.copy())
        if not flight.done():
            self._flights.add(flight)
            flight.add_done_callback(self._flights.discard)

    def _lift_soon(self) -> None:
        if self._works is not None and not self._lifts:
            self._lifts = True
            asyncio.get_running_loop().call_soon(self.lift, context=self._base)

    async def _fly(self, batch: dict[RunKey, list[Item]]) -> None:
        try:
            await self._batch(batch)
        except Unavailable as error:
            await self._store_away(batch, error)
        except Exception as error:  # one bad batch must not stop the others: who waits is told
            _log.exception("batch_failed", runs=len(batch))
            for items in batch.values():
                _fail(items, error)
        finally:
            self._flying -= 1
            self._backlog.release(batch)
            if self._backlog:
                self._lift_soon()  # what this batch did goes out first

    async def _batch(self, batch: dict[RunKey, list[Item]]) -> None:
        decided: list[tuple[RunKey, list[Item], Decision]] = []
        try:
            again = await self._decide_each(batch, self._decided_ahead(batch, decided), decided, fresh=False)
            if again:
                await self._decide_each(batch, again, decided, fresh=True)
        except BaseException:
            for _, _, decision in decided:
                self._replica.failed(decision)
            raise
        changes = [d.change for _, _, d in decided if d.change is not None]
        outcomes = await self._commit(changes, decided)
        told = iter(outcomes)
        done: list[tuple[RunKey, Decision]] = []
        for run, items, decision in decided:
            if decision.change is None or next(told).outcome is Outcome.OK:
                refused = await self._clear_up(run, items, decision) if decision.unknown or decision.orphans else None
                _settle(run, items, decision, refused)
                done.append((run, decision))
            else:
                self.conflicts += 1
                self._replica.failed(decision)
                self._backlog.put_back(run, items)
        self._done(done)
        if any(outcome.outcome is Outcome.EARLY for outcome in outcomes):
            await asyncio.sleep(_EARLY_S)  # a refusal as too early must not spin

    def _decided_ahead(
        self, batch: dict[RunKey, list[Item]], decided: list[tuple[RunKey, list[Item], Decision]]
    ) -> list[RunKey]:
        """Take what is decided already; returns the other runs."""
        others = []
        for run, items in batch.items():
            made = self.ahead.take(run, items)
            if made is None:
                others.append(run)
            else:
                decided.append((run, items, made))
        return others

    async def _decide_each(
        self,
        batch: dict[RunKey, list[Item]],
        runs: list[RunKey],
        decided: list[tuple[RunKey, list[Item], Decision]],
        *,
        fresh: bool,
    ) -> list[RunKey]:
        """Decide these runs of a batch; returns those whose cached view may be outdated, and must be read first."""
        wants = [want(run, [item.request for item in batch[run]]) for run in runs]
        loaded = await self.runs.load(wants, fresh=fresh)
        env = self._replica.env(self._clock.now(), monotonic_ms())
        again = []
        for run, found in zip(runs, loaded, strict=True):
            decision = self._decide_cached if found.cached else self._decide
            made = decision(run, batch, found, env)
            if made is None:
                again.append(run)
            else:
                decided.append((run, batch[run], made))
        return again

    def _decide_cached(self, run: RunKey, batch: dict[RunKey, list[Item]], found: Loaded, env: Env) -> Decision | None:
        """Decide on a cached view; None: only what the store has now can tell. A change is checked by its commit."""
        try:
            decision = self._try(found, run, batch[run], env)
        except Exception:
            return None
        if decision.change is None:
            self._replica.failed(decision)
            return None
        return decision

    def _decide(self, run: RunKey, batch: dict[RunKey, list[Item]], found: Loaded, env: Env) -> Decision:
        """Decide a run's part of the batch. What cannot be decided is found out one by one, and no other run suffers."""
        items = batch[run]
        try:
            return self._try(found, run, items, env)
        except Exception:
            if len(items) > 1:
                batch[run] = items[:1]
                self._backlog.put_back(run, items[1:])
        try:
            return self._try(found, run, items[:1], env)
        except Exception as error:
            _log.exception("decision_failed", run=str(run), request=type(items[0].request).__name__)
            return _undecided(items[0], error)

    def _try(self, found: Loaded, run: RunKey, items: list[Item], env: Env) -> Decision:
        env.taken.clear()
        try:
            return decide(run, found, [item.request for item in items], env)
        except Exception:
            for credit, kind in env.taken:
                self._replica.credits.give_back(credit, kind)
            raise

    async def _commit(
        self, changes: list[Change], decided: list[tuple[RunKey, list[Item], Decision]]
    ) -> list[Committed]:
        if not changes:
            return []
        sent = monotonic_ms()
        try:
            outcomes = await self.runs.commit(changes)
        except BaseException:
            for _, _, decision in decided:
                self._replica.failed(decision)
            raise
        self.commits += len(changes)
        self._clock.observe(outcomes[0].time_ms, sent)
        return outcomes

    async def _clear_up(self, run: RunKey, items: list[Item], decision: Decision) -> RequestError | None:
        """Do what must come before the answers to unknown runs; returns why their messages could not be kept."""
        refused = await self._put_aside(run, items, decision)
        if decision.orphans:
            await self._drop_orphans(run, decision)
        return refused

    async def _put_aside(self, run: RunKey, items: list[Item], decision: Decision) -> RequestError | None:
        """What names a run that nobody knows is kept before it is acknowledged; returns why it could not be."""
        for index in decision.unknown:
            request = items[index].request
            data = _message(request)
            _log.warning("run_unknown", run=str(run), request=type(request).__name__)
            try:
                if not await self._store.put_aside(run.shard, "unknown", data):
                    return Refused(f"no room to keep a message of unknown run {run}", reason="ASIDE_FULL")
            except RequestError as error:
                return error
        return None

    async def _drop_orphans(self, run: RunKey, decision: Decision) -> None:
        gone = Change(run, 0, 1, b"", delete=True, timers_del=list(decision.orphans))
        try:
            await self.runs.commit([gone])
        except Unavailable as error:
            _log.warning("orphan_timers_kept", run=str(run), error=str(error))  # they come up again

    async def _store_away(self, batch: dict[RunKey, list[Item]], error: Unavailable) -> None:
        """Keep what is still waited for, and try again after a while."""
        now = monotonic_ms()
        for run, items in batch.items():
            young = [item for item in items if not item.settled and now - item.since_ms < _PATIENCE_MS]
            _fail([item for item in items if now - item.since_ms >= _PATIENCE_MS], error)
            self._backlog.put_back(run, young)
        await asyncio.sleep(0.2)


def _settle(run: RunKey, items: list[Item], decision: Decision, refused: RequestError | None) -> None:
    """Answer. What is committed has its effects whatever goes wrong in here."""
    for index, (item, reply) in enumerate(zip(items, decision.replies, strict=True)):
        try:
            item.settle(refused if refused is not None and index in decision.unknown else reply)
        except Exception:
            _log.exception("reply_not_given", run=str(run), request=type(item.request).__name__)


def _fail(items: list[Item], error: Exception) -> None:
    for item in items:
        item.settle(error)


def _undecided(item: Item, error: Exception) -> Decision:
    """The run, or what was asked, is damaged. A worker's message is kept aside and told UNKNOWN: it must not ask for ever."""
    request = item.request
    if isinstance(request, Claimed):
        verdict = ClaimVerdict(claim_id=request.item.claim_id, verdict=VERDICT_UNKNOWN)
        return Decision(replies=[verdict], unknown=[0])
    if isinstance(request, Reported):
        return Decision(replies=[ReportAnswer(token=request.report.token, answer=ANSWER_UNKNOWN)], unknown=[0])
    if isinstance(request, Asked):
        ask = request.request
        answer = OwnerAnswer(run_id=ask.run_id, token=ask.token, seq=ask.seq, answer=ANSWER_UNKNOWN)
        return Decision(replies=[answer], unknown=[0])
    item.settle(error)
    return Decision(replies=[None])


def _message(request: Request) -> bytes:
    if isinstance(request, Claimed):
        return request.item.SerializeToString()
    if isinstance(request, Asked):
        return request.request.SerializeToString()
    if isinstance(request, Reported):
        return request.report.SerializeToString()
    return b""
