"""An engine with its duties over a store and a broker that can be away, without the gRPC server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from treadle.controlplane.broker.memory import MemoryBroker
from treadle.controlplane.clock import monotonic_ms
from treadle.controlplane.duties.leases import LeaseChecker
from treadle.controlplane.duties.queues import QueueWatch
from treadle.controlplane.duties.timers import TimerDuty
from treadle.controlplane.engine import Engine
from treadle.controlplane.lanes import Lanes
from treadle.controlplane.machine.env import Settings
from treadle.controlplane.machine.requests import StartRun
from treadle.controlplane.replica import Session, credits
from treadle.controlplane.store.memory import MemoryStore
from treadle.controlplane.store.port import Change, Committed, Hint, Loaded, Want
from treadle.protocol.errors import ConfigError, Unavailable
from treadle.protocol.ids import RunKey
from treadle.protocol.topology import Queue
from treadle.v1.common_pb2 import Payload, TraceContext
from treadle.v1.run_service_pb2 import CONFLICT_POLICY_UNSPECIFIED
from treadle.v1.state_pb2 import (
    RunHead,
)
from treadle.v1.worker_service_pb2 import (
    LANE_SESSION,
    Command,
    CreditStatement,
    Grant,
    OwnerRequest,
    SessionHello,
    SessionRequest,
    StartTimer,
)

__all__ = ("House", "Store", "damage", "hint", "house", "lanes_of", "said", "timer", "until")

DEADLINE_S = 60.0


async def until(fact: Callable[[], Any]) -> None:
    """Wait for a fact."""
    async with asyncio.timeout(DEADLINE_S):
        while not fact():
            await asyncio.sleep(0.005)


class Store(MemoryStore):
    """A store that can be away, for all or for one kind of call."""

    def __init__(self) -> None:
        super().__init__()
        self.away: set[str] = set()
        self.loads: list[int] = []

    def _look(self, call: str) -> None:
        if call in self.away:
            raise Unavailable(f"{call}: away")

    async def load(self, wants: Sequence[Want]) -> list[Loaded]:
        self._look("load")
        self.loads.append(len(wants))
        return await super().load(wants)

    async def commit(self, changes: Sequence[Change]) -> list[Committed]:
        self._look("commit")
        return await super().commit(changes)

    async def put_aside(self, shard: int, kind: str, data: bytes) -> bool:
        self._look("put_aside")
        return await super().put_aside(shard, kind, data)


class Broker(MemoryBroker):
    """A broker with a pool whose queue cannot be declared."""

    async def declare(self, queue: Queue) -> None:
        if queue.pool == "wrong":
            raise ConfigError("queue exists with other arguments")
        await super().declare(queue)


class House:
    """An engine with its parts, without the gRPC server."""

    def __init__(self, replica_id: str = "r1", store: Store | None = None, settings: Settings | None = None) -> None:
        self.store, self.broker = store or Store(), Broker()
        self.engine = Engine(self.store, self.broker, settings, replica_id=replica_id)
        self.leases = LeaseChecker(self.engine)
        self.timers = TimerDuty(self.engine, self.leases, QueueWatch(self.engine))
        self.sessions = 0

    async def start(self, run_id: str, pool: str = "p", workflow: str = "w") -> RunHead:
        request = StartRun(workflow, pool, Payload(), run_id, CONFLICT_POLICY_UNSPECIFIED, TraceContext())
        await self.engine.ask(RunKey("default", run_id), request)
        return self.head(run_id)

    def head(self, run_id: str) -> RunHead:
        (loaded,) = self.store.load_now([Want(RunKey("default", run_id))])
        return RunHead.FromString(loaded.head)

    def session(self, worker_id: str = "w1") -> Session:
        self.sessions += 1
        hello = SessionHello(worker_id=worker_id, session_id=f"s{self.sessions}", namespace="default", pool="p")
        hello.lane, hello.workflows[:], hello.steps[:] = LANE_SESSION, ["w"], ["s"]
        return self.engine.replica.open_session(hello, lambda: None)

    def credits(self, session: Session, run_jobs: int, read: int = 0) -> None:
        stated = CreditStatement(credit_id=1, sent_ms=1, run_jobs=run_jobs, read=read)
        self.take(session, SessionRequest(credits=stated))

    def take(self, session: Session, frame: SessionRequest) -> None:
        for run, request in self.engine.replica.requests(session, frame, monotonic_ms()):
            self.engine.committer.submit(
                run,
                request,
                lambda reply, run=run, request=request: (  # type: ignore[misc]
                    None if isinstance(reply, Exception) else self.engine.replica.answer(session, run, request, reply)
                ),
            )

    async def grant(self, session: Session, run_id: str) -> Grant:
        """Start a run that goes to a credit of the session; returns its GO."""
        self.credits(session, 1, read=10**6)
        await self.start(run_id)
        frame = session.frame()
        assert frame is not None
        (grant,) = frame.grants
        return grant


def said(grant: Grant, seq: int = 1) -> OwnerRequest:
    """Return an empty request of the owner, who was fed what came with GO."""
    last = grant.run.events[-1]
    return OwnerRequest(
        run_id=grant.job.run_id,
        incarnation=grant.job.incarnation,
        token=grant.token,
        seq=seq,
        seen=last.position,
        told=last.position,
        told_revision=last.revision,
        sent_ms=2,
    )


@asynccontextmanager
async def house(*, timers: bool = True, **given: Any) -> AsyncIterator[House]:
    """Run an engine and, unless the test fires them itself, its timers while inside; it must still run at the end.

    Credits are used for a minute instead of 2 s: no test is about that, and a busy machine may stand still.
    """
    made = House(**given)
    await made.broker.start(made.engine)
    await made.engine.prepare()
    tasks = [asyncio.create_task(made.engine.run())]
    if timers:
        tasks.append(asyncio.create_task(made.timers.run()))
    patch = pytest.MonkeyPatch()
    patch.setattr(credits, "_USED_FOR_MS", 60_000)
    try:
        yield made
        assert not any(task.done() for task in tasks), [task for task in tasks if task.done()]
    finally:
        patch.undo()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await made.broker.stop()


def damage(store: MemoryStore, run_id: str, due_ms: int) -> RunKey:
    """Write a run whose head nobody can read, with a timer."""
    run = RunKey("default", run_id)
    change = Change(run, 0, 7, b"\xff\xff\xff", timers_set={"": due_ms})
    store.commit_now([change])
    return run


def hint(run_id: str, length: int, *, closed: bool = False, replica_id: str = "r1") -> Hint:
    return Hint("default", run_id, length, closed, replica_id)


def timer(grant: Grant, delay_ms: int) -> OwnerRequest:
    ask = said(grant)
    ask.commands.append(Command(command_id="0/sleep#1", start_timer=StartTimer(delay_ms=delay_ms)))
    return ask


@asynccontextmanager
async def lanes_of(here: House) -> AsyncIterator[Lanes]:
    """Run the pumps of a house while inside."""
    lanes = Lanes(here.engine)
    task = asyncio.create_task(lanes.run())
    try:
        yield lanes
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
