"""What code says to the outside without waiting for anything, and how it waits for events."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from treadle.protocol.events import derived_id
from treadle.v1.common_pb2 import EventsGiven, Failure, Payload
from treadle.v1.worker_service_pb2 import AnswerSignal, Command, PublishState, SendEvent, WaitForEvent
from treadle.worker.loop.events_had import EventsHad
from treadle.worker.loop.ledger import Kind, Ledger
from treadle.worker.loop.waiting import StepFuture

if TYPE_CHECKING:
    from treadle.worker.loop.durable_loop import DurableLoop
    from treadle.worker.loop.port import RunContext

__all__ = ("Outside",)


class Outside:
    """The part of an execution that is about this.

    Attributes:
        had: The events that the code was given.
    """

    context: RunContext
    had: EventsHad
    _ledger: Ledger
    _loop: DurableLoop

    if TYPE_CHECKING:
        _settle_early: Any

    def events_given(self) -> EventsGiven:
        """What the next part of the run must know of events that the code was given."""
        return self.had.carried()

    def publish_state(self, data: bytes) -> None:
        """The code shows its state."""
        self._note("state", data, Command(publish_state=PublishState(state=Payload(data=data))))

    def answer(self, signal_id: str, data: bytes, failure: Failure | None) -> None:
        """The code answers a question: with encoded data, or with why there is no answer."""
        said = AnswerSignal(signal_id=signal_id)
        if failure is None:
            said.result.data = data
        else:
            said.failure.CopyFrom(failure)
            data = failure.SerializeToString(deterministic=True)
        self._note("answer", b"%b\x1f%b" % (signal_id.encode(), data), Command(answer_signal=said))

    def send_event(self, name: str, data: bytes, event_id: str | None) -> str:
        """The code sends an event. Returns its id: derived from the run and the command, unless one is given."""
        context, place = self.context, "send_event"
        if event_id is None:
            command_id = self._ledger.next_id(self._loop.current_path(), place)
            event_id = derived_id(context.namespace, context.run_id, str(context.incarnation), command_id)
        said = SendEvent(event_id=event_id, name=name, data=Payload(data=data))
        self._note(place, b"%b\x1f%b\x1f%b" % (event_id.encode(), name.encode(), data), Command(send_event=said))
        return event_id

    def wait_for_event(
        self, name: str, match: bytes, timeout_ms: int | None, since_ms: int, after_seq: int
    ) -> asyncio.Future[Any]:
        """The code waits for an event. Returns what has the outcome: EventMatched, EventWaitTimedOut or EventWaitRefused."""
        loop = self._loop
        if loop.closing:
            raise GeneratorExit
        if loop.finishing:
            return loop.create_future()  # the main task has ended: nothing more is recorded, nothing will come
        future = StepFuture(loop)
        limit = b"" if timeout_ms is None else b"%d" % timeout_ms
        ask = self._ledger.ask(loop.current_path(), name, Kind.EVENT, b"%b\x1f%b\x1f%b" % (name.encode(), match, limit))
        spec = WaitForEvent(name=name, match=match, since_ms=since_ms, after_seq=after_seq)
        if timeout_ms is not None:
            spec.timeout_ms, spec.times_out = timeout_ms, True
        ask.prepared = Command(wait_for_event=spec)
        ask.future, future.ask, future.ledger = future, ask, self._ledger
        early = self._ledger.early_outcome(ask)
        if early is not None:
            self._settle_early(ask, early)
        return future

    def _note(self, name: str, data: bytes, command: Command) -> None:
        loop = self._loop
        if loop.closing:
            raise GeneratorExit
        if not loop.finishing:
            self._ledger.note(loop.current_path(), name, data, command)
