"""`treadle run retry`, `release`, `replay`, `history -o FILE` and `treadle steps quarantined`, as processes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.integration.api_host import ApiHost, api_host
from tests.integration.test_cli_commands import treadle
from treadle.client import Client, NotFound, WrongState
from treadle.v1.history_pb2 import HistoryFile
from treadle.v1.state_pb2 import RUN_STATE_CLOSED, RUN_STATE_QUEUED

APP = """
from treadle.worker import step, workflow

@step(pool="crm")
async def double(x: int) -> int:
    return 2 * x

@workflow
async def w(x: int = 1) -> int:
    return {body}
"""


async def failed(host: ApiHost, *runs: str) -> None:
    for run in runs:
        started = await treadle(host, "run", "start", "w", "--id", run, "--pool", "crm", "-i", '{"x": 4}')
        assert started.code == 0, started.err
        await host.finish(run, error="boom")


def test_one_run_goes_on_and_what_may_not_says_why() -> None:
    async def main() -> None:
        async with api_host() as host:
            await failed(host, "r")
            went_on = await treadle(host, "run", "retry", "r", "--reason", "mended", "-o", "json")
            assert (went_on.code, went_on.json["status"], went_on.json["retries"]) == (0, "running", 1)
            assert host.head("r").state == RUN_STATE_QUEUED
            again = await treadle(host, "run", "retry", "r")
            assert again.code == 1 and "open" in again.err and "fix:" in again.err
            await host.finish("r", result=b"3")
            whole = await treadle(host, "run", "retry", "r")
            assert whole.code == 1 and "completed" in whole.err
            unknown = await treadle(host, "run", "retry", "r", "--from", "nothing")
            assert unknown.code == 3 and "'nothing'" in unknown.err
            before = host.head("r").incarnation
            over = await treadle(host, "run", "retry", "r", "--input", '{"x": 5}', "-o", "json")
            assert over.code == 0 and host.head("r").incarnation != before
            assert (await treadle(host, "run", "retry", "nobody")).code == 3
            assert (await treadle(host, "run", "retry")).code == 2
            shown = await treadle(host, "run", "show", "r")
            assert shown.code == 0

    asyncio.run(main())


def test_many_runs_by_a_filter_with_a_count_first() -> None:
    async def main() -> None:
        async with api_host() as host:
            await failed(host, "a", "b", "c")
            await treadle(host, "run", "start", "other", "--id", "d", "--pool", "crm")
            await host.finish("d", error="boom")
            asked = await treadle(host, "run", "retry", "--workflow", "w", "--status", "failed")
            assert asked.code == 2 and "3 runs" in asked.err and "--yes" in asked.err
            words = ["run", "retry", "--workflow", "w", "--since", "2h", "--yes", "-o", "json"]
            told = await treadle(host, *words)
            assert told.code == 0 and told.json == {"found": 3, "retried": 3, "refused": []}
            assert host.head("d").state == RUN_STATE_CLOSED
            none = await treadle(host, *words[:-2])
            assert none.code == 0 and "no run fits" in none.err

    asyncio.run(main())


def test_more_runs_than_a_page_has_go_on_at_once() -> None:
    async def main() -> None:
        async with api_host() as host, Client(host.address) as client:
            for n in range(205):
                await client.start("w", id=f"r{n}", pool="crm")
                await host.finish(f"r{n}", error="boom")
            told = await treadle(host, "run", "retry", "--since", "2h", "--yes", "-o", "json")
            assert told.code == 0 and told.json == {"found": 205, "retried": 205, "refused": []}, told.err

    asyncio.run(main())


def test_what_is_refused_among_many_is_counted() -> None:
    async def main() -> None:
        async with api_host() as host:
            await failed(host, "a", "b")
            await treadle(host, "run", "start", "w", "--id", "t", "--pool", "crm")
            await host.finish("t", result=b"1")
            told = await treadle(
                host, "run", "retry", "--status", "failed", "--status", "completed", "--yes", "-o", "json"
            )
            assert told.code == 1
            assert (told.json["found"], told.json["retried"]) == (3, 2)
            assert [(one["id"], one["reason"]) for one in told.json["refused"]] == [("t", "RUN_NOT_FAILED")]

    asyncio.run(main())


def test_a_handle_waits_for_the_new_outcome() -> None:
    async def main() -> None:
        async with api_host() as host, Client(host.address) as client:
            run = await client.start("w", x=4, id="r", pool="crm")
            await host.finish("r", error="boom")
            assert (await run.wait("30s")).status.value == "failed"
            await run.retry()
            waiting = asyncio.create_task(run.result("30s"))
            await host.finish("r", result=b"7")
            assert await waiting == 7
            with pytest.raises(WrongState) as refused:
                await run.retry()
            assert refused.value.reason == "RUN_NOT_FAILED"
            await run.retry(input={"x": 1})
            waiting = asyncio.create_task(run.result("30s"))
            await host.finish("r", result=b"8")
            assert await waiting == 8
            with pytest.raises(NotFound):
                await run.retry(from_step="nothing")

    asyncio.run(main())


def test_quarantined_steps_are_listed_and_released() -> None:
    async def main() -> None:
        async with api_host() as host:
            empty = await treadle(host, "steps", "quarantined", "-o", "json")
            assert (empty.code, empty.json) == (0, [])
            await treadle(host, "run", "start", "w", "--id", "r", "--pool", "crm")
            refused = await treadle(host, "run", "release", "r", "double")
            assert refused.code == 1 and "not quarantined" in refused.err and "fix:" in refused.err

    asyncio.run(main())


def test_histories_are_saved_and_replayed_against_local_code(tmp_path: Path) -> None:
    async def main() -> None:
        async with api_host() as host:
            await treadle(host, "run", "start", "w", "--id", "r", "--pool", "crm", "-i", '{"x": 4}')
            await host.finish("r", result=b"8")
            folder = tmp_path / "histories"
            folder.mkdir()
            for name in ("r.history", "r.json"):
                saved = await treadle(host, "run", "history", "r", "-o", str(folder / name))
                assert saved.code == 0 and "3 events" in saved.err, saved.err
            history = HistoryFile.FromString((folder / "r.history").read_bytes())
            assert (history.run_id, len(history.events)) == ("r", 3)
            assert json.loads((folder / "r.json").read_text())["runId"] == "r"

            fits, differs = tmp_path / "fits.py", tmp_path / "differs.py"
            fits.write_text(APP.format(body="2 * x"))
            differs.write_text(APP.format(body="await double(x)"))
            whole = await treadle(host, "run", "replay", str(folder), str(fits), "-o", "json")
            assert whole.code == 0 and [one["fits"] for one in whole.json] == [True, True], whole.err
            other = await treadle(host, "run", "replay", "r", str(differs))
            assert other.code == 1 and "event 3 of 3" in other.err and "0/double#1" in other.err
            one = await treadle(host, "run", "replay", str(folder / "r.json"), str(differs), "-o", "json")
            assert (one.code, one.json[0]["position"], one.json[0]["expected"]) == (1, 3, "returns 8")
            (folder / "r.json").write_text("{}")
            wrong = await treadle(host, "run", "replay", str(folder), str(fits))
            assert wrong.code == 2 and "has no start" in wrong.err
            nobody = await treadle(host, "run", "replay", "nobody", str(fits))
            assert nobody.code == 3

    asyncio.run(main())


def test_a_run_that_has_only_just_closed_is_waited_for() -> None:
    """What it left behind is cleared away first; nobody has to ask again."""

    async def main() -> None:
        async with api_host() as host, Client(host.address) as client:
            run = await client.start("w", x=4, id="r", pool="crm")
            await host.finish("r", error="boom")
            info = await run.retry()
            assert info.status.value == "running"
            assert host.head("r").retries == 1

    asyncio.run(main())
