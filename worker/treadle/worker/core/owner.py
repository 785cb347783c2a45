"""One open run: what its code asks for becomes requests, what they are answered becomes events (R1, R2, R4, R5, R8).

One request is unanswered at a time; what accumulates meanwhile goes into the next one. After its last word (park, an
outcome, release) the owner feeds nothing until that was answered.
"""

from __future__ import annotations

from enum import Enum

from treadle.v1.history_pb2 import HistoryEvent, StepCompleted
from treadle.v1.job_pb2 import Job
from treadle.v1.worker_service_pb2 import (
    REPORT_KIND_COMPLETED,
    Checkpoint,
    Command,
    OwnerAnswer,
    OwnerRequest,
)

from ..loop.port import LocalCall, Turn
from .ahead import foretold_of, of_checkpoint, of_report
from .attempts import Result
from .feed import Feed
from .last_word import say_divergence, say_outcome
from .locals import LocalSteps, announcement
from .outbox import Room
from .port import OpenEvent, Report, StartLocal
from .rights import Right
from .seals import Outgoing, sayable
from .shared import Shared
from .slots import Slots

__all__ = ("Owner", "Stand")

_CONFIRM_EVENTS = 64
"""So many fed events are confirmed at once: the replica sends at most 200 that are not, and must not run dry."""


class Stand(Enum):
    """Where a run stands: it has something to say, rests, or waits for an answer or a local step."""

    READY = 1
    IDLE = 2
    BUSY = 3


