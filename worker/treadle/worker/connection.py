"""Keeping a session open: registration, hello, the next replica when one goes, frames in both directions.

Frames form by themselves: one is written at a time, and what the core has to say meanwhile goes into the next one. While
none is under way, a frame is begun by whoever has something to say: it does not wait for a turn of the event loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import secrets
from collections.abc import Callable
from contextlib import AsyncExitStack
from itertools import cycle
from typing import Any, Final

import structlog

from treadle.protocol.eager import start_now
from treadle.protocol.errors import Unavailable
from treadle.v1.worker_service_pb2 import (
    Lane,
    RegisterRequest,
    RegisterResponse,
    SessionHello,
    SessionRequest,
    SessionResponse,
)
from treadle.worker.backoff import Backoff
from treadle.worker.clock import monotonic_ms
from treadle.worker.session import Endpoint, SessionBroken, SessionPort
from treadle.worker.specs import handlers_of

__all__ = ("Connection", "Line", "register")

WELCOME_S: Final = (2.0, 10.0)
"""How long a replica may take to answer the hello: at first, and at most."""

STABLE_MS: Final = 2000
"""A session that lasted so long was a good one: after it, tries begin at once again."""

_MANY_FAILURES: Final = 3
_log = structlog.stdlib.get_logger(__name__)


async def register(endpoint: Endpoint, addresses: tuple[str, ...], request: RegisterRequest) -> RegisterResponse:
    """Announce the worker, trying each address in turn until a server answers.

    Raises:
        RequestError: A server refused it.
    """
    backoff = Backoff()
    for address in cycle(addresses):
        try:
            response = await endpoint.register(address, request)
        except Unavailable as error:
            pause = backoff.next_s()
            _log.warning("server_away", address=address, error=str(error), retry_in_s=round(pause, 2))
            await asyncio.sleep(pause)
            continue
        _log.info("registered", address=address, pool=request.pool, namespace=request.namespace)
        return response
    raise AssertionError("there is always an address")


class Line:
    """One session: its id, the stream, where it leads.

    Attributes:
        idle: It is served, and no frame is being written.
        writing: Writes frames, or has written the last one.
        broken: Why writing failed.
        ended: The session has ended.
    """

    def __init__(self, address: str, port: SessionPort, stack: AsyncExitStack) -> None:
        self.id = secrets.token_hex(16)
        self.address = address
        self.port = port
        self.stack = stack
        self.idle = False
        self.writing: asyncio.Task[None] | None = None
        self.broken: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self.ended = asyncio.Event()
        self.context = contextvars.copy_context()


class Connection:
    """Opens sessions, one after the other, and carries frames.

    Args:
        endpoint: The control plane.
        request: The registration; said again to a server that does not know this worker.
        lane: How step jobs come.
        addresses: Servers, in order of preference.
        frame: Returns the next frame to send, None when there is nothing.
        opened: Called with each session whose welcome was read.
        received: Called with each frame.
        ended: Called when the session ended that was open.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        request: RegisterRequest,
        lane: Lane.ValueType,
        addresses: tuple[str, ...],
        *,
        frame: Callable[[], SessionRequest | None],
        opened: Callable[[Line], None],
        received: Callable[[SessionResponse], None],
        ended: Callable[[], None],
    ) -> None:
        self._endpoint = endpoint
        self._request = request
        self._lane = lane
        self._addresses = addresses
        self._frame = frame
        self._opened = opened
        self._received = received
        self._ended = ended
        self._turn = 0
        self._backoff = Backoff()
        self._previous = ""
        self._line: Line | None = None
        self._wanted = asyncio.Event()
        self._leaving = False
        self._retiring: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """There may be something to send: its writing begins at once, or follows what is being written."""
        line = self._line
        if line is None or not line.idle:
            return
        frame = self._frame()
        if frame is not None or self._leaving:
            line.idle = False
            line.writing = start_now(self._write(line, frame), name="session-write", context=line.context)

    def reopen(self, reason: str) -> None:
        """Open another session; the present one serves until that one is open."""
        _log.info("session_replaced", reason=reason, address=self._line.address if self._line else "")
        self._turn += 1
        self._wanted.set()

    async def run(self) -> None:
        """Keep a session open until this is cancelled, or `leave` was called.

        Raises:
            RequestError: A server refused the worker.
        """
        serving: asyncio.Task[None] | None = None
        try:
            while not self._leaving:
                line = await self._next_line(serving)
                old, self._line = self._line, line
                self._wanted.clear()
                self._opened(line)
                if old is not None and serving is not None:
                    self._retire(old, serving)
                serving = asyncio.create_task(self._serve(line))
                began = monotonic_ms()
                await self._until_wanted(serving)
                if serving.done():
                    await self._lost(line, serving)
                    await self._rest(monotonic_ms() - began)
        finally:
            if self._line is not None and serving is not None:
                self._retire(self._line, serving)
                self._line = None
            await asyncio.gather(*self._retiring)

    async def leave(self) -> None:
        """Tell the replica that the worker has drained, and wait until it ends the session, at most 1 s."""
        self._leaving = True
        line = self._line
        if line is None:
            return
        self.wake()
        try:
            async with asyncio.timeout(1):
                await line.ended.wait()
        except TimeoutError:
            _log.debug("goodbye_unanswered", address=line.address)

    async def _next_line(self, serving: asyncio.Task[None] | None) -> Line:
        """Open a session. If the present one ends meanwhile, that is told at once."""
        opening = asyncio.create_task(self._open())
        try:
            if serving is not None and self._line is not None:
                await asyncio.wait({opening, serving}, return_when=asyncio.FIRST_COMPLETED)
                if serving.done():
                    await self._lost(self._line, serving)
            return await opening
        finally:
            opening.cancel()

    async def _until_wanted(self, serving: asyncio.Task[None]) -> None:
        """Return when the session ended, or another one is wanted."""
        wanted = asyncio.create_task(self._wanted.wait())
        try:
            await asyncio.wait({serving, wanted}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            wanted.cancel()

    async def _lost(self, line: Line, serving: asyncio.Task[None]) -> None:
        self._line = None
        line.ended.set()
        self._ended()
        serving.result()
        await line.stack.aclose()

    def _retire(self, line: Line, serving: asyncio.Task[None]) -> None:
        """End a session that is used no more, on the side: nothing waits for it."""
        serving.cancel()
        task = asyncio.create_task(self._close(line, serving))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _close(self, line: Line, serving: asyncio.Task[None]) -> None:
        await asyncio.gather(serving, return_exceptions=True)
        await line.stack.aclose()

    async def _rest(self, lasted_ms: int) -> None:
        """A session that ends as soon as it is open must not be opened again and again."""
        if lasted_ms >= STABLE_MS:
            self._backoff.succeeded()
        elif not self._leaving:
            await asyncio.sleep(self._backoff.next_s())

    # --- opening ---------------------------------------------------------------------------------------------------
    async def _open(self) -> Line:
        """Open a session, with the next address after each failure; the first try after a loss is at once."""
        while True:
            address = self._addresses[self._turn % len(self._addresses)]
            try:
                line = await self._try(address, self._backoff.failures)
            except SessionBroken as error:
                self._turn += 1
                pause = self._backoff.next_s()
                loud = self._backoff.failures == _MANY_FAILURES or self._backoff.failures % 50 == 0
                (_log.warning if loud else _log.info)(
                    "session_failed", address=address, error=str(error), retry_in_s=round(pause, 2)
                )
                if error.refused is not None:
                    await register(self._endpoint, self._addresses, self._request)
                await asyncio.sleep(pause)
                continue
            self._previous = line.id
            _log.info("session_opened", address=address, session=line.id)
            return line

    async def _try(self, address: str, failures: int) -> Line:
        """Open one stream, say hello, wait for the welcome.

        Raises:
            SessionBroken: It could not be opened in time.
        """
        stack = AsyncExitStack()
        patience = min(WELCOME_S[0] * 1.5 ** min(failures, 10), WELCOME_S[1])
        try:
            async with asyncio.timeout(patience):
                line = Line(address, await stack.enter_async_context(self._endpoint.open(address)), stack)
                await line.port.send(SessionRequest(hello=self._hello(line)))
                response = await line.port.receive()
            if response is None or not response.HasField("welcome"):
                raise SessionBroken("the server ended the stream without a welcome")
            return line
        except TimeoutError:
            await stack.aclose()
            raise SessionBroken(f"no answer within {patience:.1f} s") from None
        except BaseException:
            await stack.aclose()
            raise

    def _hello(self, line: Line) -> SessionHello:
        request = self._request
        return SessionHello(
            worker_id=request.worker_id,
            session_id=line.id,
            replaces=self._previous,
            sent_ms=monotonic_ms(),
            namespace=request.namespace,
            pool=request.pool,
            lane=self._lane,
            workflows=request.workflows,
            steps=request.steps,
            step_slots=request.step_slots,
            run_slots=request.run_slots,
            host=request.host,
            on_failure=handlers_of(request.specs),
        )

    # --- serving ---------------------------------------------------------------------------------------------------
    async def _serve(self, line: Line) -> None:
        """Carry frames until the stream ends. What the callbacks raise is raised here."""
        receiver = asyncio.create_task(self._receive(line))
        try:
            line.idle = True
            self.wake()
            ends: list[asyncio.Future[Any]] = [receiver, line.broken]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if line.broken.done():
                raise line.broken.result()
            receiver.result()
        except SessionBroken as error:
            _log.info("session_broken", address=line.address, error=str(error))
        finally:
            line.idle = False
            tasks = [receiver] if line.writing is None else [receiver, line.writing]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, line: Line, frame: SessionRequest | None) -> None:
        try:
            while frame is not None:
                await line.port.send(frame)
                # What a session is not open for any more must stay with the core, which says it again.
                frame = self._frame() if self._line is line else None
            if not self._leaving:
                line.idle = True
            elif self._line is line:
                await line.port.send(SessionRequest(goodbye=True))  # the last word: the replica ends the stream
        except Exception as error:
            line.broken.set_result(error)

    async def _receive(self, line: Line) -> None:
        while (response := await line.port.receive()) is not None and self._line is line:
            self._received(response)
        _log.info("session_ended", address=line.address)
