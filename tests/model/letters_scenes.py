"""The scenes of letters: what is checked exhaustively, and for each rule one that breaks without it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .letters_state import Scene

__all__ = ("BREAKS", "DEEP", "PROBES", "SMALL", "SUITE")


def may(*what: str, **change: Any) -> Scene:
    """A scene in which each of these may happen as often as it is named."""
    return Scene(may={name: what.count(name) for name in what}, **change)


_SMALL = {
    "a child, each letter twice": may("again"),
    "P is terminated, or cancels its child": may("again", "p.terminate", "p.cancel"),
    "P goes on, and is terminated twice": may("p.redrive", "p.terminate", "p.terminate"),
    "P goes on with another input for its child": may("p.redrive", "p.terminate", over=True),
    "C is let go on by a client": may("again", "c.redrive", "p.terminate"),
    "both go on as new": may("again", "p.continue", "c.continue", "p.terminate"),
    "the id is taken": may("again", "told", "p.terminate", "p.cancel", c="A"),
    "the id was used by a run that is deleted": may("again", "told", "p.terminate", "c.reuse", c="T"),
    "C's id is used again": may("again", "told", "p.terminate", "c.reuse"),
    "P's id is used again": may("again", "told", "p.terminate", "p.reuse", explicit=True),
}
SMALL = [(f"letters: {title}", scene) for title, scene in _SMALL.items()]
_LARGER = {
    "P goes on, and is terminated twice; a letter comes again": may("again", "p.redrive", "p.terminate", "p.terminate"),
    "P goes on, and its child leaves things to sweep": may(
        "p.redrive", "p.terminate", "p.terminate", "c.terminate", leaves=True
    ),
    "P goes on with another input, or cancels its child": may(
        "again", "p.redrive", "p.terminate", "p.cancel", over=True
    ),
    "P waits for nothing, and goes on": may("again", "p.redrive", waits=False),
    "P waits for nothing, and its id is used again": may("again", "p.reuse", waits=False),
    "children are terminated": may("p.redrive", "p.terminate", "p.terminate", "p.cancel", policy="terminate"),
    "children are left": may("again", "p.redrive", "p.terminate", "p.cancel", policy="leave"),
    "both go on as new, the child has the same id": may("again", "told", "p.continue", "c.continue", explicit=True),
    "P goes on, and C's id is used again": may("again", "told", "p.terminate", "p.redrive", "c.reuse"),
}
SUITE = [*SMALL, *((f"letters: {title}", scene) for title, scene in _LARGER.items())]

_PLAIN = {
    "commit": may("kill"),
    "applied": may("p.terminate"),
    "start.once": may("again"),
    "start.reject": may(c="A"),
    "start.told": may(c="A"),
    "start.stays": may("told", c="A"),
    "closed.row": may("again"),
    "closed.call": may("p.redrive", "p.terminate"),
    "stop.child": may("p.terminate", c="A"),
    "stop.before": may("p.terminate"),
    "stop.tombstone": may("p.terminate", c="T"),
    "stop.newer": may("p.redrive", "p.terminate", "p.terminate"),
    "sweep": may("p.terminate"),
    "sweep.reuse": may("p.terminate", "p.reuse"),
    "sweep.redrive": may("p.redrive", "p.terminate", "p.terminate"),
    "reuse.ids": may("again", "c.reuse"),
    "again.once": may("again", "p.redrive", "p.terminate"),
    "again.ids": may("again", "p.redrive", "p.terminate", "c.reuse"),
    "again.over": may("p.redrive", "p.terminate", over=True),
    "again.cancelled": may("p.redrive", "p.terminate"),
    "continue.child": may("c.continue"),
    "continue.cancel": may("c.continue", "p.terminate"),
    "continue.sweep": may("p.continue"),
    "hook.id": may("again"),
}
PROBES = {rule: replace(scene, without=(rule,)) for rule, scene in _PLAIN.items()}
_STUCK = "L: stuck for ever"
BREAKS = dict.fromkeys(PROBES, _STUCK) | {
    "start.once": "S1: a start is acted on twice",
    "closed.row": "S2: P hears of its child twice",
    "closed.call": "S3: P is told of what another call asked for",
    "stop.child": "S5: a stop hits a run that is no child",
    "reuse.ids": "S4: P is told that the id is taken, although its child was started",
    "again.once": "S1: a start is acted on twice",
    "again.ids": "S4: P is told that the id is taken, although its child was started",
    "again.over": "S8: P is given what its child made of another input",
    "again.cancelled": "S6: a stop of an earlier call hits a child that is wanted",
    "hook.id": "S7: a failure has two hooks",
}

_DEEP = {
    "C's id is used again, P goes on twice": may(
        "again", "told", "p.terminate", "p.terminate", "p.redrive", "p.redrive", "c.reuse"
    ),
    "two letters come again": may("again", "again", "p.redrive", "p.terminate", "p.cancel", "c.redrive"),
}
DEEP = [(f"letters: {title}", scene) for title, scene in _DEEP.items()]
