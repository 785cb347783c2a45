"""What reaches workflow code from outside, and what it says without waiting: signals, questions, its state."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from treadle.protocol.durations import Duration, to_ms
from treadle.protocol.errors import ConfigError, PayloadError
from treadle.protocol.payloads import decode, encode_bytes
from treadle.v1.common_pb2 import Failure
from treadle.v1.history_pb2 import SignalReceived
from treadle.worker.current import current_execution

if TYPE_CHECKING:
    from treadle.worker.loop.execution import WorkflowExecution

__all__ = ("Question", "publish_state", "receive", "receive_question")

T = TypeVar("T")


class Question(Generic[T]):
    """A question that somebody asked the run. All who ask under its id get the one answer.

    Attributes:
        id: Given by who asks.
        value: What is asked.
    """

    __slots__ = ("_answered", "_execution", "id", "value")

    def __init__(self, execution: WorkflowExecution, id: str, value: T) -> None:
        self._execution = execution
        self._answered = False
        self.id = id
        self.value = value

    def answer(self, value: Any) -> None:
        """Answer it; the code goes on at once.

        Raises:
            PayloadError: The value cannot be encoded, or is too large.
            ConfigError: It was answered, or refused, before.
        """
        data = _encoded(self._execution, value, f"answer to question {self.id!r}")  # if that fails, it can be refused
        self._once()
        self._execution.answer(self.id, data, None)

    def refuse(self, reason: str) -> None:
        """Say why there is no answer: who asks gets `QuestionRefused`.

        Raises:
            ConfigError: It was answered, or refused, before.
        """
        self._once()
        self._execution.answer(self.id, b"", Failure(type="QuestionRefused", message=reason, final=True))

    def _once(self) -> None:
        if self._answered:
            raise ConfigError(f"question {self.id!r} has its answer: answer it once")
        self._answered = True


@overload
async def receive(name: str, type: type[T], /) -> T: ...
@overload
async def receive(name: str, type: type[T], /, *, timeout: Duration) -> T | None: ...
@overload
async def receive(name: str, /, *, timeout: Duration | None = None) -> Any: ...
async def receive(name: str, type: Any = Any, /, *, timeout: Duration | None = None) -> Any:
    """Wait for the next signal of a name and return its value.

    Signals that came before are kept and received in order. One that is received by nobody is named when the run ends.

    Args:
        name: What senders call it.
        type: What the value is decoded as; default: plain JSON values.
        timeout: How long to wait, in seconds or as text ("3d"); None: as long as it takes.

    Returns:
        The value; None when the timeout is over.

    Raises:
        PayloadError: The value does not fit the type. The signal counts as received.
        ConfigError: It is called outside a workflow.
    """
    execution = _here("receive")
    letter = await _signal(execution, name, timeout)
    return None if letter is None else decode(letter.data, type, what=f"signal {name!r}")


@overload
async def receive_question(name: str, type: type[T], /) -> Question[T]: ...
@overload
async def receive_question(name: str, type: type[T], /, *, timeout: Duration) -> Question[T] | None: ...
@overload
async def receive_question(name: str, /, *, timeout: Duration | None = None) -> Any: ...
async def receive_question(name: str, type: Any = Any, /, *, timeout: Duration | None = None) -> Any:
    """Wait for the next question of a name; answer it with `Question.answer`.

    A question whose value does not fit the type is refused with the reason, and the next one is waited for.

    Args:
        name, type, timeout: As for `receive`.

    Returns:
        The question; None when the timeout is over.

    Raises:
        ConfigError: It is called outside a workflow.
    """
    execution = _here("receive_question")
    if timeout is None:
        return await _question(execution, name, type)
    try:
        async with asyncio.timeout(to_ms(timeout, name="timeout") / 1000):
            return await _question(execution, name, type)
    except TimeoutError:
        return None


def publish_state(value: Any) -> None:
    """Show a value to whoever looks at the run: `RunHandle.state` reads the last one, at any time, without a worker.

    Args:
        value: Any JSON-like value, dataclass or model.

    Raises:
        PayloadError: It cannot be encoded, or is too large.
        ConfigError: It is called outside a workflow.
    """
    execution = _here("publish_state")
    execution.publish_state(_encoded(execution, value, "published state"))


async def _signal(execution: WorkflowExecution, name: str, timeout: Duration | None) -> SignalReceived | None:
    if timeout is None:
        return await execution.mail.receive(name, asks=False)
    try:
        async with asyncio.timeout(to_ms(timeout, name="timeout") / 1000):
            return await execution.mail.receive(name, asks=False)
    except TimeoutError:
        return None


async def _question(execution: WorkflowExecution, name: str, type_: Any) -> Question[Any]:
    while True:
        letter = await execution.mail.receive(name, asks=True)
        try:
            value = decode(letter.data, type_, what=f"question {name!r}")
        except PayloadError as error:
            Question(execution, letter.signal_id, None).refuse(str(error))
        else:
            return Question(execution, letter.signal_id, value)


def _encoded(execution: WorkflowExecution, value: Any, what: str) -> bytes:
    return encode_bytes(value, what=what, limit=execution.context.payload_limit)


def _here(what: str) -> WorkflowExecution:
    execution = current_execution()
    if execution is None:
        raise ConfigError(f"{what}(): call it inside a @workflow that a worker executes")
    return execution
