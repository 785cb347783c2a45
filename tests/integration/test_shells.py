"""The shells of a control plane when something goes wrong under them: a damaged run, a store or broker that is away."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tests.integration.api_host import api_host
from tests.integration.shell_rig import damage, hint, house, said, timer, until
from treadle.controlplane.clock import monotonic_ms
from treadle.controlplane.duties.leases import Holding
from treadle.controlplane.duties.outbox import OutboxDuty
from treadle.controlplane.duties.silence import SilenceDuty
from treadle.controlplane.machine.requests import Asked, Reported, TerminateRun
from treadle.controlplane.replica import Page
from treadle.controlplane.store.port import Beat, Change, Outcome, Want
from treadle.protocol.errors import Unavailable
from treadle.protocol.ids import RunKey
from treadle.protocol.topology import Queue
from treadle.v1.job_pb2 import JOB_KIND_RUN, Job
from treadle.v1.run_service_pb2 import StartRunRequest
from treadle.v1.state_pb2 import (
    RUN_STATE_QUEUED,
    HeldToken,
    OutboxEntry,
    WorkerRecord,
)
from treadle.v1.worker_service_pb2 import (
    ANSWER_OK,
    ANSWER_SETTLED,
    ANSWER_UNKNOWN,
    AttemptReport,
    Command,
    CreditStatement,
    OwnerAnswer,
    ReportAnswer,
    SessionRequest,
    StartTimer,
)


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


def test_a_holder_that_cannot_be_judged_hides_no_other() -> None:
    async def main() -> None:
        async with house() as here:
            session = here.session()
            grants = {run_id: await here.grant(session, run_id) for run_id in ("good", "odd")}
            holdings = []
            for run_id in ("odd", "good"):
                holder = here.head(run_id).owner
                holdings.append(Holding(RunKey("default", run_id), "", holder))
            (loaded,) = here.store.load_now([Want(RunKey("default", "odd"))])
            damaged = Change(RunKey("default", "odd"), loaded.revision, 7, b"\xff\xff\xff")
            assert here.store.commit_now([damaged])[0].outcome is Outcome.OK
            before = here.head("good").owner.lease_due_ms
            written = here.store.now_ms()
            await until(lambda: here.store.now_ms() > written)
            odd, good = await here.leases.decide(holdings)
            assert odd is not None and good is None and grants
            assert here.head("good").owner.lease_due_ms > before

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
            await asyncio.create_task(here.start("r"))  # in the same batch, behind it
            frame = session.frame()
            assert frame is not None and len(frame.grants) == 1
            stated = here.engine.replica.credits.statement("w1")
            assert stated is not None and not stated.reserved
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
            here.engine.committer.runs.cache.forget(RunKey("default", f"r{i}") for i in range(50))
            here.store.away.add("load")
            here.store.loads.clear()
            for mine in session.open.values():
                mine.sent = mine.seen = 0
            for grant in grants:
                here.engine.hub.feed([hint(grant.job.run_id, 2)])
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


# --- owners -------------------------------------------------------------------------------------------------------------
def test_a_fenced_owner_that_speaks_does_not_take_the_news_of_the_one_that_follows() -> None:
    async def main() -> None:
        async with house() as here:
            old, new = here.session("old"), here.session("new")
            grant = await here.grant(new, "r")
            here.take(new, SessionRequest(requests=[timer(grant, 200)]))
            await until(lambda: (frame := new.frame()) is not None and frame.owner_answers)
            stale = said(grant)
            stale.token = b"0" * 16
            here.take(old, SessionRequest(requests=[stale]))
            await until(lambda: (frame := old.frame()) is not None and frame.owner_answers)
            came: list[str] = []

            def fired() -> bool:
                frame = new.frame()
                for news in frame.news if frame is not None else ():
                    came.extend(str(event.WhichOneof("kind")) for event in news.events)
                return "timer_fired" in came

            await until(fired)

    asyncio.run(main())


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
            assert here.engine.replica.credits.statement("w1").run_jobs.stated == 0  # type: ignore[union-attr]
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
            here.engine.clock.observe(now + 6_000, monotonic_ms())
            silence = SilenceDuty(here.engine, here.leases, here.timers)
            for _ in range(5):
                await silence.turn()
            assert here.engine.committer.commits == commits

    asyncio.run(main())


def test_the_next_look_is_when_the_next_worker_may_be_silent() -> None:
    async def main() -> None:
        async with house() as here:
            await until(lambda: here.timers.shards)
            silence = SilenceDuty(here.engine, here.leases, here.timers)
            assert 4_900 < await silence.turn() <= 5_001, "nobody has beaten: who does so from now on"
            record = WorkerRecord(worker_id="w", namespace="default", session_id="x", session_sent_ms=1)
            await here.store.open_session(record)
            beaten = (await here.store.workers("default"))[0].last_beat_ms
            here.engine.clock.observe(beaten + 4_000, monotonic_ms())
            assert 900 < await silence.turn() <= 1_001
            here.engine.clock.observe(beaten + 5_001, monotonic_ms())
            assert 4_900 < await silence.turn() <= 5_001, "it is silent, holds nothing, and nobody else is there"

    asyncio.run(main())


def test_shards_that_come_are_looked_at_without_delay() -> None:
    async def main() -> None:
        async with asyncio.timeout(20), house() as here:
            await until(lambda: here.timers.shards)
            await here.timers.more_shards(0)
            waits = asyncio.create_task(here.timers.more_shards(3_600_000))
            here.timers.shards = here.timers.shards[1:]  # the next round brings it again
            await waits

    asyncio.run(main())


# --- the end ------------------------------------------------------------------------------------------------------------
def test_a_server_that_ends_gives_up_its_shards_so_that_no_timer_waits_for_their_leases() -> None:
    async def main() -> None:
        async with api_host() as host:
            await host.runs.StartRun(StartRunRequest(workflow="w", pool="p", run_id="r", request_id="1"))
            store = host.store
        assert len(await store.hold("another", range(64), 1_000)) == 64

    asyncio.run(main())
