"""The scenes of signals: what is checked exhaustively, and for each rule one that breaks without it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .signals_state import QUESTION, Scene

__all__ = ("BREAKS", "DEEP", "PROBES", "SMALL", "SUITE")


def may(*what: str, **change: Any) -> Scene:
    """A scene in which each of these may happen as often as it is named."""
    return Scene(may={name: what.count(name) for name in what}, **change)


_ASK = (1, QUESTION)
_SCENES = {
    "two parts, each request twice": may("again", "again"),
    "three parts, three signals": may("again", parts=(1, 1, 1), letters=(1, 2, 3)),
    "a part that waits for less than it gets": may("again", parts=(0, 2), letters=(1, 2, 3)),
    "no room for what is unread": may("again", "retry", parts=(0, 1), letters=(1, 2), room=1),
    "it leaves something to be swept": may("again", "again", rows=True),
    "it fails, and goes on": may("again", "again", "retry", fails=True, rows=True),
    "it is terminated, and goes on": may("again", "retry", "terminate", rows=True),
    "a question, answered in the second part": may("again", letters=_ASK, rows=True),
    "a question, answered in the first part": may("again", parts=(2, 1), letters=(1, QUESTION), rows=True),
    "a question, and the run goes on": may("again", "retry", "terminate", letters=_ASK, rows=True),
    "the id is used again": may("reuse", "again"),
}
SMALL = [(f"signals: {title}", scene) for title, scene in _SCENES.items()]
SUITE = SMALL
DEEP = [
    ("signals: four parts, four signals", may("again", "again", "again", parts=(1, 1, 1, 1), letters=(1, 2, 3, 4))),
    (
        "signals: it goes on twice, and leaves something",
        may(
            "again", "again", "again", "retry", "retry", "terminate", parts=(1, 1), letters=(1, 2, QUESTION), rows=True
        ),
    ),
]

_PLAIN = {
    "once": may("again"),
    "known.first": may("again"),
    "seen": may(parts=(0, 1)),
    "fence": may("again", parts=(1, 0, 1), letters=(1, 2)),
    "between": may(),
    "carried": may(parts=(0, 1), letters=(1, 2)),
    "room": may(parts=(0, 1), letters=(1, 2), room=0),
    "kept.ids": may("again", parts=(1, 0, 1)),
    "kept.answers": may(parts=(1, 0), letters=(QUESTION,)),
    "sweep.notes": may("again", rows=True),
    "retry.notes": may("again", "terminate", "retry"),
    "first": may(),
    "handle": may("reuse"),
}
PROBES = {rule: replace(scene, without=(rule,)) for rule, scene in _PLAIN.items()}
_LOST = "S3: an acknowledged signal is swallowed"
_TWICE = "S1: a signal is recorded twice"
_RESULT = "S6: the first handle is not told the result of its last part"
BREAKS = {
    "once": _TWICE,
    "known.first": "S4: a signal is refused although it was recorded",
    "seen": _LOST,
    "fence": _LOST,
    "between": _LOST,
    "carried": _LOST,
    "room": _LOST,
    "kept.ids": _TWICE,
    "kept.answers": "S5: who asks is told of no answer, or of another one, although there was one",
    "sweep.notes": _TWICE,
    "retry.notes": _TWICE,
    "first": _RESULT,
    "handle": _RESULT,
}
