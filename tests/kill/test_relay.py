"""The relay itself: it forwards, cuts on one side or both, holds back, delays, refuses and heals."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.kill.relay import Relay, Side

SOON_S = 0.3
DEADLINE_S = 10.0


class Echo:
    """A server that answers each line with itself, and remembers how each connection ended."""

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.ends: list[str] = []
        self.ended = threading.Semaphore(0)
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        end = "closed"
        with connection:
            try:
                while data := connection.recv(4096):
                    connection.sendall(data)
            except OSError:
                end = "reset"
        self.ends.append(end)
        self.ended.release()

    def close(self) -> None:
        self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()
        for thread in self._threads:
            thread.join(DEADLINE_S)


@contextmanager
def scene() -> Iterator[tuple[Echo, Relay]]:
    echo = Echo()
    try:
        with Relay(echo.port) as relay:
            yield echo, relay
    finally:
        echo.close()


def connected(relay: Relay) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", relay.port), DEADLINE_S)
    client.settimeout(DEADLINE_S)
    return client


def said(client: socket.socket, text: bytes) -> bytes:
    client.sendall(text)
    return heard(client, len(text))


def heard(client: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        data = client.recv(size - len(found))
        assert data, "the relay closed the connection"
        found += data
    return found


def silent(client: socket.socket) -> bool:
    """Whether nothing comes for a while."""
    client.settimeout(SOON_S)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(DEADLINE_S)
    return False


def test_it_forwards_in_both_directions_and_passes_on_the_end() -> None:
    with scene() as (echo, relay):
        big = bytes(range(256)) * 4000
        with connected(relay) as client:
            threading.Thread(target=client.sendall, args=(big,), daemon=True).start()
            assert heard(client, len(big)) == big
            assert relay.links() == 1
        assert echo.ended.acquire(timeout=DEADLINE_S)
        assert echo.ends == ["closed"]


@pytest.mark.parametrize("side", ["both", "client", "server"])
def test_a_cut_is_seen_on_the_chosen_side_only_until_it_heals(side: Side) -> None:
    with scene() as (echo, relay), connected(relay) as client:
        assert said(client, b"hello") == b"hello"
        assert relay.cut(side) == 1
        if side == "server":
            assert silent(client)
        else:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert echo.ended.acquire(timeout=DEADLINE_S if side != "client" else SOON_S) is (side != "client")
        with pytest.raises(ConnectionRefusedError):
            connected(relay)
        relay.heal()
        if side == "client":
            assert echo.ended.acquire(timeout=DEADLINE_S), "what was left open is reset when the network is back"
        if side == "server":
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert echo.ends == ["reset"]
        with connected(relay) as again:
            assert said(again, b"again") == b"again"


def test_what_is_held_back_arrives_late_and_in_order() -> None:
    with scene() as (_, relay), connected(relay) as client:
        assert said(client, b"-") == b"-"
        relay.stall()
        client.sendall(b"one")
        assert silent(client)
        client.sendall(b"two")
        with connected(relay) as other:
            other.sendall(b"new")
            assert silent(other)
            relay.heal()
            assert heard(client, 6) == b"onetwo"
            assert heard(other, 3) == b"new"


def test_one_direction_alone_can_be_held_back() -> None:
    with scene() as (echo, relay), connected(relay) as client:
        assert said(client, b"-") == b"-"
        relay.stall("down")
        client.sendall(b"up")
        assert silent(client)
        client.shutdown(socket.SHUT_WR)
        assert echo.ended.acquire(timeout=DEADLINE_S), "the server heard it, and the end"
        relay.heal()
        assert heard(client, 2) == b"up"


def test_connections_are_chosen_by_how_they_began() -> None:
    with scene() as (_, relay), connected(relay) as first, connected(relay) as second:
        assert said(first, b"Session") == b"Session"
        assert said(second, b"Beat") == b"Beat"
        assert relay.links(b"Session") == 1
        assert relay.stall(only=b"Session") == 1
        first.sendall(b"!")
        assert silent(first)
        assert said(second, b"!") == b"!"
        assert relay.cut(only=b"Beat", refuse=False) == 1
        with connected(relay) as third:
            assert said(third, b"?") == b"?"


def test_a_delay_adds_to_each_way_and_does_not_add_up() -> None:
    with scene() as (_, relay), connected(relay) as client:
        relay.delay(0.2)
        began = time.monotonic()
        for _ in range(10):
            client.sendall(b"0123456789")
        assert heard(client, 100) == b"0123456789" * 10
        took = time.monotonic() - began
        assert 0.4 <= took < 2.0
        relay.delay(0)
        assert said(client, b"fast") == b"fast"


def test_a_server_that_is_down_looks_down_through_the_relay() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    # The reset may come before whoever connects was told that it has.
    with Relay(port) as relay, pytest.raises(ConnectionResetError), connected(relay) as client:
        client.recv(1)
