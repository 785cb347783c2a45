"""Signals, questions and going on as new: every schedule of small scenes, and each rule switched off, which must be found.

`python -m tests.model` checks larger ones too; `--without signals.kept.ids` prints the shortest schedule that breaks.
"""

from __future__ import annotations

import pytest

from .bfs import explore
from .signals_moves import problem
from .signals_scenes import BREAKS, PROBES, SMALL
from .signals_state import RULES, Scene


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
