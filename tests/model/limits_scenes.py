"""The scenes of a step's limits: what is checked exhaustively, and for each rule one that breaks without it."""

from __future__ import annotations

from dataclasses import replace

from .limits_state import Scene

__all__ = ("BREAKS", "DEEP", "PROBES", "SMALL", "SUITE")


def timed(*kinds: str) -> Scene:
    return Scene(timeout=True, kinds=frozenset(kinds), faults=1 if kinds else 0)


def heard(*kinds: str) -> Scene:
    return Scene(heartbeat=True, kinds=frozenset(kinds))


def bound(*kinds: str) -> Scene:
    return Scene(total=True, kinds=frozenset(kinds), faults=1 if kinds else 0)


_PLAIN = {
    "token": timed("hang"),
    "settled": timed("answer"),
    "wait": timed(),
    "same": Scene(kinds=frozenset(("answer", "slow")), faults=2),
    "read": timed("kill"),
    "fresh": heard("slow"),
    "lost.first": timed("kill"),
    "overdue": timed("hang"),
    "unheard": heard("hang"),
    "limit.held": bound("hang"),
    "limit.free": bound(),
    "limit.claim": bound(),
    "limit.push": bound("kill"),
}
PROBES = {rule: replace(scene, without=(rule,)) for rule, scene in _PLAIN.items()}
BREAKS = {
    "token": "an attempt is ended twice",
    "settled": "a second outcome is recorded",
    "wait": "code starts after its attempt was ended",
    "same": "code starts after its attempt was ended",
    "read": "a lost attempt uses up a try",
    "fresh": "an attempt is ended as silent that was heard",
    "lost.first": "a lost attempt uses up a try",
    "overdue": "L: stuck for ever",
    "unheard": "L: stuck for ever",
    "limit.held": "L: stuck for ever",
    "limit.free": "L: stuck for ever",
    "limit.claim": "a try is given away behind the total timeout",
    "limit.push": "a try is given away behind the total timeout",
}
"""What is found first where a rule is switched off."""

_NO_HANG = frozenset(("kill", "slow", "answer", "late"))
SMALL = [
    ("limits: none, any 2 faults", Scene(kinds=_NO_HANG, faults=2)),
    ("limits: a timeout, any 1 fault", Scene(timeout=True)),
    ("limits: a heartbeat, any 1 fault", Scene(heartbeat=True)),
    ("limits: a total timeout, any 1 fault", Scene(total=True)),
    ("limits: all, any 1 fault", Scene(timeout=True, heartbeat=True, total=True)),
]
SUITE = [
    *SMALL,
    ("limits: a timeout and a heartbeat, any 2 faults", Scene(timeout=True, heartbeat=True, faults=2)),
    ("limits: a total timeout, any 2 faults", Scene(total=True, faults=2)),
]
DEEP = [
    ("limits: all, any 2 faults", Scene(timeout=True, heartbeat=True, total=True, faults=2)),
    ("limits: all, three tries, any 2 faults", Scene(timeout=True, heartbeat=True, total=True, tries=3, faults=2)),
]
