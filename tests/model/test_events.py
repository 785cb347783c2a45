"""Events (docs/events.md): every schedule of small scenes, and each rule switched off, which must be found.

`python -m tests.model` checks larger ones too; `--without events.use.log` prints the shortest schedule that breaks.
"""

from __future__ import annotations

import pytest

from .bfs import explore
from .events_moves import problem
from .events_scenes import BREAKS, NOT_NEEDED, PROBES, SMALL
from .events_state import RULES, Scene


@pytest.mark.parametrize(("title", "scene"), SMALL)
def test_nothing_breaks(title: str, scene: Scene) -> None:
    found = explore(problem(scene))
    assert found.broken == {}
    assert not found.cut
    assert found.states > 20


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_is_needed(rule: str) -> None:
    """With all rules the scene holds; without this one its shortest schedule to a violation is found."""
    if rule in NOT_NEEDED:
        assert explore(problem(PROBES[rule])).broken == {}
        return
    assert set(explore(problem(PROBES[rule]), first=True).broken) == {BREAKS[rule]}
