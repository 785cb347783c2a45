"""Tags: words about a run that it is found by, and the names of versions. Zero I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Final

from treadle.protocol.errors import FieldInvalid
from treadle.v1.common_pb2 import Tag

__all__ = (
    "TAGS_AT_MOST",
    "TAG_KEY_LIMIT",
    "TAG_VALUE_LIMIT",
    "check_tag",
    "check_version",
    "code_name",
    "split_name",
    "tags_of",
)

TAGS_AT_MOST: Final = 20
"""So many tags has a run."""
TAG_KEY_LIMIT: Final = 64
TAG_VALUE_LIMIT: Final = 200

_VERSION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_MARK: Final = "@"


def check_tag(key: str, value: str) -> None:
    """Refuse what may not be a tag.

    Raises:
        FieldInvalid: The key has not 1 to 64 printable characters, or a "=" in it; or the value over 200.
    """
    if not key or len(key) > TAG_KEY_LIMIT or not key.isprintable() or "=" in key:
        raise FieldInvalid(
            f"tag {key[:TAG_KEY_LIMIT]!r}: its key must have 1 to {TAG_KEY_LIMIT} printable characters and no '='",
            field="tags",
        )
    if len(value) > TAG_VALUE_LIMIT or not value.isprintable():
        raise FieldInvalid(
            f"tag {key!r}: its value must have at most {TAG_VALUE_LIMIT} printable characters", field="tags"
        )


def tags_of(tags: Mapping[str, str | int] | Iterable[Tag]) -> list[Tag]:
    """Return tags as messages, sorted by key; numbers become text.

    Raises:
        FieldInvalid: One is not allowed, a key is there twice, or there are more than 20.
    """
    if isinstance(tags, Mapping):
        found = []
        for key, value in tags.items():
            if not isinstance(key, str) or isinstance(value, bool) or not isinstance(value, str | int):
                raise FieldInvalid(f"tag {key!r}: give text, or a whole number", field="tags")
            found.append(Tag(key=key, value=str(value)))
    else:
        found = [Tag(key=tag.key, value=tag.value) for tag in tags]
    if len(found) > TAGS_AT_MOST:
        raise FieldInvalid(f"{len(found)} tags: a run has {TAGS_AT_MOST} at most", field="tags")
    for tag in found:
        check_tag(tag.key, tag.value)
    found.sort(key=lambda tag: tag.key)
    for one, other in pairwise(found):
        if one.key == other.key:
            raise FieldInvalid(f"tag {one.key!r} is given twice", field="tags")
    return found


def check_version(version: str) -> str:
    """Return `version` if it may name a version of a workflow.

    Raises:
        FieldInvalid: It does not match `[A-Za-z0-9][A-Za-z0-9._+-]{0,63}`.
    """
    if not _VERSION.fullmatch(version):
        raise FieldInvalid(
            f"version {version[:64]!r}: use 1 to 64 letters, digits and '._+-', beginning with a letter or digit",
            field="version",
        )
    return version


def code_name(workflow: str, version: str) -> str:
    """Return what workers announce the code of a workflow by: "billing", or "billing@2" for one with a version."""
    return f"{workflow}{_MARK}{version}" if version else workflow


def split_name(name: str) -> tuple[str, str]:
    """Return workflow and version ("" for none) of such a name."""
    workflow, _, version = name.rpartition(_MARK)
    return (workflow, version) if workflow else (name, "")
