"""A TCP relay that stands in for the network: it cuts, stalls and delays connections, on one side or on both, and heals.

It runs on a thread of its own, so tests drive it from synchronous and asynchronous code alike. What it holds back is not
dropped: after `heal` it arrives late, in order, as over a real network that was gone for a while.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Literal, TypeVar

__all__ = ("Direction", "Link", "Relay", "Side")

Side = Literal["client", "server", "both"]
"""Who notices: the one that connected (a worker), the one that listens (a server, a broker), or both."""

Direction = Literal["up", "down", "both"]
"""What is held back: from the client to the server, from the server to the client, or both."""

T = TypeVar("T")

_Item = tuple[float, bytes | None]
"""When it may go on, and what was read; b"": that end was closed, None: it was reset."""

_CHUNK = 1 << 16
_SNIFF = 1 << 14
_CALL_S = 10.0


class Link:
    """One connection through the relay.

    Attributes:
        began: The first bytes that the client sent (up to 16 KiB); tells sessions from beats.
        cut: Whose end is gone; "" while it stands.
    """

    def __init__(self) -> None:
        self.began = b""
        self.cut: Side | Literal[""] = ""
        self.client: asyncio.StreamWriter | None = None
        self.server: asyncio.StreamWriter | None = None
        self.held: dict[str, bool] = {"up": False, "down": False}
        self.delay_s = 0.0

    @property
    def open(self) -> bool:
        return self.cut == "" and self.server is not None


class Relay:
    """Listens on a free port of the loopback and forwards to another one.

    Args:
        target: Port of the real server.
        host: Its host. Default 127.0.0.1.

    Attributes:
        port: Where clients connect; the same after `cut` and `heal`.
        accepted: Connections that were taken so far.
    """

    def __init__(self, target: int, *, host: str = "127.0.0.1") -> None:
        self._target = (host, target)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.accepted = 0
        self._links: list[Link] = []
        self._refusing = False
        self._held: dict[str, bool] = {"up": False, "down": False}
        self._delay_s = 0.0
        self._server: asyncio.Server | None = None
        self._turned = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"relay {self.port}", daemon=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    # --- what tests do -----------------------------------------------------------------------------------------------
    def start(self) -> Relay:
        """Begin to forward."""
        self._thread.start()
        self._await(self._listen())
        return self

    def stop(self) -> None:
        """Cut everything and end."""
        if not self._thread.is_alive():
            self._listening.close()
            self._loop.close()
            return
        self._await(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_S)
        self._loop.close()

    def cut(self, side: Side = "both", *, refuse: bool = True, only: bytes = b"") -> int:
        """Reset the connections; returns how many.

        Args:
            side: Who notices. The end of the other one stays open, and silent, until `heal`.
            refuse: New connections are refused until `heal`.
            only: Cut only connections whose first bytes from the client hold these.
        """

        def act() -> int:
            found = self._chosen(only)
            for link in found:
                self._sever(link, side)
            if refuse:
                self._refusing = True
                self._close_listener()
            return len(found)

        return self._call(act)

    def stall(self, direction: Direction = "both", *, only: bytes = b"") -> int:
        """Hold back what is sent, ends of connections too, until `heal`; returns how many connections.

        New connections are accepted and held back likewise, unless `only` chose some of the present ones.
        """

        def act() -> int:
            found = self._chosen(only)
            wanted = ("up", "down") if direction == "both" else (direction,)
            for name in wanted:
                for link in found:
                    link.held[name] = True
                if not only:
                    self._held[name] = True
            return len(found)

        return self._call(act)

    def delay(self, seconds: float) -> int:
        """From now on each byte takes so much longer, in both directions, on all connections; returns how many there are."""

        def act() -> int:
            self._delay_s = seconds
            for link in self._links:
                link.delay_s = seconds
            return len(self._links)

        return self._call(act)

    def heal(self) -> None:
        """Forward everything again; ends that were left open alone are reset, as a network does when it is back."""

        def act() -> None:
            self._held = {"up": False, "down": False}
            self._delay_s = 0.0
            for link in list(self._links):
                link.delay_s = 0.0
                link.held = {"up": False, "down": False}
                if link.cut not in ("", "both"):
                    self._sever(link, "both")
            self._turned.set()
            self._refusing = False

        self._call(act)
        self._await(self._listen())

    def links(self, only: bytes = b"") -> int:
        """How many connections stand, of those whose first bytes hold these."""
        return self._call(lambda: len(self._chosen(only)))

    def wait(self, count: int, *, only: bytes = b"", seconds: float = 20.0) -> None:
        """Wait until at least so many connections stand."""
        deadline = time.monotonic() + seconds
        while (found := self.links(only)) < count:
            assert time.monotonic() < deadline, f"{found} connections over {self.address}, expected {count}"
            time.sleep(0.02)

    def __enter__(self) -> Relay:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- on the relay's thread ---------------------------------------------------------------------------------------
    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call(self, act: Callable[[], T]) -> T:
        async def run() -> T:
            return act()

        return self._await(run())

    def _await(self, work: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_CALL_S)

    def _chosen(self, only: bytes) -> list[Link]:
        return [link for link in self._links if link.open and only in link.began]

    async def _listen(self) -> None:
        if self._server is None and not self._refusing:
            if self._listening.fileno() < 0:
                self._listening = socket.create_server(("127.0.0.1", self.port))
            self._server = await asyncio.start_server(self._accept, sock=self._listening)

    def _close_listener(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
            self._listening.close()

    async def _end(self) -> None:
        self._refusing = True
        self._close_listener()
        for link in list(self._links):
            self._sever(link, "both")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        link = Link()
        link.client = writer
        link.held = dict(self._held)
        link.delay_s = self._delay_s
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._links.append(link)
        try:
            answers, link.server = await asyncio.open_connection(*self._target)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(link, "up", reader, link.server))
                group.create_task(self._carry(link, "down", answers, writer))
        except OSError:
            self._sever(link, "both")  # the server is down: the client is told as it would be without a relay
        finally:
            self._tasks.discard(task)
            if not link.cut:
                self._finish(link)
            if link.cut == "both":
                self._links.remove(link)

    async def _carry(self, link: Link, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read on one side, write on the other; what is on its way waits in between, its end too."""
        way_queue: asyncio.Queue[_Item] = asyncio.Queue(maxsize=256)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read(link, way, reader, way_queue))
            group.create_task(self._write(link, way, writer, way_queue))

    async def _read(self, link: Link, way: str, reader: asyncio.StreamReader, queue: asyncio.Queue[_Item]) -> None:
        data: bytes | None = b"-"
        while data:
            try:
                data = await reader.read(_CHUNK)
            except OSError:
                data = None
            if data and way == "up" and len(link.began) < _SNIFF:
                link.began += data[: _SNIFF - len(link.began)]
            await queue.put((self._loop.time() + link.delay_s, data))

    async def _write(self, link: Link, way: str, writer: asyncio.StreamWriter, queue: asyncio.Queue[_Item]) -> None:
        while True:
            due, data = await queue.get()
            if (early := due - self._loop.time()) > 0:
                await asyncio.sleep(early)
            while link.held[way] and not link.cut:
                self._turned.clear()
                await self._turned.wait()
            if link.cut and data:
                continue  # one end is gone: what the other one says reaches nobody
            try:
                if data:
                    writer.write(data)
                    await writer.drain()
                elif not link.cut and data is not None:
                    writer.write_eof()
            except OSError:
                data = None
            if data is None and not link.cut:
                self._sever(link, "both")
            if not data:
                return

    def _finish(self, link: Link) -> None:
        """Both ends have closed the connection."""
        link.cut = "both"
        for writer in (link.client, link.server):
            if writer is not None:
                writer.close()

    def _sever(self, link: Link, side: Side) -> None:
        link.cut = side if link.cut in ("", side) else "both"
        self._turned.set()
        for name, writer in (("client", link.client), ("server", link.server)):
            if side in (name, "both") and writer is not None and not writer.transport.is_closing():
                raw = writer.get_extra_info("socket")
                if raw is not None:
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
                writer.transport.abort()
