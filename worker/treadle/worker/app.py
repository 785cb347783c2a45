"""Collecting the workflows and steps of an app, and loading the app in the first place."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from treadle.protocol.errors import ConfigError
from treadle.worker.loop.scan import check_workflow
from treadle.worker.steps import Step, place_of
from treadle.worker.workflows import Workflow

__all__ = ("Registry", "collect", "load_app")


@dataclass(slots=True)
class Registry:
    """The workflows and steps that a worker has, by name; a workflow with a version as "name@version"."""

    workflows: dict[str, Workflow[..., Any]] = field(default_factory=dict)
    steps: dict[str, Step[..., Any]] = field(default_factory=dict)

    def add(self, *things: Workflow[..., Any] | Step[..., Any]) -> Registry:
        """Add workflows and steps; the same one twice is fine.

        Raises:
            ConfigError: Two have the same name; names both places.
            NotDeterministic: A workflow calls what only a step may call.
        """
        for thing in things:
            if isinstance(thing, Workflow):
                check_workflow(thing.name, thing.function)
                known = thing.code in self.workflows
                _put(self.workflows, thing, "workflow", thing.code)
                if thing.on_failure is not None and not known:
                    self.add(thing.on_failure)
            elif isinstance(thing, Step):
                _put(self.steps, thing, "step", thing.name)
            else:
                raise ConfigError(f"{thing!r} is neither a workflow nor a step: decorate it with @workflow or @step")
        return self


def collect(source: ModuleType | Iterable[Any]) -> Registry:
    """Return the workflows and steps of a module (those that it imports, too), or of a list of them.

    Raises:
        ConfigError: Two have the same name; names both places.
        NotDeterministic: A workflow calls what only a step may call.
    """
    values = list(vars(source).values()) if isinstance(source, ModuleType) else list(source)
    return Registry().add(*(value for value in values if isinstance(value, Workflow | Step)))


def load_app(target: str) -> Registry:
    """Load an app and return what it has.

    Args:
        target: "path/to/app.py", "package.module", or "package.module:name", where the name is a module, a Registry, one
            workflow or step, or a list of them.

    Raises:
        ConfigError: It cannot be found or imported, or has neither workflows nor steps; says where and why.
    """
    module_name, _, attribute = target.partition(":") if not _is_file(target) else (target, "", "")
    module = _load_file(Path(module_name)) if _is_file(module_name) else _import(module_name, target)
    registry = _registry_of(_attribute(module, attribute, target) if attribute else module, target)
    if not registry.workflows and not registry.steps:
        raise ConfigError(f"app {target}: has neither workflows nor steps: decorate functions with @workflow or @step")
    return registry


def _put(names: dict[str, Any], thing: Any, kind: str, name: str) -> None:
    other = names.setdefault(name, thing)
    if other is not thing:
        raise ConfigError(
            f"two {kind}s are named {name!r}: {place_of(other.function)} and {place_of(thing.function)}; give one "
            f"another name with @{kind}(name=...)"
        )


def _registry_of(value: Any, target: str) -> Registry:
    if isinstance(value, Registry):
        return value
    if isinstance(value, ModuleType | list | tuple | set | frozenset):
        return collect(value)
    if isinstance(value, Workflow | Step):
        return Registry().add(value)
    raise ConfigError(
        f"app {target}: {type(value).__name__} is not an app: give a module, a workflow, a step, or a list of them"
    )


def _is_file(target: str) -> bool:
    return target.endswith(".py") or "/" in target


def _load_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise ConfigError(f"app {path}: there is no such file")
    folder, name = str(path.parent), path.stem
    if folder not in sys.path:
        sys.path.insert(0, folder)
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) != str(path):
        name = f"treadle_app_{name}"  # another module has the plain name
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        if isinstance(error, Exception):
            raise _cannot_load(str(path), error) from error
        raise
    return module


def _import(name: str, target: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise ConfigError(
                f"app {target}: there is no module {error.name!r}; give a file like path/to/app.py, or a module that can be "
                f"imported from {Path.cwd()}"
            ) from error
        raise _cannot_load(target, error) from error
    except Exception as error:
        raise _cannot_load(target, error) from error


def _attribute(module: ModuleType, attribute: str, target: str) -> Any:
    value: Any = module
    for part in attribute.split("."):
        try:
            value = getattr(value, part)
        except AttributeError as error:
            raise ConfigError(f"app {target}: {module.__name__} has no {attribute!r}") from error
    return value


def _cannot_load(target: str, error: Exception) -> ConfigError:
    if isinstance(error, SyntaxError):
        line = (error.text or "").strip()
        return ConfigError(
            f"app {target}: syntax error at {error.filename}:{error.lineno}: {error.msg}"
            + (f": {line}" if line else "")
        )
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    frames = [f for f in frames if f.filename != __file__]
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return ConfigError(f"app {target}: cannot be imported: {type(error).__name__}{where}: {error}")
