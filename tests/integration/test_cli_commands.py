"""The `treadle` command as a process, against the real API: data on stdout, the rest on stderr, exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from typing import Any

from tests.integration.api_host import ApiHost, api_host


@dataclass(frozen=True)
class Ended:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


async def treadle(host: ApiHost, *words: str, stdin: str = "") -> Ended:
    """Run one command against the host."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "treadle.cli",
        *words,
        env=os.environ | {"TREADLE_SERVER": host.address, "NO_COLOR": "1"},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate(stdin.encode())
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def closed(host: ApiHost, run_id: str, **outcome: Any) -> None:
    """Wait until the run is there, then finish it as a worker would."""
    async with asyncio.timeout(30):
        while not host.head(run_id).run_id:
            await asyncio.sleep(0.02)
    await host.finish(run_id, **outcome)


def test_start_wait_show_list_and_history() -> None:
    async def main() -> None:
        async with api_host() as host:
            finishing = asyncio.create_task(closed(host, "r1", result=b'{"total":3}'))
            words = ["run", "start", "imports", "-i", "@-", "--id", "r1", "--pool", "crm", "--watch"]
            started = await treadle(host, *words, stdin='{"path": "x.csv"}')
            await finishing
            assert (started.code, json.loads(started.out)) == (0, {"total": 3})
            assert "▶ run imports" in started.err
            assert "✓ COMPLETED" in started.err

            shown = await treadle(host, "run", "show", "r1")
            assert shown.code == 0
            assert shown.out.startswith("imports   r1   ✓ completed")
            assert 'result {"total": 3}' in shown.out
            as_json = (await treadle(host, "run", "show", "r1", "-o", "json")).json
            assert (as_json["id"], as_json["result"], as_json["steps"]) == ("r1", {"total": 3}, [])

            listed = await treadle(host, "run", "list", "--status", "completed", "-o", "jsonl")
            assert [json.loads(line)["id"] for line in listed.out.splitlines()] == ["r1"]
            table = await treadle(host, "run", "list", "--workflow", "imports")
            assert table.out.splitlines()[0].split() == ["run", "workflow", "status", "started", "duration", "note"]

            history = (await treadle(host, "run", "history", "r1", "-o", "json")).json
            assert [one["position"] for one in history] == [1, 2, 3]
            assert history[0]["run_started"]["input"] == {"path": "x.csv"}
            watched = await treadle(host, "run", "watch", "r1")
            assert watched.code == 0
            assert "✓ COMPLETED" in watched.out

    asyncio.run(main())


def test_exit_codes_tell_what_went_wrong() -> None:
    async def main() -> None:
        async with api_host() as host:
            finishing = asyncio.create_task(closed(host, "bad", error="boom"))
            failed = await treadle(host, "run", "start", "w", "--id", "bad", "--pool", "crm", "--wait")
            await finishing
            assert (failed.code, failed.out) == (1, "")
            assert "ValueError: boom" in failed.err
            assert "treadle run show bad" in failed.err

            missing = await treadle(host, "run", "show", "nope")
            assert (missing.code, missing.out) == (3, "")
            assert "'nope'" in missing.err
            assert "fix:" in missing.err

            slow = await treadle(
                host, "run", "start", "w", "--id", "s", "--pool", "crm", "--wait", "--timeout", "200ms"
            )
            assert slow.code == 5
            unknown = await treadle(host, "run", "start", "never-registered")
            assert unknown.code == 3
            taken = await treadle(host, "run", "start", "w", "--id", "s", "--pool", "crm")
            assert taken.code == 1
            usage = await treadle(host, "run", "start", "w", "-i", "not json")
            assert usage.code == 2

    asyncio.run(main())


def test_steering_pools_and_doctor() -> None:
    async def main() -> None:
        async with api_host() as host:
            started = await treadle(host, "run", "start", "w", "--id", "r", "--pool", "crm", "-o", "json")
            assert started.json["status"] == "running"
            cancelled = await treadle(host, "run", "cancel", "r", "--reason", "no", "-o", "json")
            assert cancelled.json["cancel_requested"] or cancelled.json["status"] == "cancelled"
            ended = await treadle(host, "run", "terminate", "r", "--reason", "enough")
            assert (ended.code, ended.out) == (0, "")
            assert "terminated" in ended.err
            assert (await treadle(host, "run", "terminate", "r")).code == 1
            assert (await treadle(host, "run", "accept", "r")).code == 1

            pools = await treadle(host, "pools", "-o", "json")
            assert [one["name"] for one in pools.json] == ["crm"]
            doctor = await treadle(host, "doctor")
            assert doctor.code in (0, 1)
            assert doctor.out.startswith("✓ control plane   answers at")

    asyncio.run(main())


def test_events() -> None:
    async def main() -> None:
        async with api_host() as host:
            sent = await treadle(host, "events", "send", "order.paid", "-i", '{"order": 7}', "--id", "p7", "-o", "json")
            assert (sent.code, sent.json["id"], sent.json["duplicate"], sent.json["starts"]) == (0, "p7", False, 0)
            again = await treadle(host, "events", "send", "order.paid", "--id", "p7")
            assert (again.code, again.out) == (0, "") and "was sent before" in again.err
            listed = await treadle(host, "events", "list", "--name", "order.paid", "-o", "json")
            assert [event["event_id"] for event in listed.json] == ["p7"]
            assert (await treadle(host, "events", "triggers", "-o", "json")).json == []
            missing = await treadle(host, "events", "forget", "nothing")
            assert missing.code != 0 and "nothing" in missing.err
            wrong = await treadle(host, "events", "send", "not a name")
            assert wrong.code != 0 and "event name" in wrong.err

    asyncio.run(main())
