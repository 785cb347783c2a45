"""The scenes: what is checked exhaustively, and for each rule one that breaks without it."""

from __future__ import annotations

from dataclasses import replace

from .state import KINDS, Scene

__all__ = ("AHEAD", "DEEP", "NOT_NEEDED", "PROBES", "SUITE")


def small(*kinds: str, **change: object) -> Scene:
    return replace(Scene(pool="q", kinds=frozenset(kinds) or KINDS), **change)  # type: ignore[arg-type]


def guess(*kinds: str, **change: object) -> Scene:
    """The code asks for the local step l at once, and for what follows it."""
    scene = Scene(pool="", ahead=True, kinds=frozenset(kinds), faults=1 if kinds else 0)
    return replace(scene, **change)  # type: ignore[arg-type]


def follows(*kinds: str, **change: object) -> Scene:
    """The code asks for pool step p, then for r; its owner may execute them itself."""
    scene = Scene(pool="p", own=True, kinds=frozenset(kinds), faults=1 if kinds else 0)
    return replace(scene, **change)  # type: ignore[arg-type]


_QUIET = Scene(faults=0)
_PLAIN = {
    "A2": small("kill"),
    "A4.after": small("slow"),
    "A6.order": small("session"),
    "R1": small("slow", "freeze"),
    "R2.right": small("slow", "freeze"),
    "R2.commit": small("slow", "freeze"),
    "R2.session": small("session"),
    "R2.answered": small(),
    "R3.watch": _QUIET,
    "R3.wake": _QUIET,
    "R4.order": _QUIET,
    "R4.own": _QUIET,
    "R4.rewind": small("rollback"),
    "R4.told": small("rollback"),
    "R5.park": _QUIET,
    "R5.close": replace(_QUIET, inputs="x"),
    "R5.quiet": _QUIET,
    "R6": _QUIET,
    "R7": small("answer"),
    "R8": replace(_QUIET, inputs="x"),
    "watch": small("purge"),
    "R10.seen": guess(inputs="x"),
    "R10.length": guess(inputs="x"),
    "R10.once": guess("late", inputs="x"),
    "R10.said": guess(inputs="x", then="r"),
    "R10.start": guess(then="m"),
    "R10.other": guess(inputs="x"),
    "R10.own": guess("freeze", two=True),
    "R10.park": guess(then="r"),
    "R10.alone": guess(pool="q", inputs="x"),
    "R10.release": guess(inputs="y"),
    "R10.stands": follows(inputs="x"),
}
_TOGETHER = {"R5.quiet": ("R5.quiet", "R2.answered")}
PROBES = {rule: replace(scene, without=_TOGETHER.get(rule, (rule,))) for rule, scene in _PLAIN.items()}
NOT_NEEDED = ("R10.alone",)
"""Guards that only save work: without them a guess is more often wrong, and then dropped."""

SUITE = [
    ("small, any 1 fault", small()),
    ("no fault (hints lost and overtaken)", _QUIET),
    ("run jobs pushed to anybody", replace(_QUIET, anybody=True)),
    ("small, run jobs pushed to anybody, 1 of kill, slow, answer lost", small("kill", "slow", "answer", anybody=True)),
    ("small, no fault, a cancel at any time, 1 double publish", small(faults=0, inputs="x", dups=1)),
    ("the broker loses a run job", Scene(kinds=frozenset(("purge",)))),
    ("small, Redis loses its last commit (S4 and liveness only: W3)", small("rollback")),
]
_ANY = tuple(KINDS)
AHEAD = [
    ("ahead: l, then the end; any 1 fault", guess(*_ANY)),
    ("ahead: l in two ways; 1 of kill, freeze, late, answer lost", guess("kill", "freeze", "late", "answer", two=True)),
    ("ahead: l, a cancel and a signal at any time", guess(inputs="xy")),
    ("ahead: l, a cancel; 1 of late, answer lost, kill", guess("late", "answer", "kill", inputs="x")),
    ("ahead: l, then pool step r, a cancel at any time", guess(then="r", inputs="x")),
    ("ahead: l, then local step m, a cancel at any time", guess(then="m", inputs="x")),
    ("ahead: l beside q, a cancel at any time", guess(pool="q", inputs="x")),
    ("ahead: l, a signal, Redis loses its last commit (W3)", guess("rollback", inputs="y")),
    ("ahead: pool steps p, then r, of the owner's worker; any 1 fault", follows(*_ANY)),
    (
        "ahead: p, r; other attempts with other results; 1 of kill, late, answer",
        follows("kill", "late", "answer", two=True),
    ),
    ("ahead: p, r, a cancel and a signal at any time", follows(inputs="xy")),
    ("ahead: p, r, a cancel; 1 of late, answer lost, kill", follows("late", "answer", "kill", inputs="x")),
]
DEEP = [
    *((f"1 fault: {kind}", Scene(kinds=frozenset((kind,)))) for kind in sorted(KINDS)),
    ("small, any 1 fault, a cancel at any time", small(inputs="x")),
    ("ahead: l, any 1 fault, a cancel at any time", guess(*_ANY, inputs="x")),
    ("ahead: l in two ways, any 1 fault, a signal at any time", guess(*_ANY, inputs="y", two=True)),
    ("ahead: l, then r, any 1 fault, a cancel at any time", guess(*_ANY, inputs="x", then="r")),
    ("ahead: l, then m, any 1 fault, a cancel at any time", guess(*_ANY, inputs="x", then="m")),
    ("ahead: l beside q, any 1 fault", guess(*_ANY, pool="q")),
    ("ahead: l, then r, a cancel, Redis loses its last commit (W3)", guess("rollback", inputs="x", then="r")),
    ("ahead: l, then m, a signal, Redis loses its last commit (W3)", guess("rollback", inputs="y", then="m")),
    ("ahead: l, any 2 of kill, answer lost, applied late", guess("kill", "answer", "late", faults=2)),
    ("ahead: p, r, in two ways, any 1 fault, a cancel at any time", follows(*_ANY, inputs="x", two=True)),
    ("ahead: p, r, any 2 of kill, answer lost, applied late", follows("kill", "answer", "late", faults=2)),
]
