"""Decisions on a cached view: what changes nothing, or fails, is decided again on what the store has."""

from __future__ import annotations

import asyncio

import pytest
from tests.integration.shell_rig import House, house

from treadle.controlplane.machine.requests import CancelRun, RunReply, StartRun
from treadle.controlplane.store.port import Change, Outcome
from treadle.protocol.errors import NotFound
from treadle.protocol.ids import RunKey
from treadle.v1.common_pb2 import Payload, TraceContext
from treadle.v1.run_service_pb2 import CONFLICT_POLICY_UNSPECIFIED

RUN = RunKey("default", "r")


def vanish(here: House) -> None:
    """Another replica's commit whose hint was lost: the run is deleted."""
    revision = here.store._state.runs[RUN].revision
    assert here.store.commit_now([Change(RUN, revision, 7, b"", delete=True)])[0].outcome is Outcome.OK


def test_hot_runs_are_not_read() -> None:
    async def main() -> None:
        async with house() as here:
            await here.start("r")
            here.store.loads.clear()
            for i in range(5):
                await here.engine.ask(RUN, CancelRun(f"c{i}", ""))
            assert sum(here.store.loads) <= 4  # the first cancel changed it; that later ones change nothing is read

    asyncio.run(main())


def test_that_nothing_is_to_be_done_is_read_first() -> None:
    async def main() -> None:
        async with house() as here:
            await here.start("r")
            vanish(here)
            await here.start("r")  # known by its request id, as this replica saw it last
            assert here.head("r").run_id == "r"

    asyncio.run(main())


def test_a_change_on_an_outdated_view_is_decided_again() -> None:
    async def main() -> None:
        async with house() as here:
            await here.start("r")
            vanish(here)
            with pytest.raises(NotFound):
                await here.engine.ask(RUN, CancelRun("c", ""))
            assert here.engine.committer.conflicts == 1

    asyncio.run(main())


def test_a_damaged_view_is_read_again_before_anybody_is_refused() -> None:
    async def main() -> None:
        async with house() as here:
            head = await here.start("r")
            revision = here.store._state.runs[RUN].revision
            damaged = Change(RUN, revision, 8, b"\xff\xff")
            here.store.commit_now([damaged])
            here.engine.committer.runs.cache.forget([RUN])
            with pytest.raises(Exception, match=r"DecodeError|parsing"):
                await here.engine.ask(RUN, CancelRun("c", ""))
            here.store.commit_now([Change(RUN, 8, 9, head.SerializeToString())])
            await here.engine.ask(RUN, CancelRun("c", ""))
            assert here.head("r").cancel_requested

    asyncio.run(main())


def test_a_start_is_not_preceded_by_a_read() -> None:
    async def main() -> None:
        async with house() as here:
            here.store.loads.clear()
            await here.start("r")
            assert here.head("r").run_id == "r" and here.engine.committer.conflicts == 0
            assert sum(here.store.loads) == 0

    asyncio.run(main())


def test_a_start_under_an_id_that_is_taken_looks_once_and_sees_it() -> None:
    async def main() -> None:
        async with house() as here:
            first = await here.start("r")
            here.engine.committer.runs.cache.forget([RUN])  # as a replica that did not see the start
            again = await here.start("r")  # with the same request id
            assert (again.incarnation, again.length) == (first.incarnation, first.length)
            assert here.engine.committer.conflicts == 1

    asyncio.run(main())


def test_a_start_under_an_id_that_left_a_tombstone_looks_once_and_sees_it() -> None:
    """The request id of a run that is gone already still tells a repeated start from a new one."""

    async def main() -> None:
        async with house() as here:
            started = await here.start("r")
            loaded = here.store._state.runs[RUN]
            gone = Change(RUN, loaded.revision, 7, b"", delete=True, tombstone=loaded.head, tombstone_ms=60_000)
            assert here.store.commit_now([gone])[0].outcome is Outcome.OK
            here.engine.committer.runs.cache.forget([RUN])
            request = StartRun("w", "p", Payload(), "r", CONFLICT_POLICY_UNSPECIFIED, TraceContext())
            reply = await here.engine.ask(RUN, request)
            assert isinstance(reply, RunReply) and reply.head.incarnation == started.incarnation
            assert RUN not in here.store._state.runs and here.engine.committer.conflicts == 1

    asyncio.run(main())
