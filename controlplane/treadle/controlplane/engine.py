"""The middle of a replica: store, broker, committer and the replica's memory, put together.

Everything that changes a run goes through `ask`. After a commit its jobs are published, its grants and news go down the
sessions of this replica, and hints wake who waits.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from random import Random

import structlog

from treadle.controlplane.clock import StoreClock, monotonic_ms
from treadle.controlplane.committer import Committer
from treadle.controlplane.downlinks import Downlinks
from treadle.controlplane.events.sent_by_runs import SentByRuns
from treadle.controlplane.events.triggers import Triggers
from treadle.controlplane.hints import HintHub
from treadle.controlplane.machine import Decision, Request, Settings, children
from treadle.controlplane.machine.requests import Reply, StartRun
from treadle.controlplane.replica import Page, Replica
from treadle.controlplane.steady import steady
from treadle.controlplane.store.port import Hint, Store, Want
from treadle.protocol.errors import RequestError, TreadleError, Unavailable
from treadle.protocol.ids import RunKey, shard_of
from treadle.protocol.topology import Queue, queue_of
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.job_pb2 import JOB_KIND_RUN, JOB_KIND_STEP, Job
from treadle.v1.state_pb2 import Letter, RunHead

from .broker.port import Broker

__all__ = ("Engine",)

_log = structlog.stdlib.get_logger(__name__)

_REMOVE_AFTER_S = 0.02
_GARBAGE_BYTES = 64 * 1024
_UNDECLARED = 1_000
_PAGES_AT_ONCE = 20
"""A page has up to 1 MiB: one load must not hold up everybody's."""
_RETRY_S = 0.2


CodeOf = Callable[[str, str], Awaitable[str]]
"""Namespace and name of a workflow -> its name with a version, if it has any."""


