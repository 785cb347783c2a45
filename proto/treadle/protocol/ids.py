"""Names and ids: which are allowed, how they are derived, which shard they live in.

Nothing here draws randomness: callers pass in what must be random, so that a simulation can replay it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple
from zlib import crc32

from treadle.protocol.errors import ConfigError, FieldInvalid

__all__ = (
    "RECORD_MARK",
    "SCHEDULES",
    "SHARDS",
    "RunKey",
    "check_name",
    "check_run_id",
    "child_id",
    "digest",
    "hook_id",
    "idempotency_key",
    "retried_path",
    "shard_of",
    "span_id",
    "span_ids",
    "trace_id",
    "worker_shard",
)

SHARDS = 64
"""Hash tags over which runs and workers are spread; fixed for the life of a deployment."""

RECORD_MARK = "~"
"""What the names of records begin with: things that live in a shard like runs, and execute no code."""

SCHEDULES = f"{RECORD_MARK}schedule/"
"""What the names of the records of schedules begin with."""

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_RUN_ID_LIMIT = 200
_SPANS = b"treadle-otel-v1"
_NO_SPAN, _FIRST_SPAN = bytes(8), bytes(7) + b"\x01"


class RunKey(NamedTuple):
    """Where a run lives: its namespace and the name its client gave it."""

    namespace: str
    run_id: str

    @property
    def shard(self) -> int:
        return shard_of(self.namespace, self.run_id)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.run_id}"


def shard_of(namespace: str, run_id: str) -> int:
    """Return the shard, 0 to SHARDS - 1, of a run. Stable across versions: keys in Redis depend on it."""
    return crc32(f"{namespace}/{run_id}".encode()) % SHARDS


def worker_shard(worker_id: str) -> int:
    """Return the shard that keeps the record of a worker process."""
    return crc32(worker_id.encode()) % SHARDS


def check_name(kind: str, name: str) -> str:
    """Return `name` if it may name a pool or namespace.

    Raises:
        ConfigError: It does not match `[a-z0-9][a-z0-9-]{0,62}`. (These names become parts of queue names and of
            permission patterns.)
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"invalid {kind} name {name!r}: use 1 to 63 of a-z, 0-9 and '-', beginning with a letter or digit"
        )
    return name


def check_run_id(run_id: str) -> str:
    """Return `run_id` if it may name a run: 1 to 200 printable characters.

    Raises:
        FieldInvalid: It is empty, too long, has control characters, or begins with "~": such names are kept for records.
    """
    if run_id.startswith(RECORD_MARK):
        raise FieldInvalid(f"run_id {run_id[:40]!r}: must not begin with {RECORD_MARK!r}", field="run_id")
    if not run_id or len(run_id) > _RUN_ID_LIMIT or not run_id.isprintable():
        raise FieldInvalid(f"run_id {run_id[:40]!r}: give 1 to {_RUN_ID_LIMIT} printable characters", field="run_id")
    return run_id


def digest(key: bytes, data: bytes) -> int:
    """Return the 64-bit digest of an encoded input, keyed per run so that equal inputs of two runs do not show."""
    return int.from_bytes(blake2b(data, digest_size=8, key=key[:64]).digest(), "big")


def _hash(size: int, *parts: str) -> bytes:
    return blake2b("\x1f".join(parts).encode(), digest_size=size, person=_SPANS).digest()


def trace_id(namespace: str, run_id: str, incarnation: int) -> str:
    """Return the run's trace id, 32 hex digits: the same wherever and whenever it is computed."""
    return (_hash(16, namespace, run_id, str(incarnation)).hex()).replace("0" * 32, "0" * 31 + "1")


def span_id(namespace: str, run_id: str, incarnation: int, path: str) -> str:
    """Return the span id, 16 hex digits, of `path` in the run ("anchor", "step/0/validate#1/2")."""
    return (_hash(8, namespace, run_id, str(incarnation), path).hex()).replace("0" * 16, "0" * 15 + "1")


def span_ids(namespace: str, run_id: str, incarnation: int) -> Callable[[str], bytes]:
    """Return what makes the span ids of one run, as bytes, of their paths: those of `span_id`, for less."""
    begun = blake2b(f"{namespace}\x1f{run_id}\x1f{incarnation}\x1f".encode(), digest_size=8, person=_SPANS)

    def id_of(path: str) -> bytes:
        made = begun.copy()
        made.update(path.encode())
        found = made.digest()
        return found if found != _NO_SPAN else _FIRST_SPAN

    return id_of


def child_id(namespace: str, run_id: str, incarnation: int, command_id: str) -> str:
    """Return the id of a child run that was given none: the same in each replay, another in each start of its parent."""
    parts = "\x1f".join((namespace, run_id, str(incarnation), command_id))
    return f"{run_id[:150]}.{blake2b(parts.encode(), digest_size=8, person=b'treadle-child-v1').hexdigest()}"


def hook_id(namespace: str, run_id: str, incarnation: int, retries: int) -> str:
    """Return the id of the run that handles a run's failure: one for each time it failed."""
    return child_id(namespace, run_id, incarnation, f"on_failure/{retries}")


def retried_path(path: str, retries: int) -> str:
    """Return the path of a span that a run may have once more each time it is continued."""
    return f"{path}~{retries}" if retries else path


def idempotency_key(namespace: str, run_id: str, incarnation: int, command_id: str, redone: int = 0) -> str:
    """Return the key, 32 hex digits, that is equal in all attempts of a step; to be passed on to payment providers.

    `redone`: number of the retry by which the step was made to run again although it had been done; that is another deed.
    """
    parts = "\x1f".join((namespace, run_id, str(incarnation), command_id, *([str(redone)] if redone else [])))
    return blake2b(parts.encode(), digest_size=16, person=b"treadle-idem-v1").hexdigest()
