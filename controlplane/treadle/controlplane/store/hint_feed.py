"""Hints from Redis: one subscription a process, which connects again by itself, and any number of listeners.

A message that is published while the connection is down is lost; that is what hints may be.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import structlog
from redis.exceptions import RedisError

from treadle.controlplane.store.link import Link
from treadle.controlplane.store.packing import read_hints
from treadle.controlplane.store.port import Hint
from treadle.protocol.errors import Unavailable

__all__ = ("HintFeed",)

_log = structlog.get_logger(__name__)
_BACKLOG = 10_000
_POLL_S = 1.0
_SILENCE_S = 5.0
_RETRY_S = (0.05, 1.0)


class HintFeed:
    """The subscription to the channel of hints.

    Args:
        link: Whose server to listen to.
        channel: The channel.
        sender: What this process's own messages begin with; those are not delivered.

    Attributes:
        lost: How often the subscription was lost. Whoever answers next may be another server, that knows less.
    """

    def __init__(self, link: Link, channel: str, sender: bytes) -> None:
        self._link = link
        self._channel = channel
        self._sender = sender
        self.lost = 0
        self._listeners: list[asyncio.Queue[list[Hint]]] = []
        self._subscribed = asyncio.Event()
        self._server: tuple[str, str] | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Subscribe; returns when the server has confirmed it. Raises Unavailable when it does not."""
        self._task = asyncio.create_task(self._run(), name="treadle-hints")
        try:
            async with asyncio.timeout(10):
                await self._subscribed.wait()
        except TimeoutError as error:
            await self.stop()
            raise Unavailable(f"Redis at {self._link.address} takes no subscription") from error

    @property
    def subscribed(self) -> bool:
        """Whether the server counts this process among the channel's subscribers, as far as is known here."""
        return self._subscribed.is_set()

    async def stop(self) -> None:
        """Unsubscribe."""
        task, self._task = self._task, None
        while task is not None and not task.done():
            task.cancel()  # again, because a cancel that meets a lost connection may be taken for its error
            await asyncio.wait([task], timeout=0.5)

    async def listen(self) -> AsyncIterator[list[Hint]]:
        """Batches of hints from the first `anext` on. A listener that is 10,000 behind loses the oldest."""
        waiting: asyncio.Queue[list[Hint]] = asyncio.Queue(_BACKLOG)
        self._listeners.append(waiting)
        try:
            while True:
                yield await waiting.get()
        finally:
            self._listeners.remove(waiting)

    def _deliver(self, message: bytes) -> None:
        try:
            hints = read_hints(message, self._sender)
        except msgspec.MsgspecError:
            _log.warning("hint.unreadable", channel=self._channel, size=len(message))
            return
        for waiting in self._listeners if hints else ():
            if waiting.full():
                waiting.get_nowait()
            waiting.put_nowait(hints)

    async def _run(self) -> None:
        pause = _RETRY_S[0]
        me = asyncio.current_task()
        while me is None or not me.cancelling():
            try:
                await self._subscription()
            except (RedisError, OSError, TimeoutError, Unavailable) as error:
                if self._subscribed.is_set():
                    pause = _RETRY_S[0]
                    self._subscribed.clear()
                    self.lost += 1
                    _log.warning("hints.lost", address=self._link.address, error=str(error))
            await asyncio.sleep(pause)
            pause = min(2 * pause, _RETRY_S[1])

    async def _subscription(self) -> None:
        client = self._link.listener()
        try:
            await self._note_server(client)
            async with client.pubsub() as pubsub:
                await pubsub.subscribe(self._channel)
                await self._read(pubsub)
        finally:
            await client.aclose()

    async def _read(self, pubsub: Any) -> None:
        clock = asyncio.get_running_loop().time
        heard = asked = clock()
        while True:
            message = await pubsub.get_message(timeout=_POLL_S)
            if message is not None:
                heard = clock()
                if message["type"] == "subscribe":
                    self._subscribed.set()
                elif message["type"] == "message":
                    self._deliver(message["data"])
            elif clock() - heard > 2 * _SILENCE_S:
                raise TimeoutError("no answer to a ping on the subscription")
            elif clock() - max(heard, asked) > _SILENCE_S:
                asked = clock()
                await pubsub.ping()

    async def _note_server(self, client: Any) -> None:
        """Log when another Redis, or one in another role, answers now: it may have lost commits."""
        info = await client.info()
        server = (str(info.get("run_id", "")), str(info.get("role", "")))
        if self._server is not None and server != self._server:
            _log.warning(
                "redis.changed",
                address=self._link.address,
                run_id=server[0],
                role=server[1],
                was_run_id=self._server[0],
                was_role=self._server[1],
            )
        self._server = server
