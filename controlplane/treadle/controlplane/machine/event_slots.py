"""Slots: records of the events of one name with the same values of a set of keys, and of the runs that wait for one.

A wait that begins looks into the log first; one that finds nothing stays, and the next event ends it. Both are decided by
commits to the slot, so whoever comes second finds the first. An event ends all waits that are there: the few that stand in
the head at once, those in fields a page at a time by the slot's timer, so that ten thousand of them stop nobody else.
"""

from __future__ import annotations

from treadle.protocol.errors import Unavailable
from treadle.protocol.events import EVENT_KEPT_MS, derived_id
from treadle.v1.common_pb2 import NamedEvent
from treadle.v1.state_pb2 import EventEffect, EventSlot, EventWait, SlotNews, UseKeys

from . import records
from .event_requests import TellSlot
from .event_routers import IN_USE_MS, routers
from .view import RunView

__all__ = ("fields", "fire", "tell")

_LOG_EVENTS = 50
"""Events that a slot keeps, the last ones of 24 h."""
_LOG = [f"e:{n}" for n in range(_LOG_EVENTS)]
_IN_HEAD = 16
"""Waits that stand in the head; the others stand in fields."""
_ENDED = 64
_TELLS, _TELL_BYTES = 200, 1 << 20
"""Waits that one commit ends, and the bytes of the events in their letters."""


def fields(request: TellSlot) -> list[str]:
    """Return what must be loaded besides the head."""
    kind = request.news.WhichOneof("kind")
    if kind == "begin":
        return [*_LOG, _field(request.news.begin)]
    return [_field(request.news.end)] if kind == "end" else []


def _name(wait: EventWait) -> str:
    """What is asked for again by a run that was retried is another wait."""
    return derived_id(wait.run_id, str(wait.incarnation), wait.command_id, str(wait.position))[:20]


def _field(wait: EventWait) -> str:
    return f"w:{_name(wait)}"


def tell(view: RunView, request: TellSlot) -> Unavailable | None:
    """An event, a wait that begins or ends, or that nobody can wait here."""
    news = request.news
    kind = news.WhichOneof("kind")
    slot = _slot(view, news)
    busy = None
    if kind == "event":
        _event(view, slot, news.event)
    elif kind == "begin":
        busy = _begin(view, slot, news.begin)
    elif kind == "end":
        _end(view, slot, news.end)
    elif kind == "refusal":
        _refuse(view, slot, news.refusal)
    _set_due(view)
    return busy


def _slot(view: RunView, news: SlotNews) -> EventSlot:
    if not view.exists:
        records.make(view).event_slot.CopyFrom(EventSlot(name=news.name, keys=news.keys, last_ms=view.now))
    slot = view.head.event_slot
    if not news.HasField("end") and slot.keys != news.keys:  # an end came first, and names no keys
        del slot.keys[:]
        slot.keys.extend(news.keys)
    return slot


# --- events --------------------------------------------------------------------------------------------------------------
def _event(view: RunView, slot: EventSlot, event: NamedEvent) -> None:
    slot.last_seq = max(slot.last_seq + 1, view.now << 10)  # also beyond those of a record that is gone
    logged = EventEffect(event=event, seq=slot.last_seq)
    view.put_note(_LOG[slot.logged % _LOG_EVENTS], logged.SerializeToString())
    slot.logged += 1
    slot.last_ms = view.now
    waits = list(slot.waits)
    del slot.waits[:]
    for wait in waits:
        if event.time_ms >= wait.since_ms:
            _match(view, wait, event, slot.last_seq)
        else:
            slot.waits.append(wait)
    if slot.more_waits and not slot.HasField("telling"):
        slot.telling.CopyFrom(event)
        slot.telling_seq = slot.last_seq
    view.dirty = True


def _match(view: RunView, wait: EventWait, event: NamedEvent, seq: int) -> None:
    view.post(wait.run_id, event_effect=EventEffect(event=event, matched=wait, seq=seq))


# --- waits ---------------------------------------------------------------------------------------------------------------
def _begin(view: RunView, slot: EventSlot, wait: EventWait) -> Unavailable | None:
    field, name = _field(wait), _name(wait)
    if name in slot.ended:
        return None
    if view.note(field) is not None or any(_name(other) == name for other in slot.waits):
        return None
    if slot.refused:
        _refused(view, wait, slot.refused)
        return None
    found = _look_back(view, slot, wait)
    if found is not None:
        _match(view, wait, found.event, found.seq)
        view.dirty = True
        return None
    if slot.HasField("telling"):
        return Unavailable(f"event slot {view.run.run_id!r} is telling its waits: they are told apart from new ones")
    if len(slot.waits) < _IN_HEAD:
        slot.waits.append(wait)
    else:
        view.put_note(field, wait.SerializeToString())
        slot.more_waits += 1
    if slot.keys_due_ms <= view.now:
        _use_keys(view, slot)
    view.dirty = True
    return None


