"""Blob stores: where large values are kept. Clients and workers read and write them, the control plane only deletes.

file:///folder                                     a folder that all of them see
s3://bucket/prefix?endpoint=URL&region=NAME        anything that speaks S3; credentials come from AWS_* or the machine
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from treadle.protocol.errors import BlobMissing, BlobStoreUnavailable, ConfigError

if TYPE_CHECKING:
    from obstore.store import S3Store

__all__ = (
    "INBOX",
    "Blob",
    "BlobStore",
    "FolderStore",
    "MemoryStore",
    "ObjectStore",
    "home_of",
    "open_store",
    "owner_of",
)

INBOX: Final = "in"
"""Where values are kept that were sent to a run from outside: its input, signals."""

_KEY: Final = re.compile(r"(?:[A-Za-z0-9_!-]+/)*[A-Za-z0-9_!-]+")
_UNSAFE: Final = re.compile(rb"[^A-Za-z0-9_-]")
_PIECE: Final = 200  # characters of a name of a folder; file systems take 255 bytes
_RETRY: Final = timedelta(seconds=30)
_MKDIR_TRIES: Final = 5


class Blob(NamedTuple):
    """An entry of a list: its key, and when it was written (seconds since 1970)."""

    key: str
    written: float


class BlobStore(Protocol):
    """A blob store. Calls block, and may be made by any thread. Keys are made by `home_of` and a random last part."""

    def put(self, key: str, data: bytes) -> None:
        """Keep the bytes; when this returns, they are durable. Raises BlobStoreUnavailable."""
        ...

    def get(self, key: str) -> bytes:
        """Return the bytes. Raises BlobMissing, BlobStoreUnavailable."""
        ...

    def list(self, prefix: str = "") -> Iterator[Blob]:
        """Yield what is below a prefix ("" or whole parts of keys). Raises BlobStoreUnavailable."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Delete; what is gone already is no error. Raises BlobStoreUnavailable."""
        ...


def home_of(namespace: str, run_id: str, place: int | None) -> str:
    """Return what the keys of a run's values begin with.

    Args:
        namespace, run_id: The run.
        place: Incarnation whose code or steps made the value; None: it came from outside.
    """
    name = _UNSAFE.sub(lambda found: b"!%02x" % found[0][0], run_id.encode()).decode()
    pieces = "/".join(name[i : i + _PIECE] for i in range(0, len(name), _PIECE))
    return f"{namespace}/{pieces}/{INBOX if place is None else f'{place:016x}'}"


def owner_of(key: str) -> tuple[str, str, int | None] | None:
    """Return namespace, run id and incarnation (None: from outside) of a key; None: it is not made by `home_of`."""
    namespace, *pieces = key.split("/")
    if len(pieces) < 3:
        return None
    *name, place, _ = pieces
    try:
        run_id = unquote("".join(name).replace("!", "%"), errors="strict")
        return namespace, run_id, None if place == INBOX else int(place, 16)
    except ValueError:
        return None


def open_store(url: str) -> BlobStore:
    """Return the store of a URL; it is not asked for anything yet.

    Raises:
        ConfigError: The URL is of no known form, or `obstore` is not installed.
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return FolderStore(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        return ObjectStore(parts.netloc, parts.path.strip("/"), dict(parse_qsl(parts.query)))
    raise ConfigError(f"blobs {url!r}: use file:///folder or s3://bucket/prefix")


class FolderStore:
    """A folder. It is made when the first value is kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, key: str, data: bytes) -> None:
        """See BlobStore."""
        path = self._path(key)
        try:
            draft = self._draft(path)
            try:
                with draft:
                    draft.write(data)
                    draft.flush()
                    os.fsync(draft.fileno())
                Path(draft.name).replace(path)
            except BaseException:
                Path(draft.name).unlink(missing_ok=True)
                raise
            for folder in path.parents:  # names of new folders, too, must outlive a power loss
                _sync_folder(folder)
                if folder == self._folder:
                    break
        except OSError as error:
            raise BlobStoreUnavailable(f"blob store {self._folder}: cannot write: {error}") from error

    def _draft(self, path: Path) -> BinaryIO:
        """Open a file beside `path`. Folders that were empty may be deleted at any time."""
        for _ in range(_MKDIR_TRIES):
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                return path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp").open("xb")
        raise FileNotFoundError(f"{path.parent} is deleted as often as it is made")

    def get(self, key: str) -> bytes:
        """See BlobStore."""
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError:
            raise BlobMissing(f"blob store {self._folder}: has no {key!r}") from None
        except OSError as error:
            raise BlobStoreUnavailable(f"blob store {self._folder}: cannot read: {error}") from error

    def list(self, prefix: str = "") -> Iterator[Blob]:
        """See BlobStore."""
        top = self._path(prefix) if prefix else self._folder
        for folder, _, names in os.walk(top):
            for name in names:
                path = Path(folder, name)
                with suppress(FileNotFoundError):  # deleted meanwhile
                    yield Blob(path.relative_to(self._folder).as_posix(), path.stat().st_mtime)

    def delete(self, keys: Sequence[str]) -> None:
        """See BlobStore."""
        try:
            for key in keys:
                path = self._folder.joinpath(*key.split("/"))
                path.unlink(missing_ok=True)
                with suppress(OSError):  # not empty
                    for folder in path.parents:
                        if folder == self._folder:
                            break
                        folder.rmdir()
        except OSError as error:
            raise BlobStoreUnavailable(f"blob store {self._folder}: cannot delete: {error}") from error

    def _path(self, key: str) -> Path:
        return self._folder.joinpath(*_checked(key).split("/"))


