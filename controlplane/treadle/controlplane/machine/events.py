"""Events: accepted once, and told to whom they concern.

    sender -> record of the event's id -> router of its name -> slots with its values -> runs that wait there
                                       -> runs that it starts

Each arrow is a letter: written in the commit that decides it, delivered at least once. The record of the id makes it one
event for 24 h; a router knows which keys runs compare, in the very commit that routes; a slot has what waits and what came,
so that whoever comes second finds the first; and a run is started, or its wait ends, once by its id or its row.
"""

from __future__ import annotations

from collections import Counter

from treadle.protocol.errors import FieldInvalid, RequestError
from treadle.protocol.events import EVENT_KEPT_MS, derived_id, input_of
from treadle.protocol.ids import RunKey
from treadle.protocol.tags import split_name
from treadle.v1.common_pb2 import EventRef, NamedEvent
from treadle.v1.run_service_pb2 import CONFLICT_POLICY_USE_EXISTING
from treadle.v1.state_pb2 import (
    AcceptedEvent,
    EventEffect,
    EventTriggers,
    Letter,
    RegisteredTrigger,
    StartByEvent,
)

from . import event_routers, event_slots, event_waits, records
from .event_requests import (
    AcceptEvent,
    DropTrigger,
    EventRequest,
    RouteEvent,
    SetTriggers,
    TakeEffect,
    TellSlot,
    UseKeySet,
)
from .requests import Reply, Request, RunReply, StartRun
from .view import RunView

__all__ = ("KINDS", "TRIGGERS", "fields", "fire", "handle", "request_of", "start_request")

TRIGGERS = "~event/triggers"
"""The record of a namespace's triggers."""
KINDS = frozenset(("send_event", "route_event", "slot_news", "use_keys", "event_effect"))
"""Letters about events."""
_STARTS_A_COMMIT = 100
_TRIGGERS = 1_000
"""Workflows of a namespace that events start, and so many of all their versions together."""
_VERSIONS = 20
"""So many versions of a workflow are remembered, those that registered last: who deploys each day leaves one each day."""


def fields(request: EventRequest) -> list[str]:
    """Return what must be loaded besides the head."""
    if isinstance(request, UseKeySet):
        return event_routers.LOG
    if isinstance(request, TellSlot):
        return event_slots.fields(request)
    if isinstance(request, TakeEffect):
        return [f"c:{event_waits.wait_in(request.effect).command_id}"]
    return []


def handle(view: RunView, request: EventRequest) -> Reply:
    """Decide one request."""
    match request:
        case AcceptEvent():
            return _accept(view, request)
        case RouteEvent():
            event_routers.route(view, request.event)
        case UseKeySet():
            return RunReply(view.head, started=event_routers.use(view, request.letter))
        case TellSlot():
            return event_slots.tell(view, request)
        case TakeEffect():
            event_waits.take(view, request.effect)
        case SetTriggers():
            return _set_triggers(view, request)
        case DropTrigger():
            return _drop_trigger(view, request)
    return None


def fire(view: RunView) -> None:
    """The time of a record has come; the caller looked that it is due."""
    head = view.head
    if head.HasField("event_router"):
        event_routers.fire(view)
    elif head.HasField("event_slot"):
        event_slots.fire(view)
    elif head.HasField("event"):
        if head.event.left:
            _start_more(view)
        else:
            records.forget(view)
    else:
        head.watch_due_ms = view.now + EVENT_KEPT_MS


# --- accepting -----------------------------------------------------------------------------------------------------------
def _accept(view: RunView, request: AcceptEvent) -> RunReply:
    if view.exists:
        return RunReply(view.head)
    head = records.make(view)
    event = NamedEvent()
    event.CopyFrom(request.event)
    event.time_ms = view.now
    head.event.CopyFrom(
        AcceptedEvent(
            event_id=event.event_id,
            name=event.name,
            time_ms=event.time_ms,
            data_bytes=len(event.data.data),
            starts=len(request.starts),
            delete_at_ms=view.now + EVENT_KEPT_MS,
        )
    )
    view.post(event_routers.router_of(event), route_event=event)
    for start in request.starts:
        mine = head.event.left.add()
        mine.CopyFrom(start)
        mine.run_id = _run_id(view.run.namespace, start.workflow, event)
    if len(request.starts) > _STARTS_A_COMMIT:
        head.event.data.CopyFrom(event.data)
    _post_starts(view, event)
    return RunReply(head, started=True)


def _start_more(view: RunView) -> None:
    accepted = view.head.event
    event = NamedEvent(event_id=accepted.event_id, name=accepted.name, time_ms=accepted.time_ms, data=accepted.data)
    _post_starts(view, event)


