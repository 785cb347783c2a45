"""The worker's protocol core: composes the parts and routes what comes and goes.

Parts: claims (deliveries to verdicts), credits, attempts (held attempts of pool steps), owners (open runs). They share
the session, the rights, the list of held tokens and the actions for the shell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from treadle.protocol.errors import PayloadError
from treadle.v1.common_pb2 import Payload
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.job_pb2 import JOB_KIND_RUN, Job, JobKind
from treadle.v1.state_pb2 import HeldToken
from treadle.v1.worker_service_pb2 import (
    LANE_AMQP,
    VERDICT_GO,
    ClaimVerdict,
    Command,
    Grant,
    SessionRequest,
    SessionResponse,
)

from ..loop.port import ExecutionFactory, Outcome
from .attempts import Attempts
from .cache import Cache
from .claims import Claims
from .credits import Credits
from .outbox import Room
from .owners import Owners
from .port import Action, CoreSettings, Drained, ReopenSession, Report
from .seals import MakeSeals
from .shared import Shared
from .slots import Slots

__all__ = ("WorkerCore",)


class WorkerCore:
    """Implements `WorkerCorePort`.

    A frame holds at most 200 entries and 1 MiB, or one entry: call `frame` until it returns None.

    Args:
        settings: What the worker is.
        executions: Makes a coroutine for a run of one of `settings.workflows`.
        random64: Draws 64 random bits, for ids of claims, credits and lists.
        seals: Makes what opens and seals the values of a run; None: nothing is sealed.
    """

    __slots__ = (
        "_attempts",
        "_awake_since",
        "_called_at",
        "_claims",
        "_credits",
        "_drained",
        "_owners",
        "_shared",
        "_unsettled",
    )

    def __init__(
        self,
        settings: CoreSettings,
        executions: ExecutionFactory,
        random64: Callable[[], int],
        seals: MakeSeals | None = None,
    ) -> None:
        shared = Shared(settings, random64)
        ripe_ms = settings.credit_after_ms if settings.lane == LANE_AMQP else 0
        steps = Slots(settings.step_slots, ripe_ms)
        runs, wakes = Slots(settings.run_slots, ripe_ms), Slots(settings.wake_slots, 0)
        cache = Cache(settings.cache_runs, settings.cache_bytes)
        self._shared = shared
        self._attempts = Attempts(shared, steps)
        self._owners = Owners(shared, executions, runs, wakes, cache, seals)
        self._claims = Claims(shared, steps, runs, cache)
        self._credits = Credits(shared, steps, runs, wakes, cache)
        self._called_at = 0
        self._awake_since = 0
        self._drained = False
        self._unsettled = False

    # --- the session -----------------------------------------------------------------------------------------------
    def session_opened(self, session_id: str, now_ms: int) -> None:
        self._shared.session.end(now_ms)  # one that was replaced without an end that was seen
        self._shared.session.begin()
        self._shared.note("debug", "session_opened", session=session_id)
        self._awake_since = now_ms
        self._claims.outbox.again()
        self._attempts.reports.again()
        self._attempts.progress.again()
        self._owners.session_opened(now_ms)
        self._credits.session_opened()
        self._settle(now_ms)

    def session_ended(self, now_ms: int) -> None:
        self._shared.session.end(now_ms)
        self._settle(now_ms)

    def receive(self, response: SessionResponse, now_ms: int) -> None:
        if not self._shared.session.open:
            return  # of a session that was seen to end
        self._noticed(now_ms)
        if self._shared.session.silent_since is not None and _answers(response):
            self._shared.session.silent_since = None
        for report_answer in response.report_answers:
            refused = self._attempts.answered(report_answer)
            if refused is not None:
                self._owners.report_refused(refused, now_ms)
        for progress_answer in response.progress_answers:
            self._attempts.progress_answered(progress_answer)
        # Before grants: the answer to a park must reach the cache before the next GO for the run looks there.
        for owner_answer in response.owner_answers:
            self._owners.answered(owner_answer, now_ms)
        for verdict in response.verdicts:
            self._decided(verdict, now_ms)
        for grant in response.grants:
            self._pushed(grant, now_ms)
        for news in response.news:
            self._owners.news(news, now_ms)
        for cancel in response.cancels:
            self._attempts.cancel(cancel.token, cancel.reason)
        if response.credits_taken:
            self._credits.taken(response.credits_taken)
        if response.run_job_waits:
            self._owners.run_job_waits(now_ms)
        if response.goaway:
            self._reopen("the replica is going away")
        self._settle(now_ms)

    def frame(self, now_ms: int) -> SessionRequest | None:
        if not self._shared.session.open:
            return None
        self._noticed(now_ms)
        if self._unsettled:
            self._settle(now_ms)
        if self._owners.results:
            self._owners.foresee(self._attempts.alone, now_ms)
        room = Room()
        claims = list(self._claims.frame(room, now_ms)) if self._claims.outbox.waiting else None
        reports = list(self._attempts.reports.take(room, now_ms)) if self._attempts.reports.waiting else None
        progress = list(self._attempts.progress.take(room, now_ms)) if self._attempts.progress.unsent else None
        # What follows from a report must not come before it.
        requests = [] if self._attempts.reports.waiting else self._owners.frame(room, now_ms)
        full = bool(claims or reports or requests or progress)
        credits = self._credits.statement(now_ms, self._claims.run_waits > 0, goes_along=full)
        if not full and credits is None:
            return None
        return SessionRequest(claims=claims, reports=reports, requests=requests, credits=credits, progress=progress)

    @property
    def may_go_ahead(self) -> bool:
        return bool(self._owners.foretold)

    def go_ahead(self) -> None:
        self._owners.go_ahead()

    # --- GO --------------------------------------------------------------------------------------------------------
    def _decided(self, verdict: ClaimVerdict, now_ms: int) -> None:
        """A verdict on a claim: ack whatever it is, unless the question was given up (A3)."""
        if not verdict.verdict:
            return
        claim = self._claims.answered(verdict.claim_id)
        if claim is None:
            return
        slots = claim.intake.slots if claim.intake is not None else None
        if verdict.verdict != VERDICT_GO or claim.job is None:
            if slots is not None:
                slots.give(now_ms)
            return
        grant, job = verdict.grant, claim.job
        if grant.job.HasField("input"):
            job.input.CopyFrom(grant.job.input)
            job.input_omitted = False
        if self._known(grant.token):
            if slots is not None:
                slots.give(now_ms)
            return
        self._start(grant, job, claim.item.sent_ms, slots, "not registered", now_ms)

    def _pushed(self, grant: Grant, now_ms: int) -> None:
        """A GO for a credit: it starts if a slot is still free."""
        job, settings = grant.job, self._shared.settings
        is_run = job.kind == JOB_KIND_RUN
        place = self._owners.slots_for(job) if is_run else self._attempts.slots
        self._credits.pushed(grant.push_number, place)
        if self._known(grant.token):
            return
        if is_run:
            self._owners.fence(job.run_id, now_ms)
        if job.name not in (settings.workflows if is_run else settings.steps):
            self._start(grant, job, 0, None, "not registered", now_ms)
            return
        slots = None if self._shared.draining or not place.take(now_ms) else place
        self._start(grant, job, min(grant.sent_ms, now_ms), slots, "no slot", now_ms)

    def _start(self, grant: Grant, job: Job, sent_ms: int, slots: Slots | None, without_slot: str, now_ms: int) -> None:
        """Start what has a slot; release the rest at once. Either way the token is listed from now on (A5)."""
        is_run = job.kind == JOB_KIND_RUN
        if is_run:
            self._owners.fence(job.run_id, now_ms)
        refused = "drain" if self._shared.draining else without_slot if slots is None else ""
        if refused:
            if slots is not None:
                slots.give(now_ms)
            if is_run:
                self._owners.refuse(grant, job, refused, now_ms)
            else:
                self._attempts.refuse(grant, job, refused)
        elif is_run:
            assert slots is not None
            self._owners.granted(grant, job, self._shared.right(sent_ms), slots, now_ms)
        else:
            self._attempts.granted(grant, job, self._shared.right(sent_ms), now_ms=now_ms)

    def _known(self, token: bytes) -> bool:
        return token in self._attempts or token in self._owners

    # --- the broker ------------------------------------------------------------------------------------------------
    def delivered(self, tag: int, job: Job | None, body: bytes, now_ms: int) -> None:
        self._noticed(now_ms)
        self._claims.delivered(tag, job, body, now_ms)
        self._claims.pump(now_ms)  # at once: questions are asked in the order of the deliveries
        self._unsettled = True

    def channel_lost(self, kind: JobKind.ValueType, tags: Sequence[int], now_ms: int) -> None:
        self._claims.channel_lost(tags)
        self._settle(now_ms)

    # --- user code -------------------------------------------------------------------------------------------------
    def may_start(self, token: bytes, now_ms: int) -> bool:
        return self._attempts.may_start(token, now_ms)

    def attempt_ended(self, token: bytes, report: Report, now_ms: int) -> None:
        result = self._attempts.ended(token, report, now_ms)
        if result is not None:
            self._owners.attempt_ended(result)
        self._called_at = now_ms
        self._unsettled = True

    def progressed(self, token: bytes, number: int, data: bytes | Payload | None) -> None:
        self._attempts.progressed(token, number, data)

    def may_start_local(self, owner_token: bytes, command_id: str, now_ms: int) -> bool:
        return self._owners.may_start_local(owner_token, command_id, now_ms)

    def local_refused(self, owner_token: bytes, command_id: str, now_ms: int) -> None:
        self._owners.local_refused(owner_token, command_id, now_ms)
        self._settle(now_ms)

    def local_ended(self, owner_token: bytes, command_id: str, report: Report, now_ms: int) -> None:
        self._owners.local_ended(owner_token, command_id, report, now_ms)
        self._called_at = now_ms
        self._unsettled = True

    # --- sealed values ---------------------------------------------------------------------------------------------
    def owns(self, owner_token: bytes) -> bool:
        return owner_token in self._owners

    def event_opened(self, owner_token: bytes, event: HistoryEvent, error: PayloadError | None, now_ms: int) -> None:
        self._owners.event_opened(owner_token, event, error, now_ms)
        self._settle(now_ms)

    def item_sealed(self, owner_token: bytes, number: int, item: Command | Outcome, now_ms: int) -> None:
        self._owners.item_sealed(owner_token, number, item, now_ms)
        self._settle(now_ms)

    # --- time and life ---------------------------------------------------------------------------------------------
    def tick(self, now_ms: int) -> None:
        self._noticed(now_ms)
        self._claims.tick(now_ms)
        self._owners.tick(self._claims.run_waits, now_ms)
        due = self._unanswered_at()
        if due is not None and due <= now_ms:
            self._shared.session.silent_since = due
            self._reopen(f"no answer for {self._shared.settings.unanswered_ms} ms")
        self._settle(now_ms)

    def next_due(self) -> int | None:
        now_ms = self._called_at
        if self._unsettled:
            self._settle(now_ms)
        dues = [
            self._claims.next_due(),
            self._owners.next_due(self._claims.run_waits, now_ms),
            self._unanswered_at(),
            self._credits.next_due(now_ms) if self._shared.session.open else None,
        ]
        return min((due for due in dues if due is not None), default=None)

    def drain(self, now_ms: int) -> None:
        self._shared.draining = True
        self._claims.drain(now_ms)
        self._owners.drain(now_ms)
        self._settle(now_ms)

    def drain_over(self, now_ms: int) -> None:
        if not self._shared.draining:
            self.drain(now_ms)
        self._shared.drain_over = True
        self._attempts.drain_over()
        self._owners.drain_over(now_ms)
        self._settle(now_ms)

    def actions(self) -> list[Action]:
        if self._unsettled:
            self._settle(self._called_at)
        actions = self._shared.actions
        self._shared.actions = []
        return actions

    def held(self) -> tuple[int, tuple[HeldToken, ...]]:
        return self._shared.held.read()

    def counts(self) -> tuple[int, int]:
        return self._attempts.running, self._owners.open

    def free_run_slots(self) -> int:
        return self._owners.slots.free

    # --- inside ----------------------------------------------------------------------------------------------------
    def _noticed(self, now_ms: int) -> None:
        """A loop that was blocked has answers to read first: what it waited for is not late by its own fault (A10)."""
        settings = self._shared.settings
        if now_ms - self._called_at > settings.credit_every_ms + settings.unanswered_ms // 4:
            self._awake_since = now_ms
        self._called_at = now_ms

    def _settle(self, now_ms: int) -> None:
        """After every change: use free slots, make room where run jobs wait, show the list of held tokens.

        What comes many times in a turn of the loop and adds nothing to that list waits for the end of the turn.
        """
        self._called_at = now_ms
        self._unsettled = False
        self._claims.runs.room(self._owners.has_idle, now_ms)
        self._claims.pump(now_ms)
        self._owners.relieve(self._claims.run_waits, now_ms)
        self._shared.held.publish()
        if self._shared.draining and not self._drained and self._empty():
            self._drained = True
            self._shared.actions.append(Drained())

    def _empty(self) -> bool:
        if self._claims.busy or len(self._attempts) or len(self._owners):
            return False
        return self._credits.none_out if self._shared.session.open else self._shared.drain_over

    def _unanswered_at(self) -> int | None:
        """When the oldest unanswered message of this session is overdue (A10)."""
        if self._shared.session.deaf_since is not None:
            return None
        sent = (
            self._claims.outbox.oldest_ms(),
            self._attempts.reports.oldest_ms(),
            self._owners.requests.oldest_ms(),
            self._credits.oldest_ms(),
        )
        oldest = min((sent_ms for sent_ms in sent if sent_ms is not None), default=None)
        if oldest is None:
            return None
        return max(oldest, self._awake_since) + self._shared.settings.unanswered_ms

    def _reopen(self, reason: str) -> None:
        session = self._shared.session
        if not session.replacing:
            session.replacing = True
            self._shared.actions.append(ReopenSession(reason))


def _answers(response: SessionResponse) -> bool:
    """Whether it holds the answer to anything: news and cancels come down a line that carries nothing up."""
    return bool(
        response.report_answers
        or response.progress_answers
        or response.owner_answers
        or response.verdicts
        or response.credits_taken
    )
