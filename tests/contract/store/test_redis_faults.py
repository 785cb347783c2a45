"""Redis as it really is: killed, restarted, frozen, flushed of its scripts, and configured to lose data."""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.store.cases import ALL, RUN, Case, change, commit, load, record
from tests.servers.redis_server import RedisServer
from treadle.controlplane.store.port import Beat, CheckResult, Hint, Loaded, Outcome, Store
from treadle.controlplane.store.redis import RedisStore
from treadle.protocol.errors import Unavailable
from treadle.protocol.ids import RunKey

pytestmark = pytest.mark.redis


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


@pytest.mark.parametrize("case", ["redis", "cluster", "valkey"], indirect=True)
def test_scripts_are_loaded_again_after_a_flush(case: Case) -> None:
    async def body(store: Any) -> None:
        async def flush() -> None:
            await store._link.each_node(lambda client: client.script_flush())

        runs = [RunKey("default", f"r{i}") for i in range(20)]
        await flush()
        assert await commit(store, *(change(run, timers_set={"": 1}) for run in runs)) == [Outcome.OK] * 20
        await flush()
        assert len((await store.due(ALL, 100)).due) == 20
        await flush()
        assert [found.revision for found in await asyncio.gather(*(load(store, run) for run in runs))] == [1] * 20
        await flush()
        assert await store.open_session(record())
        assert await store.put_aside(1, "unknown", b"x")

    case.run(body)


@pytest.mark.kill
def test_what_was_acknowledged_survives_kill_9(server: RedisServer) -> None:
    acknowledged: dict[int, int] = {}

    async def writer(store: Store, number: int) -> None:
        run, revision = RunKey("default", f"r{number}"), 0
        while True:
            write = change(run, revision, revision + 1, b"%d" % (revision + 1), events=[b"e"] * 2)
            try:
                assert await commit(store, write) == [Outcome.OK]
            except Unavailable:
                return
            revision += 1
            acknowledged[number] = revision
            if number == 0 and revision == 200:
                threading.Thread(target=server.kill).start()

    async def body(store: Store) -> None:
        await asyncio.gather(*(writer(store, number) for number in range(8)))
        server.start()
        for number, revision in acknowledged.items():
            loaded = await load(store, RunKey("default", f"r{number}"), event_at=2 * revision)
            assert loaded.revision in (revision, revision + 1)  # the last may have been written unanswered
            assert loaded.head == b"%d" % loaded.revision
            assert loaded.event == b"e"

    Case("redis", server.url).run(body)
    assert len(acknowledged) == 8


@pytest.mark.kill
def test_hints_come_again_after_a_restart(server: RedisServer) -> None:
    async def body(store: Store, other: Store) -> None:
        listener = other.hints()
        next_hint = asyncio.ensure_future(anext(listener))
        await asyncio.sleep(0)
        assert other.lives == 0
        server.kill()
        with pytest.raises(Unavailable, match=f"127.0.0.1:{server.port}"):
            await store.now()
        server.start()
        revision = 0
        async with asyncio.timeout(20):
            while not next_hint.done():  # hints may be lost until the subscription stands again
                hint = Hint("n", "r", revision, False, "")
                await commit(store, change(expect=revision, revision=revision + 1, hint=hint))
                revision += 1
                await asyncio.wait([next_hint], timeout=0.05)
        assert next_hint.result()[0].run_id == "r"
        assert other.lives > 0, "the server that answers now may have lost commits"

    case = Case("redis", server.url)
    case.run(body, replicas=2)


def test_a_server_that_is_not_there_is_named() -> None:
    async def main() -> None:
        store = RedisStore("redis://user:hunter2@127.0.0.1:1/0")
        with pytest.raises(Unavailable, match=r"redis://\*\*\*@127\.0\.0\.1:1/0") as caught:
            await store.start()
        assert "hunter2" not in str(caught.value)
        with pytest.raises(Unavailable, match="not started"):
            await store.now()

    asyncio.run(main())


def test_a_frozen_server_costs_the_timeout_and_no_more(server: RedisServer) -> None:
    async def main() -> None:
        store = RedisStore(server.url, timeout=0.6)
        await store.start()
        try:
            assert await commit(store, change()) == [Outcome.OK]
            server.pause()
            loop = asyncio.get_running_loop()
            before = loop.time()
            with pytest.raises(Unavailable, match=str(server.port)):
                await commit(store, change(expect=1, revision=2))
            with pytest.raises(Unavailable):
                await store.outbox_size()
            assert loop.time() - before < 3
            server.resume()
            async with asyncio.timeout(10):
                loaded = await load(store)
            assert loaded in (Loaded(1, b"head"), Loaded(2, b"head"))
        finally:
            server.resume()
            await store.stop()

    asyncio.run(main())


