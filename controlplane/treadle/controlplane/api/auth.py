"""Who may call what: tokens with a namespace, a role and an end, kept as SHA-256 in a file.

A line of the file is `namespace role sha256 expiry`: a namespace or `*`; a role; the SHA-256 of the whole token in hex; an
ISO date or time (UTC) or `never`. Empty lines and lines that begin with `#` are skipped. Tokens look like
`tdl_<key id>_<secret>` and come as the metadata `authorization: Bearer <token>`. The file is read again when it changes.

    viewer          reads runs, pools and schedules
    client          starts, reads and cancels runs, also by triggering a schedule; finishes deferred
                    steps whose token it has
    operator        all of that, terminates, lets stopped, closed and quarantined work go on, and creates and steers schedules
    worker:<pool>   is a worker of that pool, and nothing else
    admin           everything
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import grpc
import structlog

from treadle.controlplane.api.errors import Context, MessageCheck
from treadle.controlplane.config import ServerConfig
from treadle.protocol.errors import ConfigError, Refused

__all__ = ("Grantee", "TokenFile", "TokenGuard", "caller", "make_token", "server_credentials")

_log = structlog.stdlib.get_logger(__name__)

_STREAM: Final = "/treadle.v1.RunService/StreamRuns"
_READS: Final = frozenset(
    {
        "/treadle.v1.RunService/GetRun",
        "/treadle.v1.RunService/ListRuns",
        "/treadle.v1.RunService/CountRuns",
        "/treadle.v1.RunService/WaitRun",
        "/treadle.v1.RunService/GetHistory",
        "/treadle.v1.RunService/WatchRun",
        "/treadle.v1.RunService/GetState",
        "/treadle.v1.RunService/ListQuarantinedSteps",
        _STREAM,  # each start on it needs the right to StartRun
        "/treadle.v1.ScheduleService/GetSchedule",
        "/treadle.v1.ScheduleService/ListSchedules",
        "/treadle.v1.BlobService/GetBlobStore",
        "/treadle.v1.EventService/ListEvents",
        "/treadle.v1.EventService/ListTriggers",
        "/treadle.v1.PoolService/ListPools",
        "/treadle.v1.PoolService/ListWorkers",
        "/treadle.v1.PoolService/CheckHealth",
    }
)
_STARTS: Final = frozenset(
    f"/treadle.v1.RunService/{method}" for method in ("StartRun", "CancelRun", "SignalRun", "AskRun")
) | frozenset(
    {
        "/treadle.v1.ScheduleService/TriggerSchedule",
        "/treadle.v1.StepService/CompleteStep",
        "/treadle.v1.StepService/FailStep",
        "/treadle.v1.EventService/SendEvents",
    }
)
_STEERS: Final = (
    frozenset(f"/treadle.v1.RunService/{method}" for method in ("TerminateRun", "AcceptRun", "RetryRun", "ReleaseStep"))
    | frozenset(
        f"/treadle.v1.ScheduleService/{method}Schedule"
        for method in ("Create", "Change", "Pause", "Resume", "Backfill", "Delete")
    )
    | frozenset({"/treadle.v1.EventService/DeleteTrigger"})
)
_ALLOWED: Final[Mapping[str, frozenset[str]]] = {
    "viewer": _READS,
    "client": _READS | _STARTS,
    "operator": _READS | _STARTS | _STEERS,
}
_WORKER_SERVICE: Final = "/treadle.v1.WorkerService/"
_OPEN: Final = ("/grpc.health.v1.Health/", "/grpc.reflection.v1alpha.ServerReflection/")


@dataclass(frozen=True, slots=True)
class Grantee:
    """What a token stands for.

    Attributes:
        namespace: The one namespace, or "*".
        role: "admin", "operator", "viewer", "client" or "worker".
        pool: Of a worker: its pool.
        key_id: Names the token in logs.
        expires: From then on it is refused; None: never.
    """

    namespace: str
    role: str
    pool: str = ""
    key_id: str = ""
    expires: datetime | None = None

    def check_method(self, method: str) -> None:
        """Raise Refused unless the role may call `method`."""
        if self.role == "admin":
            return
        worker = self.role == "worker"
        allowed = method.startswith(_WORKER_SERVICE) if worker else method in _ALLOWED[self.role]
        if not allowed:
            raise Refused(
                f"role {self.role!r} may not call {method}",
                reason="ROLE_NOT_ALLOWED",
                remedy="use a token with another role",
            )

    def check_message(self, message: Any) -> None:
        """Raise Refused unless namespace and pool that the message names are those of the token.

        Messages of a session name them in the hello and in each job that they claim.
        """
        fields = message.DESCRIPTOR.fields_by_name
        if "namespace" in fields:
            self._check_names(message.namespace or "default", message.pool if "pool" in fields else "")
        if "hello" in fields and message.HasField("hello"):
            self._check_names(message.hello.namespace or "default", message.hello.pool)
        claims = list(message.claims) if "claims" in fields else [message]
        for claim in claims:
            if "job" in claim.DESCRIPTOR.fields_by_name and claim.HasField("job"):
                self._check_names(claim.job.namespace, claim.job.pool)

    def _check_names(self, namespace: str, pool: str) -> None:
        if self.namespace not in ("*", namespace):
            raise Refused(
                f"the token is for namespace {self.namespace!r}, the call for {namespace!r}",
                reason="NAMESPACE_NOT_ALLOWED",
                remedy="use a token of that namespace",
            )
        if self.role == "worker" and pool and pool != self.pool:
            raise Refused(
                f"the token is for pool {self.pool!r}, the call for {pool!r}",
                reason="POOL_NOT_ALLOWED",
                remedy=f"use a token with the role worker:{pool}",
            )


caller: ContextVar[Grantee | None] = ContextVar("treadle_caller", default=None)
"""Who makes the present call; None: no tokens are asked for."""


class TokenFile:
    """The tokens, read again when the file's time or size changes.

    Raises:
        ConfigError: A line is wrong (file and line are named). After the first reading such a file is logged and the
            tokens before it stay.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] = (0, 0)
        self._tokens: dict[str, Grantee] = {}
        self._read(self._stat())

    def find(self, token: str, now: datetime) -> Grantee | None:
        """Return what `token` stands for; None when it is unknown or over."""
        self._refresh()
        digest = sha256(token.encode()).hexdigest()
        found = next((g for known, g in self._tokens.items() if hmac.compare_digest(known, digest)), None)
        if found is None or (found.expires is not None and found.expires <= now):
            return None
        return found

    def _stat(self) -> tuple[int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size

    def _refresh(self) -> None:
        try:
            stamp = self._stat()
            if stamp != self._stamp:
                self._read(stamp)
        except (OSError, ConfigError) as error:
            _log.error("tokens_file_refused", path=str(self._path), error=str(error), kept=len(self._tokens))

    def _read(self, stamp: tuple[int, int]) -> None:
        self._stamp = stamp  # set first: a wrong file is complained of once, not at each call
        tokens: dict[str, Grantee] = {}
        for number, line in enumerate(self._path.read_text(encoding="utf-8").splitlines(), start=1):
            text = line.strip()
            if text and not text.startswith("#"):
                digest, grantee = _parse(text, f"{self._path}:{number}")
                tokens[digest] = grantee
        self._tokens = tokens


def _parse(line: str, where: str) -> tuple[str, Grantee]:
    words = line.split()
    if len(words) != 4:
        raise ConfigError(f"{where}: write 'namespace role sha256 expiry', found {len(words)} words")
    namespace, role, digest, expiry = words
    role, _, pool = role.partition(":")
    if role not in ("admin", "operator", "viewer", "client", "worker") or (role == "worker") != bool(pool):
        raise ConfigError(f"{where}: role {words[1]!r}: use admin, operator, viewer, client or worker:<pool>")
    digest = digest.lower()
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ConfigError(f"{where}: the third word must be the SHA-256 of the token, 64 hex digits")
    expires: datetime | None = None
    if expiry != "never":
        try:
            expires = datetime.fromisoformat(expiry)
        except ValueError:
            raise ConfigError(f"{where}: expiry {expiry!r}: use an ISO date like 2027-01-31, or never") from None
        expires = expires.replace(tzinfo=UTC) if expires.tzinfo is None else expires
    return digest, Grantee(namespace, role, pool, digest[:8], expires)


class TokenGuard:
    """Asks each call for a token. Health and reflection are open."""

    def __init__(self, tokens: TokenFile) -> None:
        self._tokens = tokens

    def admit(self, method: str, *, streaming: bool, context: Context) -> MessageCheck | None:
        """See Guard."""
        if method.startswith(_OPEN):
            return None
        token = _bearer(context)
        grantee = self._find(token)
        grantee.check_method(method)
        caller.set(grantee)
        if method != _STREAM:
            return grantee.check_message

        def check(message: Any) -> None:
            """A token that is over or withdrawn ends the stream with its next message."""
            if self._find(token) != grantee:
                raise _invalid()
            grantee.check_message(message)

        return check

    def _find(self, token: str) -> Grantee:
        grantee = self._tokens.find(token, datetime.now(UTC))
        if grantee is None:
            raise _invalid()
        return grantee


def _invalid() -> Refused:
    return Refused(
        "the call has no valid token",
        reason="TOKEN_INVALID",
        remedy="set TREADLE_TOKEN to a token that the server's tokens file knows and that is not over",
    )


def _bearer(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str) and value.lower().startswith("bearer "):
            return value[7:].strip()
    return ""


def make_token(namespace: str, role: str, expiry: str = "never") -> tuple[str, str]:
    """Return a new token and the line of the tokens file that admits it."""
    token = f"tdl_{secrets.token_hex(4)}_{secrets.token_urlsafe(32)}"
    line = f"{namespace} {role} {sha256(token.encode()).hexdigest()} {expiry}"
    _parse(line, "token")
    return token, line


def server_credentials(config: ServerConfig) -> grpc.ServerCredentials | None:
    """Return the TLS credentials that `config` names; client certificates are demanded when it has a CA. None: no TLS."""
    if config.tls_cert is None or config.tls_key is None:
        return None
    pair = (config.tls_key.read_bytes(), config.tls_cert.read_bytes())
    authority = config.tls_ca.read_bytes() if config.tls_ca is not None else None
    return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)
