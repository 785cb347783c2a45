"""Runs that wait for events, and send some: commands of their code, and what comes of them."""

from __future__ import annotations

from treadle.protocol.events import keys_of
from treadle.v1.common_pb2 import NamedEvent
from treadle.v1.history_pb2 import (
    EventMatched,
    EventSent,
    EventWaitCancelled,
    EventWaitRefused,
    EventWaitStarted,
    EventWaitTimedOut,
)
from treadle.v1.state_pb2 import COMMAND_STATE_EVENT, CommandRow, EventEffect, EventWait, SlotNews
from treadle.v1.worker_service_pb2 import Command

from .event_routers import record_of, slot_of
from .view import RunView

__all__ = ("begin", "cancel", "leave", "send", "take", "time_out", "wait_in")


def begin(view: RunView, command: Command) -> None:
    """The code waits for an event: its row, whose timer is the timeout, and the letter to the slot."""
    spec = command.wait_for_event
    until = view.now + spec.timeout_ms if spec.times_out else 0
    slot = slot_of(spec.name, spec.match)
    row = CommandRow(
        command_id=command.command_id,
        state=COMMAND_STATE_EVENT,
        name=spec.name,
        digest=command.digest,
        due_ms=until,
        event_slot=slot,
    )
    view.event(
        event_wait_started=EventWaitStarted(
            command_id=command.command_id,
            digest=command.digest,
            name=spec.name,
            match=spec.match,
            since_ms=spec.since_ms,
            until_ms=until,
        )
    )
    row.event_position = view.head.length
    view.put(row)
    wait = _wait(view, row)
    wait.since_ms, wait.after_seq = spec.since_ms, spec.after_seq
    view.post(slot, slot_news=SlotNews(name=spec.name, keys=keys_of(spec.match), begin=wait))


def _wait(view: RunView, row: CommandRow) -> EventWait:
    return EventWait(
        run_id=view.run.run_id,
        incarnation=view.head.incarnation,
        command_id=row.command_id,
        position=row.event_position,
    )


def send(view: RunView, command: Command) -> None:
    """The code sends an event: a note, and the letter to the record of the event's id."""
    spec = command.send_event
    view.event(
        event_sent=EventSent(
            command_id=command.command_id,
            digest=command.digest,
            event_id=spec.event_id,
            name=spec.name,
            data=spec.data,
        )
    )
    event = NamedEvent(event_id=spec.event_id, name=spec.name, data=spec.data)
    event.caller.CopyFrom(view.anchor())
    view.post(record_of(spec.event_id), send_event=event)


def wait_in(effect: EventEffect) -> EventWait:
    """Return the wait that an effect is about."""
    return effect.matched if effect.HasField("matched") else effect.refused


def take(view: RunView, effect: EventEffect) -> None:
    """A wait has its event, or cannot be. What finds no row is known already, or waited for no longer."""
    wait = wait_in(effect)
    if not view.exists or view.over or view.head.incarnation != wait.incarnation:
        return
    row = view.row(wait.command_id)
    if row is None or row.state != COMMAND_STATE_EVENT or row.event_position != wait.position:
        return
    if effect.HasField("matched"):
        view.event(event_matched=EventMatched(command_id=row.command_id, event=effect.event, seq=effect.seq))
    else:
        view.event(event_wait_refused=EventWaitRefused(command_id=row.command_id, reason=effect.reason))
    view.drop(row)


def time_out(view: RunView, row: CommandRow) -> None:
    """No event came in time."""
    view.not_before_ms = max(view.not_before_ms, row.due_ms)
    view.event(event_wait_timed_out=EventWaitTimedOut(command_id=row.command_id))
    leave(view, row)
    view.drop(row)


def cancel(view: RunView, row: CommandRow) -> None:
    """The code waits no longer."""
    view.event(event_wait_cancelled=EventWaitCancelled(command_id=row.command_id))
    leave(view, row)
    view.drop(row)


def leave(view: RunView, row: CommandRow) -> None:
    """Let the slot know that nobody waits there any more."""
    view.post(row.event_slot, slot_news=SlotNews(name=row.name, end=_wait(view, row)))