class MemoryStore:
    """A dict, for tests."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def put(self, key: str, data: bytes) -> None:
        """See BlobStore."""
        self.blobs[_checked(key)] = data

    def get(self, key: str) -> bytes:
        """See BlobStore."""
        try:
            return self.blobs[_checked(key)]
        except KeyError:
            raise BlobMissing(f"blob store in memory: has no {key!r}") from None

    def list(self, prefix: str = "") -> Iterator[Blob]:
        """See BlobStore."""
        for key in tuple(self.blobs):
            if not prefix or key.startswith(f"{prefix}/"):
                yield Blob(key, 0.0)

    def delete(self, keys: Sequence[str]) -> None:
        """See BlobStore."""
        for key in keys:
            self.blobs.pop(key, None)


class ObjectStore:
    """A bucket of S3, or of what speaks S3, through obstore.

    Args:
        bucket, prefix: Where in it.
        options: "endpoint" (URL; http:// is allowed when it is given so), "region", "virtual_hosted" ("1": the bucket is
            part of the host name).

    Raises:
        ConfigError: An option is unknown, or `obstore` is not installed.
    """

    def __init__(self, bucket: str, prefix: str, options: dict[str, str]) -> None:
        unknown = options.keys() - {"endpoint", "region", "virtual_hosted"}
        if unknown:
            raise ConfigError(f"blobs s3://{bucket}: option {min(unknown)!r}: use endpoint, region or virtual_hosted")
        self._where = f"s3://{bucket}/{prefix}".rstrip("/")
        self._store = _s3_store(bucket, prefix, options)

    def put(self, key: str, data: bytes) -> None:
        """See BlobStore."""
        from obstore.exceptions import BaseError

        try:
            self._store.put(_checked(key), data, use_multipart=False)
        except (BaseError, OSError) as error:
            raise BlobStoreUnavailable(f"blob store {self._where}: cannot write: {_first_line(error)}") from error

    def get(self, key: str) -> bytes:
        """See BlobStore."""
        from obstore.exceptions import BaseError, NotFoundError

        try:
            return bytes(self._store.get(_checked(key)).bytes())
        except (FileNotFoundError, NotFoundError):
            raise BlobMissing(f"blob store {self._where}: has no {key!r}") from None
        except (BaseError, OSError) as error:
            raise BlobStoreUnavailable(f"blob store {self._where}: cannot read: {_first_line(error)}") from error

    def list(self, prefix: str = "") -> Iterator[Blob]:
        """See BlobStore."""
        from obstore.exceptions import BaseError

        try:
            for page in self._store.list(prefix or None, chunk_size=1000):
                for found in page:
                    yield Blob(found["path"], found["last_modified"].timestamp())
        except (BaseError, OSError) as error:
            raise BlobStoreUnavailable(f"blob store {self._where}: cannot list: {_first_line(error)}") from error

    def delete(self, keys: Sequence[str]) -> None:
        """See BlobStore."""
        from obstore.exceptions import BaseError

        try:
            self._store.delete(list(keys))
        except (BaseError, OSError) as error:
            raise BlobStoreUnavailable(f"blob store {self._where}: cannot delete: {_first_line(error)}") from error


def _s3_store(bucket: str, prefix: str, options: dict[str, str]) -> S3Store:
    try:
        from obstore.store import S3Store
    except ImportError as error:
        raise ConfigError("s3:// needs `obstore`: pip install 'treadle[blobs]'") from error
    given: dict[str, Any] = {}
    if "endpoint" in options:
        given["endpoint"] = options["endpoint"]
    if "region" in options:
        given["region"] = options["region"]
    if options.get("virtual_hosted") == "1":
        given["virtual_hosted_style_request"] = True
    plain = options.get("endpoint", "").startswith("http://")
    return S3Store(
        bucket,
        prefix=prefix or None,
        client_options={"allow_http": plain, "timeout": "120s", "connect_timeout": "5s"},
        retry_config={"max_retries": 5, "retry_timeout": _RETRY},
        **given,
    )


def _checked(key: str) -> str:
    """A key from a message must not lead out of the store."""
    if len(key) > 2000 or not _KEY.fullmatch(key):
        raise BlobMissing(f"blob key {key[:80]!r} is none of ours")
    return key


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:500]


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
