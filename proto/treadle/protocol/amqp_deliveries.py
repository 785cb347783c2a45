"""What a channel with a consumer brings, and the verdicts on it, many in one write.

An ack is written within 5 ms, at once when half of the prefetch waits for it: fewer, larger acks cost this side a system
call less each, and a quorum queue an entry in its log. Giving back does not wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from treadle.protocol.amqp_filter import FrameFilter
from treadle.protocol.amqp_frames import ack_frame, nack_frame
from treadle.protocol.delivery_tags import DeliveryTags

__all__ = ("Deliveries",)

_ACK_WITHIN: Final = 0.005


class Deliveries:
    """The deliveries of one channel, for as long as it lives. A verdict that comes later is void.

    Args:
        between: The connection's filter.
        number: Of the channel; the library has opened it.
        taken: Called on the event loop with what one read brought: (delivery tag, body), in the order of delivery.

    Attributes:
        prefetch: How many unacknowledged deliveries there can be. Set it when it changes.
    """

    __slots__ = ("_acks", "_between", "_channel", "_loop", "_scheduled", "_tags", "_taken", "_timer", "prefetch")

    def __init__(self, between: FrameFilter, number: int, taken: Callable[[Sequence[tuple[int, bytes]]], None]) -> None:
        self._between = between
        self._taken = taken
        self._tags = DeliveryTags()
        self._loop = asyncio.get_running_loop()
        self._acks = 0
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self.prefetch = 1
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
        if not self._tags.ack(tag):
            return False
        self._acks += 1
        if 2 * self._acks >= self.prefetch:
            self._soon()
        elif self._timer is None:
            self._timer = self._loop.call_later(_ACK_WITHIN, self.flush)
        return True

    def give_back(self, tag: int) -> bool:
        """Put a delivery back into the queue; False when it is unknown here or has its verdict."""
        if not self._tags.give_back(tag):
            return False
        self._soon()
        return True

    def flush(self) -> None:
        """Write the verdicts that were said."""
        self._scheduled, self._acks = False, 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
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
        """The channel is closed, or is to be: what has no verdict is the broker's again."""
        self.flush()
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

    def _soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)
