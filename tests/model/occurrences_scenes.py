"""The scenes of schedules: what is checked exhaustively, and for each rule one that breaks without it."""

from __future__ import annotations

from dataclasses import replace

from .occurrences_state import Scene

__all__ = ("BREAKS", "DEEP", "PROBES", "SMALL", "SUITE")


def faulty(*kinds: str, **change: object) -> Scene:
    scene = Scene(faults=1, kinds=frozenset(kinds)) if kinds else Scene(faults=1)
    return replace(scene, **change)  # type: ignore[arg-type]


_PLAIN = {
    "revision": faulty("both", policy="one"),
    "one.commit": faulty("kill", count=1),
    "outbox": faulty("kill", count=1),
    "start.id": faulty("kill", count=1),
    "start.once": faulty("kill", policy="one"),
    "taken": Scene(policy="one", taken=(1,)),
    "not.before": faulty("ahead", count=1),
    "advance.first": Scene(pauses=1),
    "missed": Scene(window=0),
    "ended.open": Scene(policy="one", count=3, again=1),
    "drain": Scene(policy="one"),
    "resume.drains": Scene(policy="one", pauses=1),
    "stop.waits": Scene(policy="cancel", endless=True),
    "stop.child": Scene(policy="cancel", taken=(1,)),
    "delete.alone": Scene(count=1, triggers=1, deletes=1),
}
PROBES = {rule: replace(scene, without=(rule,)) for rule, scene in _PLAIN.items()}
BREAKS = dict.fromkeys(_PLAIN, "L: stuck for ever") | {
    "revision": "two runs at once",
    "start.id": "an occurrence is started twice",
    "start.once": "two runs at once",
    "not.before": "a run is started before its time",
    "advance.first": "an occurrence is lost, and not listed",
    "missed": "an occurrence is lost, and not listed",
    "ended.open": "two runs at once",
    "stop.child": "a run is stopped that is none of the schedule's",
}
"""What is found first where a rule is switched off."""

POLICIES = ("skip", "one", "all", "cancel", "terminate", "allow")
_PEOPLE = Scene(pauses=1, triggers=1, deletes=1, changes=1)
SMALL = [
    *((f"schedule, {policy}: three occurrences, any 1 fault", faulty(policy=policy, count=3)) for policy in POLICIES),
    *(
        (
            f"schedule, {policy}: paused, triggered, deleted meanwhile",
            replace(_PEOPLE, policy=policy, count=1, changes=0),
        )
        for policy in POLICIES
    ),
    ("schedule: catching up, any 1 fault", faulty(policy="all", count=3, window=1)),
    ("schedule: the id of an occurrence is taken, any 1 fault", faulty(policy="all", count=3, taken=(2,))),
    ("schedule: a closed run is continued, any 1 fault", faulty(policy="one", again=1)),
    ("schedule: runs end only when they are stopped, any 1 fault", faulty(policy="cancel", count=3, endless=True)),
]
SUITE = [
    *SMALL,
    *(
        (f"schedule, {policy}: paused, changed, triggered, deleted", replace(_PEOPLE, policy=policy))
        for policy in POLICIES
    ),
    ("schedule: catching up, paused, any 1 fault", faulty(policy="all", count=3, window=1, pauses=1)),
]
DEEP = [
    *(
        (
            f"schedule, {policy}: three, paused, triggered, any 2 faults",
            replace(_PEOPLE, policy=policy, count=3, faults=2, deletes=0, changes=0),
        )
        for policy in POLICIES
    ),
]
