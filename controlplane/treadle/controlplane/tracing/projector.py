"""The duty that exports the traces of runs, on whichever replica holds a shard's duty lease.

Each turn takes some runs that were noted as having unexported history, projects what is behind their cursors, exports it,
and only then moves the cursors. Whatever dies in between, the next turn makes the same spans again, byte for byte. To know
what is open at a cursor the history is folded from its start; the fold is remembered, and trusted only while the store still
has the event that it ended with.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

import structlog
from google.protobuf.message import DecodeError

from treadle.controlplane.duties.timers import TimerDuty
from treadle.controlplane.engine import Engine
from treadle.controlplane.store.cursors import Projected, Unprojected
from treadle.controlplane.store.port import Hint, Want
from treadle.controlplane.telemetry import Metrics
from treadle.controlplane.tracing.exporter import SpanSink
from treadle.controlplane.tracing.otlp_proto import encoded, request_of
from treadle.controlplane.tracing.span_data import HeadFacts
from treadle.controlplane.tracing.spans import project
from treadle.controlplane.tracing.state import ProjectionState
from treadle.protocol.errors import Unavailable
from treadle.protocol.ids import RunKey
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.state_pb2 import RUN_STATE_CLOSED, RunHead

__all__ = ("TraceProjector",)

_log = structlog.stdlib.get_logger(__name__)

_LINGER_S = 0.2
"""So long commits are collected before a turn: a run costs less among many."""
_IDLE_S = 1.0
_RUNS = 200
_RUNS_A_READ = 50
_EVENTS_A_RUN = 2_000
_BYTES = 8 << 20
"""A turn reads on until it has read so much; then it exports what it has."""
_BYTES_A_CALL = 512 << 10
_SLICE_S = 0.000_5
"""So long a turn computes before the event loop turns: who starts and executes runs does not wait for fifty to be folded."""
_FOLDS = 2_000
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0


@dataclass(slots=True)
class _Work:
    """A run of a turn: what was read of it, and what comes of that.

    Attributes:
        item: As the store named it.
        state: The fold; it may be ahead of the cursor only by what is in `spans`, and by what needs no export.
        facts, head: None until its head was read; then the head as last read.
        spans: To be exported, encoded.
        revision: Revision of the run when it was last read.
        gone: The run is no more, or cannot be read.
        done: Nothing is left to be read in this turn.
        more: There is more history behind `state`.
        behind_ms: Time of the first event behind the cursor; 0: none is.
        first: Where the fold stood at the beginning of the turn.
    """

    item: Unprojected
    state: ProjectionState
    facts: HeadFacts | None = None
    head: RunHead | None = None
    spans: list[bytes] = field(default_factory=list)
    revision: int = 0
    gone: bool = False
    done: bool = False
    more: bool = False
    behind_ms: int = 0
    first: int = 0


class _Slices:
    """Lets the event loop turn when enough was computed."""

    def __init__(self) -> None:
        self._began = perf_counter()

    async def turn(self) -> None:
        if perf_counter() - self._began > _SLICE_S:
            await asyncio.sleep(0)
            self._began = perf_counter()


class TraceProjector:
    """See the module. Made only where spans are wanted: from then on commits of this replica note what must be exported.

    Args:
        engine: The middle of this replica.
        timers: Knows the shards that this replica looks after.
        exporter: Where spans go; who made it closes it, after `run` ended.
        metrics: Gets `treadle.projector.lag`.
    """

    def __init__(self, engine: Engine, timers: TimerDuty, exporter: SpanSink, metrics: Metrics | None = None) -> None:
        self._engine, self._timers, self._exporter = engine, timers, exporter
        self._metrics = metrics
        self._folds: OrderedDict[tuple[RunKey, bytes], tuple[int, ProjectionState]] = OrderedDict()
        self._woken = asyncio.Event()
        self._runs = _RUNS
        self._last_shard = -1
        self._pause_s = 0.0
        engine.store.trace()

    async def run(self) -> None:
        """Work for ever."""
        with self._engine.hub.listening(self._hinted):
            while True:
                try:
                    busy = bool(self._timers.shards) and await self.turn(self._timers.shards)
                except Unavailable as error:
                    _log.warning("projector_waits_for_store", error=str(error))
                    busy = False
                except Exception:  # traces must never be why a control plane ends
                    _log.exception("projector_failed", retry_s=_LONGEST_PAUSE_S)
                    busy, self._pause_s = False, _LONGEST_PAUSE_S
                await self._rest(busy)

    def _hinted(self, hints: Sequence[Hint]) -> None:
        self._woken.set()

    async def _rest(self, busy: bool) -> None:
        if self._pause_s:
            await asyncio.sleep(self._pause_s)
            return
        if busy:
            return
        try:
            async with asyncio.timeout(_IDLE_S):
                await self._woken.wait()
        except TimeoutError:
            pass
        await asyncio.sleep(_LINGER_S)
        self._woken.clear()

    async def turn(self, shards: Sequence[int], ahead_ms: int = 0) -> bool:
        """Export some of what was not exported of these shards; True when there may be more to do at once.

        Args:
            shards: Which.
            ahead_ms: Also what would be due so soon.

        Raises:
            Unavailable: The store is away; nothing is lost.
        """
        self._engine.committer.runs.cache.closed_shards = frozenset(shards)
        limit = self._runs
        later = [shard for shard in shards if shard > self._last_shard]
        wanted = [*later, *(shard for shard in shards if shard <= self._last_shard)]
        items = await self._engine.store.unprojected(wanted, limit, ahead_ms)
        if items:
            # The next turn begins behind it, so that every shard comes first in turn.
            self._last_shard = items[-1].run.shard
        works = [_Work(item, self._remembered(item)) for item in items]
        await self._read(works)
        sent = await self._send(works)
        await self._engine.store.projected([_projected(work) for work in sent if work.gone or work.head is not None])
        if len(sent) < len(works):  # each turn either sends something or lets others go first
            await self._engine.store.postpone([works[len(sent)].item])
        for work in sent:
            self._remember(work)
        self._judge(works, sent)
        return len(items) == limit or any(work.more and work.state.position > work.first for work in works)

    # --- reading -----------------------------------------------------------------------------------------------------
    async def _read(self, works: Sequence[_Work]) -> None:
        """Read and fold page by page, all runs of the turn at once, until each is at its end or enough was read."""
        size = 0
        share = _Slices()
        for work in works:
            work.first = work.state.position
        while size < _BYTES and (open_ := [work for work in works if not work.done]):
            there = []
            for work in open_:
                if work.item.left:
                    head, events = await self._engine.store.left(work.item, work.state.position)
                    size += sum(map(len, events))
                    _take_or_drop(work, head, events, None)
                elif not self._took_closed(work):
                    there.append(work)
                await share.turn()
            for at in range(0, len(there), _RUNS_A_READ):
                some = there[at : at + _RUNS_A_READ]
                for work, found in zip(some, await self._engine.store.load(list(map(_want, some))), strict=True):
                    work.revision = found.revision
                    size += sum(map(len, found.events))
                    _take_or_drop(work, found.head, found.events, found.event)
                    await share.turn()

    def _took_closed(self, work: _Work) -> bool:
        """Fold a run that this replica saw close without reading it; False: it must be read."""
        if work.head is not None or work.state.position:
            return False
        found = self._engine.committer.runs.cache.take_closed(work.item.run, work.item.revision)
        if found is None:
            return False
        work.revision = found.revision
        _take_or_drop(work, found.head, found.events, None)
        return True

    def _remembered(self, item: Unprojected) -> ProjectionState:
        incarnation, state = self._folds.get((item.run, item.left), (0, ProjectionState()))
        return state if incarnation == item.incarnation else ProjectionState()

    def _remember(self, work: _Work) -> None:
        key = (work.item.run, work.item.left)
        self._folds.pop(key, None)
        if work.facts is None or work.head is None or work.gone:
            return
        if work.more or work.head.sweeping or not work.state.closed:
            self._folds[key] = (work.facts.incarnation, work.state)
            if len(self._folds) > _FOLDS:
                self._folds.popitem(last=False)

    # --- sending -----------------------------------------------------------------------------------------------------
    async def _send(self, works: Sequence[_Work]) -> list[_Work]:
        """Export in order; returns the runs all of whose spans were taken."""
        spans = [(work.item.run.namespace, span) for work in works for span in work.spans]
        taken = 0
        while taken < len(spans):
            some = _some(spans, taken)
            if not await self._exporter.export(request_of(some), len(some)):
                break
            taken += len(some)
        sent: list[_Work] = []
        for work in works:
            taken -= len(work.spans)
            if taken >= 0:
                sent.append(work)
            else:
                break
        return sent

    def _judge(self, works: Sequence[_Work], sent: Sequence[_Work]) -> None:
        """After a failure go slowly, and by single runs, so that one whose spans are refused does not keep back others."""
        if len(sent) < len(works):
            self._pause_s = min(max(_FIRST_PAUSE_S, self._pause_s * 2), _LONGEST_PAUSE_S)
            self._runs = 1
            _log.warning("spans_wait_for_receiver", retry_s=self._pause_s, runs=len(works) - len(sent))
        else:
            self._pause_s = 0.0
            self._runs = min(self._runs * 2, _RUNS)
        if self._metrics is not None:
            behind = [work.behind_ms for work in works[len(sent) :] if work.behind_ms]
            lag_ms = self._engine.clock.now() - min(behind) if behind else 0
            self._metrics.gauge("treadle.projector.lag", max(0, lag_ms) / 1000)


def _want(work: _Work) -> Want:
    return Want(work.item.run, event_at=work.state.position, events_after=work.state.position)


def _some(spans: Sequence[tuple[str, bytes]], start: int) -> Sequence[tuple[str, bytes]]:
    """Return as many of the spans from `start` on as a call takes, at least one."""
    size = end = 0
    for end in range(start, len(spans)):
        size += len(spans[end][1])
        if size > _BYTES_A_CALL and end > start:
            return spans[start:end]
    return spans[start : end + 1]


def _take_or_drop(work: _Work, head_data: bytes, pages: Sequence[bytes], last: bytes | None) -> None:
    """Fold what was read. A history that cannot be read would hold up others for ever: the rest of its trace is dropped."""
    try:
        _take(work, head_data, pages, last)
    except (ValueError, DecodeError):
        _log.exception("trace_dropped", run=str(work.item.run), position=work.state.position)
        work.gone = work.done = True
        work.more = False
        work.spans = []


def _take(work: _Work, head_data: bytes, pages: Sequence[bytes], last: bytes | None) -> None:
    """Fold what was read; `last` is the event that the fold ended with, as the store has it now."""
    if not head_data:
        work.gone = work.done = True
        work.spans = []
        return
    head = RunHead.FromString(head_data)
    facts = HeadFacts(head.namespace, head.run_id, head.incarnation)
    if not _fits(work, facts, last):
        _start_again(work)
        if pages and HistoryEvent.FromString(pages[0]).position != 1:
            work.facts = facts
            work.head = None
            return  # the next page is the first
    work.head, work.facts = head, facts
    if not head.sampled:
        work.done, work.spans = True, []
        return
    cursor = work.item.position if work.item.incarnation == facts.incarnation else 0
    events = [HistoryEvent.FromString(data) for data in pages]
    made, work.state = project(facts, events, work.state)
    work.spans += encoded([span for span in made if span.position > cursor])
    work.behind_ms = work.behind_ms or next((event.time_ms for event in events if event.position > cursor), 0)
    work.more = work.state.position < head.length
    work.done = not work.more or not events or work.state.position - max(work.first, cursor) >= _EVENTS_A_RUN


def _fits(work: _Work, facts: HeadFacts, last: bytes | None) -> bool:
    """Whether the fold is of this history. A history that was left behind does not change."""
    if work.facts is not None and work.facts != facts:
        return False
    if not work.state.position:
        return True
    if work.item.left:
        return True
    if work.facts is None and work.item.incarnation != facts.incarnation:
        return False
    return last is not None and HistoryEvent.FromString(last).revision == work.state.revision


def _start_again(work: _Work) -> None:
    work.state = ProjectionState()
    work.spans = []
    work.first = work.behind_ms = 0


def _projected(work: _Work) -> Projected:
    item, facts = work.item, work.facts
    if work.gone or facts is None or work.head is None:
        return Projected(item.run, item.left, 0, 0, work.revision, more=False, closed=True)
    return Projected(
        item.run,
        item.left,
        facts.incarnation,
        max(work.state.position, item.position) if item.incarnation == facts.incarnation else work.state.position,
        work.revision,
        more=work.more,
        closed=not work.head.sampled or work.head.state == RUN_STATE_CLOSED,
    )
