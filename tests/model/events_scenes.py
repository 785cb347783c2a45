"""The scenes of events: what is checked exhaustively, and for each rule one that breaks without it."""

from __future__ import annotations

from dataclasses import replace

from .events_state import Scene

__all__ = ("BREAKS", "DEEP", "NOT_NEEDED", "PROBES", "SMALL", "SUITE")


def faulty(count: int, *kinds: str, **change: object) -> Scene:
    scene = Scene(faults=count)
    scene = replace(scene, kinds=frozenset(kinds)) if kinds else scene
    return replace(scene, **change)  # type: ignore[arg-type]


_ONE = Scene(events=(0,))
_NONE = Scene(events=(), vain=1)
_VAIN = Scene(events=(1,), runs=(0, 1), vain=1)
_PLAIN = {
    "accept.once": faulty(1, "both", events=(0,), starts=True),
    "outbox": faulty(1, "kill", events=(0,)),
    "start.once": faulty(1, "kill", events=(0,), starts=True),
    "route.knows": _ONE,
    "use.log": _ONE,
    "use.all": Scene(),
    "known.all": replace(_VAIN, full=(0,)),
    "known.refused": replace(_VAIN, full=(0, 1)),
    "begin.looks": Scene(),
    "begin.commit": Scene(),
    "telling": Scene(events=(0,), runs=(0, 0), pages=True),
    "after": Scene(),
    "had": faulty(1, "kill"),
    "effect.row": faulty(1, "kill", events=(0,)),
    "carried": Scene(news=1),
    "effect.part": Scene(news=1, now=True),
    "effect.over": replace(_ONE, news=1),
    "again": replace(_ONE, stops=1),
    "end.early": _NONE,
    "end.kept": replace(_NONE, faults=1, kinds=frozenset(("kill",))),
    "alone": replace(_ONE, old=True),
}
_TOGETHER = {"end.early": ("end.early", "end.kept")}
PROBES = {rule: replace(scene, without=_TOGETHER.get(rule, (rule,))) for rule, scene in _PLAIN.items()}
NOT_NEEDED = ("telling",)
"""It keeps a slot from telling one event for ever; nothing is lost or doubled without it."""
_STUCK = "L: stuck for ever"
BREAKS = dict.fromkeys(_PLAIN, _STUCK) | {
    "accept.once": "an event starts a workflow twice",
    "start.once": "an event starts a workflow twice",
    "had": "an event is given twice",
    "carried": "an event is given twice",
    "effect.row": "a wait is settled twice",
    "effect.part": "an event is given that the look-back does not contain",
    "effect.over": "an event is recorded behind the end of a part",
    "end.early": "a wait stays that nobody waits for",
    "end.kept": "a wait stays that nobody waits for",
}
"""What is found first where a rule is switched off."""

SMALL = [
    ("events: two events, a wait that times out", Scene(timeouts=1)),
    ("events: one starts a run and ends a wait, any 2 faults", faulty(2, events=(0,), starts=True)),
    ("events: two, any 1 fault", faulty(1)),
    ("events: the run is terminated and goes on, any 1 fault", faulty(1, events=(0,), stops=1)),
    ("events: one run continues as new", Scene(news=1)),
    ("events: one run continues as new, and asks from there on", Scene(news=1, now=True)),
    ("events: two runs, waits told page by page, any 1 fault", faulty(1, events=(0,), runs=(0, 0), pages=True)),
    ("events: a wait in vain, any 1 fault", faulty(1, events=(), vain=1)),
    ("events: one router has no room for the keys", replace(_VAIN, full=(0,))),
    ("events: records that are about to be forgotten", replace(_ONE, old=True, timeouts=1)),
]
SUITE = [
    *SMALL,
    ("events: two, two runs, waits told page by page", Scene(runs=(0, 0), pages=True)),
    ("events: two slots of one set of keys", Scene(events=(0, 1), runs=(0, 1))),
    ("events: two slots, no router has room", Scene(events=(0, 1), runs=(0, 1), full=(0, 1))),
    ("events: two, any 2 faults", faulty(2)),
    ("events: two, a wait that times out, any 1 fault", faulty(1, timeouts=1)),
    ("events: the run is terminated, continues as new, times out", replace(_ONE, stops=1, news=1, timeouts=1)),
]
DEEP = [
    ("events: two, the run is terminated and goes on, any 1 fault", faulty(1, stops=1)),
    ("events: two slots, one router has no room, any 1 fault", faulty(1, events=(0, 1), runs=(0, 1), full=(1,))),
    ("events: two runs, page by page, a wait that times out", Scene(runs=(0, 0), pages=True, timeouts=1)),
    ("events: two runs, page by page, any 1 fault", faulty(1, runs=(0, 0), pages=True)),
    ("events: two, the run continues as new, any 1 fault", faulty(1, news=1)),
]
