"""Sealed values in the core: what is encrypted, or kept in a blob store, on its way out and in.

Opening and sealing that needs no I/O is done at once. For the rest the shell is asked; meanwhile the run is not fed, or
its later commands wait, so that the order in which code sees and says things is the same with a blob store and without.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

from treadle.v1.history_pb2 import HistoryEvent, SignalReceived
from treadle.v1.worker_service_pb2 import Command

from ..loop.port import Outcome, RunContext
from .port import SealItem
from .shared import Shared

if TYPE_CHECKING:
    from .feed import Feed

__all__ = ("MakeSeals", "Outgoing", "RunSeals", "sayable")

T = TypeVar("T", Command, Outcome)


class RunSeals(Protocol):
    """Opens what one run is fed, seals what its code says. Events are given to `open` in their order."""

    def open(self, event: HistoryEvent) -> bool:
        """Make the event's values readable, in place. False: one must be fetched first, or the codec failed.

        Raises:
            PayloadError: One cannot be opened here.
        """
        ...

    def seal(self, item: T) -> T | None:
        """Return what is sent instead; None: it must be stored first, or the codec failed."""
        ...

    def carried(self, letter: SignalReceived) -> SignalReceived:
        """Return what is sent instead of a signal that was opened, and goes on with the next part of the run.

        Raises:
            CodecFailed: The codec raised.
        """
        ...


MakeSeals = Callable[[RunContext], RunSeals]


class Outgoing:
    """What the code of one run says, in its order, until it may be sent.

    Args:
        shared: Of the core.
        token: The owner.
        seals: Seals.
        ready: Gets the commands that may be sent.

    Attributes:
        waiting: Whether commands wait to be stored.
    """

    __slots__ = (
        "_items",
        "_numbers",
        "_outcome",
        "_outcome_number",
        "_ready",
        "_sealed_outcome",
        "_seals",
        "_shared",
        "_token",
    )

    def __init__(self, shared: Shared, token: bytes, seals: RunSeals, ready: list[Command]) -> None:
        self._shared = shared
        self._token = token
        self._seals = seals
        self._ready = ready
        self._items: deque[tuple[int, Command | None]] = deque()
        self._numbers = 0
        self._outcome: Outcome | None = None
        self._outcome_number = 0
        self._sealed_outcome: Outcome | None = None

    @property
    def waiting(self) -> bool:
        return bool(self._items)

    def ask(self, commands: list[Command]) -> None:
        """The code asked for these."""
        for command in commands:
            sealed = self._seals.seal(command)
            self._numbers += 1
            self._items.append((self._numbers, sealed))
            if sealed is None:
                self._shared.actions.append(SealItem(self._token, self._numbers, self._seals, command))
        self._move()

    def sealed(self, number: int, item: Command | Outcome) -> None:
        """The shell has stored it."""
        if isinstance(item, Outcome):
            if number == self._outcome_number:
                self._sealed_outcome = item
            return
        for index, (known, _) in enumerate(self._items):
            if known == number:
                self._items[index] = (number, item)
        self._move()

    def outcome(self, outcome: Outcome) -> Outcome | None:
        """Return how the code ended as it may be sent; None: it must be stored first."""
        if self._outcome is not outcome:
            self._outcome = outcome
            self._numbers += 1
            self._outcome_number = self._numbers
            self._sealed_outcome = self._seals.seal(outcome)
            if self._sealed_outcome is None:
                self._shared.actions.append(SealItem(self._token, self._numbers, self._seals, outcome))
        return self._sealed_outcome

    def _move(self) -> None:
        while self._items and (command := self._items[0][1]) is not None:
            self._ready.append(command)
            self._items.popleft()


def sayable(feed: Feed, outgoing: Outgoing | None) -> Outcome | None:
    """Return how the code ended, as it may be said now; None: not yet."""
    outcome = feed.execution.outcome
    if outgoing is None or outcome is None:
        return outcome
    return None if outgoing.waiting else outgoing.outcome(outcome)
