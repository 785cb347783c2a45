"""Signals and questions that were fed, until the code receives them.

A queue for each name, in the order of the history: asyncio's own, so that receiving can be cancelled, raced and bounded by
a timeout as with any queue, and nothing that was not received is lost by that.
"""

from __future__ import annotations

import asyncio

from treadle.v1.history_pb2 import SignalReceived

__all__ = ("Mail",)

_KNOWN = 1000
"""A run that continues as new takes so many ids along."""


class Mail:
    """That of one execution.

    Attributes:
        waiting: How many tasks wait for something that has not come.
        known: Ids of what came last, in parts before this one too, oldest first: 1,000 to 2,000 where there were so many.
    """

    def __init__(self) -> None:
        self._boxes: dict[tuple[bool, str], asyncio.Queue[SignalReceived]] = {}
        self._unread: dict[str, SignalReceived] = {}
        self.known: list[str] = []
        self.waiting = 0

    @property
    def unread(self) -> list[SignalReceived]:
        """What nobody received, in the order of arrival."""
        return list(self._unread.values())

    @property
    def wanted(self) -> list[tuple[bool, str]]:
        """What tasks wait for that has not come: whether it is a question, and its name."""
        return [key for key, box in self._boxes.items() if box._getters]  # type: ignore[attr-defined]

    def deliver(self, letter: SignalReceived) -> None:
        """It was fed: whoever waits for its name longest gets it."""
        self._unread[letter.signal_id] = letter
        self.known.append(letter.signal_id)
        if len(self.known) > 2 * _KNOWN:
            del self.known[:_KNOWN]
        self._box(letter.name, asks=letter.asks).put_nowait(letter)

    async def receive(self, name: str, *, asks: bool) -> SignalReceived:
        """Return the next signal, or question, of a name."""
        box = self._box(name, asks=asks)
        if box.empty():
            self.waiting += 1
            try:
                letter = await box.get()
            finally:
                self.waiting -= 1
        else:
            letter = box.get_nowait()
        del self._unread[letter.signal_id]
        return letter

    def _box(self, name: str, *, asks: bool) -> asyncio.Queue[SignalReceived]:
        return self._boxes.setdefault((asks, name), asyncio.Queue())
