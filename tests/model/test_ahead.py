"""The run protocol with guesses (R10): every schedule of small scenes, and each guard switched off, which must be found.

This is a bounded part. `python -m tests.model` checks every scene of the run protocol, with guesses and without: two minutes
of one core. `--ahead`: those with guesses only; `--deep`: larger ones too. `--without R10.said` switches a rule off and prints
the shortest schedule that breaks; `--without all` does it with each in turn.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from .bfs import explore
from .moves import problem
from .scenes import NOT_NEEDED, PROBES
from .state import RULES, Scene

_RARE = frozenset(("kill", "late", "answer"))
_SCENES = {
    "the end follows; killed, lost, repeated": Scene(pool="", ahead=True, kinds=_RARE),
    "the end follows; a cancel, and a signal": Scene(pool="", ahead=True, faults=0, inputs="xy"),
    "a pool step follows; a cancel": Scene(pool="", ahead=True, faults=0, inputs="x", then="r"),
    "a local step follows; a cancel": Scene(pool="", ahead=True, faults=0, inputs="x", then="m"),
    "a pool step beside it; a cancel": Scene(pool="q", ahead=True, faults=0, inputs="x"),
    "fenced, and another result": Scene(pool="", ahead=True, kinds=frozenset(("freeze",)), two=True),
    "pool steps of the owner's worker, and of another; a cancel": Scene(
        pool="p", own=True, faults=0, inputs="x", two=True
    ),
    "pool steps of the owner's worker; killed, lost": Scene(
        pool="p", own=True, kinds=frozenset(("kill", "answer")), two=True
    ),
    "Redis forgets its last commit": Scene(pool="", ahead=True, kinds=frozenset(("rollback",))),
}
_BREAKS = {
    "R10.seen": "S4: closed past an input it has not seen",
    "R10.length": "S4: closed past an input it has not seen",
    "R10.once": "S1: a result is recorded twice",
    "R10.said": "S4: a command is recorded that the history does not ask for",
    "R10.start": "S4: a local step starts on a result that the history does not have there",
    "R10.other": "S4: the coroutine saw another order than the history has",
    "R10.own": "S4: the coroutine saw another order than the history has",
    "R10.park": "L: stuck for ever",
    "R10.release": "L: stuck for ever",
    "R10.stands": "S4: a command is recorded that the history does not ask for",
}


@pytest.mark.parametrize("title", _SCENES)
def test_nothing_breaks(title: str) -> None:
    found = explore(problem(_SCENES[title]))
    assert found.broken == {}
    assert not found.cut
    assert found.states > 500


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.startswith("R10.")])
def test_each_guard_is_needed(rule: str) -> None:
    """With all rules the scene holds; without this one its shortest schedule to a violation is found."""
    if rule in NOT_NEEDED:  # it saves work only: nothing breaks, more guesses are wrong
        assert explore(problem(PROBES[rule])).broken == {}
        return
    found = explore(problem(PROBES[rule]), first=True)
    assert set(found.broken) == {_BREAKS[rule]}


def labels_of(scene: Scene) -> set[str]:
    """Everything that may happen in a scene."""
    labels: set[str] = set()
    model = problem(scene)
    todo, seen = [model.first], {model.first}
    while todo:
        for step in model.steps(todo.pop()):
            labels.add(step.label)
            if step.after not in seen:
                seen.add(step.after)
                todo.append(step.after)
    return labels


def test_guesses_are_made_and_meet_what_they_are_to_meet() -> None:
    """The scenes are not empty: guesses are confirmed, end runs, and are wrong."""
    scene = replace(_SCENES["the end follows; a cancel, and a signal"], inputs="x")
    assert {
        "A reads l: its guess is confirmed",
        "result+close of A is committed; A reads OK",
        "result+close of A is committed; A reads NEWS",
        "A reads x where it had guessed l: drops the coroutine",
        "release of A is committed; A reads OK",
    } <= labels_of(scene)


@pytest.mark.parametrize("rule", ["R1", "R4.rewind", "R5.close", "R7", "R8"])
def test_the_checker_finds_what_the_other_rules_prevent(rule: str) -> None:
    assert explore(problem(PROBES[rule]), first=True).broken


def test_what_follows_from_a_pool_step_is_taken_refused_and_news() -> None:
    assert {
        "A has executed p, its code goes on by it: sends report+cmds",
        "report+cmds of A is committed; A reads OK",
        "report+cmds of A is committed; A reads REWIND",
        "report+close of A is committed; A reads OK",
        "report+close of A is committed; A reads NEWS",
    } <= labels_of(_SCENES["pool steps of the owner's worker, and of another; a cancel"])
