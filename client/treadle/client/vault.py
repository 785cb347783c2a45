"""What clients and workers do with encoded values on their way out and in: encrypt, then move what is large to a blob store.

A value is in the store before the message that names it is sent: killed in between, what is left is a value that nobody
names, never a name without its value.
"""

from __future__ import annotations

import asyncio
import importlib
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from traceback import extract_tb
from typing import Final, TypeVar

from treadle.client.blobs import BlobStore, open_store
from treadle.protocol.errors import BlobMissing, CodecFailed, ConfigError, PayloadUnreadable, TreadleError
from treadle.protocol.payloads import MAX_PAYLOAD_BYTES
from treadle.protocol.sealing import BLOB, Codec, Place, open_failure, seal_failure
from treadle.v1 import blob_service_pb2 as wire
from treadle.v1.common_pb2 import BlobRef, Failure, Payload

__all__ = ("ABOVE_BYTES", "MAX_BLOB_BYTES", "Vault", "codec_of", "limit_of", "vault_of")

ABOVE_BYTES: Final = 64 << 10
MAX_BLOB_BYTES: Final = 64 << 20
_DIGEST_BYTES: Final = 32
_GROWTH: Final = 2048
"""A codec may add so many bytes, and metadata."""
_THREADS: Final = 8

T = TypeVar("T")


