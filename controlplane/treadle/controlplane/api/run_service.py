"""RunService: what clients do with runs. Checks the request, asks the engine or reads the store, shows the run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Final

from treadle.controlplane.api import checks
from treadle.controlplane.api.admission import Admission
from treadle.controlplane.api.ends import OneEnd, RunEnds, Watch
from treadle.controlplane.api.errors import Context
from treadle.controlplane.api.fleet import Fleet
from treadle.controlplane.api.pages import page_size, read_token, write_token
from treadle.controlplane.api.records import Records
from treadle.controlplane.api.redrive import Redrives
from treadle.controlplane.api.run_stream import RunStream
from treadle.controlplane.api.search import Search, filter_of
from treadle.controlplane.api.signals import Signals
from treadle.controlplane.api.starts import Engine, Starts, run_reply
from treadle.controlplane.hints import HintHub
from treadle.controlplane.machine import requests
from treadle.controlplane.machine.requests import Request
from treadle.controlplane.machine.view import first_of
from treadle.controlplane.store.port import Store
from treadle.controlplane.telemetry import Metrics
from treadle.protocol.errors import RunClosed, Unavailable, WrongState
from treadle.protocol.ids import RunKey
from treadle.v1 import run_service_pb2 as pb
from treadle.v1.run_service_pb2_grpc import RunServiceServicer
from treadle.v1.state_pb2 import RUN_STATE_CLOSED, RunHead

__all__ = ("RunService",)

POLL_S: Final = 2.0
"""How long a waiting call trusts that no hint means no change."""
_WAIT_DEFAULT_MS: Final = 30_000
_WAIT_LARGEST_MS: Final = 60_000
_ANSWER_S: Final = 0.25  # kept back from the caller's deadline, so that the answer arrives inside it
_EVENTS_PAGE: Final = 200


class RunService(RunServiceServicer):
    """See the module.

    Args:
        engine: Decides and commits.
        store: Read for views, lists and history.
        hub: Wakes calls that wait.
        max_payload_bytes: Largest input.
        outbox_max: From so many entries on, starts are refused.
        metrics: Counts starts.

    Attributes:
        ends: Who waits for the end of a run.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        hub: HintHub,
        *,
        max_payload_bytes: int = 1 << 20,
        outbox_max: int = 100_000,
        metrics: Metrics | None = None,
    ) -> None:
        self._engine = engine
        self._hub = hub
        fleet = Fleet(store)
        self._records = Records(store, fleet)
        self._search = Search(store)
        self._starts = Starts(engine, Admission(store, outbox_max, fleet), max_payload_bytes, metrics or Metrics())
        self._signals = Signals(engine, self._records, hub, max_payload_bytes)
        admission = self._starts.admission
        self._redrives = Redrives(engine, store, self._records, admission, max_payload_bytes)
        self.ends = RunEnds(store, hub)

    async def run(self) -> None:
        """Learn of the ends of runs that calls wait for, for ever: one task of the process."""
        await self.ends.run()

    async def StartRun(self, request: pb.StartRunRequest, context: Context) -> pb.StartRunResponse:
        """See run_service.proto."""
        reply = await self._starts.one(request)
        return pb.StartRunResponse(run=await self._records.view(reply.head), started=reply.started)

    async def StreamRuns(
        self, request_iterator: AsyncIterator[pb.StreamRunsRequest], context: Context
    ) -> AsyncIterator[pb.StreamRunsResponse]:
        """See run_service.proto. It ends when the client sends no more and everything is answered and told."""
        ready = asyncio.Event()
        stream = RunStream(self._starts, self.ends, ready.set)
        reader = asyncio.create_task(stream.read(aiter(request_iterator)))
        reader.add_done_callback(lambda _: ready.set())
        try:
            with self._hub.closing(ready.set):
                while True:
                    if self._hub.closed:  # what was sent up and not read yet is sent again elsewhere
                        reader.cancel()
                        if not stream.undecided:
                            raise Unavailable("this replica stops", remedy="open another stream")
                    elif reader.done() and (stream.idle or reader.exception() is not None):
                        break
                    await ready.wait()
                    ready.clear()
                    for frame in stream.frames():
                        yield frame
                reader.result()
        finally:
            reader.cancel()
            stream.close()

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        """See run_service.proto."""
        head = await self._records.head(checks.run_of(request.namespace, request.run_id))
        return pb.GetRunResponse(run=await self._records.view(head))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        """See run_service.proto."""
        wanted = filter_of(request)
        cursor = read_token(request.page_token, wanted.untimed)
        heads, more = await self._search.page(wanted, cursor, page_size(request.page_size))
        runs = await self._records.briefs(heads)
        return pb.ListRunsResponse(runs=runs, next_page_token=write_token(more, wanted.untimed) if more else "")

    async def CountRuns(self, request: pb.CountRunsRequest, context: Context) -> pb.CountRunsResponse:
        """See run_service.proto."""
        found, more = await self._search.count(filter_of(request))
        parts = [pb.StatusCount(status=status, count=count) for status, count in sorted(found.items()) if count]
        return pb.CountRunsResponse(count=sum(found.values()), at_least=more, by_status=parts)

    async def WaitRun(self, request: pb.WaitRunRequest, context: Context) -> pb.WaitRunResponse:
        """See run_service.proto. A run that is replaced under its id meanwhile is answered as it stands."""
        run = checks.run_of(request.namespace, request.run_id)
        until = time.monotonic() + _wait_s(request.wait_ms, context)
        waiter = OneEnd()
        watch = Watch(run, 0, waiter)
        with self.ends.watching(watch), self._hub.closing(waiter.wake):
            head = await self._records.head(run)
            left = until - time.monotonic()
            if head.state == RUN_STATE_CLOSED or left <= 0 or self._hub.closed:
                return pb.WaitRunResponse(run=await self._records.view(head))
            watch.incarnation = first_of(head)
            ended = await waiter.wait(left)
        return pb.WaitRunResponse(run=ended or await self._records.view(await self._records.head(run)))

    async def CancelRun(self, request: pb.CancelRunRequest, context: Context) -> pb.CancelRunResponse:
        """See run_service.proto."""
        asked = requests.CancelRun(checks.request_id_of(request.request_id), checks.reason_of(request.reason))
        return pb.CancelRunResponse(run=await self._steer(request, asked))

    async def TerminateRun(self, request: pb.TerminateRunRequest, context: Context) -> pb.TerminateRunResponse:
        """See run_service.proto."""
        asked = requests.TerminateRun(checks.request_id_of(request.request_id), checks.reason_of(request.reason))
        return pb.TerminateRunResponse(run=await self._steer(request, asked))

    async def AcceptRun(self, request: pb.AcceptRunRequest, context: Context) -> pb.AcceptRunResponse:
        """See run_service.proto."""
        asked = requests.AcceptRun(checks.request_id_of(request.request_id), checks.reason_of(request.reason))
        return pb.AcceptRunResponse(run=await self._steer(request, asked))

    async def RetryRun(self, request: pb.RetryRunRequest, context: Context) -> pb.RetryRunResponse:
        """See run_service.proto."""
        return await self._redrives.retry(request)

    async def ReleaseStep(self, request: pb.ReleaseStepRequest, context: Context) -> pb.ReleaseStepResponse:
        """See run_service.proto."""
        return await self._redrives.release(request)

    async def ListQuarantinedSteps(
        self, request: pb.ListQuarantinedStepsRequest, context: Context
    ) -> pb.ListQuarantinedStepsResponse:
        """See run_service.proto."""
        return await self._redrives.quarantined(request)

    async def SignalRun(self, request: pb.SignalRunRequest, context: Context) -> pb.SignalRunResponse:
        """See run_service.proto."""
        return pb.SignalRunResponse(run=await self._records.view(await self._signals.send(request)))

    async def AskRun(self, request: pb.AskRunRequest, context: Context) -> pb.AskRunResponse:
        """See run_service.proto."""
        return await self._signals.ask(request, _wait_s(request.wait_ms, context))

    async def GetState(self, request: pb.GetStateRequest, context: Context) -> pb.GetStateResponse:
        """See run_service.proto."""
        return await self._signals.state(request)

    async def GetHistory(self, request: pb.GetHistoryRequest, context: Context) -> pb.GetHistoryResponse:
        """See run_service.proto."""
        run = checks.run_of(request.namespace, request.run_id)
        page = await self._records.page(run, request.after_position)
        head, size = page.head, min(request.page_size or _EVENTS_PAGE, _EVENTS_PAGE)
        if request.incarnation not in (0, head.incarnation):
            raise _history_replaced(run, head)
        return pb.GetHistoryResponse(
            events=page.events[:size],
            length=head.length,
            incarnation=head.incarnation,
            first_incarnation=first_of(head),
        )

    async def WatchRun(self, request: pb.WatchRunRequest, context: Context) -> AsyncIterator[pb.WatchRunResponse]:
        """See run_service.proto. The first answer comes at once, also when there is no event yet behind the position.

        An answer without events shows that the state of the run changed (a worker is missing, a slot is free), or how far
        its steps are.
        """
        run = checks.run_of(request.namespace, request.run_id)
        after, incarnation = request.after_position, request.incarnation
        shown: pb.Run | None = None
        async with self._hub.subscribe(run) as woken:
            while True:
                page = await self._records.page(run, after)
                if page.head.incarnation != (incarnation or page.head.incarnation):
                    if shown is not None and first_of(page.head) != (shown.first_incarnation or shown.incarnation):
                        raise _replaced(run)
                    after, incarnation = 0, page.head.incarnation  # its next part
                    continue
                incarnation = page.head.incarnation
                after = page.events[-1].position if page.events else after
                caught_up = after >= page.head.length
                view = await self._records.view(page.head)
                if page.events or shown is None or _moved(view, shown):
                    yield pb.WatchRunResponse(events=page.events, run=view)
                    shown = view
                if caught_up and page.head.state == RUN_STATE_CLOSED:
                    return
                if self._hub.closed:
                    raise Unavailable("this replica stops", remedy=f"watch again from position {after}")
                if caught_up:
                    await woken.wait(POLL_S)

    async def _steer(
        self, request: pb.CancelRunRequest | pb.TerminateRunRequest | pb.AcceptRunRequest, asked: Request
    ) -> pb.Run:
        run = checks.run_of(request.namespace, request.run_id)
        reply = run_reply(asked, await self._engine.ask(run, asked))
        return await self._records.view(reply.head)


def _wait_s(wait_ms: int, context: Context) -> float:
    wait_s = min(wait_ms if wait_ms > 0 else _WAIT_DEFAULT_MS, _WAIT_LARGEST_MS) / 1000
    remaining: float | None = context.time_remaining()
    return wait_s if remaining is None else min(wait_s, remaining - _ANSWER_S)


def _moved(now: pb.Run, before: pb.Run) -> bool:
    if (now.state, now.reason, now.status) != (before.state, before.reason, before.status):
        return True
    return list(now.progress) != list(before.progress)


def _history_replaced(run: RunKey, head: RunHead) -> WrongState:
    """Pages of two histories must not be taken for one; that of a part that has ended is gone."""
    why = f"went on as new (it is in part {head.part} now)" if head.part > 1 else "was started again"
    return WrongState(
        f"run {run.run_id!r} {why} while its history was read: that history is gone",
        reason="HISTORY_REPLACED",
        remedy="read it again from its beginning",
    )


def _replaced(run: RunKey) -> RunClosed:
    return RunClosed(
        f"run {run.run_id!r} was ended and started again under the same id while it was watched",
        reason="RUN_REPLACED",
        remedy="watch again from position 0",
    )
