"""One connection to a single Redis for all that is hot: many calls under way at once, answered in order.

redis-py's asyncio client spends about 135 µs of CPU on a call (pool, timers, streams, metrics), this 45 µs, and the
commit of a step waits for it. So the bytes are written here, and parsed by hiredis; URLs, TLS, clusters and
subscriptions stay with redis-py.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import hiredis
from redis.asyncio.connection import parse_url
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)

__all__ = ("Lane", "pack")

_ERRORS: dict[str, type[ResponseError] | type[RedisConnectionError]] = {
    "NOSCRIPT": NoScriptError,
    "LOADING": BusyLoadingError,
    "READONLY": ReadOnlyError,
    "MASTERDOWN": MasterDownError,
    "CLUSTERDOWN": ClusterDownError,
    "OOM": OutOfMemoryError,
    "NOAUTH": RedisConnectionError,
    "WRONGPASS": RedisConnectionError,
}


def _reply_error(text: str) -> Exception:
    return _ERRORS.get(text.partition(" ")[0], ResponseError)(text)


@lru_cache(1024)
def _packed(part: str | int) -> bytes:
    """Names, hashes, small numbers: the same again and again."""
    data = str(part).encode()
    return b"$%d\r\n%b\r\n" % (len(data), data)


def pack(command: Sequence[Any]) -> bytes:
    """Return a command (bytes, str and int) as Redis reads it."""
    out = [b"*%d\r\n" % len(command)]
    for part in command:
        if isinstance(part, bytes):
            out += (b"$%d\r\n" % len(part), part, b"\r\n")
        else:
            out.append(_packed(part))
    return b"".join(out)


class _Call:
    """Commands written together: how many replies there will be, those that came, and when the patience ends."""

    __slots__ = ("answer", "count", "replies", "until")

    def __init__(self, count: int, answer: asyncio.Future[list[Any]], until: float) -> None:
        self.count = count
        self.answer = answer
        self.until = until
        self.replies: list[Any] = []


class _Wire(asyncio.Protocol):
    """One life of the connection: unanswered calls in the order they were written.

    One timer looks at the oldest of them: a call that stays unanswered ends the connection, because later answers could
    not be told apart.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._watch: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.unanswered: deque[_Call] = deque()
        self.transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(replyError=_reply_error)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # other event loops have classes of their own

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                call = self.unanswered[0]
                call.replies.append(reply)
                if len(call.replies) == call.count:
                    self.unanswered.popleft()
                    if not call.answer.done():  # its caller may have gone
                        call.answer.set_result(call.replies)
        except (hiredis.ProtocolError, IndexError):
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self._fail(RedisConnectionError(f"connection lost: {exc or 'closed by the server'}"))

    def _fail(self, error: Exception) -> None:
        while self.unanswered:
            answer = self.unanswered.popleft().answer
            if not answer.done():
                answer.set_exception(error)

    def _look(self) -> None:
        self._watch = None
        if not self.unanswered:
            return
        until = self.unanswered[0].until
        if until > self._loop.time():
            self._watch = self._loop.call_at(until, self._look)
            return
        self._fail(TimeoutError(f"no answer within {self._timeout} s"))
        self.close()

    def call(self, packed: bytes, count: int) -> asyncio.Future[list[Any]]:
        """Write `count` commands; returns the future of their replies (an error reply is a value)."""
        if self.transport is None:
            raise RedisConnectionError("connection lost")
        answer: asyncio.Future[list[Any]] = self._loop.create_future()
        until = self._loop.time() + self._timeout
        self.unanswered.append(_Call(count, answer, until))
        if self._watch is None:
            self._watch = self._loop.call_at(until, self._look)
        self.transport.write(packed)
        return answer

    def close(self) -> None:
        """Drop the connection; what is unanswered fails."""
        transport, self.transport = self.transport, None  # from now on nothing more is written
        if transport is not None:
            transport.abort()


class Lane:
    """The connection, made when first needed and again after it was lost.

    Args:
        url: redis:// or unix:// URL.
        timeout: Seconds until calls without an answer fail, and the connection with them.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self._settings: dict[str, Any] = dict(parse_url(url))
        self._timeout = timeout
        self._wire: _Wire | None = None
        self._connecting = asyncio.Lock()

    @staticmethod
    def fits(url: str) -> bool:
        """Whether a lane can serve this URL; redis-py does TLS."""
        return url.startswith(("redis://", "unix://"))

    async def call(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Run commands in one round trip; error replies are in the list, as exceptions.

        Raises:
            redis.exceptions.ConnectionError, TimeoutError, OSError: No answer; they may have been executed.
        """
        wire = self._wire
        if wire is None or wire.transport is None:
            async with asyncio.timeout(self._timeout):
                wire = await self._connect()
        packed = pack(commands[0]) if len(commands) == 1 else b"".join(map(pack, commands))
        return await wire.call(packed, len(commands))

    async def close(self) -> None:
        """Close the connection."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()
            await asyncio.sleep(0)  # lets the transport close its socket

    async def _connect(self) -> _Wire:
        async with self._connecting:
            if self._wire is not None and self._wire.transport is not None:
                return self._wire
            wire = await self._open()
            try:
                for command in self._greeting():
                    (reply,) = await wire.call(pack(command), 1)
                    if isinstance(reply, Exception):
                        raise RedisConnectionError(f"{command[0]} was refused: {reply}")
            except BaseException:
                wire.close()
                raise
            self._wire = wire
            return wire

    async def _open(self) -> _Wire:
        loop = asyncio.get_running_loop()
        if "path" in self._settings:
            _, wire = await loop.create_unix_connection(self._make_wire, self._settings["path"])
        else:
            host, port = self._settings.get("host", "localhost"), self._settings.get("port", 6379)
            _, wire = await loop.create_connection(self._make_wire, host, port)
        return wire

    def _make_wire(self) -> _Wire:
        return _Wire(self._timeout)

    def _greeting(self) -> list[tuple[Any, ...]]:
        commands: list[tuple[Any, ...]] = []
        if self._settings.get("password") is not None:
            names = [self._settings["username"]] if self._settings.get("username") else []
            commands.append(("AUTH", *names, self._settings["password"]))
        if self._settings.get("db"):
            commands.append(("SELECT", self._settings["db"]))
        return commands
