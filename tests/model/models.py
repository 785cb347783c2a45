"""All models: which one a scene is of, and what `python -m tests.model` checks of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import (
    deferral_moves,
    deferral_scenes,
    deferral_state,
    events_moves,
    events_scenes,
    events_state,
    letters_moves,
    letters_scenes,
    letters_state,
    limits_moves,
    limits_scenes,
    limits_state,
    moves,
    occurrences_moves,
    occurrences_scenes,
    occurrences_state,
    scenes,
    signals_moves,
    signals_scenes,
    signals_state,
    state,
)
from .bfs import Problem

__all__ = ("AHEAD", "DEEP", "NOT_NEEDED", "PROBES", "RULES", "SUITE", "model_of")

_PROBLEMS: dict[type, Callable[[Any], Problem[Any]]] = {
    state.Scene: moves.problem,
    events_state.Scene: events_moves.problem,
    letters_state.Scene: letters_moves.problem,
    occurrences_state.Scene: occurrences_moves.problem,
    limits_state.Scene: limits_moves.problem,
    signals_state.Scene: signals_moves.problem,
    deferral_state.Scene: deferral_moves.problem,
}


def _named(model: str, rules: dict[str, Any]) -> dict[str, Any]:
    return {f"{model}.{rule}": value for rule, value in rules.items()}


RULES: dict[str, str] = {
    **state.RULES,
    **_named("events", events_state.RULES),
    **_named("letters", letters_state.RULES),
    **_named("schedules", occurrences_state.RULES),
    **_named("limits", limits_state.RULES),
    **_named("signals", signals_state.RULES),
    **_named("deferral", deferral_state.RULES),
}
PROBES: dict[str, Any] = {
    **scenes.PROBES,
    **_named("events", events_scenes.PROBES),
    **_named("letters", letters_scenes.PROBES),
    **_named("schedules", occurrences_scenes.PROBES),
    **_named("limits", limits_scenes.PROBES),
    **_named("signals", signals_scenes.PROBES),
    **_named("deferral", deferral_scenes.PROBES),
}
NOT_NEEDED = (*scenes.NOT_NEEDED, *(f"events.{rule}" for rule in events_scenes.NOT_NEEDED))
AHEAD: list[tuple[str, Any]] = [*scenes.AHEAD]
SUITE: list[tuple[str, Any]] = [
    *scenes.SUITE,
    *events_scenes.SUITE,
    *letters_scenes.SUITE,
    *occurrences_scenes.SUITE,
    *limits_scenes.SUITE,
    *signals_scenes.SUITE,
    *deferral_scenes.SUITE,
]
DEEP: list[tuple[str, Any]] = [
    *scenes.DEEP,
    *events_scenes.DEEP,
    *letters_scenes.DEEP,
    *occurrences_scenes.DEEP,
    *limits_scenes.DEEP,
    *signals_scenes.DEEP,
    *deferral_scenes.DEEP,
]


def model_of(scene: Any) -> Problem[Any]:
    """Return what is to be explored in a scene."""
    return _PROBLEMS[type(scene)](scene)
