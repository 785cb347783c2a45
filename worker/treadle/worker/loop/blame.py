"""Which failures of steps and children the error of a run was made of: these are tried again when the run is continued.

Errors that code is given carry the command that failed. The error that left the code is followed to them: through what it
was raised from or while handling, members of groups, and failures of a map. A saga that could not be undone was stopped by
the steps that undo, not by what it was to be undone for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from treadle.protocol.errors import CompensationFailed, MapFailed

__all__ = ("Blame", "blame_of", "mark", "mark_undone")

_COMMAND: Final = "__treadle_command__"
_UNDONE: Final = "__treadle_undone__"
_LIMIT: Final = 10_000
_BYTES: Final = 256 << 10


@dataclass(slots=True)
class Blame:
    """Why a run failed.

    Attributes:
        because: The commands.
        too_many: There were more than can be named.
        undone: A saga undid what had been done before.
    """

    because: list[str] = field(default_factory=list)
    too_many: bool = False
    undone: bool = False


def mark(error: BaseException, command_id: str) -> None:
    """Note on an error which command failed with it."""
    setattr(error, _COMMAND, command_id)


def mark_undone(error: BaseException) -> None:
    """Note on an error that a saga undid what had been done, because of it."""
    try:
        setattr(error, _UNDONE, True)
    except AttributeError:
        pass  # a class with slots: it cannot be told


def blame_of(error: BaseException) -> Blame:
    """Return what the error that left the code was made of."""
    blame, seen, size = Blame(), {id(error)}, 0
    waiting = [error]
    while waiting:
        one = waiting.pop()
        blame.undone = blame.undone or getattr(one, _UNDONE, False)
        command_id: str = getattr(one, _COMMAND, "")
        if command_id:
            size += len(command_id)
            if len(blame.because) >= _LIMIT or size > _BYTES:
                return Blame([], too_many=True, undone=blame.undone)
            blame.because.append(command_id)
            continue
        for reason in reversed(_reasons(one)):
            if id(reason) not in seen:
                seen.add(id(reason))
                waiting.append(reason)
    blame.because = list(dict.fromkeys(blame.because))
    return blame


def _reasons(error: BaseException) -> list[BaseException]:
    if isinstance(error, CompensationFailed):
        return list(error.failures)
    found: list[BaseException] = []
    if isinstance(error, MapFailed):
        found += error.failures.values()
    if isinstance(error, BaseExceptionGroup):
        found += error.exceptions
    found += [e for e in (error.__cause__, error.__context__) if e is not None]
    return found
