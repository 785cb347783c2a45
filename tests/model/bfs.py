"""A tiny explicit-state checker: breadth-first, so every schedule that it prints is a shortest one.

A successor that breaks a rule is reported and not followed. Liveness: from every reachable state that must finish, some state
that is done is reachable by steps that are no faults. Under fair scheduling that means: it gets done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

__all__ = ("Found", "Problem", "Step", "explore")

T = TypeVar("T", bound=Hashable)


class Step(NamedTuple, Generic[T]):
    """What may happen next. Liveness does not count on a fault. `broken` names the rule that it breaks; "" if none."""

    label: str
    after: T
    fault: bool
    broken: str


class Problem(NamedTuple, Generic[T]):
    """A model: where it begins, what may happen, and which states are done, or must become so."""

    first: T
    steps: Callable[[T], list[Step[T]]]
    done: Callable[[T], bool]
    must_finish: Callable[[T], bool]


class Found(NamedTuple):
    """How many states were seen, the shortest schedule to each broken rule, and whether the exploration was cut short."""

    states: int
    broken: dict[str, list[str]]
    cut: bool


class Reached(Generic[T]):
    """The states that were reached, and by which way first."""

    def __init__(self, first: T) -> None:
        self.index = {first: 0}
        self.states = [first]
        self.parent = [-1]
        self.via = [""]
        self.back: list[list[int]] = [[]]  # from where, without a fault

    def add(self, came_from: int, step: Step[T]) -> None:
        found = self.index.get(step.after)
        if found is None:
            found = self.index[step.after] = len(self.states)
            self.states.append(step.after)
            self.parent.append(came_from)
            self.via.append(step.label)
            self.back.append([])
        if not step.fault:
            self.back[found].append(came_from)

    def schedule(self, place: int) -> list[str]:
        labels = []
        while place > 0:
            labels.append(self.via[place])
            place = self.parent[place]
        return labels[::-1]

    def stuck(self, problem: Problem[T]) -> list[int]:
        """Return the states that must finish and cannot."""
        live = [problem.done(state) for state in self.states]
        todo = deque(place for place, done in enumerate(live) if done)
        while todo:
            for place in self.back[todo.popleft()]:
                if not live[place]:
                    live[place] = True
                    todo.append(place)
        return [i for i, state in enumerate(self.states) if not live[i] and problem.must_finish(state)]


def explore(problem: Problem[T], *, first: bool = False, max_states: int = 6_000_000) -> Found:
    """Visit every reachable state; `first`: only until a rule is broken."""
    reached = Reached(problem.first)
    broken: dict[str, list[str]] = {}
    place = 0
    while place < len(reached.states):
        for step in problem.steps(reached.states[place]):
            if not step.broken:
                reached.add(place, step)
            elif step.broken not in broken:
                broken[step.broken] = [*reached.schedule(place), step.label]
        place += 1
        if (broken and first) or len(reached.states) >= max_states:
            return Found(len(reached.states), broken, not broken)
    stuck = reached.stuck(problem)
    if stuck:
        broken["L: stuck for ever"] = [*reached.schedule(stuck[0]), "... and nobody will ever act on it"]
    return Found(len(reached.states), broken, cut=False)
