"""Frames that go down to workers. One is written at a time on a session, and what there is to say meanwhile goes into the next.

A frame is begun in the turn of the loop after its first entry, or before, by whoever knows that it has everything: a commit
ends with `flush`, so that what it did leaves before the replica looks after itself.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Iterator

from treadle.protocol.eager import start_now
from treadle.v1.worker_service_pb2 import SessionResponse

__all__ = ("Downlink", "Downlinks")


class Downlinks:
    """Those of one replica."""

    def __init__(self) -> None:
        self._ready: dict[Downlink, None] = {}
        self._soon: asyncio.Handle | None = None

    def ready(self, link: Downlink) -> None:
        """There is something to write."""
        self._ready[link] = None
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Begin to write whatever there is."""
        if self._soon is None:
            return
        self._soon.cancel()
        self._soon = None
        links, self._ready = self._ready, {}
        for link in links:
            link.write()


class Downlink:
    """One session's.

    Args:
        links: All of the replica.
        send: Writes a frame to the stream.

    Attributes:
        frames: Hands over what there is to write.
        broken: Why writing failed.
    """

    def __init__(self, links: Downlinks, send: Callable[[SessionResponse], Awaitable[None]]) -> None:
        self._links, self._send = links, send
        self.frames: Callable[[], Iterator[SessionResponse]] = lambda: iter(())
        self.broken: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._context = contextvars.copy_context()
        self._writing: asyncio.Task[None] | None = None
        self._idle = True

    def ready(self) -> None:
        """There is something to write."""
        self._links.ready(self)

    def write(self) -> None:
        """Write what there is, unless a write is under way, which is followed by it."""
        if self._idle:
            self._idle = False
            self._writing = start_now(self._write(), name="session-write", context=self._context)

    async def close(self, *, drain: bool) -> None:
        """Write nothing more; `drain`: but what there is."""
        if drain:
            self.write()
        if self._writing is not None:
            if not drain:
                self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        self._idle = False

    async def _write(self) -> None:
        try:
            wrote = True
            while wrote:
                wrote = False
                for frame in self.frames():
                    await self._send(frame)
                    wrote = True
            self._idle = True
        except Exception as error:
            self.broken.set_result(error)
