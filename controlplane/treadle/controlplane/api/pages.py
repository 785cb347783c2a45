"""Page tokens: where the next page of a list begins. Bound to the list's filter; never a right to anything."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b
from typing import Final

import msgspec

from treadle.protocol.errors import FieldInvalid

__all__ = ("DEFAULT_PAGE", "LARGEST_PAGE", "Cursor", "page_size", "read_token", "write_token")

DEFAULT_PAGE: Final = 50
LARGEST_PAGE: Final = 1_000
_SEAL: Final = 8


class Cursor(msgspec.Struct, frozen=True, array_like=True):
    """The last entry of a page: the next one continues behind it.

    Attributes:
        score: Its score (ms), or 0 in lists by name.
        member: Its name.
    """

    score: int
    member: str


def page_size(asked: int) -> int:
    """Return how many entries a page has: 50 by default, never more than 1,000."""
    return min(asked or DEFAULT_PAGE, LARGEST_PAGE)


def write_token(cursor: Cursor, *filters: object) -> str:
    """Return the token of the page behind `cursor` in the list with these filters."""
    body = msgspec.msgpack.encode(cursor)
    return urlsafe_b64encode(_seal(body, filters) + body).decode().rstrip("=")


def read_token(token: str, *filters: object) -> Cursor | None:
    """Return where the page begins; None for the first one ("").

    Raises:
        FieldInvalid: The token was altered, or comes from a list with other filters.
    """
    if not token:
        return None
    try:
        data = urlsafe_b64decode(token + "=" * (-len(token) % 4))
        if data[:_SEAL] == _seal(data[_SEAL:], filters):
            return msgspec.msgpack.decode(data[_SEAL:], type=Cursor)
    except (ValueError, msgspec.MsgspecError):
        pass  # falls through to the refusal below
    raise FieldInvalid(
        f"page_token {token[:40]!r} is not one of this list",
        field="page_token",
        remedy="give next_page_token of the answer before, with the same filters; or leave it out for the first page",
    )


def _seal(body: bytes, filters: tuple[object, ...]) -> bytes:
    return blake2b(repr(filters).encode() + b"\0" + body, digest_size=_SEAL, person=b"treadle-page-v1").digest()
