"""Conditions on events: a small port, and CEL behind it.

A condition is text from an app, evaluated in the process that serves everybody, so it is bounded before it is used: its
length, how deep it is nested, and its time by what it may say. It has no loops and no names but `event`; what is left takes
time in proportion to its length and to the event.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, Protocol

from treadle.protocol.errors import FieldInvalid
from treadle.protocol.events import read_data
from treadle.v1.common_pb2 import NamedEvent

__all__ = ("Condition", "compiled", "seen")

_LENGTH: Final = 1_000
_DEPTH: Final = 20
_PLACE: Final = re.compile(r"<input>:(\d+):(\d+): (?:Syntax error: )?([^\n]*)")
_LITERAL: Final = re.compile(r"""r?(?:\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*')""", re.S)
_OPERATOR: Final = re.compile(r"[@_!\-].*|.*_")
_FUNCTIONS: Final = frozenset(
    (
        *("size", "contains", "startsWith", "endsWith", "matches", "has", "type", "dyn"),
        *("int", "uint", "double", "string", "bool", "bytes", "timestamp", "duration"),
        *("getFullYear", "getMonth", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear"),
        *("getHours", "getMinutes", "getSeconds", "getMilliseconds"),
    )
)


class Condition(Protocol):
    """A condition that was understood."""

    def holds(self, event: Mapping[str, Any]) -> bool:
        """Whether it is true of an event (see `seen`). What cannot be said of it (a field is missing) is not true."""
        ...


class _Cel:
    def __init__(self, program: Any) -> None:
        self._program = program

    def holds(self, event: Mapping[str, Any]) -> bool:
        try:
            return self._program.execute({"event": event}) is True
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # a panic of the library is no Exception
            return False


def seen(event: NamedEvent, now_ms: int) -> dict[str, Any]:
    """Return an event that is accepted now as conditions see it."""
    time = datetime.fromtimestamp(now_ms / 1000, UTC)
    return {"id": event.event_id, "name": event.name, "time": time, "data": read_data(event.data)}


@lru_cache(1_000)
def compiled(text: str) -> Condition:
    """Return the condition that `text` is, in CEL; compiled once.

    Raises:
        FieldInvalid: It is none, or too long, too deep, or says what conditions may not say; with line and column.
    """
    if len(text) > _LENGTH:
        raise _wrong(text, _LENGTH, f"it has {len(text):,} characters, the limit is {_LENGTH:,}")
    _check_depth(text)
    try:
        import cel
    except ImportError as error:
        raise FieldInvalid(
            f"when={_short(text)!r}: this server evaluates no conditions",
            field="when",
            remedy="install the extra `cel` on the server: pip install 'treadle[cel]'",
        ) from error
    try:
        program = cel.compile(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        found = _PLACE.search(str(error))
        if found is None:
            raise _wrong(text, 0, str(error).splitlines()[0][:200]) from error
        line, column = int(found[1]), int(found[2])
        raise _wrong_at(text, line, column, found[3][:200]) from error
    _check_names(text, program)
    return _Cel(program)


def _check_depth(text: str) -> None:
    depth = 0
    for place, sign in enumerate(_LITERAL.sub(lambda found: " " * len(found[0]), text)):
        depth += (sign in "([{") - (sign in ")]}")
        if depth > _DEPTH:
            raise _wrong(text, place, f"it is nested over {_DEPTH} deep")


def _check_names(text: str, program: Any) -> None:
    bare = _LITERAL.sub(lambda found: " " * len(found[0]), text)
    for name in sorted(set(program.variables()) - {"event"}):
        found = re.search(rf"(?<![.\w]){re.escape(name)}\b", bare)
        why = f"{name!r} is not known: there is only `event`, with id, name, time and data; and there are no loops"
        raise _wrong(text, found.start() if found else 0, why)
    for name in program.functions():
        if name not in _FUNCTIONS and not _OPERATOR.fullmatch(name):
            found = re.search(rf"\b{re.escape(name)}\b", bare)
            raise _wrong(text, found.start() if found else 0, f"there is no function {name!r} here")


def _wrong(text: str, place: int, why: str) -> FieldInvalid:
    before = text[:place]
    return _wrong_at(text, before.count("\n") + 1, place - (before.rfind("\n") + 1) + 1, why)


def _wrong_at(text: str, line: int, column: int, why: str) -> FieldInvalid:
    return FieldInvalid(
        f"when={_short(text)!r}: line {line}, column {column}: {why}",
        field="when",
        remedy="write a condition in CEL, like event.data.amount > 100 && event.data.country == 'DE'",
    )


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