def _post_starts(view: RunView, event: NamedEvent) -> None:
    """Start runs, as many as one commit may; the record's timer goes on."""
    accepted = view.head.event
    for start in accepted.left[:_STARTS_A_COMMIT]:
        view.post(start.run_id, event_effect=EventEffect(event=event, start=start))
    del accepted.left[:_STARTS_A_COMMIT]
    view.head.watch_due_ms = view.now if accepted.left else accepted.delete_at_ms
    if not accepted.left:
        accepted.ClearField("data")
    view.dirty = True


def _run_id(namespace: str, workflow: str, event: NamedEvent) -> str:
    """One run for each event that was accepted: the same id accepted a day later is another event."""
    return f"{split_name(workflow)[0][:120]}-{derived_id(namespace, workflow, event.event_id, str(event.time_ms))}"


# --- triggers ------------------------------------------------------------------------------------------------------------
def _set_triggers(view: RunView, request: SetTriggers) -> RequestError | None:
    """What the worker says of its workflows replaces what was known of them; nothing changes where that is the same.

    Versions of a workflow do not replace each other: which of them an event starts is found out when it comes.
    """
    known = view.head.event_triggers.triggers if view.exists else ()
    names = set(request.workflows)
    mine = {_code(trigger): trigger for trigger in request.triggers}
    if all(mine.get(_code(t)) == t for t in known if _code(t) in names) and mine.keys() <= {_code(t) for t in known}:
        return None
    together = [t for t in known if _code(t) not in names] + list(mine.values())
    kept = next((few for few in (_newest(together, n) for n in range(_VERSIONS, 0, -1)) if len(few) <= _TRIGGERS), None)
    if kept is None:
        return FieldInvalid(
            f"namespace {view.run.namespace!r} would have {len(_newest(together, 1)):,} workflows that events start, the "
            f"limit is {_TRIGGERS:,}",
            field="specs.on",
            remedy="remove triggers that are needed no longer: treadle events triggers",
        )
    _keep_triggers(view, kept)
    return None


def _code(trigger: RegisteredTrigger) -> str:
    return trigger.code or trigger.workflow


def _newest(triggers: list[RegisteredTrigger], versions: int) -> list[RegisteredTrigger]:
    """Keep of each workflow so many versions, those that registered last."""
    found: list[RegisteredTrigger] = []
    counts = Counter[str]()
    for trigger in reversed(triggers):
        counts[trigger.workflow] += 1
        if counts[trigger.workflow] <= versions:
            found.append(trigger)
    return found[::-1]


def _drop_trigger(view: RunView, request: DropTrigger) -> RunReply:
    known = list(view.head.event_triggers.triggers) if view.exists else []
    kept = [trigger for trigger in known if trigger.workflow != request.workflow]
    if len(kept) < len(known):
        _keep_triggers(view, kept)
    return RunReply(view.head, started=len(kept) < len(known))


def _keep_triggers(view: RunView, triggers: list[RegisteredTrigger]) -> None:
    head = view.head if view.exists else records.make(view)
    ordered = sorted(triggers, key=lambda trigger: trigger.workflow)
    head.event_triggers.CopyFrom(EventTriggers(triggers=ordered))
    head.watch_due_ms = view.now + EVENT_KEPT_MS
    view.dirty = True


# --- letters -------------------------------------------------------------------------------------------------------------
def request_of(letter: Letter) -> tuple[RunKey, Request]:
    """Return whom a letter about an event is for, and what it asks there. `send_event` is given to `start_request` first."""
    run = RunKey(letter.namespace, letter.run_id)
    kind = letter.WhichOneof("kind")
    if kind == "route_event":
        return run, RouteEvent(letter.route_event)
    if kind == "use_keys":
        return run, UseKeySet(letter.use_keys)
    if kind == "slot_news":
        return run, TellSlot(letter.slot_news)
    if kind == "send_event":
        return run, AcceptEvent(letter.send_event, ())
    effect = letter.event_effect
    if effect.HasField("start"):
        return run, start_request(effect.event, effect.start, letter.letter_id)
    return run, TakeEffect(effect)


def start_request(event: NamedEvent, start: StartByEvent, request_id: str) -> StartRun:
    """Return the start of a run by an event."""
    return StartRun(
        workflow=start.workflow,
        pool=start.pool,
        input=input_of(event, start.parameter, whole=start.whole),
        request_id=request_id,
        policy=CONFLICT_POLICY_USE_EXISTING,
        caller=event.caller,
        trigger="event",
        event=EventRef(event_id=event.event_id, name=event.name, time_ms=event.time_ms),
    )
