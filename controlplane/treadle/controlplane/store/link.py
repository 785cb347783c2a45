"""The connection to Redis, standalone or cluster: commands and scripts, timeouts, and errors with an address.

Nothing is tried again in here. A commit that got no answer may have been written; who decides again will see.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

import redis.asyncio as aredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from treadle.controlplane.store.lane import Lane
from treadle.controlplane.store.scripts import Script, script
from treadle.protocol.errors import Unavailable

__all__ = ("Command", "Link", "safe_url")


Command = tuple[Any, ...]
"""A command and its arguments, the key first."""

_DOWN = (
    RedisConnectionError,
    RedisTimeoutError,
    ClusterDownError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    TryAgainError,
    OSError,
    asyncio.TimeoutError,
)
_REFUSALS = ("MISCONF", "NOREPLICAS", "BUSY ", "LOADING", "UNBLOCKED")
_CONNECTIONS = 32


def safe_url(url: str) -> str:
    """Return the URL without its password, for messages."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]))


class _Errors:
    """A context that says what is wrong with the connection; the same for all calls."""

    __slots__ = ("_address",)

    def __init__(self, address: str) -> None:
        self._address = address

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, _DOWN) or (isinstance(error, ResponseError) and _is_down(error)):
            raise Unavailable(
                f"Redis at {self._address} does not serve: {str(error) or type(error).__name__}",
                remedy="start it, or check the address, its disk, its memory and the network",
            ) from error


class Link:
    """A client for one URL.

    Args:
        url: redis://, rediss:// or unix:// URL.
        cluster: True: any node of a Redis Cluster; the others are found by asking it.
        timeout: Seconds until a command is given up.

    Attributes:
        address: The URL without its password.
    """

    def __init__(self, url: str, *, cluster: bool, timeout: float) -> None:
        self.address = safe_url(url)
        self.is_cluster = cluster
        self._errors = _Errors(self.address)
        self._url = url
        self._timeout = timeout
        self._client: Any = None
        self._lane: Lane | None = None

    @property
    def client(self) -> Any:
        """The client. Raises Unavailable before `start` and after `stop`."""
        if self._client is None:
            raise Unavailable(f"not connected to Redis at {self.address}: the store is not started")
        return self._client

    async def start(self) -> None:
        """Connect. Raises Unavailable when nothing answers."""
        retry = Retry(NoBackoff(), 0)
        if self.is_cluster:
            self._client = aredis.RedisCluster.from_url(
                self._url,
                retry=retry,
                socket_timeout=self._timeout,
                socket_connect_timeout=self._timeout,
            )
        else:
            pool = aredis.BlockingConnectionPool.from_url(
                self._url,
                max_connections=_CONNECTIONS,
                timeout=self._timeout,
                retry=retry,
                socket_timeout=self._timeout,
                socket_connect_timeout=self._timeout,
            )
            self._client = aredis.Redis.from_pool(pool)
            self._lane = Lane(self._url, self._timeout) if Lane.fits(self._url) else None
        try:
            with self.errors():
                if self.is_cluster:
                    await self._client.initialize()
                else:
                    await self._client.ping()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Close all connections."""
        client, self._client = self._client, None
        lane, self._lane = self._lane, None
        if lane is not None:
            await lane.close()
        if client is not None:
            await client.aclose()

    def errors(self) -> _Errors:
        """Turn errors of the connection into Unavailable while inside."""
        return self._errors

    async def run(self, name: str, key: bytes, *arguments: Any) -> Any:
        """Run a script whose keys are all in the slot of `key`."""
        return (await self.run_each(name, [(key, arguments)]))[0]

    async def run_each(self, name: str, calls: Sequence[tuple[bytes, tuple[Any, ...]]]) -> list[Any]:
        """Run a script once a (key, arguments) pair, in one round trip (one a node on a cluster)."""
        wanted = script(name)
        commands = [("EVALSHA", wanted.sha, 1, key, *arguments) for key, arguments in calls]
        with self.errors():
            replies = await self._pipeline(commands)
            for i, reply in enumerate(replies):
                if isinstance(reply, NoScriptError):
                    replies[i] = await self._evaluate(wanted, commands[i])
            return _raised(replies)

    async def _evaluate(self, wanted: Script, command: Command) -> Any:
        """Run a script by its text, which also makes the server keep it: it was restarted, or flushed."""
        (reply,) = await self._pipeline([("EVAL", wanted.text, *command[2:])])
        return reply

    async def commands(self, commands: Sequence[Command]) -> list[Any]:
        """Run independent commands in one round trip (one a node on a cluster)."""
        if not commands:
            return []
        with self.errors():
            return _raised(await self._pipeline(commands))

    async def _pipeline(self, commands: Sequence[Command]) -> list[Any]:
        if self._lane is not None:
            return await self._lane.call(commands)
        pipeline = self.client.pipeline(**({} if self.is_cluster else {"transaction": False}))
        async with pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return cast("list[Any]", await pipeline.execute(raise_on_error=False))

    async def each_node(self, ask: Callable[[Any], Awaitable[Any]]) -> list[tuple[str, Any]]:
        """Ask every primary node by a client of its own; (address, answer) pairs."""
        if not self.is_cluster:
            with self.errors():
                return [(self.address, await ask(self.client))]
        answers = []
        for node in self.client.get_primaries():
            client = self.node_client(node.host, int(node.port))
            try:
                with self.errors():
                    answers.append((f"{node.host}:{node.port}", await ask(client)))
            finally:
                await client.aclose()
        return answers

    def node_client(self, host: str, port: int) -> Any:
        """Return a plain client of one node of the cluster, with the credentials of the URL."""
        kwargs = dict(self.client.connection_kwargs if hasattr(self.client, "connection_kwargs") else {})
        names = ("username", "password", "ssl", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
        chosen = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        return aredis.Redis(
            host=host,
            port=port,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=self._timeout,
            socket_connect_timeout=self._timeout,
            **chosen,
        )

    def listener(self) -> Any:
        """Return a client of its own for a subscription; any node of a cluster hears all messages."""
        if not self.is_cluster:
            return aredis.Redis.from_url(
                self._url,
                retry=Retry(NoBackoff(), 0),
                socket_timeout=self._timeout,
                socket_connect_timeout=self._timeout,
            )
        node = self.client.get_random_node()
        return self.node_client(node.host, int(node.port))


def _is_down(error: ResponseError) -> bool:
    """Whether Redis refuses everybody for now: its disk is full, its replicas are away, a script holds it up."""
    return isinstance(error, _DOWN) or str(error).startswith(_REFUSALS)


def _raised(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies
