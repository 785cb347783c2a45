"""Printing: data to stdout, progress to stderr, nothing else anywhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from treadle.cli.plain import dumps

if TYPE_CHECKING:
    from rich.console import Console

    from treadle.cli.options import Output

__all__ = ("console", "emit", "emit_one", "note", "table")

_WIDE = 10_000


def note(text: str) -> None:
    """Tell a person something that is not data."""
    print(text, file=sys.stderr, flush=True)


def emit(values: Iterable[dict[str, Any]], output: Output, draw: Callable[[], None]) -> None:
    """Print many values: as JSON (one array), as JSON lines, or drawn by `draw`."""
    if output == "json":
        print(dumps(list(values), indent=2), flush=True)
    elif output == "jsonl":
        for value in values:
            print(dumps(value), flush=True)
    else:
        draw()


def emit_one(value: dict[str, Any], output: Output, draw: Callable[[], None]) -> None:
    """Print one value: as JSON, on one line for "jsonl", or drawn by `draw`."""
    if output == "table":
        draw()
    else:
        print(dumps(value, indent=2 if output == "json" else None), flush=True)


def console() -> Console:
    """Return rich's console on stdout. It honours NO_COLOR; into a pipe nothing is cut to a width."""
    from rich.console import Console

    narrow = sys.stdout.isatty()
    return Console(width=None if narrow else _WIDE, highlight=False, emoji=False, markup=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; the first column is never cut, and into a pipe go its words alone."""
    from rich import box
    from rich.table import Table

    drawn = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, name in enumerate(columns):
        drawn.add_column(name, no_wrap=index == 0, overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    target = console()
    with target.capture() as captured:
        target.print(drawn)
    for line in captured.get().splitlines():
        print(line.rstrip())
