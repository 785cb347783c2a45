"""The hot connection: passwords, databases, many calls at once, callers that go away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from tests.servers.redis_server import RedisServer
from treadle.controlplane.store.lane import Lane, pack

pytestmark = pytest.mark.redis


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as started:
        yield started


def run(url: str, body: Callable[[Lane], Awaitable[None]]) -> None:
    async def main() -> None:
        lane = Lane(url, timeout=5)
        try:
            await body(lane)
        finally:
            await lane.close()

    asyncio.run(main())


def test_a_command_on_the_wire() -> None:
    assert pack(("SET", b"\r\n\xff", 12)) == b"*3\r\n$3\r\nSET\r\n$3\r\n\r\n\xff\r\n$2\r\n12\r\n"


def test_password_and_database(server: RedisServer) -> None:
    with server.client() as client:
        client.config_set("requirepass", "s3cret")

    async def body(lane: Lane) -> None:
        assert await lane.call([("SET", "k", b"\x00\xff"), ("GET", "k")]) == [b"OK", b"\x00\xff"]
        (info,) = await lane.call([("CLIENT", "INFO")])
        assert b" db=3 " in info

    run(f"redis://:s3cret@127.0.0.1:{server.port}/3", body)
    run(f"redis://default:s3cret@127.0.0.1:{server.port}/3", body)

    async def refused(lane: Lane) -> None:
        with pytest.raises(RedisConnectionError, match="AUTH was refused"):
            await lane.call([("PING",)])

    run(f"redis://:wrong@127.0.0.1:{server.port}/0", refused)


def test_replies_go_to_their_callers(server: RedisServer) -> None:
    async def body(lane: Lane) -> None:
        async def one(i: int) -> None:
            echo, error, nothing = await lane.call([("ECHO", i), ("NO-SUCH-COMMAND",), ("GET", "none")])
            assert echo == b"%d" % i
            assert isinstance(error, ResponseError)
            assert nothing is None

        gone = [asyncio.ensure_future(one(-i)) for i in range(50)]
        staying = [asyncio.ensure_future(one(i)) for i in range(200)]
        await asyncio.sleep(0)
        for caller in gone:
            caller.cancel()
        await asyncio.gather(*staying)
        await asyncio.wait(gone)
        assert all(caller.cancelled() for caller in gone)

    run(server.url, body)


def test_it_connects_again(server: RedisServer) -> None:
    async def body(lane: Lane) -> None:
        await lane.call([("SET", "k", 1)])
        blocked = asyncio.ensure_future(lane.call([("BLPOP", "none", 0)]))
        await asyncio.sleep(0)
        server.kill()
        with pytest.raises((RedisConnectionError, OSError)):
            await blocked
        with pytest.raises((RedisConnectionError, OSError)):
            await lane.call([("GET", "k")])
        server.start()
        assert await lane.call([("GET", "k")]) == [b"1"]

    run(server.url, body)


def test_a_call_without_an_answer_ends_the_connection_and_the_next_has_another(server: RedisServer) -> None:
    async def main() -> None:
        lane = Lane(server.url, timeout=1.0)
        try:
            await lane.call([("SET", "k", 1)])
            blocked = [asyncio.ensure_future(lane.call([("BLPOP", "none", 0)])) for _ in range(2)]
            behind = asyncio.ensure_future(lane.call([("GET", "k")]))
            for one in (*blocked, behind):
                with pytest.raises(TimeoutError, match=r"no answer within 1\.0 s"):
                    await one
            assert await lane.call([("GET", "k")]) == [b"1"]
        finally:
            await lane.close()

    asyncio.run(main())
