"""Routers: records that know, for the events of one name, which keys runs compare when they wait.

A name has several, each for a part of its events, so that many events of one name are not one hot record. Which slots an
event goes to is decided in the commit that knows the key sets: no event falls between a wait that begins and a cache that
has not heard of it. A set of keys that comes into use is given the last events from the router's log; so the first wait
ever with those keys finds what came shortly before.
"""

from __future__ import annotations

from treadle.protocol.events import EVENT_KEPT_MS, derived_id, read_data, values_at
from treadle.v1.common_pb2 import NamedEvent
from treadle.v1.state_pb2 import EventRouter, KeySet, SlotNews, UseKeys

from . import records
from .view import RunView

__all__ = ("LOG", "ROUTERS", "fire", "record_of", "route", "router_of", "routers", "slot_of", "use")

ROUTERS = 4
"""Routers of a name."""
_LOG_EVENTS, _LOG_BYTES = 150, 8_192
"""Events that a router keeps for key sets to come, and the data that one of them may have."""
LOG = [f"e:{n}" for n in range(_LOG_EVENTS)]
"""Fields of the log."""
_KEY_SETS = 32
"""Sets of keys that waits for one name may use."""
IN_USE_MS = 60 * 86_400_000
"""So long a set of keys stays in use after a slot said so last; slots that somebody waits in say it each half of that."""
_SETTLED_MS = 86_400_000


def record_of(event_id: str) -> str:
    """Return the record of the event with this id."""
    return f"~event/id/{derived_id(event_id)}"


def router_of(event: NamedEvent) -> str:
    """Return the router of an event."""
    return f"~event/router/{int(derived_id(event.event_id)[:4], 16) % ROUTERS}/{event.name}"


def routers(name: str) -> list[str]:
    """Return all routers of a name."""
    return [f"~event/router/{n}/{name}" for n in range(ROUTERS)]


def slot_of(name: str, match: bytes) -> str:
    """Return the slot of events of a name with these values, as `canonical_match` writes them."""
    return f"~event/slot/{derived_id(name, match.decode())}"


def route(view: RunView, event: NamedEvent) -> None:
    """Pass an event on to the slots of all key sets that it has values for."""
    router = _router(view, event.name)
    if event.data.ByteSize() <= _LOG_BYTES:
        view.put_note(LOG[router.routed % _LOG_EVENTS], event.SerializeToString())
        router.routed += 1
    router.last_ms = view.now
    if router.key_sets:
        data = read_data(event.data)
        for used in router.key_sets:
            _pass_on(view, list(used.keys), event, data)
    _touched(view)


def _pass_on(view: RunView, keys: list[str], event: NamedEvent, data: object) -> None:
    values = values_at(keys, data)
    if values is not None:
        news = SlotNews(name=event.name, keys=keys, event=event)
        view.post(slot_of(event.name, values), slot_news=news)


def use(view: RunView, asked: UseKeys) -> bool:
    """A slot says that its keys are in use: from now on events go there, and the last ones at once. False: no room."""
    router = _router(view, asked.name)
    until = view.now + IN_USE_MS
    for used in router.key_sets:
        if used.keys == asked.keys:
            if until - used.until_ms > _SETTLED_MS:
                used.until_ms = until
                _touched(view)
            return True
    _drop_unused(view, router)
    if len(router.key_sets) >= _KEY_SETS:
        reason = (
            f"runs compare events {asked.name!r} by {_KEY_SETS} different sets of keys already; "
            f"{', '.join(asked.keys) or 'no key at all'} would be one more. Compare the same keys wherever possible"
        )
        view.post(asked.slot, slot_news=SlotNews(name=asked.name, keys=asked.keys, refusal=reason))
        _touched(view)
        return False
    router.key_sets.append(KeySet(keys=asked.keys, until_ms=until))
    for event in _logged(view, router):
        _pass_on(view, list(asked.keys), event, read_data(event.data))
    _touched(view)
    return True


def _logged(view: RunView, router: EventRouter) -> list[NamedEvent]:
    """Return the events of the log in the order in which they came."""
    first = max(0, router.routed - _LOG_EVENTS)
    kept = [view.note(LOG[n % _LOG_EVENTS]) for n in range(first, router.routed)]
    events = [NamedEvent.FromString(data) for data in kept if data]
    return [event for event in events if event.time_ms > view.now - EVENT_KEPT_MS]


def fire(view: RunView) -> None:
    """Forget key sets that nobody uses, and a router that nothing comes to."""
    router = view.head.event_router
    _drop_unused(view, router)
    if not router.key_sets and router.last_ms + EVENT_KEPT_MS <= view.now:
        records.forget(view)
    else:
        _touched(view)


def _drop_unused(view: RunView, router: EventRouter) -> None:
    used = [key_set for key_set in router.key_sets if key_set.until_ms > view.now]
    if len(used) < len(router.key_sets):
        del router.key_sets[:]
        router.key_sets.extend(used)


def _router(view: RunView, name: str) -> EventRouter:
    if not view.exists:
        records.make(view).event_router.CopyFrom(EventRouter(name=name, last_ms=view.now))
    return view.head.event_router


def _touched(view: RunView) -> None:
    router = view.head.event_router
    ends = [key_set.until_ms for key_set in router.key_sets] or [router.last_ms + EVENT_KEPT_MS]
    view.head.watch_due_ms = min(ends)
    view.hot = view.dirty = True
