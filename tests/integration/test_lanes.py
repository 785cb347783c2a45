"""The session lane, and the frames that go up and down a session."""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.shell_rig import damage, house, lanes_of, until
from treadle.controlplane.frames import check_frame
from treadle.controlplane.replica import Session
from treadle.controlplane.replica.session import FRAME_BYTES
from treadle.protocol.errors import FieldInvalid
from treadle.v1.common_pb2 import Payload
from treadle.v1.history_pb2 import HistoryEvent, RunStarted
from treadle.v1.job_pb2 import JOB_KIND_RUN, Job
from treadle.v1.state_pb2 import (
    RUN_STATE_OPEN,
    RUN_STATE_QUEUED,
)
from treadle.v1.worker_service_pb2 import (
    LANE_SESSION,
    Command,
    Grant,
    News,
    OwnerRequest,
    ScheduleStep,
    SessionRequest,
    StartTimer,
)


# --- the session lane ---------------------------------------------------------------------------------------------------
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
