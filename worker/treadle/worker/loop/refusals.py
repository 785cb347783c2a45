"""What a workflow must not ask of its event loop, and what to do instead."""

from __future__ import annotations

from typing import Final

__all__ = ("REFUSED",)

_NETWORK: Final = "a replay would talk to the network again; do it in a @step"
_FILES: Final = "a replay would read or write again; do it in a @step"
_THREADS: Final = "other threads go on in an order of their own; do it in a @step (a sync one runs in a thread)"
_PROCESSES: Final = "a replay would start the process again; do it in a @step"
_SIGNALS: Final = "a workflow outlives its process; handle signals outside"
_LOOP: Final = "the worker runs this loop; await what you wait for"

REFUSED: Final[dict[str, str]] = {
    "run_in_executor": _THREADS,
    "set_default_executor": _THREADS,
    "shutdown_default_executor": _THREADS,
    "call_soon_threadsafe": _THREADS,
    "getaddrinfo": _NETWORK,
    "getnameinfo": _NETWORK,
    "create_connection": _NETWORK,
    "create_server": _NETWORK,
    "create_unix_connection": _NETWORK,
    "create_unix_server": _NETWORK,
    "create_datagram_endpoint": _NETWORK,
    "connect_accepted_socket": _NETWORK,
    "start_tls": _NETWORK,
    "sendfile": _NETWORK,
    "sock_recv": _NETWORK,
    "sock_recv_into": _NETWORK,
    "sock_recvfrom": _NETWORK,
    "sock_recvfrom_into": _NETWORK,
    "sock_sendall": _NETWORK,
    "sock_sendto": _NETWORK,
    "sock_connect": _NETWORK,
    "sock_accept": _NETWORK,
    "sock_sendfile": _NETWORK,
    "add_reader": _FILES,
    "remove_reader": _FILES,
    "add_writer": _FILES,
    "remove_writer": _FILES,
    "connect_read_pipe": _FILES,
    "connect_write_pipe": _FILES,
    "subprocess_shell": _PROCESSES,
    "subprocess_exec": _PROCESSES,
    "add_signal_handler": _SIGNALS,
    "remove_signal_handler": _SIGNALS,
    "run_forever": _LOOP,
    "run_until_complete": _LOOP,
    "stop": _LOOP,
    "close": _LOOP,
    "set_debug": _LOOP,
    "set_task_factory": "the order of tasks must be the same in each replay; use asyncio.create_task",
    "set_exception_handler": "it would be called when the garbage collector runs; handle errors where you await",
    "default_exception_handler": _LOOP,
}
