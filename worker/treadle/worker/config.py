"""Settings of a worker process, checked when they are made: what is wrong, which value, what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args
from urllib.parse import urlsplit

from treadle.client.config import Tls, is_loopback
from treadle.protocol.durations import Duration, to_ms
from treadle.protocol.errors import ConfigError
from treadle.protocol.ids import check_name

__all__ = ("DEFAULT_SERVER", "LaneChoice", "WorkerConfig")

DEFAULT_SERVER: Final = "127.0.0.1:7430"

LaneChoice = Literal["auto", "amqp", "session"]
"""How step jobs come. "auto": from RabbitMQ when there is an address of one, and down the session, which is faster, while slots
are free; without an address only down the session. "amqp": only from RabbitMQ. "session": only down the session."""

_SLOTS, _SLOTS_WITH_PROCESSES = 200, 50
_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """Everything that `treadle worker` can be told.

    Attributes:
        app: "path/to/app.py", "package.module" or "package.module:name".
        pool: Pool it serves.
        server: "host:port", or several with commas between them: each is tried in turn.
        namespace: Tenant or environment.
        amqp_url: amqp:// or amqps://; "": what the server tells at registration.
        lane: "auto", "amqp" or "session".
        token: How it proves itself; None: no token.
        tls_ca, tls_cert, tls_key: PEM files. `tls_ca` alone encrypts, with certificate and key it is mTLS.
        tls: True: encrypt with the authorities that gRPC ships, without naming any file.
        insecure: True: plaintext to other machines too.
        slots: Attempts of pool steps at the same time; also how many threads local sync steps get. None: 200, or 50 where a
            step needs a process.
        run_slots: Open runs at the same time. Up to 5 times as many are kept in memory when they are parked (6 to 9 KiB
            each, and what they hold of at most 64 MiB of history), and wake beside them.
        grace: How long steps may run on after SIGTERM. Default "25s", below the 30 s of Kubernetes.
        always_replay: Drop and replay the coroutine at every event (a test mode).
        blobs: Where values over 64 KiB are kept (file:///folder, s3://bucket/prefix); "": where the server says.
        keys_file: Encrypt with the keys in this file; see docs/payloads.md.
        codec: "package.module:name" of a codec of your own, instead of `keys_file`.
        log_level: "debug", "info", "warning" or "error".

    Raises:
        ConfigError: A value is wrong.
    """

    app: str
    pool: str = "default"
    server: str = DEFAULT_SERVER
    namespace: str = "default"
    amqp_url: str = ""
    lane: LaneChoice = "auto"
    token: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls: bool = False
    insecure: bool = False
    slots: int | None = None
    run_slots: int = 2_000
    grace: Duration = "25s"
    always_replay: bool = False
    blobs: str = ""
    keys_file: str | None = None
    codec: str = ""
    log_level: str = "info"

    def __post_init__(self) -> None:
        if not self.app:
            raise ConfigError("no app: give a file like path/to/app.py, or a module")
        check_name("pool", self.pool)
        check_name("namespace", self.namespace)
        if self.lane not in get_args(LaneChoice):
            raise ConfigError(f"lane {self.lane!r}: use {', '.join(get_args(LaneChoice))}")
        if self.log_level not in _LEVELS:
            raise ConfigError(f"log_level {self.log_level!r}: use {', '.join(_LEVELS)}")
        if self.slots is not None:
            _check_range("slots", self.slots, 1, 10_000)
        _check_range("run_slots", self.run_slots, 1, 100_000)
        to_ms(self.grace, name="grace")
        if self.amqp_url:
            _check_amqp(self.amqp_url)
        credentials = self.credentials()
        for address in self.addresses:
            _check_address(address)
            if credentials is None and not self.insecure and not is_loopback(address):
                raise ConfigError(
                    f"server {address!r} is not this machine and the connection would not be encrypted: set "
                    "TREADLE_TLS_CA (--tls-ca), or allow it with TREADLE_INSECURE=1 (--insecure)"
                )

    @property
    def addresses(self) -> tuple[str, ...]:
        """The servers to try, in order."""
        return tuple(part.strip() for part in self.server.split(",") if part.strip()) or ("",)

    @property
    def grace_ms(self) -> int:
        return to_ms(self.grace, name="grace")

    def step_slots(self, *, processes: bool) -> int:
        """Attempts of pool steps at the same time; `processes`: some of them need one each."""
        return self.slots or (_SLOTS_WITH_PROCESSES if processes else _SLOTS)

    def credentials(self) -> Tls | None:
        """How the connection is encrypted; None: it is not."""
        if self.tls or self.tls_ca or self.tls_cert or self.tls_key:
            return Tls(ca=self.tls_ca, cert=self.tls_cert, key=self.tls_key)
        return None

    @classmethod
    def from_env(cls, environ: Mapping[str, str], **given: Any) -> WorkerConfig:
        """Return the settings of the `TREADLE_*` variables, each overruled by what is given and not None.

        The variable is TREADLE_ and the field's name in capitals. Unset and empty variables leave the default.
        """
        values: dict[str, Any] = {}
        for name, parse in _PARSERS.items():
            variable = f"TREADLE_{name.upper()}"
            text = environ.get(variable, "").strip()
            if text:
                values[name] = parse(text, variable)
        values |= {name: value for name, value in given.items() if value is not None}
        if values.get("amqp_url") == "memory":  # the server's word for its in-memory broker
            values["amqp_url"] = ""
        values.setdefault("app", "")
        return cls(**values)


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} {value}: give a number from {low:,} to {high:,}")


def _check_address(address: str) -> None:
    host, colon, port = address.rpartition(":")
    if address.startswith("unix:"):
        return
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ConfigError(f"server {address!r}: write it like '{DEFAULT_SERVER}'")


def _check_amqp(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("amqp", "amqps") and bool(parts.hostname)
        parts.port  # noqa: B018 - reading it checks it
    except ValueError:
        usable = False
    if not usable:
        shown = f"…@{url.rpartition('@')[2]}" if "@" in url else url
        raise ConfigError(f"amqp_url {shown!r}: use amqp://… or amqps://…")


def _text(text: str, name: str) -> str:
    return text


def _number(text: str, name: str) -> int:
    try:
        return int(text.replace("_", ""))
    except ValueError:
        raise ConfigError(f"{name} {text!r}: give a whole number") from None


def _flag(text: str, name: str) -> bool:
    value = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}.get(text.lower())
    if value is None:
        raise ConfigError(f"{name} {text!r}: use 1 or 0")
    return value


_PARSERS: Final[Mapping[str, Callable[[str, str], object]]] = {
    "app": _text,
    "pool": _text,
    "server": _text,
    "namespace": _text,
    "amqp_url": _text,
    "lane": _text,
    "token": _text,
    "tls_ca": _text,
    "tls_cert": _text,
    "tls_key": _text,
    "tls": _flag,
    "insecure": _flag,
    "slots": _number,
    "run_slots": _number,
    "grace": _text,
    "always_replay": _flag,
    "blobs": _text,
    "keys_file": _text,
    "codec": _text,
    "log_level": _text,
}
