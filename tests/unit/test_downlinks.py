"""Frames go down one at a time, at once when a commit says so, and nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from treadle.controlplane.downlinks import Downlink, Downlinks
from treadle.v1.worker_service_pb2 import SessionResponse


class Stream:
    """A stream whose writes end when the test lets them, and a batch of credit ids."""

    def __init__(self, links: Downlinks) -> None:
        self.batch: list[int] = []
        self.written: list[int] = []
        self.free = asyncio.Event()
        self.free.set()
        self.writing = 0
        self.fault: Exception | None = None
        self.link = Downlink(links, self._send)
        self.link.frames = self._frames

    def say(self, number: int) -> None:
        self.batch.append(number)
        self.link.ready()

    def _frames(self) -> Iterator[SessionResponse]:
        batch, self.batch = self.batch, []
        for number in batch:
            yield SessionResponse(credits_taken=number)

    async def _send(self, frame: SessionResponse) -> None:
        assert not self.writing, "one write at a time"
        if self.fault is not None:
            raise self.fault
        self.writing += 1
        self.written.append(frame.credits_taken)
        await self.free.wait()
        self.writing -= 1


async def _turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_what_is_ready_goes_in_the_next_turn_and_at_once_with_flush() -> None:
    async def main() -> None:
        links = Downlinks()
        stream = Stream(links)
        stream.say(1)
        stream.say(2)
        assert not stream.written, "more may belong to it"
        await _turn()
        assert stream.written == [1, 2]
        stream.say(3)
        links.flush()
        assert stream.written == [1, 2, 3]
        await _turn()
        assert stream.written == [1, 2, 3]
        await stream.link.close(drain=False)

    asyncio.run(main())


def test_what_is_said_during_a_write_follows_it_and_another_stream_does_not_wait() -> None:
    async def main() -> None:
        links = Downlinks()
        slow, quick = Stream(links), Stream(links)
        slow.free.clear()
        slow.say(1)
        links.flush()
        slow.say(2)
        slow.say(3)
        quick.say(1)
        links.flush()
        await _turn()
        assert (slow.written, quick.written) == ([1], [1])
        slow.free.set()
        await _turn()
        assert slow.written == [1, 2, 3]
        for stream in (slow, quick):
            await stream.link.close(drain=False)

    asyncio.run(main())


def test_a_stream_that_ends_in_good_order_is_drained_and_then_silent() -> None:
    async def main() -> None:
        links = Downlinks()
        stream = Stream(links)
        stream.say(1)
        await stream.link.close(drain=True)
        assert stream.written == [1]
        stream.say(2)
        links.flush()
        await _turn()
        assert stream.written == [1]

    asyncio.run(main())


def test_a_stream_that_is_cut_writes_nothing_more() -> None:
    async def main() -> None:
        links = Downlinks()
        stream = Stream(links)
        stream.free.clear()
        stream.say(1)
        links.flush()
        stream.say(2)
        await stream.link.close(drain=False)
        await _turn()
        assert stream.written == [1]

    asyncio.run(main())


def test_a_write_that_fails_is_told_and_is_the_last() -> None:
    async def main() -> None:
        links = Downlinks()
        stream = Stream(links)
        stream.fault = OSError("gone")
        stream.say(1)
        links.flush()
        assert stream.link.broken.result() is stream.fault
        stream.fault = None
        stream.say(2)
        links.flush()
        await stream.link.close(drain=True)
        assert not stream.written

    asyncio.run(main())
