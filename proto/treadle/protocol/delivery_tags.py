"""Which deliveries of one AMQP channel have no verdict yet, and the fewest frames that say the verdicts.

`basic.ack` with `multiple` acks every delivery up to its tag, those included that nobody has decided on yet. So it
is used only up to the highest tag below which every tag has its verdict. Pure: one object per channel, no I/O.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ("DeliveryTags", "Verdict")


class Verdict(NamedTuple):
    """One frame: ack or give back (nack with requeue) `tag`; with `multiple`, ack everything up to it."""

    tag: int
    ack: bool
    multiple: bool = False


class DeliveryTags:
    """The deliveries of one channel. Tags must be told in the order of delivery, which is ascending."""

    __slots__ = ("_acked", "_given_back", "_open")

    def __init__(self) -> None:
        self._open: dict[int, None] = {}
        self._acked: list[int] = []
        self._given_back: list[int] = []

    def __len__(self) -> int:
        """Return how many deliveries have no verdict."""
        return len(self._open)

    @property
    def open(self) -> tuple[int, ...]:
        """The deliveries without a verdict, oldest first."""
        return tuple(self._open)

    def delivered(self, tag: int) -> None:
        """A delivery came."""
        self._open[tag] = None

    def ack(self, tag: int) -> bool:
        """Decide to ack; False when the tag is unknown here or has its verdict."""
        return self._decide(tag, self._acked)

    def give_back(self, tag: int) -> bool:
        """Decide to give back; False when the tag is unknown here or has its verdict."""
        return self._decide(tag, self._given_back)

    def _decide(self, tag: int, into: list[int]) -> bool:
        if tag not in self._open:
            return False
        del self._open[tag]
        into.append(tag)
        return True

    def take(self) -> list[Verdict]:
        """Return the verdicts that were not taken yet, as frames to be written in this order.

        Nacks come first: an ack of many that follows them then covers only what is to be acked.
        """
        frames = [Verdict(tag, ack=False) for tag in self._given_back]
        acked = sorted(self._acked)
        floor = next(iter(self._open), None)
        settled = [tag for tag in acked if floor is None or tag < floor]
        if settled:
            frames.append(Verdict(settled[-1], ack=True, multiple=len(settled) > 1))
        frames.extend(Verdict(tag, ack=True) for tag in acked[len(settled) :])
        self._acked.clear()
        self._given_back.clear()
        return frames
