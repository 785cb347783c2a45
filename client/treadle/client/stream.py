"""The client's stream of runs: starts and results of everybody who uses the client go over it, many in a frame.

There is no window: what is asked for while the stream is idle goes out in the same turn of the event loop, and what comes
while a frame is being written goes into the next one. A stream that breaks is opened again, with everything unanswered;
starts have their `request_id`, so they take effect once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.rpc.status_pb2 import Status

from treadle.client.backoff import Backoff
from treadle.client.config import CALL_TIMEOUT_S
from treadle.client.status import from_rpc_error, from_status, no_answer
from treadle.client.traffic import Outcome, Traffic
from treadle.protocol.errors import TreadleError, Unavailable
from treadle.v1.run_service_pb2 import Run, StartAnswer, StartRunRequest, StreamRunsRequest, StreamRunsResponse

if TYPE_CHECKING:
    from treadle.v1.run_service_pb2_grpc import RunServiceAsyncStub

__all__ = ("RunStream",)

_LONGEST_PAUSE_S: Final = 1.0
_AGAIN_S: Final = 0.3

Ticket = asyncio.Future[Any]
Call = grpc.aio.StreamStreamCall[StreamRunsRequest, StreamRunsResponse]


class RunStream:
    """See the module. It connects with the first use, in the event loop of that.

    Args:
        stub: RunService on the client's channel.
        target: Address, for errors.
        namespace: Of all runs.
        metadata: Of the call: proves who calls.
    """

    def __init__(
        self, stub: RunServiceAsyncStub, *, target: str, namespace: str, metadata: tuple[tuple[str, str], ...]
    ) -> None:
        self._stub = stub
        self._target = target
        self._metadata = metadata
        self._traffic: Traffic[Ticket] = Traffic(namespace)
        self._loop = asyncio.get_running_loop()
        self._asked = asyncio.Event()
        self._turns: deque[Ticket] = deque()
        self._alarm: asyncio.TimerHandle | None = None
        self._again: asyncio.TimerHandle | None = None
        self._met = False
        self._running: asyncio.Task[None] | None = None

    async def start(self, make: Callable[[], StartRunRequest]) -> tuple[int, str, StartAnswer]:
        """Start a run; returns the number of the start, the run's id, and the answer once it is durable.

        Args:
            make: Makes the request when there is room for it: so many starts, and bytes, may be without an answer.

        Raises:
            TreadleError: What the control plane answered, or why it could not be asked. What `make` raises.
        """
        if self._turns or not self._traffic.room:
            await self._turn()
        try:
            request = make()
        except BaseException:
            self._make_room()
            raise
        ticket: Ticket = self._loop.create_future()
        until = self._loop.time() + CALL_TIMEOUT_S
        number = self._traffic.start(request, ticket, until)
        self._ask()
        if self._alarm is None:
            self._alarm = self._loop.call_at(until, self._overdue)
        try:
            return number, request.run_id, await ticket
        except asyncio.CancelledError:
            self._traffic.leave(number, ticket)
            raise

    async def end(self, number: int, run_id: str, incarnation: int, timeout: float | None) -> Run | None:
        """Return the run once it is closed; None when `timeout` seconds are over. Arguments as for Traffic.end.

        Raises:
            TreadleError: There is no such run, or it may not be asked for.
        """
        ticket: Ticket = self._loop.create_future()
        found = self._traffic.end(number, run_id, incarnation, ticket)
        if isinstance(found, Run):
            return found
        self._ask()
        timer = None if timeout is None else self._loop.call_later(timeout, _give_up, ticket)
        run: Run | None = None
        try:
            run = await ticket
        finally:
            if timer is not None:
                timer.cancel()
            if run is None:
                self._traffic.leave(found, ticket)
                self._ask()
        return run

    async def close(self) -> None:
        """End the stream; who waits is cancelled."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        for timer in (self._alarm, self._again):
            if timer is not None:
                timer.cancel()
        for ticket in (*self._traffic.give_up(), *self._turns):
            ticket.cancel()

    def _ask(self) -> None:
        """There may be something to send."""
        if self._traffic.pending:
            self._asked.set()
            if self._running is None:
                self._running = self._loop.create_task(self._run(), name="treadle-runs")
                self._running.add_done_callback(self._stopped)

    async def _turn(self) -> None:
        """Wait until there is room for a start, in the order of asking."""
        turn: Ticket = self._loop.create_future()
        self._turns.append(turn)
        while True:
            try:
                await turn
            except asyncio.CancelledError:
                self._make_room()  # it may have been this one's turn
                raise
            if self._traffic.room:
                return
            turn = self._loop.create_future()
            self._turns.appendleft(turn)

    def _make_room(self) -> None:
        """Let those start that wait for it, as many as there is room for."""
        room = self._traffic.room
        while room and self._turns:
            turn = self._turns.popleft()
            if not turn.done():
                turn.set_result(None)
                room -= 1

    # --- the stream ----------------------------------------------------------------------------------------------------
    async def _run(self) -> None:
        backoff = Backoff(longest=_LONGEST_PAUSE_S)
        while True:
            await self._asked.wait()
            error = await self._serve(backoff.reset)
            if isinstance(error, Unavailable):
                self._settle(self._traffic.broken(met=self._met), error)
            else:
                self._settle(self._traffic.give_up(), error)
            self._make_room()
            if self._traffic.pending:
                self._asked.set()
                await backoff.wait()
            else:
                self._asked.clear()

    async def _serve(self, answered: Callable[[], None]) -> TreadleError:
        """Open a stream and use it until it ends; returns why it did."""
        call = self._stub.StreamRuns(metadata=self._metadata)
        writing = self._loop.create_task(self._write(call))
        writing.add_done_callback(lambda task: task.cancelled() or (task.exception() and call.cancel()))
        try:
            while True:
                frame = await call.read()
                if not isinstance(frame, StreamRunsResponse):  # the end: the status says why
                    return Unavailable(f"the control plane at {self._target} ended the stream")
                self._met = True
                answered()
                self._take(frame)
        except grpc.RpcError as error:
            return from_rpc_error(error, target=self._target)
        except asyncio.CancelledError:
            if (me := asyncio.current_task()) is not None and me.cancelling():
                raise
            if writing.done() and not writing.cancelled() and (fault := writing.exception()):
                raise fault from None
            return Unavailable(f"the control plane at {self._target} cut off the stream")  # gRPC tells it so
        finally:
            call.cancel()
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _write(self, call: Call) -> None:
        try:
            while True:
                self._asked.clear()
                while (frame := self._traffic.frame()) is not None:
                    await call.write(frame)
                await self._asked.wait()
        except (grpc.RpcError, asyncio.InvalidStateError):
            return  # the stream is gone: who reads is told why

    def _take(self, frame: StreamRunsResponse) -> None:
        for ticket, outcome in self._traffic.take(frame):
            _give(ticket, outcome)
        if self._traffic.put_off and self._again is None:
            self._again = self._loop.call_later(_AGAIN_S, self._send_again)
        if self._turns:
            self._make_room()

    def _send_again(self) -> None:
        self._again = None
        self._traffic.again()
        self._ask()

    def _overdue(self) -> None:
        self._settle(self._traffic.overdue(self._loop.time()), no_answer(self._target))
        self._make_room()
        due = self._traffic.next_due
        self._alarm = None if due is None else self._loop.call_at(due, self._overdue)

    def _stopped(self, running: asyncio.Task[None]) -> None:
        """It only ends when it is cancelled, or by a fault of ours: then whoever waits is told."""
        self._running = None
        fault = None if running.cancelled() else running.exception()
        if fault is not None:
            self._settle(self._traffic.give_up(), fault)
            self._make_room()

    def _settle(self, tickets: list[Ticket], error: BaseException) -> None:
        for ticket in tickets:
            if not ticket.done():
                ticket.set_exception(copy(error))  # each raises its own


def _give(ticket: Ticket, outcome: Outcome) -> None:
    if ticket.done():
        return  # it was cancelled in this very turn of the loop
    if outcome.status:
        ticket.set_exception(from_status(Status.FromString(outcome.status)))
    else:
        ticket.set_result(outcome if isinstance(outcome, StartAnswer) else outcome.run)


def _give_up(ticket: Ticket) -> None:
    if not ticket.done():
        ticket.set_result(None)