class Owner:
    """The owner of a run, under one token.

    Attributes:
        feed: The coroutine; None when it was refused or dropped, and only the release is left.
        outgoing: What its code says, until it is sealed; None: nothing is.
        flying: The unanswered request.
        foretold: A result in it that the code may be fed ahead of its event.
        word: Its last word: "", "park", "outcome", "diverged" or "release".
        park: It is to be parked if it still rests.
        empty: A request is wanted even if there is nothing to say: to confirm, to ask, to renew the right.
        release: Why it is to be given back unfinished; "" if it is not.
        slots: Of whose slots it holds one; None: it holds none.
        idle_since: Since when it rests.
        scheduled_ms: When `due` is looked at next.
    """

    __slots__ = (
        "_answered",
        "_asked",
        "_checkpoints",
        "_commands",
        "_confirmed",
        "_gap_since",
        "_incarnation",
        "_known_at_send",
        "_remembered",
        "_run_id",
        "_sent_commands",
        "_sent_something",
        "_seq",
        "_shared",
        "_unconfirmed_since",
        "_untaken",
        "alone",
        "empty",
        "feed",
        "flying",
        "foretold",
        "idle_since",
        "job",
        "locals",
        "outgoing",
        "park",
        "release",
        "right",
        "scheduled_ms",
        "slots",
        "token",
        "word",
    )

    def __init__(self, shared: Shared, token: bytes, job: Job, right: Right, *, alone: bool) -> None:
        self._shared = shared
        self.token = token
        self.job = job
        self._run_id = job.run_id
        self._incarnation = job.incarnation
        self.right = right
        self.alone = alone
        self.feed: Feed | None = None
        self.outgoing: Outgoing | None = None
        self.locals = LocalSteps(shared, token)
        self.flying: OwnerRequest | None = None
        self.foretold: StepCompleted | None = None
        self.word = ""
        self.park = False
        self.empty = False
        self.release = ""
        self.idle_since = 0
        self.scheduled_ms: int | None = None
        self.slots: Slots | None = None
        self._seq = 0
        self._commands: list[Command] = []
        self._checkpoints: list[Checkpoint] = []
        self._asked = 0  # commands so far; a local step waits until as many were answered
        self._answered = 0
        self._known_at_send = 0
        self._sent_commands = 0  # in the flying request
        self._sent_something = False  # commands or checkpoints in the flying request
        self._unconfirmed_since: int | None = None
        self._confirmed = 0
        self._gap_since: int | None = None
        self._untaken = True
        self._remembered: set[tuple[str, str | None]] = set()  # with always_replay: commands that were asked for

    def execute(self, feed: Feed) -> None:
        """This is the coroutine."""
        self.feed = feed
        if feed.seals is not None:
            self.outgoing = Outgoing(self._shared, self.token, feed.seals, self._commands)

    # --- feeding ---------------------------------------------------------------------------------------------------
    def advance(self, now_ms: int) -> None:
        """Feed what is next, take what the code asks for, offer local steps that may start."""
        feed = self.feed
        if feed is None or self.word:
            return
        fed = False
        if feed.waits_to_be_fed:
            for event in feed.run(now_ms):
                self.locals.saw(event)
                fed = self._untaken = True
        if fed and self._unconfirmed_since is None:
            self._unconfirmed_since = now_ms
        if feed.fed - self._confirmed >= _CONFIRM_EVENTS:
            self.empty = True
        execution = feed.execution
        if feed.divergence is not None:
            self.locals.cancel_all("diverged")
            return
        if feed.opening is not None and feed.seals is not None:
            self._shared.actions.append(OpenEvent(self.token, feed.seals, feed.opening))
            feed.opening = None
        if feed.caught_up:
            self._gap_since = None if feed.ahead is None else self._gap_since or now_ms  # that event is missing
            if self._untaken:
                self._untaken = False
                self._take(feed, execution.take())
            if execution.outcome is not None:
                self.locals.cancel_all("run ended")
            elif self.locals.waiting and not self.release and feed.ahead is None:
                self._offer_locals(feed, now_ms)
        elif fed or self._gap_since is None:
            self._gap_since = now_ms

    def _take(self, feed: Feed, turn: Turn) -> None:
        commands = turn.commands
        if feed.replays:
            commands = [c for c in commands if (c.command_id, c.WhichOneof("kind")) not in self._remembered]
            self._remembered.update((c.command_id, c.WhichOneof("kind")) for c in commands)
        if commands:
            self._ask(commands)
        if turn.local_calls and feed.execution.outcome is None:
            for call in turn.local_calls:
                if not self.locals.known(call):
                    self._ask_local(call)
        for command_id in turn.local_cancels:
            self.locals.unwanted(command_id)
        for call in turn.local_ends:
            ended = self.locals.end(call)
            if ended is not None:
                self._checkpoints.append(ended)

    def _ask(self, commands: list[Command]) -> None:
        if self.outgoing is None:
            self._commands.extend(commands)
        else:
            self.outgoing.ask(commands)
        self._asked += len(commands)

    def _ask_local(self, call: LocalCall) -> None:
        """A step that may start at most once, or whose run executes alone, first commits its start (A8, A9)."""
        announced = self.alone or call.at_most_once
        if announced:
            self._ask([announcement(call)])
        self.locals.ask(call, self._asked, announced)

    # --- local steps -----------------------------------------------------------------------------------------------
    def _offer_locals(self, feed: Feed, now_ms: int) -> None:
        startable = self.locals.startable(self._answered)
        if not startable:
            return
        if not self.right.valid(self._shared.session, now_ms):
            self.empty = self.empty or self.flying is None  # the next OK renews it
            return
        for local in startable:
            deadline_ms = local.call.deadline_ms
            left_ms = deadline_ms - feed.about(now_ms) if deadline_ms else 0
            if deadline_ms and left_ms <= 0:
                self._checkpoints.append(self.locals.out_of_time(local))
                continue
            attempt = self.locals.offered(local)
            self._shared.actions.append(
                StartLocal(
                    owner_token=self.token,
                    run_id=self._run_id,
                    incarnation=self._incarnation,
                    call=local.call,
                    attempt=attempt,
                    alone=self.alone,
                    left_ms=left_ms,
                )
            )

    def may_start_local(self, command_id: str, now_ms: int) -> bool:
        """The last check before user code (A4, R2)."""
        return self.right.valid(self._shared.session, now_ms) and self.locals.start(command_id)

    def local_ended(self, command_id: str, report: Report) -> bool:
        """Returns whether there is something to be said of it."""
        checkpoint = self.locals.ended(command_id, report)
        if checkpoint is None:
            return False
        self._checkpoints.append(checkpoint)
        return True

    # --- requests --------------------------------------------------------------------------------------------------
    @property
    def rests(self) -> bool:
        """Everything known was fed and said, and nothing of it runs here: it may be parked."""
        return (
            self.feed is not None
            and self.feed.caught_up
            and self.feed.ahead is None
            and not self._untaken
            and not self._commands
            and not self._checkpoints
            and not self.locals
            and not (self.outgoing is not None and self.outgoing.waiting)
            and self.feed.execution.outcome is None
            and self.feed.divergence is None
        )

    def stands(self) -> Stand:
        """Whether a request is to be sent; else, whether it rests and nothing is on its way."""
        if self.flying is not None:
            return Stand.BUSY
        if self._commands or self._checkpoints or self.empty or self._last_word():
            return Stand.READY
        return Stand.IDLE if not self.release and self.rests else Stand.BUSY

    def _last_word(self) -> str:
        feed = self.feed
        if feed is None:
            return "release"
        if feed.ahead is not None:
            execution = feed.execution
            ends = execution.outcome is not None and feed.divergence is None and not execution.untold
            said = self._checkpoints or foretold_of(feed) is not None
            return "outcome" if ends and said and sayable(feed, self.outgoing) is not None else ""
        if feed.divergence is not None:
            return "diverged"
        if feed.execution.outcome is not None and feed.caught_up:
            return "outcome" if sayable(feed, self.outgoing) is not None else "release" if self.release else ""
        if self.locals.active:
            return ""
        if self.release:
            return "release"
        if self._shared.draining:
            if any(local.announced for local in self.locals.waiting.values()):
                return ""  # its start has left a trace, so it is still done
            return "park" if self.rests else "release"
        return "park" if self.park and self.rests else ""

    def build(self, now_ms: int) -> OwnerRequest:
        """Make the request to send now."""
        self._seq += 1
        feed = self.feed
        if feed is not None and self._may_go_ahead(feed):
            checkpoint = self._checkpoints[0]
            result = self.locals.result(checkpoint.command_id)
            self.foretold = of_checkpoint(checkpoint, result, feed, now_ms)
            if self._shared.ends.get(self.job.name) == feed.fed + 1:
                self.go_ahead()  # runs of the workflow end here: the end can go along
        word = self._last_word()
        fed, told, told_revision = (0, 0, 0) if feed is None else (feed.fed, *feed.told)
        request = OwnerRequest(
            run_id=self._run_id,
            incarnation=self._incarnation,
            token=self.token,
            seq=self._seq,
            seen=fed,
            told=told,
            told_revision=told_revision,
            sent_ms=now_ms,
        )
        if self._seq == 1:
            request.run_timeout_ms = self._shared.settings.run_timeouts.get(self.job.name, 0)
        if feed is not None:
            request.undoing = feed.execution.undoing
            self._confirmed = fed
            self._known_at_send = feed.length
            self._load(request)
            if self._commands or self._checkpoints:
                word = ""  # there was no room for all: the last word comes after it
            if (foretold := foretold_of(feed)) is not None:  # whatever goes up by now may follow from it
                request.foretold.CopyFrom(foretold)
            if self._gap_since is not None:
                self._gap_since = now_ms
        if word:
            self._say(request, word)
        else:
            self.word = ""
        self._unconfirmed_since = None
        self.empty = False
        self.flying = request
        return request

    def _may_go_ahead(self, feed: Feed) -> bool:
        """Whether the code waits for nothing but the one result that is to be said now, and all else was fed and said."""
        if len(self._checkpoints) != 1 or self._checkpoints[0].kind != REPORT_KIND_COMPLETED:
            return False
        if not self._all_said(feed):
            return False
        waits = feed.execution.waits()
        return (waits.pool_steps, waits.local_steps, waits.timers, waits.signals) == (0, 1, 0, 0)

    def _all_said(self, feed: Feed) -> bool:
        """Whether the code was fed all that is known, and what it asked for was said; checkpoints apart."""
        if self._commands or self.locals or self.release or self._shared.draining or self._untaken:
            return False
        if feed.replays or feed.beside or feed.waits_to_be_fed:
            return False
        return feed.caught_up and feed.divergence is None

    def foresee(self, result: Result, now_ms: int) -> bool:
        """Let the code run on by the result of a pool step that is about to be reported from here.

        False: it waits for something else, too, or not all else was fed and said.
        """
        feed, told = self.feed, result.report
        if feed is None or told.incarnation != self._incarnation or not self._all_said(feed) or self._checkpoints:
            return False
        if self.flying is not None or self.outgoing is not None or self.word or self.park or feed.ahead is not None:
            return False
        if not feed.execution.awaits_only(told.command_id):
            return False
        feed.go_ahead(of_report(result, feed, now_ms))
        self._untaken = True
        return True

    def go_ahead(self) -> None:
        """Let the code run on by a result whose event is not here yet, unless it has come meanwhile, or anything else."""
        foretold, self.foretold = self.foretold, None
        feed = self.feed
        if foretold is None or feed is None or feed.waits_to_be_fed or not feed.caught_up or feed.beside:
            return
        feed.go_ahead(foretold)

    def _load(self, request: OwnerRequest) -> None:
        """Move commands and checkpoints into the request, in order, as far as there is room."""
        room = Room()
        self._sent_commands = count = room.fit(self._commands)
        request.commands.extend(self._commands[:count])
        del self._commands[:count]
        self._sent_something = count > 0
        if self._checkpoints and not self._commands:
            count = room.fit(self._checkpoints)
            request.checkpoints.extend(self._checkpoints[:count])
            del self._checkpoints[:count]
            self._sent_something = True

    def _say(self, request: OwnerRequest, word: str) -> None:
        self.word = word
        if word == "release":
            request.release.reason = self.release or "drain"
        elif word == "park":
            settings = self._shared.settings
            cached = settings.cache_runs > 0 and not settings.always_replay
            request.park.cached = cached and not self.alone and not self._shared.draining
        elif word == "diverged":
            say_divergence(request, self.feed)
        elif word == "outcome" and not self._say_outcome(request):
            self.drop_code("codec failed", "codec failed")
            self._say(request, "release")

    def _say_outcome(self, request: OwnerRequest) -> bool:
        assert self.feed is not None
        outcome = sayable(self.feed, self.outgoing)
        assert outcome is not None
        if not say_outcome(request, self.feed, outcome):
            return False
        request.ahead = self.feed.ahead is not None and foretold_of(self.feed) is None
        self._shared.ends[self.job.name] = self.feed.fed + (self.feed.ahead is not None)
        return True

    # --- answers ---------------------------------------------------------------------------------------------------
    def accepted(self, answer: OwnerAnswer) -> None:
        """OK or NEWS: a commit under the token, so the right is renewed. What the request brought is recorded."""
        request, feed = self._landed(), self.feed
        self._shared.renew(self.right, request.sent_ms)
        self._answered += self._sent_commands
        if feed is None:
            return
        feed.answered(answer.position, answer.revision)
        self._learn(feed, answer)
        if feed.ahead is not None and feed.caught_up:
            feed.beside = True  # its event is not to come: the code was told what is not so
        if self._sent_something or request.seen != feed.fed:
            return
        if not answer.events and not feed.caught_up and self._known_at_send == feed.length:
            feed.ends_here()

    def has_news(self, answer: OwnerAnswer) -> None:
        """NEWS: only the last word was not taken (R5). What was returned stays returned, and is said again later (R8)."""
        request = self.flying
        self.word = ""
        self.park = False
        self.accepted(answer)
        if request is not None and self.feed is not None and request.seen == self.feed.fed and self.feed.caught_up:
            self.feed.learn((), self.feed.fed + 1)  # there is one more, and it is not here: ask
            self.empty = True

    def refused(self) -> bool:
        """REWIND: nothing of the request was applied, its number is free again. False: it was a release."""
        self._landed()
        self._seq -= 1
        return self.word != "release"

    def _landed(self) -> OwnerRequest:
        request = self.flying
        assert request is not None
        self.flying = self.foretold = None
        return request

    def _learn(self, feed: Feed, answer: OwnerAnswer) -> None:
        """Events of an answer; results that the request itself brought are put back before they are fed."""
        events: list[HistoryEvent] = list(answer.events)
        omitted = list(answer.result_omitted)
        if omitted:
            fed = feed.fed
            for index, event in enumerate(events):
                if event.position > fed and event.step_completed.command_id in omitted:
                    if self.locals.put_back(event) or feed.put_back(event):
                        continue
                    self._shared.note("error", "result_omitted_unknown", run=self.job.run_id)
                    self.empty = True  # asked for anew, it comes with its result
                    del events[index:]
                    break
        feed.learn(events)

    def drop_code(self, reason: str, release: str) -> None:
        """Close the coroutine; what is left is to give the run back, if `release` says why."""
        self.locals.cancel_all(reason)
        if self.feed is not None:
            self.feed.execution.close()
            self.feed = self.outgoing = None
        self._commands.clear()
        self._checkpoints.clear()
        self.release = release
        self.word = ""

    # --- time ------------------------------------------------------------------------------------------------------
    def due_ms(self) -> int | None:
        """When it must say something though it has nothing to say."""
        if self.flying is not None or self.empty or self.feed is None:
            return None
        settings = self._shared.settings
        due: int | None = None
        if self._unconfirmed_since is not None:
            due = self._unconfirmed_since + settings.confirm_ms
        if self._gap_since is not None:
            gap = self._gap_since + settings.gap_ms
            due = gap if due is None else min(due, gap)
        return due

    def wake(self, now_ms: int) -> None:
        due = self.due_ms()
        if due is not None and due <= now_ms:
            self.empty = True
