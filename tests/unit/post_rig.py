"""A bench for records and letters: many runs and records in one in-memory store, and the post between them, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from tests.unit.plain_env import plain_env

from treadle.controlplane.events.known_keys import KnownKeys
from treadle.controlplane.machine import Decision, Env, Request, Settings, children, decide
from treadle.controlplane.machine.decide import want
from treadle.controlplane.machine.event_requests import AcceptEvent
from treadle.controlplane.machine.requests import FireTimer, Reply
from treadle.controlplane.store.memory import MemoryStore
from treadle.controlplane.store.port import Outcome, Timer, Want
from treadle.protocol.ids import RECORD_MARK, SHARDS, RunKey
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.state_pb2 import RUN_STATE_CLOSED, Letter, OutboxEntry, RunHead, StartByEvent

__all__ = ("Post",)


class Post:
    """See the module.

    Attributes:
        now: The clock of the store (ms).
        starts: What events start, when a run sends them.
        commits: How many commits there were.
        lives: Of the store.
        most_letters: The largest number of letters of one commit.
    """

    def __init__(self) -> None:
        self.now = 1_000_000_000
        self.store = MemoryStore(lambda: self.now)
        self.rng = Random(7)
        self.lives = 1
        self.known = KnownKeys(lambda: self.lives)
        self.settings = Settings()
        self.starts: Sequence[StartByEvent] = ()
        self.commits = 0
        self.most_letters = 0

    def env(self) -> Env:
        return plain_env(
            self.now,
            self.rng,
            settings=self.settings,
            keys_known=lambda namespace, name, keys: self.known.known(namespace, name, keys, self.now),
        )

    def batch(self, run: RunKey, *requests: Request) -> list[Reply]:
        """Decide requests to one run or record, and commit."""
        loaded = self.store.load_now([want(run, requests)])[0]
        decision: Decision = decide(run, loaded, requests, self.env())
        if decision.change is not None:
            assert self.store.commit_now([decision.change])[0].outcome is Outcome.OK
            self.commits += 1
            self.most_letters = max(self.most_letters, len(decision.letters))
        return decision.replies

    def ask(self, run: RunKey, request: Request) -> Reply:
        return self.batch(run, request)[0]

    def head(self, run: RunKey) -> RunHead | None:
        data = self.store.load_now([Want(run)])[0].head
        return RunHead.FromString(data) if data else None

    def history(self, run: RunKey) -> list[HistoryEvent]:
        return [HistoryEvent.FromString(data) for data in self.store.load_now([Want(run, events_after=0)])[0].events]

    # --- letters -----------------------------------------------------------------------------------------------------
    def letters(self) -> list[Letter]:
        """What lies in the outbox of all shards, jobs apart."""
        found = self.store.stale_outbox_now(range(SHARDS), 2**62, 10**6)
        entries = [OutboxEntry.FromString(one.entry) for one in found]
        return [entry.letter for entry in entries if entry.HasField("letter")]

    def deliver(self, letter: Letter, *, lost: bool = False) -> bool:
        """Bring a letter; `lost`: that it was applied is forgotten, so that it comes again. Returns whether it was."""
        run, request = children.request_of(letter)
        if isinstance(request, AcceptEvent):
            request = AcceptEvent(request.event, self.starts)
        reply = self.ask(run, request)
        if not children.applied(reply):
            return False
        if letter.HasField("use_keys"):
            self.known.note(letter, reply, self.now)
        if not lost:
            self.store.confirmed_now([(RunKey(letter.namespace, letter.from_run_id).shard, letter.letter_id)])
        return True

    def settle(self, *, timers: bool = True, twice: bool = False) -> None:
        """Deliver until nothing lies there, and fire what is due at once; `twice`: each letter comes two times."""
        for _ in range(100_000):
            letters = self.letters()
            self.rng.shuffle(letters)
            for letter in letters:
                if twice:
                    self.deliver(letter, lost=True)
                self.deliver(letter)
            fired = self.fire() if timers else 0
            if not letters and not fired:
                return
        raise AssertionError("the post never rests")

    def fire(self) -> int:
        """Fire the timers of records and commands that are due; returns how many."""
        due = [timer for timer in self._timers() if timer.due_ms <= self.now]
        for timer in due:
            self.ask(timer.run, FireTimer(timer.command_id))
        return len(due)

    def _timers(self) -> list[Timer]:
        """Those of records, commands and closed runs: owners are taken to live for ever."""
        found = self.store.due_now(range(SHARDS), 10**6, 2**52).due
        return [timer for timer in found if timer.command_id or self._rests(timer.run)]

    def _rests(self, run: RunKey) -> bool:
        if run.run_id.startswith(RECORD_MARK):
            return True
        head = self.head(run)
        return head is not None and head.state == RUN_STATE_CLOSED

    def pass_time(self, ms: int) -> None:
        """Let time go by, with all that comes up on the way."""
        until = self.now + ms
        self.settle()
        while True:
            times = [timer.due_ms for timer in self._timers()]
            if not times or min(times) > until:
                break
            self.now = max(self.now, times[0])
            self.settle()
        self.now = until
