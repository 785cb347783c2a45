"""What the machine is asked about events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from treadle.v1.common_pb2 import NamedEvent
from treadle.v1.state_pb2 import EventEffect, RegisteredTrigger, SlotNews, StartByEvent, UseKeys

__all__ = (
    "AcceptEvent",
    "DropTrigger",
    "EventRequest",
    "RouteEvent",
    "SetTriggers",
    "TakeEffect",
    "TellSlot",
    "UseKeySet",
)


@dataclass(slots=True)
class AcceptEvent:
    """Somebody sends an event; for the record of its id. Reply: RunReply, `started` if it is new.

    Attributes:
        event: What is sent; its time is the commit's.
        starts: Which workflows it starts; their run ids are made here.
    """

    event: NamedEvent
    starts: Sequence[StartByEvent]


@dataclass(slots=True)
class RouteEvent:
    """An event was accepted; for a router of its name. Reply: None."""

    event: NamedEvent


@dataclass(slots=True)
class UseKeySet:
    """There are waits with these keys; for a router. Reply: RunReply, `started` if they are in use from now on."""

    letter: UseKeys


@dataclass(slots=True)
class TellSlot:
    """An event, or a wait that begins or ends; for a slot. Reply: None, or Unavailable: tell it again later."""

    news: SlotNews


@dataclass(slots=True)
class TakeEffect:
    """The run has waited for an event, or cannot. Reply: None."""

    effect: EventEffect


@dataclass(slots=True)
class SetTriggers:
    """A worker has these workflows, and these of them are started by events; for the record of triggers. Reply: None.

    Attributes:
        workflows: By the names of their code: with the version, if it has one.
        triggers: What is said of them.
    """

    workflows: Sequence[str]
    triggers: Sequence[RegisteredTrigger]


@dataclass(slots=True)
class DropTrigger:
    """Events are to start the workflow no longer. Reply: RunReply, `started` if they did."""

    workflow: str


EventRequest = AcceptEvent | RouteEvent | UseKeySet | TellSlot | TakeEffect | SetTriggers | DropTrigger
