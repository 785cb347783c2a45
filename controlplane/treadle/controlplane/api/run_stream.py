"""One client's stream of runs: what came up becomes commits and watches, what is to go down collects in frames.

While a frame is being written the next one collects, so frames are small when little happens and large under load. A
stream is bounded everywhere: its undecided starts, its watches, and what waits to go down.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from sys import intern
from typing import Final

from treadle.controlplane.api import checks
from treadle.controlplane.api.admission import Target
from treadle.controlplane.api.auth import caller
from treadle.controlplane.api.ends import RunEnds, Watch
from treadle.controlplane.api.errors import status_of_error
from treadle.controlplane.api.starts import Starts, in_the_way, run_reply
from treadle.controlplane.api.views import show
from treadle.controlplane.machine import requests
from treadle.controlplane.machine.requests import Reply, RunReply
from treadle.controlplane.machine.view import first_of
from treadle.protocol.errors import FieldInvalid, Refused, RequestError, TreadleError
from treadle.protocol.ids import RunKey, check_run_id
from treadle.v1 import run_service_pb2 as pb
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.state_pb2 import RUN_STATE_CLOSED, RunHead

__all__ = ("Limits", "RunStream")

_START: Final = "/treadle.v1.RunService/StartRun"
_STREAM: Final = "/treadle.v1.RunService/StreamRuns"
_FRAME_BYTES: Final = 256 << 10
_ANSWER_BYTES: Final = 32


class Limits:
    """Bounds of one stream.

    Attributes:
        undecided: From so many starts without an answer on, nothing more is read.
        own_watches: So many starts are watched without being asked again.
        watches: So many watches may be open together.
        waiting_bytes: From so much on that waits to go down, ends are put off.
    """

    undecided = 2_000
    own_watches = 10_000
    watches = 100_000
    waiting_bytes = 8 << 20


class RunStream:
    """See the module.

    Args:
        starts: Starts runs.
        ends: Tells their ends.
        wake: Called when there may be something to send, or nothing more to wait for.
        limits: Its bounds.
    """

    def __init__(self, starts: Starts, ends: RunEnds, wake: Callable[[], None], limits: type[Limits] = Limits) -> None:
        self._starts, self._ends, self._wake, self._limits = starts, ends, wake, limits
        self._grantee = caller.get()
        self._watches: dict[int, Watch] = {}
        self._put_off: dict[RunKey, None] = {}
        self._frames: deque[_Frame] = deque()
        self._waiting_bytes = 0
        self._undecided = 0
        self._room = asyncio.Event()
        self._replacing: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def undecided(self) -> int:
        """How many starts have no answer yet."""
        return self._undecided

    @property
    def idle(self) -> bool:
        """Whether everything is answered and told."""
        return not (self._undecided or self._watches or self._frames)

    def close(self) -> None:
        """The stream is gone: nobody is told any more. What was started goes on."""
        self._closed = True
        for watch in self._watches.values():
            self._ends.remove(watch)
        self._watches.clear()
        self._frames.clear()
        for task in self._replacing:
            task.cancel()

    @property
    def _full(self) -> bool:
        return self._waiting_bytes > self._limits.waiting_bytes

    # --- going up ------------------------------------------------------------------------------------------------------
    async def read(self, frames: AsyncIterator[pb.StreamRunsRequest]) -> None:
        """Take frames until the client sends no more; slower when too much is undecided."""
        async for frame in frames:
            await self._take(frame)
            while self._undecided >= self._limits.undecided or self._full:
                self._room.clear()
                await self._room.wait()

    async def _take(self, frame: pb.StreamRunsRequest) -> None:
        namespace = intern(checks.namespace_of(frame.namespace))  # one for all runs that are watched
        for number in frame.unwatch:
            self._drop(number)
        for wanted in frame.watches:
            self._watch(namespace, wanted)
        if frame.starts:
            targets = {(item.request.workflow, item.request.pool) for item in frame.starts}
            found = await self._starts.admission.targets_of(namespace, targets)
            for item in frame.starts:
                try:
                    self._start(namespace, item, found[item.request.workflow, item.request.pool])
                except TreadleError as error:
                    self._refuse(item.number, error, item.request)
        if self._frames:
            self._wake()

    def _start(self, namespace: str, item: pb.StartItem, target: Target | TreadleError) -> None:
        request = item.request
        if self._grantee is not None:
            self._grantee.check_method(_START)
        if request.namespace not in ("", namespace):
            raise FieldInvalid(
                f"namespace {request.namespace!r} in a frame of {namespace!r}: leave it out", field="namespace"
            )
        run, start = self._starts.checked(namespace, request)
        if isinstance(target, TreadleError):
            raise target
        start.workflow, start.pool = target
        watch = None
        if item.watch and len(self._watches) < self._limits.own_watches:
            # From now on: it may end before we know that it began.
            watch = self._open(Watch(run, item.number, self, None))
        self._undecided += 1
        self._starts.submit(run, start, partial(self._answered, item.number, run, start, watch))

    def _answered(
        self,
        number: int,
        run: RunKey,
        start: requests.StartRun,
        watch: Watch | None,
        reply: Reply | Exception,
        *,
        replaced: bool = False,
    ) -> None:
        """Take the machine's answer to a start."""
        if not replaced and in_the_way(reply) and not self._closed:
            task = asyncio.create_task(self._replace(number, run, start, watch))
            self._replacing.add(task)
            task.add_done_callback(self._replacing.discard)
            return
        self._undecided -= 1
        self._room.set()
        if self._closed:
            return
        try:
            found = run_reply(start, reply)
        except Exception as error:
            if watch is not None:
                self._drop(number)
            self._refuse(number, error, start)
        else:
            self._started(number, run, watch, found)
        self._wake()

    async def _replace(self, number: int, run: RunKey, start: requests.StartRun, watch: Watch | None) -> None:
        """The run that has the id is ended, and cleared away, first."""
        reply: RunReply | Exception
        try:
            reply = await self._starts.replacing(run, start)
        except Exception as error:
            reply = error
        self._answered(number, run, start, watch, reply, replaced=True)

    def _started(self, number: int, run: RunKey, watch: Watch | None, reply: RunReply) -> None:
        self._starts.count(run, reply)
        frame = self._frame(_ANSWER_BYTES)
        incarnation = first_of(reply.head)
        frame.starts.add(number=number, incarnation=incarnation, existed=not reply.started, watched=watch is not None)
        if watch is not None:
            watch.incarnation = incarnation
            if watch.missed or reply.head.state == RUN_STATE_CLOSED:
                self._ends.look(run)

    def _watch(self, namespace: str, item: pb.WatchItem) -> None:
        try:
            if len(self._watches) >= self._limits.watches:
                raise Refused(
                    f"{len(self._watches):,} runs are watched on one stream, that is the limit",
                    reason="WATCH_LIMIT",
                    remedy="await fewer results at once, or use several clients",
                )
            run = RunKey(namespace, check_run_id(item.run_id))
        except RequestError as error:
            self._no_end(item.number, error, item.run_id)
        else:
            self._open(Watch(run, item.number, self, item.incarnation))
            self._ends.look(run)

    def _open(self, watch: Watch) -> Watch:
        self._drop(watch.number)
        self._watches[watch.number] = watch
        self._ends.add(watch)
        return watch

    def _drop(self, number: int) -> None:
        watch = self._watches.pop(number, None)
        if watch is not None:
            self._ends.remove(watch)

    # --- going down ----------------------------------------------------------------------------------------------------
    def frames(self) -> Iterator[pb.StreamRunsResponse]:
        """Take what is to be sent now, a frame at a time."""
        while self._frames:
            frame = self._frames.popleft()
            self._waiting_bytes -= frame.size
            yield frame.message
        self._room.set()
        put_off, self._put_off = self._put_off, {}
        for run in put_off:
            self._ends.look(run)

    def ended(self, watch: Watch, head: RunHead, last: HistoryEvent | None) -> bool:
        """See Watcher."""
        if self._full:
            self._put_off[watch.run] = None
            return False
        self._watches.pop(watch.number, None)
        size = _ANSWER_BYTES + (last.ByteSize() if last is not None else 0)
        end = self._frame(size).ends.add(number=watch.number)
        show(end.run, head, last)
        self._wake()
        return True

    def refused(self, watch: Watch, error: RequestError) -> None:
        """See Watcher."""
        self._watches.pop(watch.number, None)
        self._no_end(watch.number, error, watch.run.run_id)
        self._wake()

    def _no_end(self, number: int, error: RequestError, run_id: str) -> None:
        status = status_of_error(error, pb.WaitRunRequest(run_id=run_id), method=_STREAM).SerializeToString()
        self._frame(len(status)).ends.add(number=number, status=status)

    def _refuse(self, number: int, error: Exception, request: object) -> None:
        status = status_of_error(error, request, method=_STREAM).SerializeToString()
        self._frame(len(status)).starts.add(number=number, status=status)

    def _frame(self, size: int) -> pb.StreamRunsResponse:
        """Return the frame that has room for `size` more bytes, or is empty."""
        if not self._frames or self._frames[-1].size + size > _FRAME_BYTES:
            self._frames.append(_Frame())
        frame = self._frames[-1]
        frame.size += size
        self._waiting_bytes += size
        return frame.message


@dataclass(slots=True)
class _Frame:
    """What goes down together, and about how many bytes that is."""

    message: pb.StreamRunsResponse = field(default_factory=pb.StreamRunsResponse)
    size: int = 0
