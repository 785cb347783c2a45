"""Settings of a control plane, checked when they are made: what is wrong, which value, what to do."""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from treadle.client.blobs import open_store
from treadle.protocol.durations import to_ms
from treadle.protocol.errors import ConfigError

__all__ = ("DEFAULT_AMQP_URL", "DEFAULT_LISTEN", "DEFAULT_REDIS_URL", "ServerConfig", "masked", "split_address")

DEFAULT_LISTEN: Final = "127.0.0.1:7430"
DEFAULT_REDIS_URL: Final = "redis://127.0.0.1:6379/0"
DEFAULT_AMQP_URL: Final = "amqp://guest:guest@127.0.0.1:5672/"

_REDIS = ("redis", "rediss", "unix")
_AMQP = ("amqp", "amqps")
_DAY_MS = 86_400_000


def _replica_id() -> str:
    return f"{socket.gethostname()[:40]}-{secrets.token_hex(4)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Everything that `treadle server` can be told.

    Attributes:
        redis_url: redis://, rediss:// or unix://.
        redis_cluster: True: `redis_url` names any node of a Redis Cluster.
        amqp_url: amqp:// or amqps://; "": the in-memory broker, for one replica only.
        listen: "host:port" of the gRPC server; port 0 takes a free one.
        insecure: True: listen on other interfaces than loopback without TLS and tokens.
        allow_volatile: True: start although Redis may lose acknowledged work.
        tokens_file: File of tokens (see api/auth.py); None: no tokens are asked for.
        tls_cert, tls_key: PEM files of the server; both or none.
        tls_ca: PEM file of the authority whose client certificates are demanded (mTLS); None: none are.
        max_payload_bytes: Largest encoded payload, 1 KiB to 4 MiB. Default 1 MiB.
        blobs: Where clients and workers keep large values, if they were told nothing else: file:///folder or
            s3://bucket/prefix, without credentials; "": nowhere. See docs/payloads.md.
        blob_above_bytes: Values of more bytes are kept there, 1 KiB to 1 MiB. Default 64 KiB.
        max_blob_bytes: Largest value where there is a store, up to 1 GiB. Default 64 MiB.
        blob_sweep_ms: How often values that nobody can need are looked for and deleted. Default 1 hour.
        outbox_max: From so many entries in the outbox on, starts are refused.
        retention_ms: Closed runs are deleted after so long. Default 7 days.
        cleanup_ms: A run whose timeout is over and whose code has not ended is closed after so long. Default 1 minute.
        worker_amqp_url: What workers are told to consume from; "": they use the session lane.
        replica_id: Names this process among replicas; random by default.
        reflection: True: gRPC reflection is on.
        shutdown_grace_s: How long calls may go on after SIGTERM.
        one_core: True: the threads of `treadle server` share a core while that has room for them (Linux). Default True.
        log_level: "debug", "info", "warning" or "error".

    Raises:
        ConfigError: A value is wrong, or the combination exposes an open server.
    """

    redis_url: str = DEFAULT_REDIS_URL
    redis_cluster: bool = False
    amqp_url: str = DEFAULT_AMQP_URL
    listen: str = DEFAULT_LISTEN
    insecure: bool = False
    allow_volatile: bool = False
    tokens_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    max_payload_bytes: int = 1 << 20
    blobs: str = ""
    blob_above_bytes: int = 64 << 10
    max_blob_bytes: int = 64 << 20
    blob_sweep_ms: int = 3_600_000
    outbox_max: int = 100_000
    retention_ms: int = 7 * _DAY_MS
    cleanup_ms: int = 60_000
    worker_amqp_url: str = ""
    replica_id: str = field(default_factory=_replica_id)
    reflection: bool = True
    shutdown_grace_s: float = 5.0
    one_core: bool = True
    log_level: str = "info"

    def __post_init__(self) -> None:
        _check_url("redis_url", self.redis_url, _REDIS)
        if self.amqp_url:
            _check_url("amqp_url", self.amqp_url, _AMQP)
        if self.worker_amqp_url:
            _check_url("worker_amqp_url", self.worker_amqp_url, _AMQP)
            if not self.amqp_url:
                raise ConfigError(
                    "worker_amqp_url is set but amqp_url is not: workers would consume from another broker"
                )
        _check_range("max_payload_bytes", self.max_payload_bytes, 1024, 4 << 20)
        _check_range("blob_above_bytes", self.blob_above_bytes, 1024, 1 << 20)
        _check_range("max_blob_bytes", self.max_blob_bytes, self.blob_above_bytes, 1 << 30)
        _check_range("blob_sweep_ms", self.blob_sweep_ms, 100, _DAY_MS)
        if self.blobs:
            open_store(self.blobs)
        _check_range("outbox_max", self.outbox_max, 1, 10**9)
        _check_range("retention_ms", self.retention_ms, 1000, 10**13)
        _check_range("cleanup_ms", self.cleanup_ms, 100, _DAY_MS)
        if not self.replica_id or not self.replica_id.isprintable():
            raise ConfigError(f"replica_id {self.replica_id!r}: give a printable name that no other replica has")
        self._check_exposure()

    def _check_exposure(self) -> None:
        host, _ = split_address(self.listen)
        for name in ("tokens_file", "tls_cert", "tls_key", "tls_ca"):
            path: Path | None = getattr(self, name)
            if path is not None and not path.is_file():
                raise ConfigError(f"{name} {str(path)!r}: there is no such file")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_cert and tls_key belong together: give both or none")
        if self.tls_ca is not None and self.tls_cert is None:
            raise ConfigError("tls_ca demands certificates of clients, which needs tls_cert and tls_key too")
        if self.insecure or _is_loopback(host):
            return
        missing = [name for name in ("tls_cert", "tokens_file") if getattr(self, name) is None]
        if missing:
            raise ConfigError(
                f"listen {self.listen!r} is reachable from other machines, but {' and '.join(missing)} not set: "
                "anybody could start and stop runs. Set them, listen on 127.0.0.1, or say --insecure"
            )

    @classmethod
    def from_env(cls, environ: Mapping[str, str], **given: Any) -> ServerConfig:
        """Return the settings of the `TREADLE_*` variables, each overruled by what is given and not None.

        `TREADLE_AMQP_URL=memory` means the in-memory broker. Unset and empty variables leave the default.
        """
        values: dict[str, Any] = {}
        for name, parse in _PARSERS.items():
            variable = f"TREADLE_{name.removesuffix('_ms').removesuffix('_s').upper()}"
            text = environ.get(variable, "").strip()
            if text:
                values[name] = parse(text, variable)
        values |= {name: value for name, value in given.items() if value is not None}
        if values.get("amqp_url") == "memory":
            values["amqp_url"] = ""
        return cls(**values)


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of "host:port" ("[::1]:7430" for IPv6).

    Raises:
        ConfigError: It is not of that form, or the port is not 0 to 65,535.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65_535 or not host:
        raise ConfigError(f"listen {address!r}: write it like '127.0.0.1:7430'")
    return host.strip("[]"), int(port)


def masked(url: str) -> str:
    """Return the URL without its password, for logs and messages."""
    parts = urlsplit(url)
    if not parts.password:
        return url
    user, host = parts.username or "", parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{user}:***@{host}"))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_url(name: str, url: str, schemes: tuple[str, ...]) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in schemes and bool(parts.hostname or parts.scheme == "unix")
        parts.port  # noqa: B018 - reading it checks it
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"{name} {_hidden(url)!r}: use {', '.join(f'{s}://…' for s in schemes)}")


def _hidden(url: str) -> str:
    try:
        return masked(url)
    except ValueError:
        return f"…@{url.rpartition('@')[2]}" if "@" in url else url


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} {value}: give a number from {low:,} to {high:,}")


def _text(text: str, name: str) -> str:
    return text


def _path(text: str, name: str) -> Path:
    return Path(text)


def _number(text: str, name: str) -> int:
    try:
        return int(text.replace("_", ""))
    except ValueError:
        raise ConfigError(f"{name} {text!r}: give a whole number") from None


def _seconds(text: str, name: str) -> float:
    return to_ms(text, name=name) / 1000


def _milliseconds(text: str, name: str) -> int:
    return to_ms(text, name=name)


def _flag(text: str, name: str) -> bool:
    value = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}.get(text.lower())
    if value is None:
        raise ConfigError(f"{name} {text!r}: use 1 or 0")
    return value


_PARSERS: Final[Mapping[str, Callable[[str, str], object]]] = {
    "redis_url": _text,
    "redis_cluster": _flag,
    "amqp_url": _text,
    "listen": _text,
    "insecure": _flag,
    "allow_volatile": _flag,
    "tokens_file": _path,
    "tls_cert": _path,
    "tls_key": _path,
    "tls_ca": _path,
    "max_payload_bytes": _number,
    "blobs": _text,
    "blob_above_bytes": _number,
    "max_blob_bytes": _number,
    "blob_sweep_ms": _milliseconds,
    "outbox_max": _number,
    "retention_ms": _milliseconds,
    "cleanup_ms": _milliseconds,
    "worker_amqp_url": _text,
    "replica_id": _text,
    "reflection": _flag,
    "shutdown_grace_s": _seconds,
    "one_core": _flag,
    "log_level": _text,
}
"""Field -> parser; the variable is TREADLE_ and the field's name in capitals, without the unit at its end."""
