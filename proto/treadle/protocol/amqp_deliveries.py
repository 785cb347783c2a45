"""What a channel with a consumer brings, and the verdicts on it, written once in each turn of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from treadle.protocol.amqp_filter import FrameFilter
from treadle.protocol.amqp_frames import ack_frame, nack_frame
from treadle.protocol.delivery_tags import DeliveryTags

__all__ = ("Deliveries",)


class Deliveries:
    """The deliveries of one channel, for as long as it lives. A verdict that comes later is void.

    Args:
        between: The connection's filter.
        number: Of the channel; the library has opened it.
        taken: Called on the event loop with what one read brought: (delivery tag, body), in the order of delivery.
    """

    __slots__ = ("_between", "_channel", "_loop", "_scheduled", "_tags", "_taken")

    def __init__(self, between: FrameFilter, number: int, taken: Callable[[Sequence[tuple[int, bytes]]], None]) -> None:
        self._between = between
        self._taken = taken
        self._tags = DeliveryTags()
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._channel = between.open(number, self)

    def __len__(self) -> int:
        """Return how many have no verdict."""
        return len(self._tags)

    @property
    def open(self) -> tuple[int, ...]:
        """Those without a verdict, oldest first."""
        return self._tags.open

    def ack(self, tag: int) -> bool:
        """Settle a delivery; False when it is unknown here or has its verdict."""
        return self._tags.ack(tag) and self._decided()

    def give_back(self, tag: int) -> bool:
        """Put a delivery back into the queue; False when it is unknown here or has its verdict."""
        return self._tags.give_back(tag) and self._decided()

    def flush(self) -> None:
        """Write the verdicts that were said."""
        self._scheduled = False
        verdicts = self._tags.take()
        if verdicts and not self._channel.closed:
            number = self._channel.number
            self._between.write(
                b"".join(
                    ack_frame(number, verdict.tag, multiple=verdict.multiple)
                    if verdict.ack
                    else nack_frame(number, verdict.tag)
                    for verdict in verdicts
                )
            )

    def release(self) -> None:
        """The channel is closed, or is to be: its deliveries are the broker's again."""
        self._between.release(self._channel)
        self._tags = DeliveryTags()

    def arrived(self) -> None:
        found, self._channel.deliveries = self._channel.deliveries, []
        for tag, _ in found:
            self._tags.delivered(tag)
        if found:
            self._taken(found)

    def writable(self) -> None:
        """Nothing to do: verdicts do not wait, there are never more of them than the prefetch."""

    def _decided(self) -> bool:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)
        return True
