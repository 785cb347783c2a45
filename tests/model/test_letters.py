"""Letters between runs: every schedule of small scenes, and each rule switched off, which must be found.

`python -m tests.model` checks larger ones too; `--without letters.stop.newer` prints the shortest schedule that breaks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from .bfs import explore
from .letters_machine import Machine
from .letters_moves import Moves, first, problem
from .letters_runs import Runs
from .letters_scenes import BREAKS, PROBES, SMALL, SUITE
from .letters_state import RULES, Scene


@pytest.mark.parametrize(("title", "scene"), SMALL)
def test_nothing_breaks(title: str, scene: Scene) -> None:
    found = explore(problem(scene))
    assert found.broken == {}
    assert not found.cut
    assert found.states > 20


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_is_needed(rule: str) -> None:
    """With all rules the scene holds; without this one its shortest schedule to a violation is found."""
    assert set(explore(problem(PROBES[rule]), first=True).broken) == {BREAKS[rule]}


def followed(scene: Scene, choose: Callable[[list[str]], int | None]) -> int:
    """Do steps of the model to the real machine too, as long as one is chosen; returns how many."""
    runs, s, machine = Runs(scene), first(scene), Machine(scene)
    for count in range(100):
        options = Moves(runs, s).all()
        able = {act.letter for act, _ in options}
        assert all(machine.waits(letter) for letter in s.out - able - s.told)
        chosen = choose([step.label for _, step in options])
        if chosen is None:
            return count
        act, step = options[chosen]
        machine.do(act, s, step.after)
        s = step.after
        machine.check(s)
    return 100


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "commit"])
def test_the_machine_has_each_rule(rule: str) -> None:
    """The shortest schedule that breaks without the rule, on the real machine, which does what the model with the rule does."""
    schedule = next(iter(explore(problem(PROBES[rule]), first=True).broken.values()))
    left = iter(schedule)

    def choose(labels: list[str]) -> int | None:
        label = next(left, "")
        return labels.index(label) if label in labels else None

    scene = replace(PROBES[rule], without=())
    assert followed(scene, choose) >= len(schedule) - 3


@pytest.mark.parametrize(("title", "scene"), [(title, scene) for title, scene in SUITE if not scene.leaves])
def test_the_machine_does_what_the_model_does(title: str, scene: Scene) -> None:
    """Random schedules of the model, step by step on the real machine: what is posted, refused, and how both runs stand."""
    steps = 0
    for seed in range(15):
        rng = Random(seed)

        def choose(labels: list[str], rng: Random = rng) -> int | None:
            return rng.randrange(len(labels)) if labels else None

        steps += followed(scene, choose)
    assert steps > 50
