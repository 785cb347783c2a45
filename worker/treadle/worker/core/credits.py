"""Credits: claims in advance, stated every second and when they change.

A statement replaces the one before and names the last pushed grant that was read, so that no slot is offered twice. The
server counts down what it gave away since; so a change is worth a frame of its own only if it matters: there is less than
the server believes, or twice as much. Else it goes along with a frame that goes anyway.
Deliveries come first: beside a consumer a slot becomes a credit only when it has been free for a while. Parked runs whose
coroutine is kept have slots of their own, which no delivery takes.
"""

from __future__ import annotations

from typing import NamedTuple

from treadle.v1.worker_service_pb2 import CreditStatement

from .cache import Cache
from .shared import Shared
from .slots import Slots

__all__ = ("Credits",)


class _Offer(NamedTuple):
    """How many jobs are taken unasked."""

    runs: int = 0
    steps: int = 0
    wakes: int = 0


class _Said(NamedTuple):
    offer: _Offer
    read: int
    run_waiting: bool


class Credits:
    """Statements, and their answers."""

    __slots__ = ("_cache", "_due", "_left", "_runs", "_said", "_shared", "_steps", "_unanswered", "_wakes", "read")

    def __init__(self, shared: Shared, steps: Slots, runs: Slots, wakes: Slots, cache: Cache) -> None:
        self._shared = shared
        self._steps, self._runs, self._wakes = steps, runs, wakes
        self._cache = cache
        self._said: _Said | None = None
        self._left = _Offer()  # what the server may still push for the last statement
        self._due = 0
        self._unanswered: dict[int, int] = {}  # credit id -> when sent
        self.read = 0

    def session_opened(self) -> None:
        """Credits, and the numbers of pushed grants, end with their session."""
        self._said = None
        self._unanswered.clear()
        self.read = 0

    def pushed(self, number: int, slots: Slots) -> None:
        """A grant was read that used up a credit of these slots."""
        self.read = max(self.read, number)
        runs, steps, wakes = self._left
        if slots is self._wakes:
            self._left = _Offer(runs, steps, max(wakes - 1, 0))
        elif slots is self._runs:
            self._left = _Offer(max(runs - 1, 0), steps, wakes)
        else:
            self._left = _Offer(runs, max(steps - 1, 0), wakes)

    def statement(self, now_ms: int, run_waiting: bool, *, goes_along: bool) -> CreditStatement | None:
        """The statement to send now; None: the last one is young, and still true or not worth a frame of its own."""
        offer = self._offer(now_ms)
        said = _Said(offer, self.read, run_waiting)
        if self._said is not None and now_ms < self._due and not self._worth_saying(said, self._said, goes_along):
            return None
        credit_id = self._shared.random64()
        self._said, self._left = said, offer
        self._due = now_ms + self._shared.settings.credit_every_ms
        self._unanswered[credit_id] = now_ms
        return CreditStatement(
            credit_id=credit_id,
            sent_ms=now_ms,
            run_jobs=offer.runs,
            step_jobs=offer.steps,
            wakes=offer.wakes,
            read=self.read,
            run_waiting=run_waiting,
        )

    def _worth_saying(self, new: _Said, said: _Said, goes_along: bool) -> bool:
        if new == said or goes_along:
            return new != said
        if new.run_waiting != said.run_waiting or (self._shared.draining and any(said.offer)):
            return True
        return any(offer < left or offer >= max(2 * left, 1) for offer, left in zip(new.offer, self._left, strict=True))

    def taken(self, credit_id: int) -> None:
        """This statement, and so every earlier one, was taken."""
        if credit_id not in self._unanswered:
            return
        for earlier in tuple(self._unanswered):
            del self._unanswered[earlier]
            if earlier == credit_id:
                return

    @property
    def none_out(self) -> bool:
        """The last statement was of no credits, and was answered."""
        return self._said is not None and not any(self._said.offer) and not self._unanswered

    def oldest_ms(self) -> int | None:
        for sent_ms in self._unanswered.values():
            return sent_ms
        return None

    def next_due(self, now_ms: int) -> int:
        due = self._due if self._said is not None else now_ms
        settings = self._shared.settings
        if self._shared.draining:
            return due
        if settings.workflows:
            due = _sooner(due, self._runs, self._left.runs, now_ms)
        if settings.steps and settings.step_credits:
            due = _sooner(due, self._steps, self._left.steps, now_ms)
        return due

    def _offer(self, now_ms: int) -> _Offer:
        settings = self._shared.settings
        if self._shared.draining:
            return _Offer()
        runs = self._runs.ripe(now_ms) if settings.workflows else 0
        steps = self._steps.ripe(now_ms) if settings.steps and settings.step_credits else 0
        return _Offer(runs, steps, min(self._wakes.free, len(self._cache)))


def _sooner(due: int, slots: Slots, left: int, now_ms: int) -> int:
    """Return when a slot ripens, if that is before `due` and the slots that are free may be worth saying."""
    ripe = slots.next_ripe(now_ms) if slots.free > 2 * left else None
    return due if ripe is None else min(due, ripe)
