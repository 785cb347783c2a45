"""How channels to the control plane are made: addresses, TLS, keepalive, and retries by gRPC's own service config.

Retries are for UNAVAILABLE only, and only for calls that read or carry a `request_id`: the same request has its
effect once. Streams go on by themselves (see `stream` and `runs`).
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from treadle.protocol.errors import ConfigError

__all__ = ("CALL_TIMEOUT_S", "DEFAULT_TARGET", "Tls", "auth_metadata", "is_loopback", "open_channel")

DEFAULT_TARGET: Final = "localhost:7430"

CALL_TIMEOUT_S: Final = 10.0
"""Deadline of a unary call, in seconds."""

KEEPALIVE_MS: Final = 30_000
"""How often an idle connection with calls on it is pinged; the server permits it."""

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
"""Largest answer that is read: a page of history or of runs stays far below."""

_RETRY: Final = {
    "maxAttempts": 5,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
_REPEATABLE: Final = {
    "treadle.v1.RunService": (
        "StartRun",
        "GetRun",
        "ListRuns",
        "WaitRun",
        "CancelRun",
        "TerminateRun",
        "AcceptRun",
        "SignalRun",
        "AskRun",
        "GetState",
        "GetHistory",
    ),
    "treadle.v1.ScheduleService": (
        "CreateSchedule",
        "GetSchedule",
        "ListSchedules",
        "ChangeSchedule",
        "PauseSchedule",
        "ResumeSchedule",
        "TriggerSchedule",
        "BackfillSchedule",
        "DeleteSchedule",
    ),
    "treadle.v1.BlobService": ("GetBlobStore",),
    "treadle.v1.PoolService": ("ListPools", "ListWorkers", "CheckHealth"),
}


@dataclass(frozen=True, slots=True)
class Tls:
    """Encrypt the connection.

    Attributes:
        ca: PEM file with the certificates to trust; None: those that gRPC ships.
        cert: PEM file with the client's own certificate chain (mTLS); needs `key`.
        key: PEM file with its private key.

    Raises:
        ConfigError: Only one of `cert` and `key` is given.
    """

    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ConfigError("TLS: give the client's certificate and its key together, or neither")

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files and return what gRPC wants.

        Raises:
            ConfigError: A file cannot be read.
        """
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.cert))


def _read(path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"TLS: cannot read {path!r}: {error.strerror or error}") from error


def service_config() -> str:
    """Return gRPC's service config as JSON: what is retried, how often, and when retries are throttled."""
    names = [{"service": service, "method": name} for service, names in _REPEATABLE.items() for name in names]
    throttling = {"maxTokens": 10, "tokenRatio": 0.1}
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": _RETRY}], "retryThrottling": throttling})


def channel_options() -> list[tuple[str, Any]]:
    """Return the options of every channel: retries, keepalive, quick reconnects, message size."""
    return [
        ("grpc.service_config", service_config()),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),  # also how long one attempt to connect may take
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ]


def is_loopback(target: str) -> bool:
    """Tell whether `target` ("host:port", "unix:path") can only be reached from this machine."""
    if target.startswith("unix:"):
        return True
    address = target.rpartition("/")[2]
    host = address.rpartition(":")[0] or address
    host = host.strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_channel(
    target: str,
    *,
    tls: Tls | None = None,
    insecure: bool = False,
    options: Sequence[tuple[str, Any]] = (),
) -> grpc.aio.Channel:
    """Return a channel; it connects when it is used. Call it where an event loop runs.

    Args:
        target: "host:port".
        tls: How to encrypt; None: plaintext, to this machine only.
        insecure: True: plaintext to other machines too.
        options: Further channel options; they win over the usual ones.

    Raises:
        ConfigError: Plaintext to another machine was not asked for, or a TLS file cannot be read.
    """
    merged = [*channel_options(), *options]
    if tls is not None:
        return grpc.aio.secure_channel(target, tls.credentials(), options=merged)
    if not insecure and not is_loopback(target):
        raise ConfigError(
            f"{target!r} is not this machine and the connection would not be encrypted: "
            "give TLS (`tls=`, `--tls-ca`), or allow it with `insecure=True` (`--insecure`)"
        )
    return grpc.aio.insecure_channel(target, options=merged)


def auth_metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    """Return the metadata of each call that proves who calls; empty without a token."""
    return (("authorization", f"Bearer {token}"),) if token else ()