class Engine:
    """See the module.

    Args:
        store, broker: Started adapters; the broker must have been given this engine as its listener.
        settings: Times and limits of the machine.
        replica_id: Random id of this process.
        count: Called with each committed decision, when somebody reads metrics.

    Attributes:
        code_of: What a start by the name of a workflow means now, where workflows have versions; None: the name.
        own_hints: Those that the hub was fed last of what this replica committed; who hears of commits otherwise skips them.
    """

    def __init__(
        self,
        store: Store,
        broker: Broker,
        settings: Settings | None = None,
        replica_id: str = "",
        count: Callable[[RunKey, Decision], None] | None = None,
    ) -> None:
        self.store, self.broker = store, broker
        self._count = count
        self.settings = settings or Settings()
        self.replica_id = replica_id or secrets.token_hex(8)
        self.clock = StoreClock()
        self.hub = HintHub()
        self.downlinks = Downlinks()
        chance = Random(secrets.randbits(128))
        self.replica = Replica(
            self.replica_id,
            self.settings,
            bits64=lambda: chance.getrandbits(64) or 1,
            token=lambda: secrets.token_bytes(16),
            share=chance.random,
            lives=lambda: store.lives,
        )
        self.committer = Committer(store, self.replica, self.clock, self._done)
        self.passed: dict[Queue, int] = {}
        self.unroutable: set[Queue] = set()
        self.timer_added = asyncio.Event()
        self.earliest_timer_ms = 2**62
        self._confirmed: list[tuple[int, str]] = []
        self._confirms = asyncio.Event()
        self._declared: set[Queue] = set()
        self._undeclared: asyncio.Queue[list[Job]] = asyncio.Queue(_UNDECLARED)
        self._pages = asyncio.Event()
        self._aside: asyncio.Queue[tuple[bytes, Callable[[], None]]] = asyncio.Queue()
        self.garbage = 0
        self.triggers = Triggers(store, self.clock.now)
        self.sent = SentByRuns(self.triggers, self.submit_letter)
        self.own_hints: Sequence[Hint] = ()
        self.code_of: CodeOf | None = None
        self._resolving: set[asyncio.Task[None]] = set()

    # --- requests ----------------------------------------------------------------------------------------------------
    def submit(self, run: RunKey, request: Request, settle: Callable[[Reply | Exception], None]) -> None:
        """Have one request decided and committed, in a batch with others. See Committer.submit."""
        self.committer.submit(run, request, settle)

    async def ask(self, run: RunKey, request: Request) -> Reply:
        """Decide and commit one request, in a batch with others.

        Raises:
            RequestError: The machine refused it; nothing was changed by it.
            Unavailable: The store stayed away.
        """
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def settle(reply: Reply | Exception) -> None:
            if future.done():
                return  # whoever asked has gone
            if isinstance(reply, Exception):
                future.set_exception(reply)
            else:
                future.set_result(reply)

        self.committer.submit(run, request, settle)
        return await future

    async def events(self, run: RunKey, after: int) -> tuple[list[HistoryEvent], int]:
        """Return a page of history behind `after`, in order, and the length of the history (0: no such run)."""
        loaded = (await self.store.load([Want(run, events_after=after)]))[0]
        length = RunHead.FromString(loaded.head).length if loaded.head else 0
        return [HistoryEvent.FromString(data) for data in loaded.events], length

    async def declare(self, namespace: str, pool: str) -> None:
        """Have both queues of a pool declared."""
        for kind in (JOB_KIND_STEP, JOB_KIND_RUN):
            queue = Queue(namespace, pool, kind)
            if queue not in self._declared:
                await self.broker.declare(queue)
                self._declared.add(queue)

    def keep_garbage(self, queue: Queue, body: bytes, kept: Callable[[], None]) -> None:
        """Keep what is no job aside, then call `kept`; when there is no room it stays in its queue."""
        self.garbage += 1
        self._aside.put_nowait((f"{queue.name}\n".encode() + body[:_GARBAGE_BYTES], kept))

    async def _keep_aside(self) -> None:
        while True:
            data, kept = await self._aside.get()
            while not await self._put_garbage(data, kept):
                await asyncio.sleep(_RETRY_S)

    async def _put_garbage(self, data: bytes, kept: Callable[[], None]) -> bool:
        try:
            if await self.store.put_aside(0, "garbage", data):
                kept()
            return True
        except Unavailable as error:
            _log.warning("garbage_not_kept", error=str(error))
            return False

    # --- life ----------------------------------------------------------------------------------------------------------
    async def prepare(self) -> None:
        """Read the store's clock; must come before anything else."""
        sent = monotonic_ms()
        self.clock.observe(await self.store.now(), sent)

    async def run(self) -> None:
        """Work for ever: commits, pages of news, removal of confirmed jobs, hints of other replicas."""
        with self.hub.listening(self._hinted):
            async with asyncio.TaskGroup() as group:
                group.create_task(self.committer.run())
                group.create_task(steady("pages", self._load_pages))
                group.create_task(steady("aside", self._keep_aside))
                group.create_task(steady("declare", self._declare_first))
                group.create_task(steady("confirms", self._remove_confirmed))
                group.create_task(steady("sent events", self.sent.run))
                group.create_task(steady("hints", lambda: self.hub.run(self.store)))

    # --- after a commit ------------------------------------------------------------------------------------------------
    def _done(self, decided: Sequence[tuple[RunKey, Decision]]) -> None:
        """Let the effects of a batch follow. What is committed has its effects, whatever goes wrong for another run."""
        jobs: list[Job] = []
        hints: list[Hint] = []
        for run, decision in decided:
            jobs += decision.jobs
            if decision.change is not None and decision.change.hint is not None:
                hints.append(decision.change.hint)
            try:
                self._follow(run, decision)
            except Exception:
                _log.exception("effects_failed", run=str(run))
        self.downlinks.flush()
        if jobs:
            self._publish(jobs)
        for _, decision in decided:
            for letter in decision.letters:
                self.deliver(letter)
        if self.replica.behind:
            self._pages.set()
        self.own_hints = hints
        self.hub.feed(hints)

    def _follow(self, run: RunKey, decision: Decision) -> None:
        self.replica.done(run, decision)
        if self._count is not None:
            self._count(run, decision)
        for pool, kind, queued_ms in decision.claimed:
            queue = Queue(run.namespace, pool, kind)
            self.passed[queue] = max(queued_ms, self.passed.get(queue, 0))
        change = decision.change
        if change is None:
            return
        if decision.missed:
            _log.warning("occurrences_missed", schedule=str(run), count=decision.missed)
        if change.timers_set:
            due = min(change.timers_set.values())
            if due < self.earliest_timer_ms:
                self.earliest_timer_ms = due
                self.timer_added.set()
        if change.hint is not None and change.hint.closed and self.hub.on_end is not None and decision.head is not None:
            self.hub.on_end(run, decision.head, decision.events)

    def deliver(self, letter: Letter) -> None:
        """Bring a letter to its run; its entry leaves the outbox once it was applied there."""
        if letter.HasField("send_event"):
            self.sent.put(letter)
            return
        try:
            run, request = children.request_of(letter)
        except ValueError as error:
            _log.warning("letter_kept", error=str(error))
            return
        if self.code_of is not None and letter.HasField("start_scheduled") and isinstance(request, StartRun):
            task = asyncio.create_task(self._resolve(letter, run, request, self.code_of))
            self._resolving.add(task)
            task.add_done_callback(self._resolving.discard)
        else:
            self.submit_letter(letter, run, request)

    async def _resolve(self, letter: Letter, run: RunKey, request: StartRun, code_of: CodeOf) -> None:
        """A schedule names a workflow, and means the version that is the newest when a run is started: the first delivery
        that is applied decides."""
        try:
            request.workflow = await code_of(run.namespace, request.workflow)
        except Unavailable as error:
            _log.warning("letter_waits_for_store", error=str(error))  # the outbox brings it again
            return
        self.submit_letter(letter, run, request)

    def submit_letter(self, letter: Letter, run: RunKey, request: Request) -> None:
        """Ask for what a letter says; its entry leaves the outbox once it was applied."""
        self.committer.submit(run, request, partial(self._delivered, letter, self.store.lives))

    def _delivered(self, letter: Letter, life: int, reply: Reply | Exception) -> None:
        told = children.refusal_of(letter, reply) if isinstance(reply, RequestError) else None
        if told is not None:
            self.deliver(told)  # under the same id: the entry stays until its writer knows
        elif children.applied(reply):
            if letter.HasField("use_keys"):
                self.replica.keys.note(letter, reply, monotonic_ms(), life)
            self._confirmed.append((shard_of(letter.namespace, letter.from_run_id), letter.letter_id))
            self._confirms.set()

    def _publish(self, jobs: Sequence[Job]) -> None:
        """Publish; a queue that this replica has not declared yet is declared first."""
        known = [job for job in jobs if queue_of(job) in self._declared]
        if known:
            self.broker.publish(known)
        if len(known) < len(jobs):
            try:
                self._undeclared.put_nowait([job for job in jobs if queue_of(job) not in self._declared])
            except asyncio.QueueFull:
                pass  # the broker is away: the outbox brings them again

    async def _declare_first(self) -> None:
        while True:
            jobs = await self._undeclared.get()
            try:
                for namespace, pool in {(job.namespace, job.pool) for job in jobs}:
                    await self.declare(namespace, pool)
            except TreadleError as error:
                _log.warning("queue_not_declared", error=str(error))  # the outbox duty tries again
            else:
                self.broker.publish(jobs)

    def _hinted(self, hints: Sequence[Hint]) -> None:
        if hints is self.own_hints:
            return  # its commits told the cache and the replica all of it
        self.committer.runs.cache.hinted(hints)
        for hint in hints:
            self.replica.hinted(hint)
        if self.replica.behind:
            self._pages.set()

    async def _load_pages(self) -> None:
        """Owners that are behind get their next page."""
        while True:
            await self._pages.wait()
            self._pages.clear()
            wanted = self.replica.pages(_PAGES_AT_ONCE)
            if not wanted:
                continue
            self._pages.set()
            try:
                await self._load(wanted)
            except Unavailable:
                self.replica.unloaded(wanted)
                await asyncio.sleep(_RETRY_S)

    async def _load(self, wanted: Sequence[Page]) -> None:
        runs = self.committer.runs
        wants = [Want(page.run, events_after=page.after) for page in wanted]
        loaded = await runs.load(wants)
        stale = [i for i, found in enumerate(loaded) if found.cached and not found.events]
        for i, found in zip(stale, await runs.load([wants[i] for i in stale], fresh=True), strict=True):
            loaded[i] = found
        for page, found in zip(wanted, loaded, strict=True):
            if found.head:
                events = [HistoryEvent.FromString(data) for data in found.events]
                self.replica.page(page, events, RunHead.FromString(found.head))

    # --- the broker's listener -----------------------------------------------------------------------------------------
    def confirmed(self, jobs: Sequence[Job]) -> None:
        """The broker owns these now: their entries leave the outbox, a little later and together."""
        for job in jobs:
            self._confirmed.append((shard_of(job.namespace, job.run_id), job.dispatch_id))
            self.unroutable.discard(queue_of(job))
        self._confirms.set()

    def returned(self, jobs: Sequence[Job]) -> None:
        """These found no queue; the broker declares it again, the outbox brings them again."""
        for job in jobs:
            queue = queue_of(job)
            if queue not in self.unroutable:
                _log.warning("pool_unroutable", queue=queue.name)
            self.unroutable.add(queue)

    async def _remove_confirmed(self) -> None:
        while True:
            await self._confirms.wait()
            self._confirms.clear()
            await asyncio.sleep(_REMOVE_AFTER_S)
            entries, self._confirmed = self._confirmed, []
            try:
                await self.store.confirmed(entries)
            except Unavailable:
                self._confirmed = entries + self._confirmed
                self._confirms.set()

    async def flush_confirmed(self) -> None:
        """Remove what was confirmed, before the process ends."""
        entries, self._confirmed = self._confirmed, []
        if entries:
            await self.store.confirmed(entries)
