"""`changed` and `set_tags`: what workflow code says about itself, for the code that comes after it and for who looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from treadle.protocol.errors import ConfigError, FieldInvalid
from treadle.protocol.tags import check_tag
from treadle.worker.current import current_execution
from treadle.worker.steps import PLAIN_WORKFLOW

__all__ = ("changed", "set_tags")

_NAME_LIMIT: Final = 100


def changed(name: str, /) -> bool:
    """Guard a change of workflow code that runs may be in the middle of: True where the new code is to run.

        if changed("new-pricing"):
            price = await price_by_weight(order)
        else:
            price = await price_by_size(order)

    A run that comes here for the first time takes the new way, and remembers it. One that had passed this point before the
    change was deployed takes the old way, as its history says. Each run keeps its answer, whatever worker continues it.
    Once no run takes the old way any more, take the call out, with the old code.

    Args:
        name: Of the change, 1 to 100 printable characters; never used again for another one. At most 100 in a run.

    Returns:
        True in a workflow that is called as a plain function.

    Raises:
        ConfigError: It is called outside a workflow, or the name is not allowed.
    """
    if not name or len(name) > _NAME_LIMIT or not name.isprintable():
        raise ConfigError(f"changed({name[:40]!r}): give 1 to {_NAME_LIMIT} printable characters")
    execution = current_execution()
    if execution is not None:
        return execution.marks.changed(name, execution.at)
    if PLAIN_WORKFLOW.get():
        return True
    raise ConfigError("changed(): call it inside a @workflow")


def set_tags(tags: Mapping[str, str | int | None] | None = None, /, **more: str | int | None) -> None:
    """Set tags of the run, by which it is listed and counted: `set_tags(customer=42, state="paid")`.

    Args:
        tags: Keys (1 to 64 characters) and values (at most 200); numbers become text, None or "" takes a tag away.
        more: The same, as keywords.

    Raises:
        ConfigError: It is called outside a workflow, a tag is not allowed, or the run would have more than 20.
    """
    wanted: dict[str, str] = {}
    for key, value in {**(tags or {}), **more}.items():
        if isinstance(value, bool) or not isinstance(value, str | int | None):
            raise ConfigError(f"set_tags(): tag {key!r}: give text, a whole number, or None")
        wanted[key] = "" if value is None else str(value)
        try:
            check_tag(key, wanted[key])
        except FieldInvalid as error:
            raise ConfigError(f"set_tags(): {error}") from None
    execution = current_execution()
    if execution is not None:
        execution.marks.set_tags(wanted)
    elif not PLAIN_WORKFLOW.get():
        raise ConfigError("set_tags(): call it inside a @workflow")