def test_a_server_that_refuses_writes_for_now_is_away(server: RedisServer) -> None:
    """As with a full disk (MISCONF): whoever asks must wait for it, not take it for an error of its own."""

    async def main() -> None:
        store = RedisStore(server.url)
        await store.start()
        client = server.client()
        try:
            client.config_set("min-replicas-to-write", 1)
            with pytest.raises(Unavailable, match="NOREPLICAS"):
                await store.commit([change(RUN)])
            client.config_set("min-replicas-to-write", 0)
            assert await commit(store, change(RUN)) == [Outcome.OK]
        finally:
            client.close()
            await store.stop()

    asyncio.run(main())


def test_a_record_that_was_lost_is_not_made_by_a_beat(server: RedisServer) -> None:
    async def body(store: Any) -> None:
        await store.open_session(record())
        await store._link.client.flushall()
        (answer,) = await store.beat([Beat("w1", "s1", 200, 0, [])])
        assert answer.ignored
        assert await store.workers("default") == []

    Case("redis", server.url).run(body)


def test_what_was_aside_for_a_week_makes_room(server: RedisServer) -> None:
    case = Case("redis", server.url)

    async def body(store: Any) -> None:
        key = f"{case.prefix}:{{1}}:unknown"
        old = struct.pack(">d", await store.now() - 7 * 86_400_000 - 1) + b"x" * (1 << 20)
        await store._link.client.rpush(key, old)
        await store._link.client.set(f"{key}:size", 1 << 20)
        assert await store.aside("unknown", 9) == []
        assert await store.put_aside(1, "unknown", b"new")
        assert [data for _, data in await store.aside("unknown", 9)] == [b"new"]
        assert await store._link.client.get(f"{key}:size") == b"3"

    case.run(body)


def checks(server: RedisServer) -> dict[str, CheckResult]:
    found: dict[str, CheckResult] = {}

    async def body(store: Store) -> None:
        found.update({result.name: result for result in await store.check()})

    Case("redis", server.url).run(body)
    return found


def test_a_server_as_it_should_be_passes_the_checks(server: RedisServer) -> None:
    assert {name: result.ok for name, result in checks(server).items()} == {
        "version": True,
        "persistence": True,
        "maxmemory-policy": True,
    }


@pytest.mark.parametrize(
    ("setting", "value", "name", "fatal", "words"),
    [
        ("appendonly", "no", "persistence", True, "loses acknowledged runs"),
        ("appendfsync", "everysec", "persistence", False, "up to a second"),
        ("appendfsync", "no", "persistence", True, "may be lost"),
        ("maxmemory-policy", "allkeys-lru", "maxmemory-policy", True, "removes runs"),
    ],
)
def test_a_server_that_loses_data_is_found(
    server: RedisServer, setting: str, value: str, name: str, fatal: bool, words: str
) -> None:
    with server.client() as client:
        client.config_set(setting, value)
    result = checks(server)[name]
    assert (result.ok, result.fatal) == (False, fatal)
    assert words in result.detail
    assert "set `" in result.remedy


def test_without_config_the_checks_say_so(server: RedisServer) -> None:
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "default", "-config")
    found = checks(server)
    assert "does not permit CONFIG" in found["persistence"].detail
    assert not found["persistence"].fatal
    assert not found["maxmemory-policy"].ok


def test_a_cluster_node_used_alone_is_found(cluster_url: str) -> None:
    async def main() -> None:
        store = RedisStore(cluster_url)
        await store.start()
        try:
            found = {result.name: result for result in await store.check()}
        finally:
            await store.stop()
        assert not found["cluster"].ok
        assert found["cluster"].fatal

    asyncio.run(main())


def test_a_cluster_is_checked_node_by_node(cluster_url: str) -> None:
    async def body(store: Store) -> None:
        results = await store.check()
        assert [result.name for result in results].count("persistence") == 3
        assert all(result.ok for result in results)
        assert await load(store, RUN) == Loaded()

    Case("cluster", cluster_url, cluster=True).run(body)
