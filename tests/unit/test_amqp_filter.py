"""The filter between an AMQP socket and its library: who hears what, and what an error does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pamqp import commands as spec
from pamqp import frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from treadle.protocol import amqp_deliveries
from treadle.protocol.amqp_deliveries import Deliveries
from treadle.protocol.amqp_filter import FrameFilter
from treadle.protocol.amqp_frames import HEARTBEAT, FrameError, HotChannel, ack_frame, nack_frame

ACK = frame.marshal(spec.Basic.Ack(1, False), 1)


class Wire(asyncio.Transport):
    """The transport's place: remembers what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.aborted = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted


class Owner:
    def __init__(self) -> None:
        self.channel: HotChannel | None = None
        self.heard: list[int] = []
        self.may_write = 0
        self.bug: Exception | None = None

    def arrived(self) -> None:
        assert self.channel is not None
        self.heard.append(len(self.channel.confirms))
        self.channel.confirms = []
        if self.bug is not None:
            raise self.bug

    def writable(self) -> None:
        self.may_write += 1


class Bench:
    """A filter with a library that only reads, a transport that only remembers, and one hot channel."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.library = asyncio.StreamReader(loop=loop)
        self.filter = FrameFilter(asyncio.StreamReaderProtocol(self.library, loop=loop), loop)
        self.wire = Wire()
        self.filter.connection_made(self.wire)
        self.owner = Owner()
        self.channel = self.owner.channel = self.filter.open(1, self.owner)

    async def heard_by_the_library(self) -> bytes:
        self.library.feed_eof()
        return await self.library.read()


def on_a_bench(scenario: Callable[[Bench], Awaitable[None]]) -> None:
    async def run() -> None:
        await scenario(Bench())

    asyncio.run(run())


def deliver(tag: int, body: bytes = b"x", channel: int = 1) -> bytes:
    header = ContentHeader(body_size=len(body), properties=spec.Basic.Properties())
    method = spec.Basic.Deliver("c", tag, False, "e", "k")
    return b"".join(frame.marshal(part, channel) for part in (method, header, ContentBody(body)))


def test_one_call_for_all_that_a_read_brought() -> None:
    async def scenario(bench: Bench) -> None:
        declared = frame.marshal(spec.Queue.DeclareOk("q", 0, 0), 1)
        bench.filter.data_received(ACK + declared + ACK + ACK[:9])
        bench.filter.data_received(ACK[9:])
        assert bench.owner.heard == [2, 1]
        assert await bench.heard_by_the_library() == declared

    on_a_bench(scenario)


def test_the_library_hears_a_heartbeat_now_and_then_instead_of_hot_traffic() -> None:
    async def scenario(bench: Bench) -> None:
        for _ in range(50):
            bench.filter.data_received(ACK)
        for _ in range(2):
            bench.filter._told -= 2.5  # so long ago
            bench.filter.data_received(ACK)
            bench.filter.data_received(ACK)
        assert await bench.heard_by_the_library() == HEARTBEAT * 2

    on_a_bench(scenario)


def test_before_a_channel_is_hot_the_library_hears_only_what_came() -> None:
    async def scenario(bench: Bench) -> None:
        loop = asyncio.get_running_loop()
        library = asyncio.StreamReader(loop=loop)
        fresh = FrameFilter(asyncio.StreamReaderProtocol(library, loop=loop), loop)
        fresh.connection_made(Wire())
        start = frame.marshal(spec.Connection.Tune(10, 131072, 10), 0)
        for byte in start:
            fresh.data_received(bytes((byte,)))
        library.feed_eof()
        assert await library.read() == start

    on_a_bench(scenario)


def test_nonsense_ends_the_connection_and_says_what_it_was() -> None:
    async def scenario(bench: Bench) -> None:
        bench.filter.data_received(b"HTTP/1.1 400")
        assert bench.wire.aborted
        bench.filter.connection_lost(None)
        assert bench.channel.closed
        with pytest.raises(FrameError, match="HTTP"):
            await bench.library.read()

    on_a_bench(scenario)


def test_blocked_and_full_sockets_are_not_written_to_until_they_are_free() -> None:
    async def scenario(bench: Bench) -> None:
        blocked = frame.marshal(spec.Connection.Blocked("low on memory"), 0)
        unblocked = frame.marshal(spec.Connection.Unblocked(), 0)
        states = [bench.filter.writable]
        bench.filter.data_received(blocked)
        states.append(bench.filter.writable)
        bench.filter.pause_writing()
        bench.filter.data_received(unblocked)
        states.append(bench.filter.writable)
        bench.filter.resume_writing()
        states.append(bench.filter.writable)
        assert states == [True, False, False, True]
        assert bench.owner.may_write == 2
        assert await bench.heard_by_the_library() == blocked + unblocked  # it has its own opinion of both

    on_a_bench(scenario)


def test_an_error_of_an_owner_is_reported_and_ends_nothing() -> None:
    async def scenario(bench: Bench) -> None:
        reported: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        bench.owner.bug = ValueError("a bug")
        bench.filter.data_received(ACK)
        bench.filter.data_received(ACK)
        assert [context["exception"] for context in reported] == [bench.owner.bug] * 2
        assert not bench.wire.aborted

    on_a_bench(scenario)


def test_what_comes_for_a_released_channel_is_dropped_until_it_is_closed() -> None:
    async def scenario(bench: Bench) -> None:
        close_ok = frame.marshal(spec.Channel.CloseOk(), 1)
        bench.filter.data_received(deliver(1, b"half")[:-6])
        bench.filter.release(bench.channel)
        bench.filter.data_received(deliver(1, b"half")[-6:] + deliver(2) + ACK + close_ok + deliver(3))
        assert not any(bench.owner.heard)
        assert bench.channel.deliveries == [] and bench.channel.confirms == []
        assert await bench.heard_by_the_library() == close_ok + deliver(3)  # of another channel with its number

    on_a_bench(scenario)


def test_verdicts_are_written_together_and_acks_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amqp_deliveries, "_ACK_WITHIN", 60.0)  # a machine may stand still for 5 ms

    async def scenario(bench: Bench) -> None:
        taken: list[tuple[int, bytes]] = []
        deliveries = Deliveries(bench.filter, 2, taken.extend)
        deliveries.prefetch = 8
        bench.filter.data_received(b"".join(deliver(tag, bytes((tag,)), channel=2) for tag in range(1, 9)))
        assert taken == [(tag, bytes((tag,))) for tag in range(1, 9)]
        assert deliveries.ack(1) and deliveries.ack(2) and not deliveries.ack(2)
        await asyncio.sleep(0)
        assert bench.wire.written == []  # not half of the prefetch, and not long enough
        assert deliveries.ack(4) and deliveries.ack(6)
        await asyncio.sleep(0)
        assert bench.wire.written == [ack_frame(2, 2, multiple=True) + ack_frame(2, 4) + ack_frame(2, 6)]
        assert deliveries.give_back(3)
        await asyncio.sleep(0)
        assert bench.wire.written[1:] == [nack_frame(2, 3)]
        monkeypatch.undo()
        assert deliveries.ack(5)
        async with asyncio.timeout(20):
            while len(bench.wire.written) < 3:
                await asyncio.sleep(0.001)
        assert bench.wire.written[2:] == [ack_frame(2, 5)]
        assert deliveries.open == (7, 8)
        deliveries.release()
        assert not deliveries.ack(7)

    on_a_bench(scenario)
