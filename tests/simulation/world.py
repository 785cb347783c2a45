"""One simulated deployment: two replicas, workers, a broker and a store; faults come at random, and end.

`simulate(seed)` draws everything from the seed, lets faults happen for a while, heals, and demands that every run closes
with the right result and that the four properties held at every commit and every start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import chain, pairwise
from random import Random
from typing import Any

from treadle.controlplane.machine import Decision, Request
from treadle.controlplane.machine.requests import (
    CancelRun,
    Claimed,
    Reply,
    RetryRun,
    RunReply,
    SignalRun,
    StartRun,
    TerminateRun,
)
from treadle.controlplane.replica import Session
from treadle.controlplane.store.memory import MemoryStore
from treadle.controlplane.store.port import Beat, Hint
from treadle.protocol.errors import RunClosed
from treadle.protocol.ids import RECORD_MARK, RunKey, worker_shard
from treadle.protocol.payloads import decode
from treadle.v1.common_pb2 import Payload, TraceContext
from treadle.v1.history_pb2 import HistoryEvent
from treadle.v1.job_pb2 import Job
from treadle.v1.run_service_pb2 import CONFLICT_POLICY_UNSPECIFIED
from treadle.v1.worker_service_pb2 import ClaimVerdict
from treadle.worker.app import collect
from treadle.worker.loop.execution import execution_factory
from treadle.worker.loop.port import RunContext

from .broker import Connection, SimBroker
from .clock import Schedule
from .ledger import Broken, Ledger
from .replica import SimReplica
from .worker import Link, SimWorker
from .workflows import DEAF, EVERYTHING, LETTERS, MENDED, REDRIVEN, WORKFLOWS

__all__ = ("FAULTS", "World", "simulate")

_FAULTS_UNTIL_MS = 8_000
_LIMIT_MS = 600_000


class World:
    """See the module.

    Attributes:
        ways: Starts of pool steps by the way on which the job came: "pushed" to a credit, or "claimed" as a delivery; and
            how many pushes were released because they found "no slot".
    """

    def __init__(self, seed: int, *, trace: bool = False, faults: bool = True, always_replay: bool = False) -> None:
        self.seed = seed
        self.schedule = Schedule(seed)
        if trace:
            self.schedule.trace = []
        rng = self.schedule.rng
        self.store = MemoryStore(lambda: self.schedule.now)
        self.ledger = Ledger(self.store)
        self.broker = SimBroker(self.schedule)
        self.shards: list[int] = []
        self.links: dict[str, Link] = {}
        self.faults = faults
        self.always_replay = always_replay
        self.step_slots = rng.choice((1, 2, 4))
        self.run_slots = rng.choice((1, 2, 8))
        self.wake_slots = {1: 4, 2: 0, 8: 1}[self.run_slots]
        self.failures_left = rng.randint(0, 4)
        self.slow_commits = self.late_beats = self.slow_starts = self.lost_answers = 0.0
        self.lost_hints = 0.2
        self.crash_after_commit = 0.0
        self.ambushes = 0.0
        self.ambush_with: Callable[[World, SimWorker, Random], None] = _freeze
        self.verdicts: set[tuple[str, str]] = set()
        self.ways: Counter[str] = Counter()
        self.replicas = [SimReplica(self, "R"), SimReplica(self, "S")]
        self.workers = [SimWorker(self, name) for name in ("A", "B")[: rng.choice((1, 2, 2))]]
        self.expected: dict[RunKey, Any] = {}
        self.interrupted: set[RunKey] = set()
        self.started: set[RunKey] = set()
        self.to_redrive: set[tuple[RunKey, int]] = set()
        MENDED.clear()
        self.on_commit: Callable[[RunKey, Decision], None] = lambda run, decision: None

    # --- what the parts ask of it ------------------------------------------------------------------------------------
    def add_shard(self, worker_id: str) -> None:
        self.shards = sorted({*self.shards, worker_shard(worker_id)})

    def known(self, run: RunKey) -> None:
        """A run that others start."""
        self.shards = sorted({*self.shards, run.shard})
        if not run.run_id.startswith(RECORD_MARK):
            self.ledger.record(run)

    def observed(self, run: RunKey, decision: Decision) -> None:
        self.on_commit(run, decision)
        for event in decision.events:
            if event.run_failed.hook_run_id:  # its letter may still be on its way
                self.known(RunKey(run.namespace, event.run_failed.hook_run_id))
        failed = any(event.HasField("run_failed") for event in decision.events)
        if failed and decision.head is not None and run in self.expected and decision.head.workflow in REDRIVEN:
            self.to_redrive.add((run, decision.head.length))
            MENDED.add(int(run.run_id.rpartition("-")[2]))
            self.schedule.later(self.schedule.rng.randint(0, 3000), partial(self.redrive, run, decision.head.length))
        if self.schedule.trace is not None:
            kinds = ", ".join(f"#{e.position} {e.WhichOneof('kind')}" for e in decision.events)
            if kinds:
                self.schedule.note(f"{run.run_id}: {kinds}")

    def ambush(self, worker: SimWorker) -> bool:
        """A fault that waits for the worst moment: just before or after user code starts, or ends."""
        if not self.ambushes or self.schedule.rng.random() >= self.ambushes:
            return False
        self.schedule.note(f"AMBUSH {worker.worker_id}: {self.ambush_with.__name__}")
        self.schedule.later(0, lambda: self.ambush_with(self, worker, self.schedule.rng))
        return True

    def may_fail(self) -> bool:
        if self.failures_left and self.schedule.rng.random() < 0.2:
            self.failures_left -= 1
            return True
        return False

    def beat(self, beat: Beat) -> None:
        self.store.beat_now([beat])

    def hint(self, by: SimReplica, hint: Hint) -> None:
        """Pub/sub: late, out of order, or never."""
        for replica in self.replicas:
            if replica is not by and self.schedule.rng.random() >= self.lost_hints:
                self.schedule.later(self.schedule.network_ms(), partial(replica.hinted, hint))

    def answered(self, session: Session, request: Request, reply: Reply) -> None:
        if isinstance(request, Claimed) and isinstance(reply, ClaimVerdict):
            self.verdicts.add((session.worker_id, request.item.job.dispatch_id))

    def acked(self, worker: SimWorker, tag: int, connection: Connection) -> None:
        """S3: no ack before a verdict."""
        held = connection.unacked.get(tag)
        if held is None:
            return
        job = Job.FromString(held[1])
        if (worker.worker_id, job.dispatch_id) not in self.verdicts:
            raise Broken(f"S3: {worker.worker_id} acks {job.dispatch_id} before a verdict")

    def server_sees_end(self, link: Link) -> None:
        if not link.server_sees:
            return
        link.server_sees = False
        replica = link.replica
        if link.session is not None and replica.up and replica.epoch == link.epoch:
            replica.session_ended(link.session, drained=False)

    def goodbye(self, link: Link) -> None:
        link.server_sees = False
        replica = link.replica
        if link.session is not None and replica.up and replica.epoch == link.epoch:
            replica.session_ended(link.session, drained=True)

    def replica_lost(self, session: Session) -> None:
        link = self.links.get(session.session_id)
        if link is not None:
            link.server_sees = False
            link.worker.later(self.schedule.network_ms(), lambda: link.worker.ends(link))

    def crash_replica(self, replica: SimReplica) -> None:
        if not replica.up:
            return
        replica.crash()
        self.schedule.later(self.schedule.rng.randint(100, 3000), lambda: None if replica.up else replica.start())

    def restarter(self, worker: SimWorker) -> Callable[[], None]:
        def restart() -> None:
            if not worker.alive:
                worker.start()

        return restart

    # --- the schedule ------------------------------------------------------------------------------------------------
    def start_run(self, name: str, argument: int) -> None:
        workflow, result = (WORKFLOWS | DEAF)[name]
        run = RunKey("sim", f"{name}-{argument}")
        self.shards = sorted({*self.shards, run.shard})
        self.expected[run] = result(argument)
        self.ledger.record(run)
        start = StartRun(
            workflow=name,
            pool="default",
            input=workflow.signature.encode_call((argument,), {}),
            request_id=f"start-{run.run_id}",
            policy=CONFLICT_POLICY_UNSPECIFIED,
            caller=TraceContext(),
        )

        def settle(reply: Reply | Exception) -> None:
            self.started.add(run)

        def ask() -> None:
            """A client that gets no answer asks again, with the same request id."""
            if run in self.started:
                return
            up = [replica for replica in self.replicas if replica.up]
            if up:
                self.schedule.rng.choice(up).ask(run, start, settle)
            self.schedule.later(3000, ask)

        ask()
        letters = LETTERS.get(name)
        if letters:
            self.schedule.later(self.schedule.rng.randint(0, 4000), partial(self.send, run, list(letters)))

    def send(self, run: RunKey, letters: list[tuple[str, int, bool]]) -> None:
        """A sender that sends the next only once the one before was taken, and each again until it was."""
        if not letters:
            return
        name, number, asks = letters[0]
        request = SignalRun(f"{name}-{number}", name, Payload(data=b"%d" % number), asks)
        taken = False

        def settle(reply: Reply | Exception) -> None:
            nonlocal taken
            closed = isinstance(reply, RunClosed) and run in self.interrupted
            if not taken and (isinstance(reply, RunReply) or closed):
                taken = True
                self.schedule.later(self.schedule.rng.randint(0, 1500), partial(self.send, run, letters[1:]))

        def ask() -> None:
            if taken or not self.expected:
                return
            up = [replica for replica in self.replicas if replica.up]
            if up:
                self.schedule.rng.choice(up).ask(run, request, settle)
            self.schedule.later(2000, ask)

        ask()

    def redrive(self, run: RunKey, length: int) -> None:
        """A person lets a run go on, and asks until that is taken."""
        request = RetryRun(f"retry-{length}", "mended")

        def settle(reply: Reply | Exception) -> None:
            if isinstance(reply, RunReply):
                self.to_redrive.discard((run, length))

        def ask() -> None:
            if (run, length) not in self.to_redrive:
                return
            up = [replica for replica in self.replicas if replica.up]
            if up:
                self.schedule.rng.choice(up).ask(run, request, settle)
            self.schedule.later(1500, ask)

        ask()

    def interrupt(self, run: RunKey) -> None:
        request: Request = CancelRun("c1", "test")
        if self.schedule.rng.random() < 0.3:
            request = TerminateRun("t1", "test")
        up = [replica for replica in self.replicas if replica.up]
        if up:

            def settle(reply: Reply | Exception) -> None:
                if isinstance(reply, RunReply):
                    self.interrupted.add(run)

            self.interrupted.add(run)
            self.schedule.note(f"{type(request).__name__} {run.run_id}")
            self.schedule.rng.choice(up).ask(run, request, settle)

    def fault(self) -> None:
        name = self.schedule.rng.choice(list(FAULTS))
        self.schedule.note(f"FAULT {name}")
        FAULTS[name](self, self.schedule.rng)

    def heal(self) -> None:
        """No further fault: what is dead starts again, what was slow is not any more."""
        self.schedule.note("healed")
        self.slow_commits = self.late_beats = self.slow_starts = self.lost_answers = 0.0
        self.crash_after_commit = self.ambushes = 0.0
        for worker in self.workers:
            self.restarter(worker)()
        for replica in self.replicas:
            if not replica.up:
                replica.start()

    def run(self) -> None:
        rng = self.schedule.rng
        for i in range(rng.choice((1, 1, 2, 2, 3, 4))):
            name = rng.choice(list(WORKFLOWS))
            self.schedule.later(rng.randint(0, 6000), partial(self.start_run, name, i))
        if self.faults:
            for _ in range(rng.choice((0, 1, 2, 3, 4, 6, 10))):
                self.schedule.later(rng.randint(0, _FAULTS_UNTIL_MS), self.fault)
            if rng.random() < 0.25:
                self.schedule.later(rng.randint(1, 9000), lambda: self._interrupt_any())
        self.schedule.later(_FAULTS_UNTIL_MS + 6000, self.heal)
        self.finish(at_least_ms=6500)

    def finish(self, at_least_ms: int = 0) -> None:
        """Go on until every run is closed, and check how."""
        began = self.schedule.began
        done = self.schedule.run(
            lambda: self.schedule.now - began > at_least_ms and bool(self.expected) and self._over(), _LIMIT_MS
        )
        if not done:
            heads = {str(run): str(head.state) for run, head in self.ledger.heads().items()}
            raise Broken(f"L: not closed after {_LIMIT_MS / 1000:.0f} s: {heads}")
        self._check_results()

    def _interrupt_any(self) -> None:
        if self.expected:
            self.interrupt(self.schedule.rng.choice(sorted(self.expected)))

    def _over(self) -> bool:
        return self.ledger.closed == len(self.ledger.runs) and not self.to_redrive

    def _check_results(self) -> None:
        for run, expected in self.expected.items():
            record = self.ledger.record(run)
            if run in self.interrupted and record.outcome != "run_completed":
                continue
            if record.outcome != "run_completed":
                raise Broken(f"{run} ended as {record.outcome}: {record.events[-1]}")
            result = decode(record.events[-1].run_completed.result, Any, what="result")
            if result != expected:
                raise Broken(f"{run} returned {result!r}, expected {expected!r}")
            self._check_replay(run)
            self._check_letters(run)
        self._check_hooks()

    def _check_hooks(self) -> None:
        """Each failure was handled, by one run that returned."""
        for run, record in list(self.ledger.runs.items()):
            for event in record.events:
                if event.run_failed.hook_run_id:
                    hook = self.ledger.runs.get(RunKey(run.namespace, event.run_failed.hook_run_id))
                    if hook is None or hook.outcome != "run_completed":
                        raise Broken(f"{run} failed at {event.position}, and its hook is {hook and hook.outcome}")

    def _check_letters(self, run: RunKey) -> None:
        """What was acknowledged stands once in the history, in order, and each question has one answer."""
        record = self.ledger.record(run)
        events = list(
            chain(*(part[_carried(before, part) :] for before, part in pairwise([[], *record.before, record.events])))
        )
        got = [event.signal_received for event in events if event.HasField("signal_received")]
        sent = [f"{name}-{number}" for name, number, _ in LETTERS.get(record.events[0].run_started.workflow, [])]
        if [letter.signal_id for letter in got] != sent[: len(got)]:
            raise Broken(f"{run}: signals stand as {[letter.signal_id for letter in got]}, sent were {sent}")
        answered = [event.signal_answered.signal_id for event in events if event.HasField("signal_answered")]
        if len(set(answered)) != len(answered):
            raise Broken(f"{run}: answers stand twice: {answered}")

    def _check_replay(self, run: RunKey) -> None:
        """S4, once more: a fresh coroutine that is fed the history asks for what is there, and ends the same way."""
        record = self.ledger.record(run)
        workflow = record.events[0].run_started.workflow
        retried = max((event.position for event in record.events if event.HasField("run_retried")), default=0)
        marks = [event.change_marked.name for event in record.events if event.HasField("change_marked")]
        if len(set(marks)) != len(marks):
            raise Broken(f"{run}: changes are marked twice: {marks}")
        context = RunContext(
            namespace="sim",
            run_id=run.run_id,
            incarnation=self._incarnation(run),
            workflow=workflow,
            passed_until=len(record.events),
            marks=frozenset(marks),
            retried_at=retried,
        )
        execution = _FACTORY(context)
        for event in record.events[:-1]:
            execution.feed(event)
            if execution.divergence is not None:
                raise Broken(f"S4: replay of {run} diverges at {event.position}: {execution.divergence}")
        outcome = execution.outcome
        if outcome is None or outcome.result != record.events[-1].run_completed.result:
            raise Broken(f"S4: replay of {run} ends as {outcome}")
        execution.close()

    def _incarnation(self, run: RunKey) -> int:
        return self.ledger.heads()[run].incarnation


def _carried(before: list[HistoryEvent], part: list[HistoryEvent]) -> int:
    """How many events the next part begins with that are no news: its start, a cancel, and what was taken along."""
    return before[-1].run_continued.carried + 1 + part[1].HasField("cancel_requested") if before else 0


_FACTORY = execution_factory(collect(EVERYTHING))


def _kill(world: World, worker: SimWorker, rng: Random) -> None:
    if worker.alive:
        worker.kill()
        world.schedule.later(rng.randint(100, 8000), world.restarter(worker))


def _freeze(world: World, worker: SimWorker, rng: Random) -> None:
    if worker.alive:
        worker.freeze(rng.choice((300, 1500, 2500, 3500, 4500, 6500, 12000)))


def _cut_session(world: World, worker: SimWorker, rng: Random) -> None:
    """Seen by both ends, or by one of them at first."""
    link = worker.link
    if link is None or not worker.alive:
        return
    late = rng.randint(1000, 9000)
    who = rng.choice(("both", "worker", "server"))
    world.schedule.later(late if who == "worker" else 0, lambda: world.server_sees_end(link))
    worker.later(late if who == "server" else 0, lambda: worker.ends(link))


def _cut_broker(world: World, worker: SimWorker, rng: Random) -> None:
    if worker.alive:
        worker.broker_cut()


def _drain(world: World, worker: SimWorker, rng: Random) -> None:
    if worker.alive and not worker.draining:
        worker.drain()


_ON_WORKERS = (_kill, _freeze, _cut_session, _cut_broker, _drain)


def _to_one(fault: Callable[[World, SimWorker, Random], None]) -> Callable[[World, Random], None]:
    return lambda world, rng: fault(world, rng.choice(world.workers), rng)


def _ambushes(world: World, rng: Random) -> None:
    world.ambush_with = rng.choice(_ON_WORKERS)
    world.ambushes = rng.choice((0.1, 0.3, 0.6))
    world.schedule.later(rng.randint(500, 5000), lambda: setattr(world, "ambushes", 0.0))


def _crash_replica(world: World, rng: Random) -> None:
    world.crash_replica(rng.choice(world.replicas))


def _crash_mid_commit(world: World, rng: Random) -> None:
    world.crash_after_commit = 0.1
    world.schedule.later(2000, lambda: setattr(world, "crash_after_commit", 0.0))


def _period(attribute: str, value: float) -> Callable[[World, Random], None]:
    def fault(world: World, rng: Random) -> None:
        setattr(world, attribute, value)
        world.schedule.later(rng.randint(1000, 6000), lambda: setattr(world, attribute, 0.0))

    return fault


def _lose_message(world: World, rng: Random) -> None:
    world.broker.lose_one()


FAULTS: dict[str, Callable[[World, Random], None]] = {
    "worker killed": _to_one(_kill),
    "worker frozen": _to_one(_freeze),
    "session cut": _to_one(_cut_session),
    "broker connection cut": _to_one(_cut_broker),
    "replica killed": _crash_replica,
    "replica killed between commit and answer": _crash_mid_commit,
    "requests applied late": _period("slow_commits", 0.3),
    "beats late": _period("late_beats", 0.7),
    "starts late": _period("slow_starts", 0.5),
    "answers lost": _period("lost_answers", 0.3),
    "all hints lost": _period("lost_hints", 1.0),
    "drain": _to_one(_drain),
    "the broker loses a message": _lose_message,
    "ambushes": _ambushes,
    "more ambushes": _ambushes,
    "still more ambushes": _ambushes,
}
"""Every fault that PROTOCOL.md names, but for a store that goes back in time."""


def simulate(seed: int, *, trace: bool = False, faults: bool = True, always_replay: bool = False) -> World:
    """Run one schedule.

    Raises:
        Broken: A property does not hold; the same seed breaks it again.
    """
    world = World(seed, trace=trace, faults=faults, always_replay=always_replay)
    world.run()
    return world
