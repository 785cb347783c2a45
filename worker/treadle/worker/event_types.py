"""Events as workflow code has them, and `on=` of `@workflow`."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Generic, TypeVar

import msgspec

from treadle.protocol.errors import ConfigError, FieldInvalid
from treadle.protocol.events import check_trigger
from treadle.v1.common_pb2 import EventTrigger

__all__ = ("Event", "trigger_of")

T = TypeVar("T")


class Event(msgspec.Struct, Generic[T], frozen=True):
    """A fact that somebody sent: `Event[Upload]` as the type of a workflow's first parameter gets it whole.

    Attributes:
        id: Given by the sender, or made.
        name: What it is ("contacts.uploaded").
        time: When it was accepted, in UTC.
        data: The sender's value.
    """

    id: str
    name: str
    time: datetime
    data: T


def trigger_of(
    what: str, function: Callable[..., Any], on: str | Iterable[str] | None, when: str | None
) -> EventTrigger | None:
    """Return which events start a workflow, and what it is given; None: none do.

    Args:
        what: The workflow, for errors.
        function: Its code; the first parameter gets the data of the event, or all of it if it is an `Event`.
        on: Names of events.
        when: Condition in CEL.

    Raises:
        ConfigError: A name is wrong, there is a condition but no name, or parameters would be left without a value.
    """
    if on is None:
        if when is not None:
            raise ConfigError(f"{what}: when= is a condition on the events of on=: give names of events, too")
        return None
    names = [on] if isinstance(on, str) else list(on)
    trigger = EventTrigger(names=names, condition=when or "")
    try:
        check_trigger(trigger)
    except FieldInvalid as error:
        raise ConfigError(f"{what}: {error}") from error
    parameters = list(inspect.signature(function).parameters.values())
    if parameters:
        trigger.parameter = parameters[0].name
        trigger.whole = _is_event(typing.get_type_hints(inspect.unwrap(function)).get(parameters[0].name))
    left = [p.name for p in parameters[1:] if p.default is p.empty]
    if left:
        raise ConfigError(
            f"{what}: an event starts it, and gives a value to its first parameter only; {left[0]!r} needs a default"
        )
    return trigger


def _is_event(hint: Any) -> bool:
    return hint is Event or typing.get_origin(hint) is Event