def _look_back(view: RunView, slot: EventSlot, wait: EventWait) -> EventEffect | None:
    """Return the first event of the log that the wait is for."""
    oldest = max(wait.since_ms, view.now - EVENT_KEPT_MS)
    for n in range(max(0, slot.logged - _LOG_EVENTS), slot.logged):
        data = view.note(_LOG[n % _LOG_EVENTS])
        if data is None:
            continue
        logged = EventEffect.FromString(data)
        if logged.seq > wait.after_seq and logged.event.time_ms >= oldest:
            return logged
    return None


def _use_keys(view: RunView, slot: EventSlot) -> None:
    """Let all routers of the name know that somebody compares these keys."""
    slot.keys_due_ms = view.now + IN_USE_MS // 2
    if not view.env.keys_known(view.run.namespace, slot.name, tuple(slot.keys)):
        for router in routers(slot.name):
            view.post(router, use_keys=UseKeys(name=slot.name, keys=slot.keys, slot=view.run.run_id))


def _end(view: RunView, slot: EventSlot, wait: EventWait) -> None:
    """A run waits no longer. Its beginning may come only now, or again: it is known to be over then."""
    name, field = _name(wait), _field(wait)
    view.dirty = True
    if name not in slot.ended:
        slot.ended.append(name)
        del slot.ended[:-_ENDED]
    if view.note(field) is not None:
        view.drop_note(field)
        slot.more_waits -= 1
        return
    for index, other in enumerate(slot.waits):
        if _name(other) == name:
            del slot.waits[index]
            return


def _refuse(view: RunView, slot: EventSlot, reason: str) -> None:
    slot.refused = reason
    for wait in slot.waits:
        _refused(view, wait, reason)
    del slot.waits[:]
    if slot.more_waits:
        slot.telling.CopyFrom(
            NamedEvent(name=slot.name)
        )  # accepted before all of them: they begin again, and are refused
        slot.telling_seq = 0
    view.dirty = True


def _refused(view: RunView, wait: EventWait, reason: str) -> None:
    view.post(wait.run_id, event_effect=EventEffect(refused=wait, reason=reason))
    view.dirty = True


# --- time ----------------------------------------------------------------------------------------------------------------
def fire(view: RunView) -> None:
    """Go on telling; say again that the keys are in use; or end, when nothing waits here and nothing is remembered."""
    slot = view.head.event_slot
    if slot.HasField("telling"):
        _tell_more(view, slot)
    elif not slot.waits and not slot.more_waits and slot.last_ms + EVENT_KEPT_MS <= view.now:
        records.forget(view)
        return
    elif (slot.waits or slot.more_waits) and slot.keys_due_ms <= view.now:
        _use_keys(view, slot)
    _set_due(view)


def _tell_more(view: RunView, slot: EventSlot) -> None:
    """End the waits of a page. Those that the event came too early for begin again: they look into the log first."""
    if not view.may_sweep:
        return  # in a batch with others: no page was loaded; the timer is still due
    event = slot.telling
    budget = max(1, min(_TELLS, _TELL_BYTES // max(1, event.data.ByteSize())))
    there = [field for field in view.loaded.fields if field.startswith("w:")]
    for field in there[:budget]:
        wait = EventWait.FromString(view.loaded.fields[field])
        if event.time_ms >= wait.since_ms:
            _match(view, wait, event, slot.telling_seq)
        else:
            news = SlotNews(name=slot.name, keys=slot.keys, begin=wait)
            view.post(view.run.run_id, slot_news=news)
        view.drop_note(field)
        slot.more_waits -= 1
    if not there or (view.loaded.whole and len(there) <= budget):
        slot.ClearField("telling")
        slot.telling_seq = 0
        slot.more_waits = 0
    view.dirty = True


def _set_due(view: RunView) -> None:
    slot = view.head.event_slot
    if slot.HasField("telling"):
        view.head.watch_due_ms = view.now
    elif slot.waits or slot.more_waits:
        view.head.watch_due_ms = max(slot.keys_due_ms, view.now + 1)
    else:
        view.head.watch_due_ms = slot.last_ms + EVENT_KEPT_MS