class Vault:
    """Seals and opens values. Without codec and store it changes nothing. Any thread may use it.

    Args:
        namespace: Of all values; blobs of others are not read.
        codec: Encrypts; None: nothing is encrypted.
        store: Where large values go; None: they stay in their messages.
        above: Values of more bytes go there.
        limit: Values of more bytes are refused; None: 64 MiB with a store, else 1 MiB.
    """

    def __init__(
        self,
        namespace: str,
        *,
        codec: Codec | None = None,
        store: BlobStore | None = None,
        above: int = ABOVE_BYTES,
        limit: int | None = None,
    ) -> None:
        self._namespace = namespace
        self.codec = codec
        self._store = store
        self._above = above
        self.limit = _limit(limit, stored=store is not None, encoded=codec is not None)
        self._threads = ThreadPoolExecutor(_THREADS, "treadle-blobs")

    @property
    def plain(self) -> bool:
        """Whether it changes nothing, ever."""
        return self.codec is None and self._store is None

    def close(self) -> None:
        """Let the threads go; what is under way ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    # --- out -------------------------------------------------------------------------------------------------------
    def seal_here(self, payload: Payload, place: Place, homes: Sequence[str]) -> Payload | None:
        """As `seal`, and never blocks; None: it must be stored. How large a value is, its codec decides.

        Raises:
            CodecFailed: The codec raised.
        """
        if self._store is not None and homes and len(payload.data) > self._above - _GROWTH:
            return None
        sealed = self._encoded(payload, place)
        return sealed if self._stays(sealed, homes) else None

    def seal(self, payload: Payload, place: Place, homes: Sequence[str]) -> Payload:
        """Return what is sent instead of a value. Blocks where that is large.

        Args:
            payload: The encoded value.
            place: What it is for.
            homes: What its keys in the store begin with (see `home_of`): it is kept as long as one of these runs is. None:
                it stays in its message, however large.

        Raises:
            BlobStoreUnavailable: It could not be stored.
            CodecFailed: The codec raised.
        """
        sealed = self._encoded(payload, place)
        if self._store is None or self._stays(sealed, homes):
            return sealed
        name = secrets.token_hex(16)
        keys = [f"{home}/{name}" for home in homes]
        for key in keys:
            self._store.put(key, sealed.data)
        ref = BlobRef(keys=keys, size=len(sealed.data), digest=_digest(sealed.data), encoding=sealed.encoding)
        return Payload(encoding=BLOB, blob=ref, metadata=sealed.metadata)

    def _encoded(self, payload: Payload, place: Place) -> Payload:
        codec = self.codec
        return payload if codec is None else self._by_codec(lambda: codec.encode(payload, place))

    def _by_codec(self, work: Callable[[], T]) -> T:
        """Ask the codec. What it raises of its own may quote the value, so nothing of that goes on but class and place:
        failures carry the texts of causes, and leave the process.
        """
        try:
            return work()
        except TreadleError:
            raise
        except Exception as error:
            where = extract_tb(error.__traceback__)[-1]
            raised = f"{type(error).__name__} at {where.filename}:{where.lineno}"
            raise CodecFailed(f"codec {type(self.codec).__name__} raised {raised}") from None

    def _stays(self, sealed: Payload, homes: Sequence[str]) -> bool:
        return self._store is None or not homes or len(sealed.data) <= self._above

    def seal_failure(self, failure: Failure, place: Place) -> Failure:
        """Return what is sent instead of an error. Raises CodecFailed."""
        codec = self.codec
        if codec is None or not codec.errors or failure.HasField("sealed"):
            return failure
        return self._by_codec(lambda: seal_failure(failure, codec, place))

    # --- in --------------------------------------------------------------------------------------------------------
    def is_here(self, payload: Payload) -> bool:
        """Whether opening it needs no store."""
        return payload.encoding != BLOB

    def open(self, payload: Payload, place: Place) -> Payload:
        """Return the encoded value. Blocks where it is in the store.

        Raises:
            PayloadUnreadable: There is no key for it, it was tampered with, or it is of another place.
            BlobMissing: The store has it no more, or has something else.
            BlobStoreUnavailable: The store cannot be reached.
            CodecFailed: The codec raised.
        """
        if payload.encoding == BLOB:
            payload = self._fetched(payload)
        if payload.encoding in ("", "json"):
            return payload
        codec = self.codec
        if codec is None:
            raise PayloadUnreadable(
                f"the value is encoded with {payload.encoding!r}: configure the codec that made it (TREADLE_KEYS_FILE)"
            )
        return self._by_codec(lambda: codec.decode(payload, place))

    def open_failure(self, failure: Failure, place: Place) -> Failure:
        """Return the error. Raises PayloadUnreadable, CodecFailed."""
        return self._by_codec(lambda: open_failure(failure, self.codec, place))

    def _fetched(self, payload: Payload) -> Payload:
        ref = payload.blob
        if self._store is None:
            raise PayloadUnreadable("the value is in a blob store, and none is configured here: set TREADLE_BLOBS")
        missing: BlobMissing | None = None
        for key in ref.keys[:2]:
            if not key.startswith(f"{self._namespace}/"):
                raise BlobMissing(f"blob key {key[:80]!r} is not of namespace {self._namespace!r}")
            try:
                data = self._store.get(key)
            except BlobMissing as error:
                missing = error
                continue
            if len(data) == ref.size and _digest(data) == ref.digest:
                return Payload(data=data, encoding=ref.encoding, metadata=payload.metadata)
            missing = BlobMissing(f"blob {key!r} was changed after it was written: its digest is another one")
        raise missing or BlobMissing("the reference to a blob names none")

    # --- on an event loop ------------------------------------------------------------------------------------------
    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do something that blocks in one of the threads kept for it."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def sealed(self, payload: Payload, place: Place, homes: Sequence[str]) -> Payload:
        """`seal` on an event loop."""
        here = self.seal_here(payload, place, homes)
        return here if here is not None else await self.in_thread(lambda: self.seal(payload, place, homes))

    async def opened(self, payload: Payload, place: Place) -> Payload:
        """`open` on an event loop."""
        if self.is_here(payload):
            return self.open(payload, place)
        return await self.in_thread(lambda: self.open(payload, place))


def _limit(given: int | None, *, stored: bool, encoded: bool) -> int:
    limit = given or (MAX_BLOB_BYTES if stored else MAX_PAYLOAD_BYTES)
    return limit - _GROWTH if encoded and not stored else limit


def limit_of(told: wire.GetBlobStoreResponse, *, blobs: str, codec: Codec | None) -> int:
    """Return how large values may be that workers with these settings make; see `vault_of`."""
    stored = bool(blobs or told.blobs.url)
    given = told.blobs.max_bytes if stored else told.max_payload_bytes
    return _limit(given, stored=stored, encoded=codec is not None)


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=_DIGEST_BYTES).digest()


def codec_of(*, keys_file: str | None = None, codec: str = "") -> Codec | None:
    """Return the codec that a setting names; None: neither is given.

    Args:
        keys_file: AES-256-GCM with the keys in this file.
        codec: "package.module:name" of a codec, or of what returns one.

    Raises:
        ConfigError: Both are given, or it cannot be loaded.
    """
    if keys_file and codec:
        raise ConfigError("keys_file and codec are both given: a value has one codec")
    if keys_file:
        from treadle.client.encryption import AesGcm

        return AesGcm.from_file(keys_file)
    if not codec:
        return None
    module, colon, name = codec.partition(":")
    if not module or not colon or not name:
        raise ConfigError(f"codec {codec!r}: write it like package.module:name")
    try:
        found = getattr(importlib.import_module(module), name)
        made: Codec = found if hasattr(found, "encode") and not isinstance(found, type) else found()
    except Exception as error:  # it is code of the user
        raise ConfigError(f"codec {codec!r}: cannot be loaded: {type(error).__name__}: {error}") from error
    return made


def vault_of(
    namespace: str,
    *,
    codec: Codec | None,
    blobs: str,
    told: wire.BlobStore,
    max_payload_bytes: int,
    near: bool,
) -> Vault:
    """Return the vault of a process.

    Args:
        namespace: Of its values.
        codec: Encrypts; None: nothing is encrypted.
        blobs: URL of the store; "": where the control plane says.
        told: What the control plane says.
        max_payload_bytes: Largest value where there is no store.
        near: The control plane is on this machine.

    Raises:
        ConfigError: The URL is wrong, or names a folder of another machine.
    """
    url = blobs or told.url
    if not blobs and url.startswith("file:") and not near:
        raise ConfigError(
            f"the control plane keeps large values in a folder of its own machine ({url}): set TREADLE_BLOBS here to the "
            "folder as this machine sees it, or use s3://"
        )
    store = open_store(url) if url else None
    limit = (told.max_bytes or None) if store is not None else (max_payload_bytes or None)
    return Vault(namespace, codec=codec, store=store, above=told.above_bytes or ABOVE_BYTES, limit=limit)
