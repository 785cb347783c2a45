"""Which workflows and steps a workflow can reach, so that a test need not list them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import CodeType, FunctionType, ModuleType
from typing import Any

from treadle.protocol.errors import NotDeterministic
from treadle.worker.app import Registry
from treadle.worker.steps import Step
from treadle.worker.workflows import Workflow

__all__ = ("add_reachable",)


def add_reachable(registry: Registry, workflow: Workflow[..., Any]) -> None:
    """Add a workflow, what its code names (helpers and other workflows included), and what else stands in its module.

    Raises:
        ConfigError: Two that it names have the same name.
        NotDeterministic: A workflow calls what only a step may call.
    """
    seen: set[int] = set()
    waiting: list[Any] = [workflow]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, Step | Workflow):
            registry.add(thing)
        if isinstance(thing, Workflow):
            waiting += [thing.on_failure, *_named(thing.function)]
        elif isinstance(thing, FunctionType):
            waiting += [*_named(thing)]
    for value in list(workflow.function.__globals__.values()):
        if isinstance(value, Step):
            registry.steps.setdefault(value.name, value)
        elif isinstance(value, Workflow) and value.code not in registry.workflows:
            with suppress(NotDeterministic):  # refused when somebody starts it
                registry.add(value)


def _named(function: Callable[..., Any]) -> Iterator[Any]:
    """Yield the steps, workflows and functions of the same module that the code of a function names."""
    target = inspect.unwrap(function)
    names = {name for code in _codes(target.__code__) for name in code.co_names}
    scope = dict(target.__globals__)
    cells = [cell.cell_contents for cell in target.__closure__ or () if _is_filled(cell)]
    values = [scope[name] for name in names if name in scope] + cells
    for value in values:
        helps = isinstance(value, FunctionType) and value.__globals__ is target.__globals__
        if helps or isinstance(value, Step | Workflow):
            yield value
        elif isinstance(value, ModuleType):
            members = [vars(value)[name] for name in names if name in vars(value)]
            yield from (member for member in members if isinstance(member, Step | Workflow))


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
