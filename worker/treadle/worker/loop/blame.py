"""Which failures of steps and children the error of a run was made of: these are tried again when the run is continued.

Errors that code is given carry the command that failed. The error that left the code is followed to them: through what it
was raised from or while handling, members of groups, and failures of a map. Where a saga could not be undone, only the
failures of what undoes count: the rest is to come about as it did, so that undoing goes on.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from treadle.protocol.errors import CompensationFailed, MapFailed

__all__ = ("Blame", "Undone", "blame_of", "mark", "mark_undone")

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
        undoing: A saga could not undo all of it.
        by_itself: Part of it was raised by the code itself.
    """

    because: list[str] = field(default_factory=list)
    too_many: bool = False
    undone: bool = False
    undoing: bool = False
    by_itself: bool = False


@dataclass(slots=True)
class Undone:
    """What sagas undid because they were cancelled; where an error was raised in them, that one tells.

    Attributes:
        any: Something was undone.
        by_run: It was, and the run was to end.
        because: Commands by whose failures they were cancelled.
    """

    any: bool = False
    by_run: bool = False
    because: set[str] = field(default_factory=set)

    def note(self, because: Iterable[str], *, by_run: bool) -> None:
        """A saga that was cancelled begins to undo."""
        self.any, self.by_run = True, self.by_run or by_run
        self.because.update(because)

    def counts(self, blame: Blame) -> bool:
        """Whether they may not be cancelled again when the run is retried that failed for `blame`."""
        again = not (self.by_run or blame.by_itself or blame.too_many or self.because.intersection(blame.because))
        return self.any and not again


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
    blame, stopped = _followed([error])
    if not stopped:
        return blame
    blame, _ = _followed([failure for one in stopped for failure in one.failures])
    return Blame([], too_many=True, undone=True) if blame.too_many else replace(blame, undone=False, undoing=True)


def _followed(errors: list[BaseException]) -> tuple[Blame, list[CompensationFailed]]:
    """Return what errors were made of, and which sagas among them could not be undone."""
    blame, stopped, seen, size = Blame(), list[CompensationFailed](), set(map(id, errors)), 0
    waiting = errors[::-1]
    while waiting:
        one = waiting.pop()
        blame.undone = blame.undone or getattr(one, _UNDONE, False)
        command_id: str = getattr(one, _COMMAND, "")
        if command_id:
            size += len(command_id)
            if len(blame.because) >= _LIMIT or size > _BYTES:
                return Blame([], too_many=True, undone=blame.undone), stopped
            blame.because.append(command_id)
            continue
        if isinstance(one, CompensationFailed):
            stopped.append(one)
        reasons = _reasons(one)
        blame.by_itself = blame.by_itself or not (reasons or isinstance(one, CancelledError))
        for reason in reversed(reasons):
            if id(reason) not in seen:
                seen.add(id(reason))
                waiting.append(reason)
    blame.because = list(dict.fromkeys(blame.because))
    return blame, stopped


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
