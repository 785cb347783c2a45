"""Wakes that are decided before they are due: never early, given up when the run or the session changes, credits come back."""

from __future__ import annotations

import asyncio

import pytest
from tests.integration.shell_rig import House, house, until

from treadle.controlplane.machine.decide import want
from treadle.controlplane.machine.requests import CancelRun, FireTimer
from treadle.controlplane.replica import Session
from treadle.controlplane.store.port import Change, Timer
from treadle.protocol.ids import RunKey
from treadle.v1.job_pb2 import JOB_KIND_RUN
from treadle.v1.state_pb2 import COMMAND_STATE_TIMER, RUN_STATE_PARKED, CommandRow, RunHead
from treadle.v1.worker_service_pb2 import CreditStatement, SessionRequest

SOON_MS = 150


def sleeper(here: House, run_id: str, due_ms: int) -> Timer:
    """Write a parked run that sleeps until `due_ms`; worker w1 has its coroutine."""
    run = RunKey("default", run_id)
    head = RunHead(namespace="default", run_id=run_id, incarnation=1, state=RUN_STATE_PARKED, workflow="w", pool="p")
    head.length, head.open_commands, head.timer_at_ms, head.cached_by, head.seen = 2, 1, due_ms + 3_600_000, "w1", 1
    row = CommandRow(command_id="c", state=COMMAND_STATE_TIMER, due_ms=due_ms, timer_at_ms=due_ms)
    change = Change(run, 0, 7, head.SerializeToString(), {"c:c": row.SerializeToString()}, events=[b"", b""])
    change.timers_set = {"c": due_ms, "": due_ms + 3_600_000}
    here.store.commit_now([change])
    return Timer(run, "c", due_ms)


def worker(here: House, wakes: int = 100) -> Session:
    session = here.session()
    here.take(session, SessionRequest(credits=CreditStatement(credit_id=1, sent_ms=1, wakes=wakes)))
    return session


async def decide_ahead(here: House, *timers: Timer) -> None:
    wants = [want(timer.run, [FireTimer("c")]) for timer in timers]
    for timer, view in zip(timers, await here.engine.committer.runs.load(wants), strict=True):
        here.engine.committer.ahead.decide(timer, view)


def free(here: House) -> int:
    statement = here.engine.replica.credits.statement("w1")
    return 0 if statement is None else statement.account(JOB_KIND_RUN, wakes=True).free


def granted(session: Session) -> int:
    frame = session.frame()
    return 0 if frame is None else len(frame.grants)


def test_what_was_decided_ahead_is_committed_when_it_is_due() -> None:
    async def main() -> None:
        async with house(timers=False) as here:
            session = worker(here)
            timer = sleeper(here, "r", here.store.now_ms() + SOON_MS)
            await decide_ahead(here, timer)
            assert here.engine.committer.ahead.has(timer)
            assert free(here) == 99
            await until(lambda: here.engine.clock.now() >= timer.due_ms)
            here.store.loads.clear()
            await here.engine.ask(timer.run, FireTimer("c"))
            assert not here.store.loads
            assert not len(here.engine.committer.ahead)
            assert granted(session) == 1
            assert free(here) == 99, "the push was not read yet"

    asyncio.run(main())


def test_what_was_decided_ahead_is_refused_before_it_is_due() -> None:
    async def main() -> None:
        async with house(timers=False) as here:
            session = worker(here)
            timer = sleeper(here, "r", here.store.now_ms() + 3_600_000)
            await decide_ahead(here, timer)
            await here.engine.ask(timer.run, FireTimer("c"))
            assert here.engine.committer.conflicts == 1
            assert here.head("r").open_commands == 1, "it sleeps"
            assert granted(session) == 0
            assert free(here) == 100

    asyncio.run(main())


def test_a_run_that_changed_meanwhile_is_decided_anew() -> None:
    async def main() -> None:
        async with house(timers=False) as here:
            session = worker(here)
            timer = sleeper(here, "r", here.store.now_ms() + SOON_MS)
            await decide_ahead(here, timer)
            await here.engine.ask(timer.run, CancelRun("", "once"))  # wakes it by itself
            assert granted(session) == 1
            await until(lambda: here.engine.clock.now() >= timer.due_ms)
            await here.engine.ask(timer.run, FireTimer("c"))
            assert not len(here.engine.committer.ahead)
            assert granted(session) == 0, "it is awake already"
            assert here.head("r").open_commands == 0, "the timer has fired"
            assert free(here) == 99

    asyncio.run(main())


def test_a_decision_ends_with_the_session_of_its_credit() -> None:
    async def main() -> None:
        async with house(timers=False) as here:
            worker(here)
            timer = sleeper(here, "r", here.store.now_ms() + SOON_MS)
            await decide_ahead(here, timer)
            session = worker(here)
            await until(lambda: here.engine.clock.now() >= timer.due_ms)
            await here.engine.ask(timer.run, FireTimer("c"))
            assert granted(session) == 1
            assert free(here) == 99

    asyncio.run(main())


def test_a_decision_that_nobody_asks_for_gives_its_credit_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with house(timers=False) as here:
            worker(here)
            await decide_ahead(here, sleeper(here, "r", here.store.now_ms() + 3_600_000))
            ahead = here.engine.committer.ahead
            ahead.clear()
            assert (len(ahead), free(here)) == (1, 99)
            later = 10**15
            monkeypatch.setattr("treadle.controlplane.ahead.monotonic_ms", lambda: later)
            ahead.clear()
            assert (len(ahead), free(here)) == (0, 100)

    asyncio.run(main())


def test_without_a_credit_nothing_is_kept() -> None:
    async def main() -> None:
        async with house(timers=False) as here:
            worker(here, wakes=1)
            due_ms = here.store.now_ms() + 3_600_000
            await decide_ahead(here, sleeper(here, "r1", due_ms), sleeper(here, "r2", due_ms))
            assert len(here.engine.committer.ahead) == 1
            assert free(here) == 0

    asyncio.run(main())


def test_a_storm_that_comes_is_decided_ahead_by_the_duty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_SEEN_MS", "_READY_MS"):
        monkeypatch.setattr(f"treadle.controlplane.duties.timers.{name}", 10_000)  # at once

    async def main() -> None:
        async with house() as here:
            session = worker(here)
            due_ms = here.store.now_ms() + 1_500
            for i in range(61):
                sleeper(here, f"s{i}", due_ms)
            here.engine.timer_added.set()
            await until(lambda: len(here.engine.committer.ahead) == 61)
            assert here.store.now_ms() < due_ms
            here.store.loads.clear()
            await until(lambda: not any(here.head(f"s{i}").open_commands for i in range(61)))
            assert here.store.now_ms() >= due_ms
            assert here.engine.committer.conflicts == 0
            assert not [count for count in here.store.loads if count], "nothing was read then"
            await until(lambda: not len(here.engine.committer.ahead))
            assert granted(session) == 61

    asyncio.run(main())
