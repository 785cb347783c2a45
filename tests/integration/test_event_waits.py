"""Runs that wait for events, over real sockets, an embedded store and a worker in this process."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_events import DEADLINE_S, scene, until
from treadle.client import Client, NewEvent, RunFailed
from treadle.client.encryption import new_key
from treadle.client.timeline import timeline_of
from treadle.worker import ConfigError, continue_as_new, send_event, step, wait_for_event, workflow


@step
def note(text: str) -> str:
    return text


@workflow
async def pays(order: int) -> str:
    event = await wait_for_event("order.paid", dict[str, Any], match={"order.id": order}, timeout="3d")
    return f"{event.id} {event.data['amount']}" if event is not None else "nothing"


@workflow
async def impatient(order: int) -> str:
    event = await wait_for_event("order.paid", match={"order.id": order}, timeout=0.3)
    return "nothing" if event is None else event.id


@workflow
async def only_from_now(order: int) -> str:
    await wait_for_event("go")
    event = await wait_for_event("order.paid", match={"order.id": order}, timeout=0.5, since="now")
    return "nothing" if event is None else event.id


@workflow
async def consumer(count: int) -> list[int]:
    found = []
    for _ in range(count):
        event = await wait_for_event("number", dict[str, int])
        found.append(event.data["n"])
        await note(str(event.data["n"]))
    return found


@workflow
async def part(count: int, found: list[int]) -> list[int]:
    event = await wait_for_event("number", dict[str, int])
    await note(str(event.data["n"]))
    found = [*found, event.data["n"]]
    return found if len(found) == count else continue_as_new(count, found)


@workflow
async def first_of_two(order: int) -> str:
    waits = {
        asyncio.create_task(wait_for_event(name, match={"order": order}), name=name) for name in ("shipped", "lost")
    }
    done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return done.pop().get_name()


@workflow
async def sender(order: int) -> str:
    return send_event("order.paid", {"order": {"id": order}, "amount": 5})


@workflow(on="started.by")
async def chain(data: dict[str, int]) -> str:
    event = await wait_for_event("started.by", match={"key": data["key"]}, timeout="5m")
    return "nothing" if event is None else str(event.data["n"])


@workflow
async def wrong(what: str) -> None:
    if what == "since":
        await wait_for_event("x", since="2d")
    await wait_for_event("x", match={"a": [1]})


APP: list[Any] = [note, pays, impatient, only_from_now, consumer, part, first_of_two, sender, chain, wrong]


def paid(order: int, id: str, amount: int = 10) -> NewEvent:
    return NewEvent("order.paid", {"order": {"id": order}, "amount": amount}, id=id)


async def waits(client: Client, run: str, name: str, count: int = 1) -> None:
    """Until the run waits for an event of this name."""

    async def there() -> bool:
        timeline = timeline_of([event async for event in client.run(run).history()])
        return len([s for s in timeline.steps.values() if s.kind == "event" and s.name == name]) >= count

    await until(there)


def test_events_before_and_after_the_wait(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path, APP) as client:
            early = await client.start(pays, 1, id="early")
            other = await client.start(pays, 2, id="other")
            await client.send_many([paid(1, "p1")])
            assert await early.result(timeout=DEADLINE_S) == "p1 10"
            await waits(client, "other", "order.paid")
            late = await client.start(pays, 3, id="late")
            await waits(client, "late", "order.paid")
            await client.send_many([paid(9, "p9"), paid(3, "p3", 7), paid(2, "p2")])
            assert await late.result(timeout=DEADLINE_S) == "p3 7"
            assert await other.result(timeout=DEADLINE_S) == "p2 10"
            all_of_it = timeline_of([event async for event in early.history()])
            (wait,) = [s for s in all_of_it.steps.values() if s.kind == "event"]
            assert (wait.name, wait.state) == ("order.paid", "completed")

    asyncio.run(main())


def test_the_timeout_gives_none_and_since_now_looks_at_nothing_that_was(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path, APP) as client:
            nothing = await client.start(impatient, 1)
            assert await nothing.result(timeout=DEADLINE_S) == "nothing"
            run = await client.start(only_from_now, 5, id="now")
            await client.send_many([paid(5, "before")])
            await client.send("go")
            assert await run.result(timeout=DEADLINE_S) == "nothing"

    asyncio.run(main())


def test_waits_in_a_row_get_each_event_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path, APP) as client:
            run = await client.start(consumer, 30)
            for n in range(30):
                await client.send("number", {"n": n}, id=f"n{n}")
                await client.send("number", {"n": n}, id=f"n{n}")
            assert sorted(await run.result(timeout=DEADLINE_S)) == list(range(30))

    asyncio.run(main())


def test_the_parts_of_a_run_get_each_event_once(tmp_path: Path) -> None:
    """Most come while one part ends and the next one begins."""

    async def main() -> None:
        async with scene(tmp_path, APP) as client:
            run = await client.start(part, 20, [])
            for n in range(20):
                await client.send("number", {"n": n}, id=f"n{n}")
            assert sorted(await run.result(timeout=DEADLINE_S)) == list(range(20))

    asyncio.run(main())


def test_a_race_of_waits_and_an_event_of_a_run(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path, APP) as client:
            race = await client.start(first_of_two, 4, id="race")
            waiting = await client.start(pays, 8, id="pays")
            await waits(client, "race", "lost")
            await waits(client, "pays", "order.paid")
            await client.send("lost", {"order": 4})
            assert await race.result(timeout=DEADLINE_S) == "lost"
            sent = await (await client.start(sender, 8)).result(timeout=DEADLINE_S)
            assert await waiting.result(timeout=DEADLINE_S) == f"{sent} 5"
            kinds = [event.WhichOneof("kind") async for event in race.history()]
            assert kinds.count("event_wait_started") == 2 and "event_matched" in kinds

    asyncio.run(main())


def test_a_run_does_not_receive_the_event_that_started_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path, APP) as client:
            await client.send("started.by", {"key": 1, "n": 1}, id="first")

            async def there() -> bool:
                return bool([run async for run in client.list(workflow="chain")])

            await until(there)
            (info,) = [run async for run in client.list(workflow="chain")]
            await waits(client, info.id, "started.by")
            await client.delete_trigger("chain")
            await client.send("started.by", {"key": 1, "n": 2}, id="second")
            assert await client.run(info.id, chain).result(timeout=DEADLINE_S) == "2"

    asyncio.run(main())


def test_what_is_wrong_is_raised_in_the_code(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path, APP) as client:
            for what, told in (("since", "kept for 24 hours"), ("match", "compare text, numbers")):
                with pytest.raises(RunFailed, match=told):
                    await (await client.start(wrong, what)).result(timeout=DEADLINE_S)
        with pytest.raises(ConfigError, match="inside a @workflow"):
            await wait_for_event("x")
        with pytest.raises(ConfigError, match=r"Client\.send"):
            send_event("x")

    asyncio.run(main())


def test_with_a_codec_events_still_reach_everybody(tmp_path: Path) -> None:
    """They are not encrypted: what a run sends, others compare, and other runs are started with."""
    keys = tmp_path / "keys"
    keys.write_text(new_key("k1"), encoding="utf-8")

    async def main() -> None:
        async with scene(tmp_path / "data", APP, keys_file=str(keys)) as client:
            waiting = await client.start("pays", {"order": 8}, id="pays")
            await waits(client, "pays", "order.paid")
            await client.start("sender", {"order": 8}, id="sends")
            await until(lambda: closed(client, "pays"))
            (matched,) = [e.event_matched async for e in waiting.history() if e.HasField("event_matched")]
            assert matched.event.data.data == b'{"order":{"id":8},"amount":5}'

    asyncio.run(main())


async def closed(client: Client, run: str) -> bool:
    return (await client.run(run).get()).status.value == "completed"
