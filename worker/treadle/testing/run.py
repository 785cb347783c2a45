"""A run in a lab: what it returned, what it did, and what it can be told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from treadle.controlplane.machine.indexes import status_of
from treadle.controlplane.machine.requests import CancelRun, RetryRun, SignalRun, TerminateRun
from treadle.controlplane.machine.signals import STATE_FIELD, answer_field
from treadle.protocol.errors import NotFound, QuestionRefused, RunCancelled, RunClosed, RunTerminated
from treadle.protocol.failures import run_error
from treadle.protocol.ids import RunKey
from treadle.protocol.past import first_call
from treadle.protocol.payloads import decode, encode
from treadle.protocol.signature import Signature
from treadle.v1.history_pb2 import HistoryEvent, SignalAnswered, StatePublished
from treadle.v1.run_service_pb2 import RunStatus
from treadle.v1.state_pb2 import RUN_STATE_CLOSED, RunHead

from .doubles import Call

if TYPE_CHECKING:
    from .house import House
    from .lab import Lab

__all__ = ("Run",)

R = TypeVar("R")
T = TypeVar("T")


class Run(Generic[R]):
    """One run of a lab. R is what its workflow returns.

    Attributes:
        id: The run's id.
    """

    __slots__ = ("_house", "_key", "_lab", "_signature", "id")

    def __init__(self, lab: Lab, house: House, key: RunKey, signature: Signature) -> None:
        self._lab, self._house, self._key, self._signature = lab, house, key, signature
        self.id = key.run_id

    def __repr__(self) -> str:
        return f"<run {self.id} {self.status}>"

    # --- how it goes -------------------------------------------------------------------------------------------------
    @property
    def status(self) -> str:
        """How it stands: "running", "completed", "failed", "cancelled", "terminated", "needs_attention"."""
        return RunStatus.Name(status_of(self._head)).removeprefix("RUN_STATUS_").lower()

    @property
    def closed(self) -> bool:
        """Whether it has its outcome."""
        return self._head.state == RUN_STATE_CLOSED

    @property
    def tags(self) -> dict[str, str]:
        """Its tags, as its code set them."""
        return {tag.key: tag.value for tag in self._head.tags}

    def result(self) -> R:
        """Let time pass until the run has closed, and return what its workflow returned.

        Raises:
            RunFailed: The workflow raised; `__cause__` is what it raised.
            RunCancelled: The run was cancelled.
            RunTerminated: It was terminated.
            Stuck: It waits for something that nothing will bring.
            NeedsAttention: Its code and its history disagree.
            PayloadError: The result does not fit the workflow's return type.
        """
        self._house.close_run(self._key)
        last = self.history()[-1]
        kind = last.WhichOneof("kind")
        if kind == "run_completed":
            value: R = self._signature.decode_result(last.run_completed.result)
            return value
        if kind == "run_cancelled":
            raise RunCancelled(_because(f"run {self.id} was cancelled", last.run_cancelled.reason), run_id=self.id)
        if kind == "run_terminated":
            raise RunTerminated(_because(f"run {self.id} was terminated", last.run_terminated.reason), run_id=self.id)
        raise run_error(self.id, last.run_failed.failure)

    def history(self) -> list[HistoryEvent]:
        """Return its history so far; of a run that goes on as new, that of its present part."""
        return list(self._house.plane.history(self._key))

    # --- what it did -------------------------------------------------------------------------------------------------
    @property
    def calls(self) -> list[Call]:
        """Every attempt of its steps that began, in order."""
        return [call for call in self._lab.calls() if call.run_id == self.id]

    @property
    def steps(self) -> list[str]:
        """Names of the steps that it called, in the order in which they first began; an attempt more adds nothing."""
        return list({call.idempotency_key: call.step for call in self.calls}.values())

    @property
    def children(self) -> list[Run[Any]]:
        """The runs that it started, in order."""
        ids = [event.child_scheduled.run_id for event in self.history() if event.HasField("child_scheduled")]
        return [run for id in ids if (run := self._lab.find(id)) is not None]

    @overload
    def state(self, /) -> Any: ...
    @overload
    def state(self, type: type[T], /) -> T | None: ...
    def state(self, type: Any = Any, /) -> Any:
        """Return what its code showed last with `publish_state`; None: nothing yet."""
        data = self._house.plane.note(self._key, STATE_FIELD)
        if data is None:
            return None
        return decode(StatePublished.FromString(data).state, type, what=f"state of run {self.id}")

    # --- what it is told ---------------------------------------------------------------------------------------------
    def signal(self, name: str, value: Any = None, *, id: str | None = None) -> None:
        """Send it a signal. Its code goes on at once as far as it can; no time passes.

        Args:
            name: What the code receives it by.
            value: Any JSON-like value, dataclass or model.
            id: Sent again under the same id, it changes nothing; None: one is made.

        Raises:
            RunClosed: It is closed already.
            PayloadError: The value cannot be encoded.
        """
        self._send(name, value, id, asks=False)

    @overload
    def ask(self, name: str, value: Any = None, *, returns: type[T], id: str | None = None) -> T: ...
    @overload
    def ask(self, name: str, value: Any = None, *, id: str | None = None) -> Any: ...
    def ask(self, name: str, value: Any = None, *, returns: Any = Any, id: str | None = None) -> Any:
        """Ask it a question, let time pass until it answers, and return the answer.

        Args:
            name: What the code receives it by.
            value: Any JSON-like value, dataclass or model.
            returns: What the answer is decoded as; default: plain JSON values.
            id: Of the question; None: one is made.

        Raises:
            RunClosed: It is closed already, or closed without an answer.
            QuestionRefused: The code refused to answer.
            Stuck: It waits for something that nothing will bring.
        """
        field = answer_field(self._send(name, value, id, asks=True))
        self._house.drive(self._key, lambda: self.closed or self._house.plane.note(self._key, field) is not None)
        data = self._house.plane.note(self._key, field)
        if data is None:
            raise RunClosed(f"run {self.id!r} closed without an answer to question {name!r}")
        said = SignalAnswered.FromString(data)
        if said.HasField("failure"):
            raise QuestionRefused(said.failure.message)
        return decode(said.result, returns, what=f"answer to question {name!r}")

    def cancel(self, reason: str = "") -> None:
        """Ask it to stop: its code sees `asyncio.CancelledError` and may clean up.

        Raises:
            RunClosed: It is closed already.
        """
        self._house.request(self._key, CancelRun(self._house.new_id("cancel"), reason))

    def terminate(self, reason: str = "") -> None:
        """End it without asking its code.

        Raises:
            RunClosed: It is closed already.
        """
        self._house.request(self._key, TerminateRun(self._house.new_id("terminate"), reason))

    def retry(self, *, from_step: str | None = None, reason: str = "") -> None:
        """Let it go on after it has failed, was cancelled or terminated; `result()` then gives the new outcome.

        Args:
            from_step: Name of a step, or one call of it: it and everything behind it runs again. Default: what failed.
            reason: Why.

        Raises:
            NotFound: It has no such step.
            WrongState: It may not go on so.
        """
        request = RetryRun(self._house.new_id("retry"), reason)
        if from_step is not None:
            history = self.history()
            found = first_call(history, from_step)
            if not from_step or found is None:
                raise NotFound(f"run {self.id!r} has no step {from_step!r} in its history; it has {self.steps}")
            request.length = len(history)
            request.from_position, request.step = found
        self._house.request(self._key, request)

    def _send(self, name: str, value: Any, id: str | None, *, asks: bool) -> str:
        signal_id = id or self._house.new_id("question" if asks else "signal")
        what = f"{'question' if asks else 'signal'} {name!r}"
        data = encode(value, what=what, limit=self._house.payload_limit)
        self._house.request(self._key, SignalRun(signal_id, name, data, asks))
        return signal_id

    @property
    def _head(self) -> RunHead:
        return self._house.plane.head(self._key)


def _because(what: str, reason: str) -> str:
    return f"{what}: {reason}" if reason else what
