"""The sender of a session: a frame is begun at once, one at a time, and only for the session that is open."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from treadle.v1.worker_service_pb2 import (
    LANE_SESSION,
    RegisterRequest,
    RegisterResponse,
    SessionRequest,
    SessionResponse,
    SessionWelcome,
)
from treadle.worker.connection import Connection
from treadle.worker.session import SessionBroken, SessionPort


class Stream:
    """SessionPort whose writes end when the test says so."""

    def __init__(self) -> None:
        self.begun: list[SessionRequest] = []
        self.writes: deque[asyncio.Future[None]] = deque()
        self.down: asyncio.Queue[SessionResponse | None] = asyncio.Queue()
        self.down.put_nowait(SessionResponse(welcome=SessionWelcome(replica_id="r")))

    async def send(self, frame: SessionRequest) -> None:
        self.begun.append(frame)
        if frame.HasField("hello"):
            return
        write: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.writes.append(write)
        await write

    async def receive(self) -> SessionResponse | None:
        return await self.down.get()


class House:
    """The connection, and what it is told and asked."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.frames: deque[SessionRequest] = deque()
        self.received = 0
        self.connection = Connection(
            self,
            RegisterRequest(worker_id="w"),
            LANE_SESSION,
            ("here",),
            frame=lambda: self.frames.popleft() if self.frames else None,
            opened=lambda _line: None,
            received=self._took,
            ended=lambda: None,
        )

    def _took(self, _response: SessionResponse) -> None:
        self.received += 1
        self.say(self.received)

    async def register(self, address: str, request: RegisterRequest) -> RegisterResponse:
        return RegisterResponse()

    @asynccontextmanager
    async def open(self, address: str) -> AsyncIterator[SessionPort]:
        self.streams.append(Stream())
        yield self.streams[-1]

    def say(self, number: int) -> None:
        self.frames.append(_frame(number))
        self.connection.wake()


def _frame(number: int) -> SessionRequest:
    frame = SessionRequest()
    frame.credits.credit_id = number
    return frame


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


def _play(scene: Callable[[House], AsyncIterator[None]]) -> None:
    async def play() -> None:
        house = House()
        running = asyncio.create_task(house.connection.run())
        try:
            async for _ in scene(house):
                await _until(lambda: house.connection._line is not None and house.connection._line.idle)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(play())


def test_a_frame_is_begun_by_whoever_has_something_to_say() -> None:
    async def scene(house: House) -> AsyncIterator[None]:
        yield
        stream = house.streams[0]
        house.say(7)
        assert stream.begun[1:] == [_frame(7)], "without a turn of the event loop"

    _play(scene)


def test_one_write_at_a_time_and_all_else_follows_it() -> None:
    async def scene(house: House) -> AsyncIterator[None]:
        yield
        stream = house.streams[0]
        house.say(1)
        house.say(2)
        stream.down.put_nowait(SessionResponse(run_job_waits=True))
        await _until(lambda: house.received == 1)
        assert stream.begun[1:] == [_frame(1)]
        assert len(house.frames) == 2, "what is not being written is still with the core"
        stream.writes[0].set_result(None)
        await _until(lambda: len(stream.writes) == 2)
        assert stream.begun[1:] == [_frame(1), _frame(2)]

    _play(scene)


def test_a_write_that_fails_ends_the_session_and_the_next_one_says_the_rest() -> None:
    async def scene(house: House) -> AsyncIterator[None]:
        yield
        house.say(1)
        house.say(2)
        house.streams[0].writes[0].set_exception(SessionBroken("reset"))
        await _until(lambda: len(house.streams) == 2 and bool(house.streams[1].writes))
        assert house.streams[0].begun[1:] == [_frame(1)]
        assert house.streams[1].begun[1:] == [_frame(2)]

    _play(scene)


def test_goodbye_follows_the_last_frame_and_nothing_follows_it() -> None:
    async def scene(house: House) -> AsyncIterator[None]:
        yield
        stream = house.streams[0]
        house.say(1)
        leaving = asyncio.create_task(house.connection.leave())
        await asyncio.sleep(0)
        stream.writes[0].set_result(None)
        await _until(lambda: len(stream.writes) == 2)
        assert stream.begun[2].goodbye
        stream.writes[1].set_result(None)
        house.say(2)
        stream.down.put_nowait(None)
        await leaving
        assert len(stream.begun) == 3

    _play(scene)
