"""Encryption end to end: AES-256-GCM, with keys that only clients and workers have.

A keys file has a key in each line, "NAME BASE64": the first one encrypts, all of them decrypt. To change keys, put the new
one first everywhere as the *second* line, then move it to the top everywhere, and drop the old one once no run needs it.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from treadle.protocol.errors import ConfigError, PayloadUnreadable
from treadle.protocol.sealing import Place
from treadle.v1.common_pb2 import Payload

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ("AesGcm", "new_key")

_ENCODING: Final = "aes-256-gcm"
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


def new_key(name: str) -> str:
    """Return a line for a keys file: `name` and a random key."""
    _check_name(name)
    return f"{name} {base64.b64encode(os.urandom(_KEY_BYTES)).decode()}"


class AesGcm:
    """A codec that encrypts every value, and the messages and tracebacks of errors.

    Each value gets a random nonce of 96 bits, and is bound to its place: namespace, run, direction and step. Names of
    workflows, steps and signals, run ids, classes of errors and sizes stay in the clear. With one key, encrypt at most
    2**32 values.

    Args:
        keys: Name -> 32 bytes. The first one encrypts, all of them decrypt.
        errors: False: errors stay in the clear.

    Raises:
        ConfigError: There is no key, one is not 32 bytes long, or `cryptography` is not installed.
    """

    def __init__(self, keys: Mapping[str, bytes], *, errors: bool = True) -> None:
        if not keys:
            raise ConfigError("no key: give at least one (`treadle.client.encryption.new_key` makes one)")
        self._errors = errors
        self._ciphers = {_check_name(name): _cipher(name, key) for name, key in keys.items()}
        self._first = next(iter(keys))

    @classmethod
    def from_file(cls, path: str | Path, *, errors: bool = True) -> AesGcm:
        """Return the codec of a keys file. Empty lines, and what follows a '#', are skipped.

        Raises:
            ConfigError: The file cannot be read, or a line is wrong.
        """
        try:
            text = Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"keys file {str(path)!r}: cannot be read: {error}") from error
        keys: dict[str, bytes] = {}
        for number, line in enumerate(text.splitlines(), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            if len(words) != 2 or words[0] in keys:
                raise ConfigError(f"keys file {str(path)!r}, line {number}: write NAME BASE64, each name once")
            try:
                keys[words[0]] = base64.b64decode(words[1], validate=True)
            except binascii.Error:
                raise ConfigError(f"keys file {str(path)!r}, line {number}: the key is not base64") from None
        return cls(keys, errors=errors)

    @property
    def errors(self) -> bool:
        """Whether errors are encrypted, too."""
        return self._errors

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the keys; the first one encrypts."""
        return tuple(self._ciphers)

    def encode(self, payload: Payload, place: Place) -> Payload:
        """See Codec.encode."""
        nonce, bound = os.urandom(_NONCE_BYTES), place.text()
        secret = self._ciphers[self._first].encrypt(nonce, payload.data, _bound(bound, payload.encoding))
        metadata = {"key": self._first, "place": bound}
        if payload.encoding:
            metadata["encoding"] = payload.encoding
        return Payload(data=nonce + secret, encoding=_ENCODING, metadata=metadata)

    def decode(self, payload: Payload, place: Place) -> Payload:
        """See Codec.decode."""
        from cryptography.exceptions import InvalidTag

        if payload.encoding != _ENCODING:
            raise PayloadUnreadable(
                f"encoding {payload.encoding!r} is not {_ENCODING!r}: configure the codec that made it"
            )
        metadata = payload.metadata
        name, bound, inner = metadata.get("key", ""), metadata.get("place", ""), metadata.get("encoding", "")
        cipher = self._ciphers.get(name)
        if cipher is None:
            raise PayloadUnreadable(
                f"it is encrypted with key {name[:64]!r}, which is not among the keys here ({', '.join(self._ciphers)}): "
                "add it to the keys file"
            )
        if Place.read(bound) != place:
            raise PayloadUnreadable(f"it was encrypted for {bound[:400]!r}, but is found at {place.text()!r}")
        try:
            data = cipher.decrypt(payload.data[:_NONCE_BYTES], payload.data[_NONCE_BYTES:], _bound(bound, inner))
        except (InvalidTag, ValueError):
            raise PayloadUnreadable(
                f"it was changed after it was encrypted, or key {name!r} is not the key of that name it was encrypted with"
            ) from None
        return Payload(data=data, encoding=inner)


def _bound(place: str, encoding: str) -> bytes:
    """What is authenticated beside the value."""
    return f"{place}|{encoding}".encode()


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"key name {name[:80]!r}: use 1 to 64 letters, digits, '.', '_' and '-'")
    return name


def _cipher(name: str, key: bytes) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise ConfigError("encryption needs `cryptography`: pip install 'treadle[encryption]'") from error
    if len(key) != _KEY_BYTES:
        raise ConfigError(f"key {name!r}: has {len(key)} bytes, AES-256 needs {_KEY_BYTES}")
    return AESGCM(key)
