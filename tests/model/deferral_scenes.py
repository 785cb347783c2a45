"""The scenes of deferred steps: what is checked exhaustively, and for each rule one that breaks without it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .deferral_state import Scene

__all__ = ("BREAKS", "DEEP", "PROBES", "SMALL", "SUITE")


def may(*what: str, **change: Any) -> Scene:
    """A scene in which each of these may happen as often as it is named."""
    return Scene(may={name: what.count(name) for name in what}, **change)


_SCENES = {
    "a call, against the end of its attempt": may("again", "failed"),
    "two calls": may("again", calls="++"),
    "one completes, one fails": may("again", calls="+-"),
    "attempts are lost": may("lost", calls="+-"),
    "attempts are lost, and fail": may("lost", "failed", "again"),
    "the step is cancelled": may("lost", "cancel", calls="-"),
    "the run goes on": may("retry", calls="-"),
}
SMALL = [(f"deferral: {title}", scene) for title, scene in _SCENES.items()]
SUITE = [
    *SMALL,
    ("deferral: a loss, two calls, copies of them", may("again", "lost", calls="+-")),
    ("deferral: the step is cancelled, two calls", may("lost", "cancel", calls="+-")),
    ("deferral: an attempt is lost, and the run goes on", may("lost", "retry", calls="-")),
]
DEEP = [("deferral: the run goes on, two calls, copies of them", may("again", "retry", calls="+-"))]

_PLAIN = {
    "row": may(),
    "try": may("failed", tries=3),
    "key": may("retry"),
    "keep": may(),
    "wait": may("lost"),
    "fence": may("lost"),
    "mark": may("again"),
    "mark.first": may("again"),
    "before": may("retry", calls="-+"),
    "timeout": may(),
}
_TOGETHER = {"key": ("key", "before")}
"""Either of the two is enough against tokens of the row before; without `before`, marks of that row hit the new one."""
PROBES = {rule: replace(scene, without=_TOGETHER.get(rule, (rule,))) for rule, scene in _PLAIN.items()}
_DENIED = "S4: a call that finished its try is told that it did not"
_USELESS = "S7: who has the token of an open try is refused"
BREAKS = {
    "row": "S1: a step has two outcomes",
    "try": "S2: a token settles another try, or another row",
    "key": "S2: a token settles another try, or another row",
    "keep": _USELESS,
    "wait": "S3: code begins after the outcome of its try was recorded",
    "fence": "S6: an attempt that was fenced changes the step",
    "mark": _DENIED,
    "mark.first": _DENIED,
    "before": _USELESS,
    "timeout": "L: stuck for ever",
}
