"""The shells of a control plane when something goes wrong under them: a damaged run, a store or broker that is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.integration.api_host import api_host
from treadle.controlplane.broker.memory import MemoryBroker
from treadle.controlplane.duties.leases import LeaseChecker
from treadle.controlplane.duties.outbox import OutboxDuty
from treadle.controlplane.duties.queues import QueueWatch
from treadle.controlplane.duties.silence import SilenceDuty
from treadle.controlplane.duties.timers import TimerDuty
from treadle.controlplane.engine import Engine
from treadle.controlplane.frames import check_frame
from treadle.controlplane.lanes import Lanes
from treadle.controlplane.machine.requests import Asked, Reported, StartRun, TerminateRun
from treadle.controlplane.replica import Page, Session
from treadle.controlplane.replica.session import FRAME_BYTES
from treadle.controlplane.store.memory import MemoryStore
from treadle.controlplane.store.port import Beat, Change, Committed, Loaded, Want
from treadle.protocol.errors import ConfigError, FieldInvalid, Unavailable
from treadle.protocol.ids import RunKey
from treadle.protocol.topology import Queue
from treadle.v1.common_pb2 import Payload, TraceContext
from treadle.v1.history_pb2 import HistoryEvent, RunStarted
from treadle.v1.job_pb2 import JOB_KIND_RUN, Job
from treadle.v1.run_service_pb2 import CONFLICT_POLICY_UNSPECIFIED, StartRunRequest
from treadle.v1.state_pb2 import (
    RUN_STATE_OPEN,
    RUN_STATE_QUEUED,
    HeldToken,
    OutboxEntry,
    RunHead,
    WorkerRecord,
)
from treadle.v1.worker_service_pb2 import (
    ANSWER_OK,
    ANSWER_SETTLED,
    ANSWER_UNKNOWN,
    LANE_SESSION,
    AttemptReport,
    Command,
    CreditStatement,
    Grant,
    News,
    OwnerAnswer,
    OwnerRequest,
    ReportAnswer,
    ScheduleStep,
    SessionHello,
    SessionRequest,
    StartTimer,
)

DEADLINE_S = 10.0


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

    def __init__(self, replica_id: str = "r1", store: Store | None = None) -> None:
        self.store, self.broker = store or Store(), Broker()
        self.engine = Engine(self.store, self.broker, replica_id=replica_id)
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
        for run, request in self.engine.replica.requests(session, frame, _now()):
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


def _now() -> int:
    from treadle.controlplane.clock import monotonic_ms

    return monotonic_ms()


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
async def house(**given: Any) -> AsyncIterator[House]:
    """Run an engine and its timers while inside; it must still run at the end."""
    made = House(**given)
    await made.broker.start(made.engine)
    await made.engine.prepare()
    tasks = [asyncio.create_task(made.engine.run()), asyncio.create_task(made.timers.run())]
    try:
        yield made
        assert not any(task.done() for task in tasks), [task for task in tasks if task.done()]
    finally:
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


# --- damaged runs ------------------------------------------------------------------------------------------------------
def test_a_damaged_run_stops_neither_the_timers_nor_the_requests_of_others() -> None:
    async def main() -> None:
        async with house() as here:
            damage(here.store, "bad", 1)
            grant = await here.grant(here.session(), "good")
            ask = said(grant)
            ask.commands.append(Command(command_id="0/sleep#1", start_timer=StartTimer(delay_ms=30)))
            reply = await here.engine.ask(RunKey("default", "good"), Asked(ask, "w1", "r1"))
            assert isinstance(reply, OwnerAnswer) and reply.answer == ANSWER_OK
            before = here.head("good").length
            await until(lambda: here.head("good").length > before)  # its timer fired

    asyncio.run(main())


def test_a_request_that_cannot_be_decided_harms_no_other_of_its_batch_and_gives_its_credits_back() -> None:
    async def main() -> None:
        async with house() as here:
            run = damage(here.store, "bad", 2**50)
            session = here.session()
            report = Reported(AttemptReport(run_id="bad", command_id="c", token=b"t"))
            good, bad = await asyncio.gather(here.start("good"), here.engine.ask(run, report))
            assert good.length and isinstance(bad, ReportAnswer) and bad.answer == ANSWER_UNKNOWN
            assert len(await here.store.aside("unknown", 10)) == 1
            assert not here.engine.replica.credits.statement(session.worker_id).reserved  # type: ignore[union-attr]

    asyncio.run(main())


# --- the store is away in the middle ------------------------------------------------------------------------------------
def test_what_was_committed_has_its_effects_though_a_message_of_an_unknown_run_cannot_be_kept() -> None:
    async def main() -> None:
        async with house() as here:
            session = here.session()
            here.credits(session, 5)
            here.store.away.add("put_aside")
            report = Reported(AttemptReport(run_id="nobody", command_id="c", token=b"t"))
            lost = asyncio.create_task(here.engine.ask(RunKey("default", "nobody"), report))
            await here.start("r")
            frame = session.frame()
            assert frame is not None and len(frame.grants) == 1
            stated = here.engine.replica.credits.statement("w1")
            assert stated is not None and not any(stated.reserved.values())
            try:
                await lost
            except Unavailable:
                return
            raise AssertionError("acknowledged, and not kept")

    asyncio.run(main())


def test_a_page_of_news_that_could_not_be_loaded_is_loaded_later_and_pages_are_loaded_a_few_at_a_time() -> None:
    async def main() -> None:
        async with house() as here:
            session = here.session()
            grants = [await here.grant(session, f"r{i}") for i in range(50)]
            while session.frame() is not None:
                pass
            here.store.away.add("load")
            here.store.loads.clear()
            for mine in session.open.values():
                mine.sent = mine.seen = 0
            for grant in grants:
                here.engine.hub.feed([_hint(grant.job.run_id, 2)])
            await asyncio.sleep(0)
            here.store.away.clear()
            got: set[str] = set()

            def all_came() -> bool:
                frame = session.frame()
                got.update(news.run_id for news in frame.news) if frame is not None else None
                return len(got) == 50

            await until(all_came)
            assert max(here.store.loads) <= 20

    asyncio.run(main())


def _hint(run_id: str, length: int, *, closed: bool = False, replica_id: str = "r1") -> Any:
    from treadle.controlplane.store.port import Hint

    return Hint("default", run_id, length, closed, replica_id)


# --- owners -------------------------------------------------------------------------------------------------------------
def test_a_fenced_owner_that_speaks_does_not_take_the_news_of_the_one_that_follows() -> None:
    async def main() -> None:
        async with house() as here:
            old, new = here.session("old"), here.session("new")
            grant = await here.grant(new, "r")
            stale = said(grant)
            stale.token = b"0" * 16
            here.take(old, SessionRequest(requests=[stale]))
            await until(lambda: (frame := old.frame()) is not None and frame.owner_answers)
            here.take(new, SessionRequest(requests=[_timer(grant, 20)]))
            came: list[str] = []

            def fired() -> bool:
                frame = new.frame()
                for news in frame.news if frame is not None else ():
                    came.extend(str(event.WhichOneof("kind")) for event in news.events)
                return "timer_fired" in came

            await until(fired)

    asyncio.run(main())


def _timer(grant: Grant, delay_ms: int) -> OwnerRequest:
    ask = said(grant)
    ask.commands.append(Command(command_id="0/sleep#1", start_timer=StartTimer(delay_ms=delay_ms)))
    return ask


def test_an_answer_to_a_session_that_was_replaced_does_not_take_the_news_away() -> None:
    async def main() -> None:
        async with house() as here:
            first = here.session()
            grant = await here.grant(first, "r")
            ask = said(grant)
            second = here.session()
            here.take(second, SessionRequest(requests=[ask]))
            await until(lambda: (frame := second.frame()) is not None and frame.owner_answers)
            late = Asked(ask, "w1", "r1")
            reply = await here.engine.ask(RunKey("default", "r"), late)
            here.engine.replica.answer(first, RunKey("default", "r"), late, reply)
            here.take(first, SessionRequest(credits=CreditStatement(credit_id=9, run_jobs=99, read=99)))
            assert here.engine.replica.credits.statement("w1").run_jobs == 0  # type: ignore[union-attr]
            ask.seq = 2
            ask.commands.append(Command(command_id="0/sleep#1", start_timer=StartTimer(delay_ms=20)))
            here.take(second, SessionRequest(requests=[ask]))
            await until(lambda: (frame := second.frame()) is not None and frame.news)

    asyncio.run(main())


def test_an_owner_at_another_replica_is_told_that_its_run_was_terminated() -> None:
    async def main() -> None:
        async with house() as here, house(replica_id="r2", store=here.store) as there:
            session = here.session()
            grant = await here.grant(session, "r")
            await there.engine.ask(RunKey("default", "r"), TerminateRun("q", "enough"))

            def told() -> bool:
                frame = session.frame()
                answers = frame.owner_answers if frame is not None else ()
                return any(a.token == grant.token and a.answer == ANSWER_SETTLED for a in answers)

            await until(told)
            assert grant.token not in session.open

    asyncio.run(main())


def test_a_worker_that_reads_nothing_costs_one_page_a_run() -> None:
    async def main() -> None:
        async with house() as here:
            session = here.session()
            grant = await here.grant(session, "r")
            (mine,) = session.open.values()
            mine.seen = mine.sent = 0
            for _ in range(5):
                here.engine.replica.news(RunKey("default", "r"), grant.token, [], 2, resend=True)
                here.engine.replica.page(Page("w1", grant.token, mine.run, 0), grant.run.events, here.head("r"))
            frame = session.frame()
            assert frame is not None and len(frame.news) == 1
            here.engine.replica.news(RunKey("default", "r"), grant.token, [], 2, resend=True)
            here.engine.replica.page(Page("w1", grant.token, mine.run, 0), grant.run.events, here.head("r"))
            assert (again := session.frame()) is not None and again.news == frame.news

    asyncio.run(main())


def test_a_replica_that_goes_away_pushes_no_jobs_that_nobody_would_read() -> None:
    async def main() -> None:
        async with house() as here:
            session = here.session()
            here.credits(session, 5)
            here.engine.replica.refuse_jobs()
            head = await here.start("r")
            assert head.state == RUN_STATE_QUEUED and head.wake_dispatch_id

    asyncio.run(main())


# --- the broker ---------------------------------------------------------------------------------------------------------
def test_a_pool_whose_queue_cannot_be_declared_stops_no_other_pool() -> None:
    async def main() -> None:
        async with house() as here:
            for number in range(20):
                await here.start(f"wrong{number}", pool="wrong")
            await here.start("right", pool="right")
            queue = Queue("default", "right", JOB_KIND_RUN)
            await until(lambda: (found := here.broker._queues.get(queue.name)) is not None and found.ready)
            await here.broker.stop()  # forgets everything; the outbox is its disk
            await here.broker.start(here.engine)
            await until(lambda: here.timers.shards)
            duty = asyncio.create_task(OutboxDuty(here.engine, here.timers).run())
            await until(lambda: (found := here.broker._queues.get(queue.name)) is not None and found.ready)
            assert not duty.done()
            duty.cancel()
            await asyncio.gather(duty, return_exceptions=True)

    asyncio.run(main())


def test_what_the_in_memory_broker_holds_is_not_published_again() -> None:
    published: list[str] = []

    async def main() -> None:
        async with house() as here:
            now = here.store.now_ms()
            for number in range(3):
                job = Job(namespace="default", run_id=f"r{number}", pool="p", kind=JOB_KIND_RUN, name="w")
                job.dispatch_id = f"d{number}"
                entry = OutboxEntry(time_ms=now - 60_000, job=job).SerializeToString()
                run = RunKey("default", f"r{number}")
                here.store.commit_now([Change(run, 0, 7, b"", outbox_add={job.dispatch_id: entry})])
            await until(lambda: here.timers.shards)
            duty = OutboxDuty(here.engine, here.timers)
            publish = here.broker.publish

            def noted(jobs: Sequence[Job]) -> None:
                published.extend(job.dispatch_id for job in jobs)
                publish(jobs)

            here.broker.publish = noted  # type: ignore[method-assign]
            await duty.turn(everything=True)
            await duty.turn(everything=True)

    asyncio.run(main())
    assert sorted(published) == ["d0", "d1", "d2"]


# --- the session lane ---------------------------------------------------------------------------------------------------
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


def test_a_job_of_a_busy_worker_does_not_hold_up_the_jobs_of_another_nor_wait_for_a_name() -> None:
    async def main() -> None:
        async with house() as here, lanes_of(here) as lanes:
            busy, free = here.session("busy"), here.session("free")
            statement = here.engine.replica.credits.statement("free")
            assert statement is not None
            statement.workflows = frozenset(["other"])
            for number in range(3):
                await here.start(f"held{number}")
            await here.start("wanted", workflow="other")
            here.credits(free, 1)
            lanes.stated("default", "p")
            came: list[str] = []

            def given() -> bool:
                frame = free.frame()
                came.extend(grant.job.run_id for grant in frame.grants) if frame is not None else None
                return bool(came)

            await until(given)
            assert came == ["wanted"]
            assert here.head("held0").state == RUN_STATE_QUEUED
            here.credits(busy, 3)
            lanes.stated("default", "p")
            await until(lambda: all(here.head(f"held{n}").state == RUN_STATE_OPEN for n in range(3)))

    asyncio.run(main())


def test_workers_without_a_slot_are_told_as_long_as_a_run_job_waits() -> None:
    async def main() -> None:
        async with house() as here, lanes_of(here) as lanes:
            session = here.session()
            here.credits(session, 0)
            lanes.stated("default", "p")
            await here.start("r")
            for _ in range(2):
                await until(lambda: (frame := session.frame()) is not None and frame.run_job_waits)

    asyncio.run(main())


def test_a_damaged_run_in_the_queue_does_not_come_again_and_again_at_once() -> None:
    async def main() -> None:
        async with house() as here, lanes_of(here) as lanes:
            run = damage(here.store, "bad", 2**50)
            session = here.session()
            await here.engine.declare("default", "p")
            job = Job(namespace="default", run_id=run.run_id, pool="p", kind=JOB_KIND_RUN, name="w", dispatch_id="d")
            here.broker.publish([job])
            here.credits(session, 1)
            lanes.stated("default", "p")
            await until(lambda: not here.broker.has("d"))
            assert len(await here.store.aside("unknown", 10)) == 1

    asyncio.run(main())


# --- frames -------------------------------------------------------------------------------------------------------------
def test_what_is_ready_at_once_goes_down_in_frames_that_fit_and_in_order() -> None:
    session = Session("w", "s", "default", "p", LANE_SESSION, lambda: None)
    page = [HistoryEvent(position=1, run_started=RunStarted(input=Payload(data=b"x" * 1_000_000)))]
    for number in range(30):
        session.batch.news.append(News(run_id=str(number), events=page))
        session.batch.grants.append(Grant(push_number=number + 1))
    session.batch.credits_taken = 7
    frames = list(session.frames())
    assert len(frames) > 1 and max(frame.ByteSize() for frame in frames) <= FRAME_BYTES + 1_000
    assert [grant.push_number for frame in frames for grant in frame.grants] == list(range(1, 31))
    assert [news.run_id for frame in frames for news in frame.news] == [str(number) for number in range(30)]
    assert [frame.credits_taken for frame in frames if frame.credits_taken] == [7]
    assert session.frame() is None


@pytest.mark.parametrize(
    "command",
    [
        Command(command_id="c", start_timer=StartTimer(delay_ms=2**62)),
        Command(command_id="c", start_timer=StartTimer(delay_ms=-1)),
        Command(command_id="c", schedule_step=ScheduleStep(name="s", pool="p" * 300)),
        Command(command_id="c", schedule_step=ScheduleStep(name="s", pool="p", timeout_ms=2**62)),
    ],
)
def test_a_frame_that_would_come_up_for_ever_is_refused(command: Command) -> None:
    with pytest.raises(FieldInvalid):
        check_frame(SessionRequest(requests=[OwnerRequest(run_id="r", commands=[command])]), 200)


def test_a_request_that_would_block_redis_is_refused() -> None:
    commands = [Command(command_id=str(n), start_timer=StartTimer(delay_ms=1)) for n in range(201)]
    with pytest.raises(FieldInvalid, match="200"):
        check_frame(SessionRequest(requests=[OwnerRequest(run_id="r", commands=commands)]), 200)


# --- silence ------------------------------------------------------------------------------------------------------------
def test_what_a_silent_worker_held_is_not_looked_at_for_ever() -> None:
    """Somebody else holds it now: each look at it would be a commit, twice a second for an hour."""

    async def main() -> None:
        async with house() as here:
            grant = await here.grant(here.session("living"), "r")
            now = here.store.now_ms()
            record = WorkerRecord(worker_id="dead", namespace="default", session_id="x", session_sent_ms=1)
            await here.store.open_session(record)
            held = [HeldToken(run_id="r", token=b"old", namespace="default")]
            await here.store.beat([Beat("dead", "x", 2, 1, held)])
            await until(lambda: here.timers.shards)
            assert grant.token
            commits = here.engine.committer.commits
            here.engine.clock.observe(now + 6_000, _now())
            silence = SilenceDuty(here.engine, here.leases, here.timers)
            for _ in range(5):
                await silence.turn()
            assert here.engine.committer.commits == commits

    asyncio.run(main())


# --- the end ------------------------------------------------------------------------------------------------------------
def test_a_server_that_ends_gives_up_its_shards_so_that_no_timer_waits_for_their_leases() -> None:
    async def main() -> None:
        async with api_host() as host:
            await host.runs.StartRun(StartRunRequest(workflow="w", pool="p", run_id="r", request_id="1"))
            store = host.store
        assert len(await store.hold("another", range(64), 1_000)) == 64

    asyncio.run(main())
