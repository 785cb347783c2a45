"""Deliveries of the broker: waiting for a slot, asked about, acked on a verdict or given back (A3).

A claim keeps its id and its first send time when it is sent again (A5). It is made only with a free slot, which it then
holds; only questions that can never be answered GO (unknown names, garbage) need none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from treadle.v1.job_pb2 import JOB_KIND_RUN, JOB_KIND_STEP, Job, JobKind
from treadle.v1.worker_service_pb2 import LANE_AMQP, ClaimItem

from .cache import Cache
from .outbox import Outbox, Room
from .port import Ack, Consume, GiveBack
from .shared import Shared
from .slots import Slots

__all__ = ("Claim", "Claims", "Intake")

GARBAGE_BYTES = 64 << 10


class Claim:
    """A question about one delivery."""

    __slots__ = ("intake", "item", "job", "tag")

    def __init__(self, item: ClaimItem, job: Job | None, tag: int, intake: Intake | None) -> None:
        self.item = item
        self.job = job
        self.tag: int | None = tag  # None: the delivery is void, its channel was lost
        self.intake = intake  # whose slot it holds; None: none


class Intake:
    """One queue of the pool: its consumer, its slots, and the deliveries that wait for one."""

    __slots__ = (
        "consuming",
        "kind",
        "names",
        "room_for_more",
        "room_until",
        "slots",
        "starved",
        "waiting",
        "waiting_since",
    )

    def __init__(self, kind: JobKind.ValueType, names: frozenset[str], slots: Slots) -> None:
        self.kind = kind
        self.names = names
        self.slots = slots
        self.consuming = False
        self.starved = False  # jobs were given back for want of a slot, and none was free since
        self.waiting: dict[int, Job] = {}
        self.waiting_since = 0
        self.room_for_more = False  # a slot can be made when a job comes (R9)
        self.room_until = 0  # when that was last so

    def room(self, can_be_made: bool, now_ms: int) -> None:
        if self.room_for_more:
            self.room_until = now_ms
        self.room_for_more = can_be_made

    def starves_at(self, patience_ms: int) -> int | None:
        """When it has had no slot for too long; None: it has one, or nothing waits and one can be made (R9)."""
        if self.slots.full_since is None:
            return None
        if self.waiting:
            return max(self.slots.full_since, self.waiting_since) + patience_ms
        return None if self.room_for_more else max(self.slots.full_since, self.room_until) + patience_ms


class Claims:
    """All deliveries and questions."""

    __slots__ = ("_by_tag", "_cache", "_claims", "_shared", "outbox", "runs", "steps")

    def __init__(self, shared: Shared, steps: Slots, runs: Slots, cache: Cache) -> None:
        self._shared = shared
        self._cache = cache
        self.steps = Intake(JOB_KIND_STEP, shared.settings.steps, steps)
        self.runs = Intake(JOB_KIND_RUN, shared.settings.workflows, runs)
        self._claims: dict[int, Claim] = {}
        self._by_tag: dict[int, Claim] = {}
        self.outbox: Outbox[int, ClaimItem] = Outbox()

    @property
    def busy(self) -> bool:
        """Whether a delivery has no verdict yet, or a question no answer."""
        return bool(self._claims or self.steps.waiting or self.runs.waiting)

    @property
    def run_waits(self) -> int:
        """How many run jobs are known to wait here for a slot."""
        return len(self.runs.waiting) or int(self.runs.starved)

    # --- deliveries ----------------------------------------------------------------------------------------------
    def delivered(self, tag: int, job: Job | None, body: bytes, now_ms: int) -> None:
        if self._shared.draining:
            self._give_back(tag)
        elif job is None or job.kind not in (JOB_KIND_STEP, JOB_KIND_RUN):
            self._shared.note("error", "garbage_delivered", bytes=len(body))
            self._ask(tag, None, None, ClaimItem(garbage=body[:GARBAGE_BYTES]))
        else:
            intake = self.steps if job.kind == JOB_KIND_STEP else self.runs
            if not intake.consuming:  # it was on its way when the consumer was cancelled
                self._give_back(tag)
            elif job.name not in intake.names:
                self._shared.note("warning", "name_unknown", name=job.name, run=job.run_id)
                self._ask(tag, job, None, ClaimItem(unregistered=True))
            else:
                if not intake.waiting:
                    intake.waiting_since = now_ms
                intake.waiting[tag] = job

    def channel_lost(self, tags: Sequence[int]) -> None:
        """These deliveries are void: nothing of them may be acked. A question under way stays: its GO is a GO."""
        for tag in tags:
            self.steps.waiting.pop(tag, None)
            self.runs.waiting.pop(tag, None)
            claim = self._by_tag.pop(tag, None)
            if claim is not None:
                claim.tag = None

    def pump(self, now_ms: int) -> None:
        """Ask about what waits, as far as there are slots; have consumers where questions can be asked."""
        if self._shared.session.deaf_since is not None or self._shared.draining:
            return
        for intake in (self.steps, self.runs):
            while intake.waiting and intake.slots.take(now_ms):
                tag = next(iter(intake.waiting))
                self._claim(tag, intake.waiting.pop(tag), intake)
            if intake.slots.free:
                intake.starved = False
            if not intake.consuming and self._may_consume(intake):
                self._consume(intake, True)
                intake.slots.unripe(now_ms)

    def _may_consume(self, intake: Intake) -> bool:
        if not intake.names or self._shared.settings.lane != LANE_AMQP:
            return False
        return intake.slots.free > 0 or (intake.room_for_more and not intake.starved)

    # --- questions -----------------------------------------------------------------------------------------------
    def _claim(self, tag: int, job: Job, intake: Intake) -> None:
        item = ClaimItem()
        if intake is self.runs:
            item.after_position, item.after_revision = self._cache.place(job.run_id, job.incarnation)
        self._ask(tag, job, intake, item)

    def _ask(self, tag: int, job: Job | None, intake: Intake | None, item: ClaimItem) -> None:
        item.claim_id = self._shared.random64()
        if job is not None:
            item.job.CopyFrom(job)
            item.job.ClearField("input")
        claim = Claim(item, job, tag, intake)
        self._claims[item.claim_id] = claim
        self._by_tag[tag] = claim
        self.outbox.put(item.claim_id, item)

    def frame(self, room: Room, now_ms: int) -> Iterator[ClaimItem]:
        for item in self.outbox.take(room, now_ms):
            if not item.sent_ms:
                item.sent_ms = now_ms
            yield item

    def answered(self, claim_id: int) -> Claim | None:
        """A verdict came: ack. Returns the question, whose slot is now the caller's; None: it was given up."""
        claim = self._claims.pop(claim_id, None)
        if claim is None:
            return None
        self.outbox.drop(claim_id)
        if claim.tag is not None:
            del self._by_tag[claim.tag]
            self._shared.actions.append(Ack(claim.tag))
        return claim

    # --- giving back ---------------------------------------------------------------------------------------------
    def tick(self, now_ms: int) -> None:
        deaf_since = self._shared.session.deaf_since
        if deaf_since is not None and now_ms >= deaf_since + self._shared.settings.give_back_session_ms:
            self._give_up(now_ms)
        for intake in (self.steps, self.runs):
            due = self._starves_at(intake)
            if due is not None and due <= now_ms:
                intake.starved = bool(intake.waiting)
                self._return_waiting(intake)
                self._consume(intake, False)

    def next_due(self) -> int | None:
        dues = [due for i in (self.steps, self.runs) if (due := self._starves_at(i)) is not None]
        deaf_since = self._shared.session.deaf_since
        if deaf_since is not None and (self.busy or self.steps.consuming or self.runs.consuming):
            dues.append(deaf_since + self._shared.settings.give_back_session_ms)
        return min(dues, default=None)

    def drain(self, now_ms: int) -> None:
        """Take nothing new, give back what was not asked about."""
        self._forget([claim for claim in self._claims.values() if not claim.item.sent_ms], now_ms)
        for intake in (self.steps, self.runs):
            self._return_waiting(intake)
            intake.starved = False
            if intake.consuming:
                self._consume(intake, False)

    def _starves_at(self, intake: Intake) -> int | None:
        if not intake.consuming:
            return None
        return intake.starves_at(self._shared.settings.give_back_slot_ms)

    def _give_up(self, now_ms: int) -> None:
        """Too long without a session that answers: every delivery without a verdict goes back, its question is forgotten."""
        self._forget(list(self._claims.values()), now_ms)
        for intake in (self.steps, self.runs):
            self._return_waiting(intake)
            if intake.consuming:
                self._consume(intake, False)

    def _forget(self, claims: list[Claim], now_ms: int) -> None:
        """Give these questions up: a late answer is dropped."""
        for claim in claims:
            del self._claims[claim.item.claim_id]
            self.outbox.drop(claim.item.claim_id)
            if claim.tag is not None:
                del self._by_tag[claim.tag]
                self._give_back(claim.tag)
            if claim.intake is not None:
                claim.intake.slots.give(now_ms)

    def _return_waiting(self, intake: Intake) -> None:
        for tag in intake.waiting:
            self._give_back(tag)
        intake.waiting.clear()

    def _give_back(self, tag: int) -> None:
        self._shared.actions.append(GiveBack(tag))

    def _consume(self, intake: Intake, on: bool) -> None:
        intake.consuming = on
        self._shared.actions.append(Consume(intake.kind, on))
