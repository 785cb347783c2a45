"""Long steps through all layers: what clients and the command line see of progress, and how they finish a step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.integration.test_cli_commands import Ended, treadle
from treadle.client import Client, NotFound, Refused, StepSettled
from treadle.client.encryption import AesGcm, new_key
from treadle.controlplane.api.auth import Grantee
from treadle.controlplane.embedded import embedded
from treadle.protocol.errors import FieldInvalid
from treadle.worker import (
    Deferred,
    HeartbeatMissed,
    Retry,
    StepError,
    defer,
    heartbeat,
    last_progress,
    progress,
    step,
    workflow,
)
from treadle.worker.app import collect
from treadle.worker.config import WorkerConfig
from treadle.worker.runtime import Worker

TOKENS: list[str] = []
SILENCE = threading.Event()


@step(pool="default", retry=Retry(attempts=2, initial="0.05s"))
async def approve(what: str) -> str:
    progress({"asked": what})
    TOKENS.append(defer(timeout="7d"))
    raise Deferred


@workflow
async def approval(what: str) -> str:
    try:
        return await approve(what)
    except StepError as error:
        return f"{error.type_name}: {error.message}"


@step(pool="default", heartbeat="0.5s", retry=Retry(attempts=2, initial="0.05s"))
def stalls(until: int) -> int:
    count = last_progress(int) or 0
    while count < until:
        count += 1
        progress(count)
    if until == 3:
        heartbeat()
        SILENCE.wait(20)
    return count


@workflow
async def stalling() -> str:
    try:
        return str(await stalls(3))
    except HeartbeatMissed as error:
        return f"{type(error).__name__} after {error.attempts}"


Play = Callable[[Callable[[Client, Callable[..., Coroutine[Any, Any, Ended]]], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """Run a body against an embedded control plane and a worker in this process."""

    def run(body: Callable[[Client, Callable[..., Coroutine[Any, Any, Ended]]], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            TOKENS.clear()
            registry = collect([approve, approval, stalls, stalling])
            async with embedded(tmp_path, 0) as address, Client(address) as client:
                worker = Worker(WorkerConfig(app="x", server=address, pool="default", grace="0.1s"), registry)
                working = asyncio.create_task(worker.run())
                host: Any = SimpleNamespace(address=address)

                def command(*words: str, stdin: str = "") -> Coroutine[Any, Any, Ended]:
                    return treadle(host, *words, stdin=stdin)

                try:
                    async with asyncio.timeout(90):
                        await body(client, command)
                finally:
                    worker.drain()
                    await working

        asyncio.run(main())

    return run


async def until(what: Callable[[], Coroutine[Any, Any, bool]]) -> None:
    async with asyncio.timeout(30):
        while not await what():
            await asyncio.sleep(0.02)


async def deferred(client: Client, run: str) -> bool:
    return any([event.HasField("step_deferred") async for event in client.run(run).history()])


def test_a_deferred_step_on_the_command_line(play: Play) -> None:
    async def body(client: Client, command: Callable[..., Coroutine[Any, Any, Ended]]) -> None:
        run = await client.start(approval, "the order", id="r1")
        await until(lambda: deferred(client, "r1"))
        watching = asyncio.create_task(command("run", "watch", "r1"))
        shown = (await command("run", "show", "r1", "-o", "json")).json
        assert shown["progress"][0]["value"] == {"asked": "the order"} and shown["progress"][0]["step"] == "approve"
        (step,) = shown["steps"]
        assert (step["state"], step["attempts"][0]["outcome"]) == ("deferred", "deferred") and step["due_at"]
        drawn = (await command("run", "show", "r1")).out
        assert "waits to be finished from outside, fails in" in drawn and '{"asked": "the order"}' in drawn
        (token,) = TOKENS
        assert token not in drawn

        done = await command("step", "complete", "@-", "-i", '"fine"', "--request-id", "mine", stdin=token + "\n")
        assert (done.code, done.out) == (0, "") and "r1" in done.err
        assert await run.result(timeout="30s") == "fine"
        again = await command("step", "complete", token, "-i", '"fine"', "--request-id", "mine")
        assert again.code == 0, "the same call has the same answer"
        late = await command("step", "fail", token, "too late")
        assert late.code == 1 and "cannot be finished by this token" in late.err and token not in late.err
        told = await watching
        assert "approve            waits to be finished from outside" in told.out and "from outside\n" in told.out
        assert '{"asked": "the order"}' in told.out
        none = await command("step", "complete", "tds_nonsense")
        assert none.code == 2 and "nonsense" not in none.err

    play(body)


def test_a_step_is_failed_from_outside(play: Play) -> None:
    async def body(client: Client, command: Callable[..., Coroutine[Any, Any, Ended]]) -> None:
        run = await client.start(approval, "x", id="r1")
        await until(lambda: deferred(client, "r1"))
        assert await client.fail_step(TOKENS[0], LookupError("nobody there")) == "r1"

        async def asked_again() -> bool:
            return len(TOKENS) == 2

        await until(asked_again)
        with pytest.raises(StepSettled, match="finished by another call"):
            await client.complete_step(TOKENS[0], "late")
        done = await command("step", "fail", TOKENS[1], "no", "--final")
        assert done.code == 0
        assert await run.result(timeout="30s") == "StepError: no"

    play(body)


def test_tokens_are_good_where_they_were_made(play: Play) -> None:
    async def body(client: Client, command: Callable[..., Coroutine[Any, Any, Ended]]) -> None:
        await client.start(approval, "x", id="r1")
        await until(lambda: deferred(client, "r1"))
        (token,) = TOKENS
        flipped = token[:10] + ("A" if token[10] != "A" else "B") + token[11:]
        with pytest.raises(Refused, match="this is no token of step") as refused:
            await client.complete_step(flipped, "forged")
        assert refused.value.reason == "STEP_TOKEN_INVALID" and flipped not in str(refused.value)
        async with Client(client.target, namespace="other") as other:
            with pytest.raises(NotFound):
                await other.complete_step(token, "elsewhere")
        with pytest.raises(FieldInvalid):
            await client.complete_step("tds_", "x")
        assert await client.complete_step(token, "ok") == "r1"

    play(body)


def test_a_heartbeat_that_is_missed_in_a_thread(play: Play) -> None:
    async def body(client: Client, command: Callable[..., Coroutine[Any, Any, Ended]]) -> None:
        run = await client.start(stalling, id="r1")
        assert await run.result(timeout="30s") == "HeartbeatMissed after 2"
        kinds = [event.WhichOneof("kind") async for event in run.history()]
        assert kinds.count("attempt_started") == 2 and not (await run.get()).progress

    play(body)


SECRET = "the secret of the order"


@step(retry=Retry(attempts=2, initial="0.05s"))
def counts_here() -> str:
    said = last_progress(str)
    if said is None:
        progress(SECRET)
        raise ConnectionError
    return said


@workflow
async def private() -> list[str]:
    first = await approve(SECRET)
    try:
        await approve(SECRET)
    except StepError as error:
        return [first, error.message, await counts_here()]
    return []


def test_what_is_said_and_brought_is_encrypted_on_its_way(tmp_path: Path) -> None:
    """Progress, results and errors from outside: the control plane has none of them in clear."""
    keys = tmp_path / "keys"
    keys.write_text(f"{new_key('a')}\n")
    codec = AesGcm.from_file(keys)

    async def main() -> None:
        TOKENS.clear()
        registry = collect([approve, private, counts_here])
        async with embedded(tmp_path / "state", 0) as address, Client(address, codec=codec) as client:
            config = WorkerConfig(app="x", server=address, pool="default", grace="0.1s", keys_file=str(keys))
            worker = Worker(config, registry)
            working = asyncio.create_task(worker.run())
            try:
                async with asyncio.timeout(60):
                    run = await client.start(private, id="r1")
                    await until(lambda: deferred(client, "r1"))
                    assert (await run.get()).progress[0].value() == {"asked": SECRET}
                    await client.complete_step(TOKENS[0], SECRET)

                    async def asked_twice() -> bool:
                        return len(TOKENS) == 2

                    await until(asked_twice)
                    await client.fail_step(TOKENS[1], LookupError(SECRET), final=True)
                    assert await run.result(timeout="30s") == [SECRET, SECRET, SECRET]
                    async with Client(address) as stranger:
                        seen = [event.SerializeToString() async for event in stranger.run("r1").history()]
                    assert seen and not any(SECRET.encode() in event for event in seen)
            finally:
                worker.drain()
                await working

    asyncio.run(main())


@pytest.mark.parametrize("method", ["CompleteStep", "FailStep"])
def test_clients_may_finish_steps_and_viewers_and_workers_may_not(method: str) -> None:
    name = f"/treadle.v1.StepService/{method}"
    for role in ("client", "operator", "admin"):
        Grantee("default", role).check_method(name)
    for role in ("viewer", "worker"):
        with pytest.raises(Refused, match="may not call"):
            Grantee("default", role).check_method(name)
