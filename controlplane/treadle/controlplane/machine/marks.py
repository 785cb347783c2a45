"""What the code of a run says about itself without waiting: which marked changes it took the new way of, and its tags.

At a marked change the code goes the old way where an owner before had passed that point, which shows by how far it had
been fed. So a head keeps the position up to which earlier owners fed the code, and the names of the changes whose new way
was taken; both come with GO, and the code knows at once, wherever in the history it is.
"""

from __future__ import annotations

from typing import Final

from treadle.protocol.tags import TAG_KEY_LIMIT, TAG_VALUE_LIMIT, TAGS_AT_MOST
from treadle.v1.common_pb2 import Tag
from treadle.v1.history_pb2 import ChangeMarked, TagsSet
from treadle.v1.state_pb2 import RunHead
from treadle.v1.worker_service_pb2 import Command, PassedBefore

from .view import RunView

__all__ = ("before", "mark", "opened", "set_tags")

_MARKS: Final = 100
_NAME: Final = 200


def before(head: RunHead) -> PassedBefore | None:
    """Return what owners before the present one did; None: nothing that counts."""
    if not head.passed and not head.marks:
        return None
    return PassedBefore(until=head.passed, marks=head.marks)


def opened(head: RunHead) -> None:
    """Another owner comes: how far the one before said that it had fed the code is kept."""
    head.passed = max(head.passed, head.seen)


def mark(view: RunView, command: Command) -> None:
    """The code takes the new way of a change: once in a run."""
    marks, name = view.head.marks, command.mark_change.name
    if name in marks or len(marks) >= _MARKS or len(name) > _NAME:
        return
    marks.append(name)
    view.event(change_marked=ChangeMarked(command_id=command.command_id, name=name))


def _allowed(tag: Tag) -> bool:
    return 0 < len(tag.key) <= TAG_KEY_LIMIT and len(tag.value) <= TAG_VALUE_LIMIT


def set_tags(view: RunView, command: Command) -> None:
    """The code changes its tags. What is not allowed is left out: the worker has refused it before."""
    head = view.head
    tags = {tag.key: tag.value for tag in head.tags}
    for tag in command.set_tags.tags:
        if not tag.value:
            tags.pop(tag.key, None)
        elif _allowed(tag) and (tag.key in tags or len(tags) < TAGS_AT_MOST):
            tags[tag.key] = tag.value
    view.moves = True
    del head.tags[:]
    head.tags.extend(Tag(key=key, value=tags[key]) for key in sorted(tags))
    view.event(tags_set=TagsSet(command_id=command.command_id, digest=command.digest, tags=command.set_tags.tags))
