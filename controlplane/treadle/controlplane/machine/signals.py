"""Signals and questions to a run, its answers, and the state that it shows.

A signal is an input like any other: recorded at its position, fed to the code there, and seen before the run can close
(R5). What the code says without waiting for anything, an answer or a state, is a note: recorded once, and kept beside the
history where whoever asks finds it without a worker.
"""

from __future__ import annotations

from treadle.protocol.errors import FieldInvalid, Refused, RequestError
from treadle.v1.history_pb2 import SignalAnswered, SignalReceived, StatePublished
from treadle.v1.worker_service_pb2 import Command

from . import runs
from .requests import RunReply, SignalRun
from .view import RunView

__all__ = ("NOTES", "STATE_FIELD", "answer", "answer_field", "is_answer", "publish", "receive", "seen_field")

NOTES = frozenset(("signal_answered", "state_published", "change_marked", "tags_set", "event_sent"))
"""Events that the owner itself wrote and its code need not see."""
STATE_FIELD = "state"
"""Field of a run with the event of the state that was published last."""
_SHARE = 0.9
"""Of the longest history, signals may fill so much: a flood of them must not stop the run."""


_KINDS = {False: b"signal", True: b"question"}


def seen_field(signal_id: str) -> str:
    """Return the field of a run that tells whether a signal was recorded."""
    return f"s:{signal_id}"


def answer_field(signal_id: str) -> str:
    """Return the field of a run with the event that answered a question."""
    return f"a:{signal_id}"


def is_answer(field: str) -> bool:
    """Whether it is a field that `answer_field` names."""
    return field.startswith("a:")


def receive(view: RunView, request: SignalRun) -> RunReply | RequestError:
    """Record a signal; the same id again changes nothing, whatever became of the run."""
    field, kind = seen_field(request.signal_id), _KINDS[request.asks]
    known = view.note(field) if view.exists else None
    if known == kind:
        return RunReply(view.head)
    if known is not None:
        return FieldInvalid(
            f"signal_id {request.signal_id!r} of run {view.run.run_id!r} is that of a {known.decode()}",
            field="signal_id",
            remedy="give signals and questions ids of their own",
        )
    refusal = runs.refuse(view) or _flood(view)
    if refusal is not None:
        return refusal
    view.put_note(field, kind)
    view.event(
        signal_received=SignalReceived(
            name=request.name, signal_id=request.signal_id, data=request.data, asks=request.asks
        )
    )
    return RunReply(view.head)


def _flood(view: RunView) -> RequestError | None:
    head = view.head
    if head.length < head.accepted_until + view.env.settings.history_limit * _SHARE:
        return None
    return Refused(
        f"run {view.run.run_id!r} has {head.length:,} events in its history and takes no more signals",
        reason="HISTORY_FULL",
        remedy="let the workflow end and start another one for what comes next",
    )


def answer(view: RunView, command: Command) -> None:
    """The code answers a question."""
    spec = command.answer_signal
    event = SignalAnswered(command_id=command.command_id, digest=command.digest, signal_id=spec.signal_id)
    if spec.HasField("failure"):
        event.failure.CopyFrom(spec.failure)
    else:
        event.result.CopyFrom(spec.result)
    view.event(signal_answered=event)
    view.put_note(answer_field(spec.signal_id), event.SerializeToString())


def publish(view: RunView, command: Command) -> None:
    """The code shows its state."""
    event = StatePublished(command_id=command.command_id, digest=command.digest, state=command.publish_state.state)
    view.event(state_published=event)
    view.put_note(STATE_FIELD, event.SerializeToString())
